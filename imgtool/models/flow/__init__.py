"""Flow matching on latents: what can be generated from a latent."""
