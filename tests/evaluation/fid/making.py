"""What tests of FID share with those of families that are measured by it."""

SMALLEST_SIDE = 75  # pixels: Inception takes no less, and a tenth of the time of 299
