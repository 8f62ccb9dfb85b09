"""How sure a number is: bootstrap over videos, comparison of two methods."""
