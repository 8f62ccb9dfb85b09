"""Blocks of the backbones."""
