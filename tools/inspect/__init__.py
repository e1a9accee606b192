"""Show what is in a shard set or subset."""
