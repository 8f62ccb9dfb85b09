"""How sure a number is: resampled videos, comparison of two methods."""
