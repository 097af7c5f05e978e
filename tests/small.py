"""Sizes that are small enough for trainings of which a test makes many."""

# Of GeneGAN's three sizes, which --tiny makes 32, 64 and 96: an eighth of the arithmetic.
SMALL_FACES = ("data.image_sizes=[16,24,32]", "data.image_size=32")
