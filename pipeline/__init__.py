"""Tars on disk become many random views on the device. Nothing else imports nvidia.dali."""
