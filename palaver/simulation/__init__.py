"""The real runtime on virtual time."""
