"""Soft-NMS, NMS and voting: API, compiled libraries and their fallback."""
