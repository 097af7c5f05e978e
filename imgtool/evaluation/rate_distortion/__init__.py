"""Rate and distortion of codecs on folders of images: points, curves, and distances of curves."""
