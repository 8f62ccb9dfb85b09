"""Temporal action localization: ActionFormer and its distilled students."""
