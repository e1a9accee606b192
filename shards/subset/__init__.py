"""Subsets of a shard set: selected samples, no copied images."""
