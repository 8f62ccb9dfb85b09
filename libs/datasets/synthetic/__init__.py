"""Generated data sets: the demo and planted features."""
