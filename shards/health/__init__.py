"""Is a shard set what was written? Verified, watched while training, repaired."""
