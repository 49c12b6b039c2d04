"""Data that ships with Palaver."""
