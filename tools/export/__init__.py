"""Write a trained encoder for other programs, and check there what they make of it."""
