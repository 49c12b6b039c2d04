"""The actor system and the life of a turn. Imports from `persistence`, never from `palaver`."""
