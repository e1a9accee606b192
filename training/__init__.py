"""Configuration, the step, and what is said of it; `training.run` keeps a run alive."""
