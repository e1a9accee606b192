"""The generated data set: labelled pictures that are drawn on the spot."""
