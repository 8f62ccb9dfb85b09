"""Annotations of other tools to this project's layout."""
