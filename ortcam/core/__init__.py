"""Data and computations that need only NumPy: conventions, methods, masks, targets, budgets, provenance."""
