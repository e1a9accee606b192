"""`python -m tools.evaluate`: what an encoder is worth."""
