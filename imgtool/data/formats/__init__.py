"""Readers of picture files, a file a format; `imgtool.data.images` chooses by the first bytes."""
