"""From photos to explanations: prepared ahead, grouped, run in batches, finished; errors and progress."""
