"""The engine of imgtool: importable, prints nothing, knows no command line."""

__version__ = "0.3.0"
