"""Configuration, errors and reading of files; imports no other package of libs."""
