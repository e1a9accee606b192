"""Subsets of a shard set, which copy no image."""
