"""The workload language as docs/simulation.md tells it, and the example workloads."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs
import pytest
from support import ROOT

from palaver.simulation import Fixed, Provider, Senders, Workload, percentile, simulate
from palaver.simulation.quantities import Drawn, Quantity
from palaver.simulation.workload_file import PARTS, keys
from persistence.sources import seeded_random

PAGE = (ROOT / "docs" / "simulation.md").read_text()
EXAMPLES = sorted((ROOT / "examples" / "workloads").glob("*.toml"))
HEAD = "| key | default | unit | drawn | |\n| --- | --- | --- | --- | --- |"


def described(kind: type[Any]) -> dict[str, str]:
    """What a docstring says of each argument."""
    args = dedent(str(inspect.getdoc(kind))).partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", args, re.M)
    return {name: re.sub(r"\s+", " ", words) for name, words in found}


def as_written(value: object) -> str:
    if isinstance(value, Fixed):
        value = value.value
    if value is None:
        return '"never"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    return f'"{value}"' if isinstance(value, str) else str([*value]) if isinstance(value, tuple) else "?"


def row(key: str, field: attrs.Attribute[Any]) -> str:
    kind, quantity = PARTS.get(key.partition(".")[0], Workload), field.validator
    assert isinstance(quantity, Quantity)
    drawn = ("for each seed" if quantity.once else "each time") if isinstance(quantity, Drawn) else ""
    words = described(kind)[field.name].rstrip(".").replace("None", '`"never"`')
    return f"| `{key}` | `{as_written(field.default)}` | {quantity.unit} | {drawn} | {words} |"


def test_the_page_has_each_key_with_its_unit_default_and_what_the_code_says_of_it() -> None:
    rows = [row(key, field) for key, field in keys().items() if not key.startswith("limits.")]
    table = "\n".join([HEAD, *rows])
    assert table in PAGE, f"docs/simulation.md should have\n{table}"


def test_the_pages_workload_is_the_example() -> None:
    [shown] = [block for block in re.findall(r"```toml\n(.*?)```", PAGE, re.S) if 'name = "capped"' in block]
    assert shown == (ROOT / "examples" / "workloads" / "capped.toml").read_text()


def test_every_form_of_a_distribution_that_the_page_shows_is_one(tmp_path: Path) -> None:
    (tmp_path / "latencies.txt").write_text("0.5\n0.7\n")
    section = PAGE.partition("### Distributions")[2].partition("\n##")[0]
    forms = re.findall(r"^\| `([^`]+)` \|", section, re.M)
    assert len(forms) >= 6
    for form in forms:
        text = f"[provider]\nfirst_token_s = {form}\n"
        drawn = Workload.from_text(text, str(tmp_path / "w.toml")).provider.first_token_s
        assert drawn.draw(seeded_random(form)) >= 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_workloads_can_be_read_and_say_what_they_show(path: Path) -> None:
    workload = Workload.from_toml(path)
    assert workload.name == path.stem
    assert path.read_text().startswith("# ")
    assert f"examples/workloads/{path.name}" in PAGE


def test_there_are_example_workloads() -> None:
    assert {path.stem for path in EXAMPLES} == {"office", "capped", "faulty", "storm"}


def small(name: str, **changes: object) -> Workload:
    workload = Workload.from_toml(ROOT / "examples" / "workloads" / f"{name}.toml")
    return workload.with_values(changes)


def test_the_knee_of_the_capped_provider_is_at_its_cap() -> None:
    def p95(model_calls: int) -> float:
        changes = {"duration_s": 20, "limits.model_calls": model_calls}
        return percentile(simulate(small("capped", **changes), 1, check=False).latency_s, 95)

    narrow, right, wide = p95(10), p95(20), p95(40)
    assert right < 0.7 * narrow  # the host's own line
    assert right < 0.9 * wide  # refusals, and what they wait


def test_the_office_is_as_quick_as_its_provider() -> None:
    outcome = simulate(small("office", duration_s=60), 1)
    assert outcome.violation is None
    assert outcome.turns["done"] > 20
    assert set(outcome.turns) == {"done", "failed", "cancelled", "closed"}
    assert outcome.done == sum(outcome.turns.values())


def test_the_storm_is_refused_to_the_senders_face() -> None:
    outcome = simulate(small("storm", duration_s=15), 1, check=False)
    assert outcome.refused["MailboxFull"] > 0


def test_defaults_are_a_quiet_world() -> None:
    outcome = simulate(Workload(senders=Senders(count=3, turns=2), provider=Provider()), 1)
    assert outcome.turns["done"] == 6
    assert outcome.crashes == 0
    assert dict(outcome.refused) == {}
