"""TOML files that people write: what is wrong with one is told with its line, key, and what would fit."""
