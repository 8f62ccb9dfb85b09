"""Files: atomic writing, checkpoints, untrusted pickles, checksums, archives, staging."""
