"""`python -m palaver` is the `palaver` command."""

from __future__ import annotations

from palaver.cli import main

if __name__ == "__main__":
    main()
