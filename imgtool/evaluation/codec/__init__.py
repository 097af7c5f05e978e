"""HPCM as a codec: exported models, the container of streams, entropy coding."""

METADATA_KEY = "imgtool-codec"  # of an exported model, in its file's header
