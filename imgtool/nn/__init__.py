"""Blocks and measures that at least two families share."""
