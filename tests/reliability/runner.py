"""Runs checks in parts, each part in a process of its own, two at a time, and says how far it is."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest import SkipTest

import click
import gevent
from attrs import define, field, frozen
from gevent.pool import Pool

from reliability.check import Check, all_checks

ROOT = Path(__file__).resolve().parents[2]
RAM_DISK = Path("/dev/shm")


@frozen
class Part:
    """So many of one check, from one seed."""

    check: Check
    count: int
    seed: int


@define
class Done:
    """What came of a check so far."""

    wanted: int
    done: int = 0
    seconds: float = 0.0
    seeds: list[int] = field(factory=list)
    failures: list[str] = field(factory=list)
    skipped: str = ""


@click.command()
@click.option("--only", metavar="NAMES", help="Checks, by name, with commas in between.")
@click.option("--seed", default=1, show_default=True, help="The first part's seed; each part has the next.")
@click.option("--quick", is_flag=True, help="The counts of the test command.")
@click.option("--scale", default=1.0, show_default=True, help="So many times the counts.")
@click.option("-j", "jobs", default=2, show_default=True, help="Processes side by side.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table into this file.")
@click.option("--part", type=(str, int, int), metavar="NAME COUNT SEED", help="One part, in this process.")
@click.option("--keep", is_flag=True, help="Leave the files of a part that fails.")
def main(
    only: str | None,
    seed: int,
    quick: bool,
    scale: float,
    jobs: int,
    markdown: Path | None,
    part: tuple[str, int, int] | None,
    keep: bool,
) -> None:
    """Show the guarantees at length."""
    checks = {check.name: check for check in all_checks()}
    names = [part[0]] if part else only.split(",") if only else list(checks)
    unknown = [name for name in names if name not in checks]
    if unknown:
        raise click.ClickException(f"no check is called {unknown[0]!r}; there are {', '.join(checks)}")
    if part is not None:
        _run_here(Part(checks[part[0]], part[1], part[2]), keep)
        return
    chosen = [checks[name] for name in names]
    results = _run_all(chosen, seed, quick, scale, jobs)
    lines = _table(chosen, results)
    click.echo("\n".join(lines))
    if markdown is not None:
        markdown.write_text("\n".join([_machine(), "", *lines, ""]))
    failures = [failure for done in results.values() for failure in done.failures]
    for failure in failures:
        click.echo(failure, err=True)
    sys.exit(1 if failures else 0)


def _run_here(part: Part, keep: bool) -> None:
    """One part, in this process; the last line of its output is what it did."""
    folder = Path(tempfile.mkdtemp(prefix="palaver-", dir=RAM_DISK if RAM_DISK.is_dir() else None))
    try:
        report: dict[str, int | str] = {"done": part.check.run(part.count, part.seed, folder)}
    except SkipTest as skipped:
        report = {"done": 0, "skipped": str(skipped)}
    except BaseException:
        if keep:
            click.echo(f"its files are left in {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    click.echo(json.dumps(report))


def _run_all(checks: Sequence[Check], seed: int, quick: bool, scale: float, jobs: int) -> dict[str, Done]:
    """Run every part; a line of each as it ends, and what a part that failed has said, at once."""
    wanted = {c.name: max(1, round((c.quick if quick else c.long) * scale)) for c in checks}
    results = {name: Done(count) for name, count in wanted.items()}
    parts = [part for check in checks for part in _parts(check, wanted[check.name], seed)]
    pool = Pool(jobs)
    began = time.monotonic()
    for number, (part, failure) in enumerate(
        pool.imap_unordered(lambda each: _run_part(each, results), parts), start=1
    ):
        spent = time.monotonic() - began
        done = results[part.check.name]
        state = "FAILED" if failure else f"skipped: {done.skipped}" if done.skipped else "ok"
        click.echo(
            f"{spent:6.0f} s  {number:4}/{len(parts)}  {part.check.name:<18} "
            f"{done.done:>9,} of {done.wanted:>9,} {part.check.unit}  {state}",
            err=True,
        )
        if failure:
            click.echo(failure, err=True)
    gevent.idle()
    return results


def _parts(check: Check, wanted: int, seed: int) -> Iterator[Part]:
    number = 0
    while wanted > 0:
        count = min(wanted, check.share)
        yield Part(check, count, seed + number)
        wanted -= count
        number += 1


def _run_part(part: Part, results: dict[str, Done]) -> tuple[Part, str | None]:
    """Run a part in a process of its own. What it said, if it failed."""
    done = results[part.check.name]
    began = time.monotonic()
    what = ["--part", part.check.name, str(part.count), str(part.seed)]
    command = [sys.executable, str(Path(__file__).parent), "--keep", *what]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    done.seconds += time.monotonic() - began
    done.seeds.append(part.seed)
    if ran.returncode == 0:
        report = json.loads(ran.stdout.splitlines()[-1])
        done.done += report["done"]
        done.skipped = report.get("skipped", "")
        return part, None
    again = f"python tests/reliability {' '.join(what)}"
    failure = f"{part.check.name} failed; see it again with: {again}\n{ran.stderr[-4_000:]}"
    done.failures.append(failure)
    return part, failure


def _table(checks: Sequence[Check], results: dict[str, Done]) -> list[str]:
    lines = [
        "| G | check | done | seeds | seconds of one core | violations |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for check in checks:
        done = results[check.name]
        seeds = f"{min(done.seeds)} to {max(done.seeds)}"
        numbers = ", ".join(map(str, check.guarantees))
        lines.append(
            f"| {numbers} | {check.name} | {done.done:,} {check.unit} | {seeds} | {done.seconds:,.0f} "
            f"| {done.skipped or len(done.failures)} |"
        )
    return lines


def _machine() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.strip()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )
