"""`python tests/planted/simulated.py`: how many seeds simulated workloads take to find each planted bug.

Each bug is planted in a copy of the code, in which `reliability.workloads` lives one seed after the other.
The share of seeds that show it gives the median: after so many, half of all who look have found it.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import ceil, log
from pathlib import Path

import click
from attrs import evolve, frozen

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted.bugs import Bug
from planted.runner import Garden, garden
from planted.table import chosen


def median_seeds(found: int, seeds: int) -> int:
    """After how many seeds half of all searches have ended, where so many of `seeds` show it: the median of
    the geometric distribution."""
    return 1 if found == seeds else ceil(log(0.5) / log(1 - found / seeds))


@frozen
class Hunted:
    """What simulation made of a bug: how many seeds showed it, of how many, and what broke."""

    bug: Bug
    found: int
    seeds: int
    guarantees: list[int]
    seconds: float

    @property
    def row(self) -> str:
        """A line of the table."""
        seen = ", ".join(map(str, self.guarantees)) or "-"
        middle = median_seeds(self.found, self.seeds) if self.found else "not found"
        shown = f"{self.found} of {self.seeds}"
        return f"| {self.bug.number} | {self.bug.what} | {seen} | {middle} | {shown} |"


HEAD = (
    "| # | planted bug | G seen | seeds, median | seeds that show it |",
    "| --: | --- | --- | --: | --: |",
)


@click.command()
@click.argument("numbers", nargs=-1, type=int)
@click.option("--seeds", default=100, show_default=True, help="To live, at most, for each bug.")
@click.option("--found", default=9, show_default=True, help="Enough seeds that show it.")
@click.option("--seconds", default=120.0, show_default=True, help="For each bug, at most.")
@click.option("-j", "jobs", default=2, show_default=True, help="Bugs side by side.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table into this file, too.")
def main(
    numbers: tuple[int, ...], seeds: int, found: int, seconds: float, jobs: int, markdown: Path | None
) -> None:
    """Find planted bugs by simulation alone: all, or those with these NUMBERS."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the copies are taken away
    bugs = [evolve(bug, limit_s=seconds) for bug in chosen(numbers, quick=False)]
    with garden() as made, ThreadPoolExecutor(jobs) as pool:
        hunted = list(pool.map(lambda bug: _hunt(made, bug, seeds, found), bugs))
    lines = [*HEAD, *(each.row for each in sorted(hunted, key=lambda each: each.bug.number) if each.found)]
    click.echo("\n".join(lines))
    missed = [str(each.bug.number) for each in hunted if not each.found]
    click.echo(
        f"{len(hunted) - len(missed)} of {len(hunted)} found; not found: {', '.join(missed) or 'none'}"
    )
    if markdown is not None:
        markdown.write_text("\n".join([*lines, ""]))


def _hunt(made: Garden, bug: Bug, seeds: int, enough: int) -> Hunted:
    began = time.monotonic()
    lived = made.hunt(bug, seeds, enough)
    broken = Counter(guarantee for _, guarantee, _ in lived if guarantee)
    seen = [guarantee for guarantee, _ in broken.most_common()]
    hunted = Hunted(bug, broken.total(), len(lived), seen, time.monotonic() - began)
    click.echo(f"{hunted.seconds:5.0f} s  {hunted.row}", err=True)
    for words in dict.fromkeys(words for _, guarantee, words in lived if guarantee):
        click.echo(f"         {words[:150]}", err=True)
        break
    return hunted


if __name__ == "__main__":
    main()
