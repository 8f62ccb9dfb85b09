"""Configuration and errors: the ground floor, imports nothing of the other rooms."""
