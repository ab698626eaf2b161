"""What needs NumPy alone: conventions, masks, targets, budgets, and what an explanation states."""
