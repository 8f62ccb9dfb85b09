"""Collating samples into padded batches: length rules, samplers, loader."""
