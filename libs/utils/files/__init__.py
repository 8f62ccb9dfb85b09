"""Files: atomic writing, JSON and CSV, checksums, untrusted pickles and archives, staging."""
