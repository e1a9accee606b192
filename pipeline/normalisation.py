"""The channel statistics that every encoder of this project is trained and evaluated with.

They are ImageNet's for all shard sets, so that an encoder can be evaluated on other shards than
those that it was trained on.
"""

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
"""Of red, green and blue, in 0..255."""
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Of red, green and blue, in 0..255."""
