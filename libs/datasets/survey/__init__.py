"""Reading a whole data set and collecting what is wrong with it."""
