"""Teachers and the cache of their outputs."""
