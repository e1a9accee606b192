"""`python -m tools.embed`: features of images as a file."""
