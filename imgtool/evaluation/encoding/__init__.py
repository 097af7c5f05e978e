"""A data set as latents: which images, which frame of each, and the work itself."""
