"""Measure everything side by side: `python -m benchmarks`.

Every part runs in a process of its own, one after the other, and measures ours and what it is compared with
in turns, so that what the machine does besides falls on all alike. The exit status is 1 if a part came to no
end; goals that are missed are shown, and are no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import showing
from benchmarks.parts import NAMES, PARTS, Entry
from benchmarks.peers import environment
from benchmarks.plot import NoMatplotlib, plot
from benchmarks.report import Part, Report


def measure(entries: Sequence[Entry], quick: bool, save: Path | None, kept: Sequence[Part] = ()) -> Report:
    """Run the parts.

    Args:
        save: what there is so far is written into this file after each part.
        kept: parts of an earlier run, which those of the same name replace.
    """
    machine = showing.machine()
    parts = {part.name: part for part in kept}
    failed: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        head = f"[{number:2}/{len(entries)}] {entry.name:<10}"
        began, busy = time.monotonic(), _children_s()
        part = run_part(entry.name, head, quick)
        took = f"{head} {time.monotonic() - began:4.0f} s ({_children_s() - busy:.0f} s of processor time)"
        if isinstance(part, int):
            failed[entry.name] = f"its process ended with {part}"
            print(f"{took}  FAILED: {failed[entry.name]}", file=sys.stderr)
        else:
            parts[entry.name] = part
            missed = sum(not goal.reached for goal in part.goals)
            print(f"{took}  {len(part.goals) - missed} goals reached, {missed} missed", file=sys.stderr)
        report = Report(machine, quick, [parts[name] for name in NAMES if name in parts], failed)
        if save is not None:
            save.write_text(json.dumps(report.as_json(), indent=1))
    return report


def run_part(name: str, head: str, quick: bool) -> Part | int:
    """One part, in a process of its own; the status of a process that failed."""
    command = [sys.executable, "-m", "benchmarks.child", name, "--head", head]
    if quick:
        command.append("--quick")
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return child.returncode or Part.from_json(json.loads(child.stdout.splitlines()[-1]))


def _children_s() -> float:
    """Processor time of all processes that have been started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(path: Path) -> Report:
    """A report that was saved; ends the program where there is none."""
    try:
        return Report.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{path} holds no report of this benchmark ({error}); --save or --json makes one")


def write_markdown(report: Report, path: Path, image: str | None) -> None:
    """Put the figures into the document `path`, between its marks, or into a new one."""
    shown = None
    if image is not None:
        at = Path(image).resolve()
        shown = at.name if at.parent == path.resolve().parent else image
    document = path.read_text() if path.exists() else None
    path.write_text(showing.put_into(document, showing.markdown(report, shown)))


def arguments() -> argparse.Namespace:
    minutes = {name: sum(getattr(entry, name) for entry in PARTS) / 60 for name in ("full_s", "quick_s")}
    times = "\n".join(f"  {entry.name:<10} {entry.full_s:4} s {entry.quick_s:4} s" for entry in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"parts, and about how long they take in full and with --quick:\n{times}\n"
        f"  all        {minutes['full_s']:.0f} and {minutes['quick_s']:.1f} minutes",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds; under 2 minutes")
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="PART", help="this part; may be given again"
    )
    parser.add_argument(
        "--peers", metavar="FOLDER", help="where `python -m benchmarks.peers setup FOLDER` has put them"
    )
    parser.add_argument("--json", action="store_true", help="the whole report for a program")
    parser.add_argument("--plot", metavar="FILE.png", help="all curves as an image; needs matplotlib")
    parser.add_argument(
        "--markdown", metavar="FILE.md", help="put the figures into a document, between its marks"
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE.json",
        help="write the report here, after each part what there is;\n"
        "with --only, the other parts that are there are kept",
    )
    parser.add_argument(
        "--from", dest="saved", metavar="FILE.json", help="measure nothing: show what was saved before"
    )
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.peers:
        os.environ[environment.VARIABLE] = given.peers
    if given.saved:
        report = read(Path(given.saved))
    else:
        entries = [entry for entry in PARTS if entry.name in (given.only or NAMES)]
        kept = read(given.save).parts if given.only and given.save and given.save.exists() else ()
        report = measure(entries, given.quick, given.save, kept)
    print(json.dumps(report.as_json(), indent=1) if given.json else showing.text(report))
    image = given.plot
    if image:
        try:
            plot(report, image)
        except NoMatplotlib as missing:
            image = None
            print(missing, file=sys.stderr)
    if given.markdown:
        try:
            write_markdown(report, Path(given.markdown), image)
        except ValueError as error:
            sys.exit(f"{given.markdown}: {error}")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
