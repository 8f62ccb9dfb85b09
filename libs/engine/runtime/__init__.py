"""The process and its surroundings: distributed processes, precision, determinism, stop signals, the machine."""
