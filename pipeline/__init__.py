"""Tars on disk become many random views on the device. No other part imports nvidia.dali."""
