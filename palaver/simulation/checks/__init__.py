"""What a simulated run is checked by: what callers were told, what was seen, what the file holds."""
