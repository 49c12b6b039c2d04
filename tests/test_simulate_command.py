"""`palaver simulate` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from palaver.commands import palaver

SMALL = """
name = "small"

[senders]
count = 4
turns = 3

[provider]
first_token_s = {exponential = 1}
concurrency = 2
"""


@pytest.fixture(name="small")
def small_workload(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(palaver, ["simulate", *map(str, args)], prog_name="palaver")


def test_a_run_is_reported_in_text_and_as_a_page(small: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run(small, "--seed", 3, "--html", page)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("small, seed 3\n")
    assert "guarantees: held in the run" in result.stdout
    assert page.read_text().startswith("<!doctype html>")


def test_the_same_seed_gives_the_same_json_but_for_the_real_time(small: Path) -> None:
    first, again = (json.loads(run(small, "--seeds", "5..6", "-j", 2, "--json").stdout) for _ in range(2))
    assert [one["seed"] for one in first["runs"]] == [5, 6]
    for found in (first, again):
        for figures in (found["together"], *found["runs"]):
            del figures["real_s"], figures["turns_per_real_s"]
    assert first == again
