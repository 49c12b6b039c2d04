"""A part of the benchmark in a process of its own: no part sees what another has left in memory.

`python -m benchmarks.child PART [--quick] [--head WORDS]` shows its progress on standard error and writes the
part as JSON, in one line, on standard output.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from typing import Protocol

from attrs import evolve

from benchmarks.parts import PARTS
from benchmarks.report import Part, Tell


class Module(Protocol):
    """What every part has: what it finds, measured now."""

    def run(self, quick: bool, tell: Tell) -> Part: ...


class Progress:
    """One line of progress: rewritten in place on a terminal; elsewhere a new one, now and then."""

    EVERY_S = 10.0

    def __init__(self, head: str) -> None:
        self._head = head
        self._began = time.monotonic()
        self._shown = float("-inf")
        self._terminal = sys.stderr.isatty()

    def tell(self, words: str) -> None:
        now = time.monotonic()
        line = f"{self._head} {now - self._began:4.0f} s  {words}"
        if self._terminal:
            print(f"\r\x1b[K{line[:100]}", end="", file=sys.stderr, flush=True)
        elif now - self._shown >= self.EVERY_S:
            self._shown = now
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    modules = {entry.name: entry.module for entry in PARTS}
    parser.add_argument("part", choices=modules)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--head", default="")
    arguments = parser.parse_args()
    module: Module = importlib.import_module(modules[arguments.part])
    progress = Progress(arguments.head or arguments.part)
    began = time.monotonic()
    try:
        part = module.run(arguments.quick, progress.tell)
    finally:
        progress.end()
    print(json.dumps(evolve(part, seconds=time.monotonic() - began).as_json()), flush=True)
    os._exit(0)  # what a part leaves behind is not worth the time to take it down


if __name__ == "__main__":
    main()
