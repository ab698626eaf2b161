"""A model file and its contract; reading pictures and preparing them for the model."""
