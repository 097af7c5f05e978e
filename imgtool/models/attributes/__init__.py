"""A classifier of faces by their attributes, several of which may hold at once."""
