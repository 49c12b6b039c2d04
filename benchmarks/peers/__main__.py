"""`python -m benchmarks.peers setup [FOLDER]`: make the environment that the peers are measured in.

Without FOLDER it is .peers. `python -m benchmarks --peers FOLDER` measures in another one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.peers.environment import folder, installed, make


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("command", choices=("setup", "show"), help="make it, or show what is there")
    parser.add_argument("folder", nargs="?", type=Path, default=folder())
    given = parser.parse_args()
    found = make(given.folder) if given.command == "setup" else installed(given.folder)
    for peer, there in found.items():
        print(f"{peer}: {'installed' if there else 'NOT installed'}")
    sys.exit(0 if any(found.values()) else 1)


if __name__ == "__main__":
    main()
