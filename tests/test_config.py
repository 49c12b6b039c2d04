"""Agents and limits: validated once, at the start, by an error that names the field."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from actors.config import AgentConfig, Limits
from actors.errors import InvalidConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "  "),
        ("name", None),
        ("name", 7),
        ("name", "a\x00b"),
        ("name", "\ud800"),
        ("name", "a" * 201),
        ("model", None),
        ("model", "\ud800"),
        ("system_prompt", None),
        ("system_prompt", "a\x00b"),
        ("description", ["text"]),
        ("tools", "look"),
        ("tools", 5),
        ("tools", [1]),
        ("tools", ["look", None]),
        ("max_iterations", 0),
        ("max_iterations", -1),
        ("max_iterations", 1.5),
        ("max_iterations", float("nan")),
        ("max_iterations", "16"),
        ("max_iterations", True),
        ("max_iterations", None),
        ("thinking", "yes"),
        ("thinking", None),
        ("tool_choice", ""),
        ("tool_choice", None),
        ("compact_threshold", 0),
        ("compact_threshold", 2.5),
        ("compact_threshold", "many"),
        ("compact_tool_max_len", 0),
        ("compact_tool_max_len", float("inf")),
        ("compact_tool_max_len", None),
        ("auto_title", 1),
        ("memory_scope", "everybody"),
        ("memory_scope", None),
        ("memory_scope", ["sender"]),
    ],
)
def test_a_bad_field_of_an_agent_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=field):
        AgentConfig(**{"name": "crab", field: value})
    with pytest.raises(InvalidConfig, match=field):
        attrs.evolve(AgentConfig("crab"), **{field: value})


def test_odd_but_good_agents_are_taken() -> None:
    config = AgentConfig(
        "crab 🦀", system_prompt="a\nb", tools=["look", "look"], max_iterations=1, compact_threshold=None
    )
    assert config.tools == ("look", "look")
    assert AgentConfig("crab", tools=()).tools == ()
    assert AgentConfig("crab", tools=(name for name in "ab")).tools == ("a", "b")


def test_the_scope_of_memory_is_the_sender_or_nobody() -> None:
    assert AgentConfig("crab").scope("alice") == "alice"
    assert AgentConfig("crab", memory_scope="agent").scope("alice") == ""


@pytest.mark.parametrize("field", [attribute.name for attribute in attrs.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, None, "5", True, float("nan")])
def test_a_bad_limit_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=field):
        Limits(**{field: value})


@pytest.mark.parametrize(
    "field", [attribute.name for attribute in attrs.fields(Limits) if not attribute.name.endswith("_s")]
)
def test_a_limit_that_counts_is_a_whole_number(field: str) -> None:
    with pytest.raises(InvalidConfig, match=field):
        Limits(**{field: 1.5})


def test_limits_have_the_defaults_of_the_guarantees() -> None:
    limits = Limits()
    assert (limits.queued_per_conversation, limits.queued_per_sender) == (100, 1_000)
    assert limits.queued_total >= 1_000
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        limits.queued_total = 1  # type: ignore[misc]
