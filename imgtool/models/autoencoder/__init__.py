"""Latent autoencoders: deterministic, variational and vector-quantised."""
