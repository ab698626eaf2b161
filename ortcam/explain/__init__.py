"""Explain photos: prepare them ahead, run them in groups, finish the maps; errors and progress."""
