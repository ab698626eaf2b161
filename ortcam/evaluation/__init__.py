"""Evaluate maps: what the model keeps of what they mark, where they lie, and whether they depend on the weights."""
