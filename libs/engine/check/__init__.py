"""Checking a dataset before training: coverage, report, a suggested configuration."""
