"""A report as text for a terminal, and as Markdown for the documents."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

from attrs import evolve

from benchmarks.report import Curve, Goal, Part, Report, Row, number, ratio

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
VERDICTS = {True: "reached", False: "MISSED"}

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def setting(*distributions: str) -> str:
    """What was measured on: Python and the versions of the given distributions."""
    versions = ", ".join(f"{name} {version(name)}" for name in distributions)
    return f"Python {platform.python_version()}, {versions}"


def machine() -> str:
    """The machine, and how busy it was when this was asked."""
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    words = f"{platform.system()} {platform.machine()}, {cores} cores, load {busy:.1f} at the start"
    return words + (" (not idle: compare ratios only)" if busy > 0.5 * cores else "")


# -- tables ----------------------------------------------------------------------------------------------


def rows_table(rows: Sequence[Row]) -> Table:
    """One line a measure; behind the systems, ours over each of the others."""
    systems = list(dict.fromkeys(name for row in rows for name in row.systems))
    others = [name for name in systems if name != "ours"] if "ours" in systems else []
    body = []
    for row in rows:
        ours = row.systems.get("ours")
        cells = [str(row.systems[name]) if name in row.systems else "" for name in systems]
        for name in others:
            theirs = row.systems.get(name)
            cells.append("" if ours is None or theirs is None else number(ratio(ours, theirs)))
        body.append([row.what, *cells])
    return ["", *systems, *(f"ours/{name}" for name in others)], body


def curve_table(curve: Curve) -> Table:
    """One line a size, and under them the largest over the smallest."""
    names = list(curve.lines)
    body = []
    for size in curve.sizes:
        cells = [str(curve.lines[name][size]) if size in curve.lines[name] else "" for name in names]
        body.append([f"{size:,.0f}", *cells])
    body.append(["last / first", *(number(curve.growth(name)) for name in names)])
    return [f"{curve.what}, against {curve.against}", *names], body


def goals_table(goals: Sequence[Goal]) -> Table:
    """One line a goal."""
    body = [[goal.what, number(goal.value), goal.words, VERDICTS[goal.reached]] for goal in goals]
    return ["to reach", "ours", "bound", ""], body


def aligned(table: Table) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    header, rows = table
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def text(line: list[str]) -> str:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([text(lines[0]), "  ".join("-" * width for width in widths), *map(text, lines[1:])])


def piped(table: Table) -> str:
    """A Markdown table."""
    header, rows = table
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(part: Part) -> list[Table]:
    """All that a part has found, its goals last."""
    found = [rows_table(part.rows)] if part.rows else []
    found += [curve_table(curve) for curve in part.curves]
    return found + ([goals_table(part.goals)] if part.goals else [])


# -- whole reports ---------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """For a terminal: every part, and at the end all goals."""
    blocks = [f"{report.machine}\nmedians of rounds in turns, ± half the range"]
    for part in report.parts:
        blocks.append(f"== {part.name} ({part.seconds:.0f} s; {part.setting})\n\n{part.about}")
        blocks += [aligned(table) for table in tables(part)]
        blocks += [f"({note})" for note in part.notes]
    blocks += [f"!! {name} came to no end: {why}" for name, why in report.failed.items()]
    goals = [goal for part in report.parts for goal in part.goals]
    reached = sum(goal.reached for goal in goals)
    blocks.append(f"{reached} of {len(goals)} goals reached")
    blocks += [
        f"MISSED: {part.name}: {goal.what}: {number(goal.value)}, bound {goal.words}"
        for part in report.parts
        for goal in part.goals
        if not goal.reached
    ]
    return "\n\n".join(blocks)


def markdown(report: Report, plot: str | None = None) -> str:
    """The figures for a document: goals first, then each part."""
    goals = [goal for part in report.parts for goal in part.goals]
    header, _ = goals_table(goals)
    rows = [[part.name, *row] for part in report.parts for row in goals_table(part.goals)[1]]
    reached = sum(goal.reached for goal in goals)
    seconds = sum(part.seconds for part in report.parts)
    blocks = [
        f"{report.machine}. {len(report.parts)} parts in {seconds / 60:.0f} minutes"
        f"{', with --quick' if report.quick else ''}; {reached} of {len(goals)} goals reached.",
        piped((["", *header], rows)),
    ]
    if plot is not None:
        blocks.append(f"![The curves of all parts]({plot})")
    for part in report.parts:
        blocks.append(f"### {part.name}\n\n{part.about}\n\n{part.setting}; {part.seconds:.0f} s.")
        blocks += [piped(table) for table in tables(evolve(part, goals=()))]
        blocks += [f"Note: {note}." for note in part.notes]
    blocks += [f"The part {name} came to no end: {why}." for name, why in report.failed.items()]
    return "\n\n".join(blocks)


def put_into(document: str | None, figures: str) -> str:
    """`document` with the figures in place of those between its two marks; the figures alone without one.

    Raises:
        ValueError: the document has no marks.
    """
    marked = f"{BEGIN}\n\n{figures}\n\n{END}"
    if document is None:
        return f"{marked}\n"
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no place for figures in it; mark one with the lines {BEGIN} and {END}")
    return f"{before}{marked}{after}"
