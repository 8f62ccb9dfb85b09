"""Checking a data set before training: coverage, report, a suggested configuration."""
