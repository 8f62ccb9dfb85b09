"""Relations between configuration keys, by section (see libs/core/checks.py)."""
