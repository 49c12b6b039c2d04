"""Guarantee 21: a host that works for long takes no more of its machine than after a fifth of the time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from reliability.check import Check

ROOT = Path(__file__).resolve().parents[2]


def run(count: int, seed: int, folder: Path) -> int:
    """So many turns, in a process of their own: what the tests hold in memory is none of theirs."""
    command = [sys.executable, "-m", "benchmarks.soak", "--json", "--turns", str(count), "--seed", str(seed)]
    ran = subprocess.run(
        [*command, "--folder", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.stdout, ran.stderr
    soaked = json.loads(ran.stdout)
    found = "; ".join(soaked["violations"])
    again = f"python -m benchmarks.soak --turns {count} --seed {seed}"
    assert not found, f"{soaked['looks']}\n{found}; see it again with: {again}"
    return int(soaked["looks"][-1]["turns"])


CHECKS = (Check("soak", (21,), "turns", quick=10_000, long=500_000, run=run, chunk=500_000),)
