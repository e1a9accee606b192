"""From a data set to a shard set: images are prepared, shuffled, packed and summed up."""
