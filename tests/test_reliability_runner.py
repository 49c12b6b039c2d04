"""The long run of the reliability checks says at once what failed, and how to see it again."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from reliability.check import Check
from reliability.kills import _repeatable
from reliability.runner import Part, _run_all, _run_here, main


def _breaks(_count: int, _seed: int, folder: Path) -> int:
    (folder / "evidence").write_text("what the check left")
    raise AssertionError("G1: lost")


def test_a_part_that_fails_is_told_with_its_command_before_the_next_part_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nowhere = Check("nowhere", (1,), "points", quick=1, long=20, run=_breaks)
    results = _run_all([nowhere], seed=7, quick=False, scale=0.1, jobs=1)
    lines = capsys.readouterr().err.splitlines()
    ends = [number for number, line in enumerate(lines) if line.endswith("FAILED")]
    told = [n for n, line in enumerate(lines) if "python tests/reliability --part nowhere 1" in line]
    assert [number + 1 for number in ends] == told
    assert len(told) == 2
    assert lines[told[0]].endswith("--part nowhere 1 7")
    assert any("no check is called 'nowhere'" in line for line in lines[told[0] : ends[1]])
    assert len(results["nowhere"].failures) == 2


@pytest.mark.parametrize("keep", [False, True])
def test_the_files_of_a_part_that_fails_are_kept_when_asked_for(
    keep: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliability.runner.RAM_DISK", tmp_path)
    with pytest.raises(AssertionError, match="lost"):
        _run_here(Part(Check("breaks", (1,), "points", 1, 1, _breaks), 1, 1), keep)
    kept = [*tmp_path.glob("*/evidence")]
    assert len(kept) == keep
    assert capsys.readouterr().err == (f"its files are left in {kept[0].parent}\n" if kept else "")


def test_the_command_that_repeats_a_part_is_understood() -> None:
    ran = CliRunner().invoke(main, ["--part", "exceptions", "1", "1"])
    assert (ran.exit_code, ran.output.splitlines()[-1][:8]) == (0, '{"done":'), ran.output


def test_the_checks_by_kills_name_the_part_to_repeat(tmp_path: Path) -> None:
    told = pytest.raises(AssertionError, match="again: python tests/reliability --part kills 100 15")
    with told, _repeatable("kills 100 15", 2, tmp_path):
        raise AssertionError("G1: lost")


def test_a_part_of_an_unknown_check_is_refused_with_the_names_of_all() -> None:
    ran = CliRunner().invoke(main, ["--part", "nowhere", "1", "1"])
    assert ran.exit_code == click.ClickException.exit_code
    assert "no check is called 'nowhere'; there are " in ran.output
