"""Find the settings of the pipeline that run best on this machine."""
