"""What Palaver stores, in one SQLite file. Imports nothing from `actors` or `palaver`."""
