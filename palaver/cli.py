"""The launcher of the `palaver` command: gevent patches the process first, everything else comes after."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line, and exit with its status."""
    try:
        from gevent import monkey

        monkey.patch_all()
        from palaver.commands import palaver

        _print_anything()
        palaver()
    except KeyboardInterrupt:  # between the commands' own handling of it: while importing, while exiting
        sys.exit(130)


def _print_anything() -> None:
    """Where the terminal's encoding lacks a character, its escape is printed in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
