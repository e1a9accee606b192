"""Train recipes under one budget, and say who learned what at which cost."""
