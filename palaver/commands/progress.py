"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

STEPS = 200


@contextmanager
def progress(label: str, length: int) -> Iterator[Callable[[], object]]:
    """A function that moves the bar one step, of `length`; it does nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(
        length=length, label=label, file=sys.stderr, show_pos=True, update_min_steps=max(1, length // STEPS)
    ) as bar:
        yield lambda: bar.update(1)
