"""Procedural images, for tests and demos without real ones: floor plans and photo-like textures."""
