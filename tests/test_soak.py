"""How a soak is judged and shown; the soak itself is the check `soak`."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from support import without_matplotlib

from benchmarks.soak import MIB, Look, Soaked, image_plot, text_plot

STEADY = Look(1_000, 1.0, 100 * MIB, 10, 2, 16 * MIB, 50 * MIB)


def soaked(*changes: dict[str, Any]) -> Soaked:
    """Twenty looks, the last of which are changed."""
    looks = [STEADY] * (20 - len(changes)) + [attrs.evolve(STEADY, **each) for each in changes]
    return Soaked(tuple(looks), {"done": 1_000}, {})


def test_what_stays_as_it_is_is_no_violation() -> None:
    assert soaked().violations == []
    assert (
        soaked({"rss_bytes": 102 * MIB, "wal_bytes": 64 * MIB - 1, "file_bytes": 1_000 * MIB}).violations
        == []
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rss_bytes": 102 * MIB + 1}, "RSS"),
        ({"descriptors": 11}, "11 descriptors"),
        ({"wal_bytes": 64 * MIB}, "the WAL"),
    ],
)
def test_what_has_grown_is_named(change: dict[str, Any], words: str) -> None:
    (violation,) = soaked(change).violations
    assert words in violation


def test_greenlets_that_are_more_to_the_end_are_named_and_not_those_of_a_moment() -> None:
    assert soaked({"greenlets": 19}, {}).violations == []
    (violation,) = soaked(*[{"greenlets": 3}] * 3).violations
    assert "3 greenlets" in violation


def test_what_only_rises_for_a_while_counts_where_it_is_no_memory() -> None:
    assert soaked({"rss_bytes": 150 * MIB}, {}).violations == []
    assert len(soaked({"descriptors": 11}, {}).violations) == 1


def test_before_the_first_fifth_is_over_anything_may_grow() -> None:
    looks = [attrs.evolve(STEADY, rss_bytes=n * MIB, descriptors=10, greenlets=2) for n in (50, 60, 70, 80)]
    assert Soaked((*looks, *[attrs.evolve(STEADY, rss_bytes=81 * MIB)] * 16), {}, {}).violations == []


def test_the_plot_shows_each_figure_over_time() -> None:
    lines = text_plot(soaked({"rss_bytes": 200 * MIB})).splitlines()
    rss = next(line for line in lines if line.startswith("RSS"))
    assert rss.endswith("\u2584" * 19 + "\u2588")
    assert {line.split("  ")[0] for line in lines[2:]} == {"RSS, MiB", "descriptors", "greenlets", "WAL, MiB"}


def test_without_matplotlib_there_is_no_image_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    without_matplotlib(monkeypatch)
    assert not image_plot(soaked().looks, "soak.png")
