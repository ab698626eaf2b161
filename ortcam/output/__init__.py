"""Draw and save explanations, and write their records."""
