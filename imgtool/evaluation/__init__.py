"""Measuring checkpoints after training."""
