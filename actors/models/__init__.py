"""Models: the port, and what Palaver brings for it."""
