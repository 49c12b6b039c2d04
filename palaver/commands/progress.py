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


@contextmanager
def share_done(label: str) -> Iterator[Callable[[float, str], object]]:
    """A function that shows how much is done, from 0 to 1, and words; as `progress`."""
    if not sys.stderr.isatty():
        yield lambda _share, _words: None
        return
    steps = 1_000
    with click.progressbar(
        length=steps, label=label, file=sys.stderr, show_eta=False, item_show_func=lambda words: words or ""
    ) as bar:
        shown = ("", 0)

        def show(share: float, words: str) -> None:
            nonlocal shown
            now = (words, min(steps, max(shown[1], int(share * steps))))
            if now != shown:
                bar.update(now[1] - shown[1], words)
                if now[1] == shown[1]:  # which the bar would not draw
                    bar.render_progress()
                shown = now

        yield show
