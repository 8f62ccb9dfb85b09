"""Training and inference loops, checkpoints, run folders."""
