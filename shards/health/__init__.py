"""Whether a shard set has the bytes that were written: verify it, watch it, repair it."""
