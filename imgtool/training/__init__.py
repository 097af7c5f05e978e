"""The engine: the loop, checkpoints, devices, stopping, loggers."""
