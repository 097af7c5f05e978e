"""Checkpoints in the formats of others: which there are, and one module for each."""
