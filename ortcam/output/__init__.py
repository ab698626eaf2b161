"""What becomes of an explanation: drawing, saving, the record."""
