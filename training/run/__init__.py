"""A run's folder, and whatever may end the run: nothing that was saved is lost."""
