"""Generated datasets: the demo and planted features."""
