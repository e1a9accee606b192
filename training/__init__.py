"""What keeps a run alive: configuration, optimizer, schedule, checkpoints, monitor."""
