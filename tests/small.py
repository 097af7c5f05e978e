"""Sizes that are small enough for trainings of which a test makes many."""

# Of GeneGAN's three sizes, which --tiny makes 32, 64 and 96, and of its blocks, which are 4: a
# quarter of the arithmetic, and as many sizes and blocks.
SMALL_FACES = (
    *("data.image_sizes=[16,32,48]", "data.image_size=48"),
    *("model.obj_block_size=2", "model.bg_block_size=2"),
)
