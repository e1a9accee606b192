"""Bytes on disk: what a shard set is, how it is written, checked and opened."""
