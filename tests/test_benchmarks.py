"""How benchmarks are reported: one shape of result, as JSON, tables, Markdown and an image."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import pytest
from support import without_matplotlib

from benchmarks import __main__ as command
from benchmarks import showing
from benchmarks.parts import PARTS
from benchmarks.plot import NoMatplotlib, plot
from benchmarks.report import Curve, Goal, Part, Report, Row, Series, in_turns, ratio
from benchmarks.turns import write_raw
from benchmarks.work import MESSAGE, open_topics, running
from persistence.database import close_database, open_database

OURS, THEIRS = Series((10.0, 30.0, 20.0)), Series((5.0, 10.0, 8.0))
PART = Part(
    "turns",
    "What was measured.",
    [Row("turns/s", {"ours": OURS, "raw": THEIRS})],
    [Curve("µs per turn", "senders", {"ours": {1.0: Series((2.0,)), 100.0: Series((3.0,))}})],
    [Goal("turns/s", 20.0, 15.0), Goal("µs per turn", 3.0, 2.0, at_most=True)],
    ["a note"],
    "Python 3",
    7.0,
)
REPORT = Report("a machine", False, [PART], {"actors": "its process ended with 1"})


def test_a_report_survives_its_json() -> None:
    assert Report.from_json(json.loads(json.dumps(REPORT.as_json()))) == REPORT


def test_measures_alternate() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = in_turns({"a": lambda: measure("a"), "b": lambda: measure("b")}, 2)
    assert order == ["a", "b", "a", "b"]
    assert found["b"].values == (2.0, 4.0)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert ratio(OURS, THEIRS) == 2.5  # of 2, 3 and 2.5
    assert PART.curves[0].growth("ours") == 1.5


def test_growth_is_that_of_the_medians_where_there_are_no_rounds_in_common() -> None:
    line = {1.0: Series((2.0, 2.0, 4.0)), 100.0: Series((3.0,))}
    assert Curve("µs per turn", "senders", {"ours": line}).growth("ours") == 1.5


def test_text_shows_ratios_spread_growth_and_what_was_missed() -> None:
    shown = showing.text(REPORT)
    for words in ("20 ±50%", "2.5", "last / first", "1 of 2 goals reached", "MISSED: turns: µs per turn: 3"):
        assert words in shown
    assert "!! actors came to no end: its process ended with 1" in shown


def test_figures_take_the_place_of_the_last_ones_in_a_document() -> None:
    document = f"before\n{showing.BEGIN}\nold\n{showing.END}\nafter\n"
    once = showing.put_into(document, showing.markdown(REPORT))
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "| turns/s | 20 ±50% | 8 ±31% | 2.5 |" in once
    assert showing.put_into(once, showing.markdown(REPORT)) == once


def test_a_document_without_a_place_for_figures_is_left_alone() -> None:
    with pytest.raises(ValueError, match="figures: begin"):
        showing.put_into("no place", "figures")


def test_what_was_measured_before_is_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, document = tmp_path / "saved.json", tmp_path / "performance.md"
    saved.write_text(json.dumps(REPORT.as_json()))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--from", str(saved), "--markdown", str(document)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1  # a part came to no end
    assert "1 of 2 goals reached" in capsys.readouterr().out
    assert "### turns" in document.read_text()


def test_a_part_that_is_measured_again_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved.json"
    other, again = attrs.evolve(PART, name="actors"), attrs.evolve(PART, notes=["anew"])
    saved.write_text(json.dumps(Report("a machine", False, [PART, other]).as_json()))
    monkeypatch.setattr(command, "run_part", lambda name, _head, _quick: again if name == "turns" else 1)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "turns", "--save", str(saved)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    assert Report.from_json(json.loads(saved.read_text())).parts == [other, again]
    assert "1 goals reached, 1 missed" in capsys.readouterr().err


def test_a_file_without_a_report_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    with pytest.raises(SystemExit, match="holds no report"):
        command.read(tmp_path / "empty.json")


def test_without_matplotlib_an_image_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    without_matplotlib(monkeypatch)
    with pytest.raises(NoMatplotlib, match=r"\[bench\]"):
        plot(REPORT, "figures.png")


@pytest.mark.parametrize("entry", PARTS, ids=lambda entry: entry.name)
def test_every_part_can_be_run_and_says_what_it_measures(entry: Any) -> None:
    module = import_module(entry.module)
    assert callable(module.run)
    assert len(module.ABOUT) > 100


# -- raw sqlite3 -----------------------------------------------------------------------------------------


def rows_of(path: Path) -> dict[str, list[list[str]]]:
    """For each table with rows of turns, the columns of each row that have a value."""
    db = open_database(path)
    found = {
        table: [[name for name, value in row.items() if value is not None] for row in db.table(table).rows]
        for table in ("turns", "entries", "events", "keys", "steers")
    }
    close_database(db)
    return found


def test_raw_sqlite3_writes_the_rows_that_a_turn_writes(tmp_path: Path) -> None:
    with running(tmp_path / "ours.db") as rt:
        (cid,) = open_topics(rt, 1)
        for _ in range(3):
            rt.send(cid, MESSAGE)
    db = open_database(tmp_path / "raw.db")
    write_raw(db.conn, turns_per_commit=2, turns=3)
    close_database(db)
    assert rows_of(tmp_path / "raw.db") == rows_of(tmp_path / "ours.db")
