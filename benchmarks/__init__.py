"""Measurements beside peers, and the results they gave."""
