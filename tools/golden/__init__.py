"""Checks of golden fixtures, one module per kind of fixture; `tools/check_golden.py` runs them."""
