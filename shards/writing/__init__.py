"""From a data set to a shard set: prepared, shuffled, packed, and complete or not there."""
