"""HPCM as a codec: exported models, the container of streams, entropy coding."""
