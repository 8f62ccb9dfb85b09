"""This process: several of them together, precision, determinism, stop signals, the machine."""
