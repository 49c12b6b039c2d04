"""Bugs to be planted in the project's own code, each with the tests and checks that must notice it."""
