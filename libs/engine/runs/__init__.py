"""What a run leaves on disk: checkpoints, the run's folder, its environment, its lock."""
