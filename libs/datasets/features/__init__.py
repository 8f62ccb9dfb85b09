"""From feature files to arrays: formats, store, streams, cache, packing, provenance."""
