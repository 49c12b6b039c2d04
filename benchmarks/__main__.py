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
from pathlib import Path

from benchmarks import showing
from benchmarks.parts import NAMES, PARTS, Entry
from benchmarks.peers import environment
from benchmarks.plot import NoMatplotlib, plot
from benchmarks.report import Part, Report


def measure(entries: list[Entry], quick: bool) -> Report:
    """Run the parts."""
    machine = showing.machine()
    parts: list[Part] = []
    failed: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        head = f"[{number:2}/{len(entries)}] {entry.name:<10}"
        command = [sys.executable, "-m", "benchmarks.child", entry.name, "--head", head]
        began, busy = time.monotonic(), _children_s()
        child = subprocess.run(
            command + (["--quick"] if quick else []), stdout=subprocess.PIPE, text=True, check=False
        )
        busy_s = _children_s() - busy
        took = f"{head} {time.monotonic() - began:4.0f} s ({busy_s:.0f} s of processor time)"
        if child.returncode:
            failed[entry.name] = f"its process ended with {child.returncode}"
            print(f"{took}  FAILED: {failed[entry.name]}", file=sys.stderr)
            continue
        parts.append(Part.from_json(json.loads(child.stdout.splitlines()[-1])))
        missed = sum(not goal.reached for goal in parts[-1].goals)
        print(f"{took}  {len(parts[-1].goals) - missed} goals reached, {missed} missed", file=sys.stderr)
    return Report(machine, quick, parts, failed)


def _children_s() -> float:
    """Processor time of all processes that have been started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
        "--from", dest="saved", metavar="FILE.json", help="measure nothing: show what --json gave before"
    )
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.peers:
        os.environ[environment.VARIABLE] = given.peers
    if given.saved:
        report = Report.from_json(json.loads(Path(given.saved).read_text()))
    else:
        report = measure([entry for entry in PARTS if entry.name in (given.only or NAMES)], given.quick)
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
