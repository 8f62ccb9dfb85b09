"""The training loop, its step, objectives, optimizer, schedule and averaged weights."""
