"""What tests of FID share with those of families that are measured by it."""

from imgtool.evaluation.fid.dinov2 import Shape

SMALLEST_SIDE = 75  # pixels: Inception takes no less, and a tenth of the time of 299
SMALL_SHAPE = Shape(width=32, depth=2, heads=4)  # of DINOv2
