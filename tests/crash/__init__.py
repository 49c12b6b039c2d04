"""Hosts that are killed, and files as a power loss leaves them."""
