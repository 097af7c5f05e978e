"""Running the experiments of a phase or a grid, here or on an LSF cluster. Torch-free."""
