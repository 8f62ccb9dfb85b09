"""Checks of a whole dataset that collect every problem."""
