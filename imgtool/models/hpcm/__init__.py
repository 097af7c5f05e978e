"""HPCM, a learned image codec with a hierarchical progressive context model."""
