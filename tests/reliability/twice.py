"""The same code in two fresh processes at once, with different hash seeds: what each of them says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def told_twice(code: str, folder: Path, *arguments: object) -> tuple[list[str], list[str]]:
    """The lines that `code` prints in each. Its arguments are these, and behind them an empty folder of its
    own in `folder`."""
    children = []
    for hash_seed in ("1", "2"):
        own = folder / hash_seed
        own.mkdir()
        paths = os.pathsep.join((str(TESTS), str(TESTS.parent)))
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
        command = [sys.executable, "-c", code, *map(str, arguments), str(own)]
        children.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    first, second = (child.communicate()[0].splitlines() for child in children)
    return first, second
