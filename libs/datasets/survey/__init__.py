"""Reading a whole dataset and collecting what is wrong with it."""
