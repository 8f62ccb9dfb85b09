"""From annotation and feature files to batches; knows nothing of models."""
