"""The model families, and the seam between them and the engine (`base`)."""
