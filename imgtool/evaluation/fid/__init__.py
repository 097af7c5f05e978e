"""Fréchet Inception distance: features, statistics, distances, and what they are taken of."""
