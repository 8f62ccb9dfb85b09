"""Relations between configuration keys, by section; `checks` runs them all."""
