"""The guarantees, each shown by a check that runs small in the test command and long on its own."""
