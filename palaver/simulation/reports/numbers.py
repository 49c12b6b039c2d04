"""Numbers as reports write them."""

from __future__ import annotations

from collections.abc import Mapping


def number(value: float) -> str:
    """Three digits that count: "0.0123", "6.80", "148", "12,400"; whole numbers as they are: "7"."""
    if abs(value) >= 99.95 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 0.0001 else f"{value:.2g}"


def seconds(value: float) -> str:
    """ "12 ms", "3.21 s", "95.2 s", "6 min 40 s", "2 h 46 min"."""
    if value == 0:
        return "0 s"
    if value < 0.1:
        return f"{number(value * 1_000)} ms"
    if value < 120:
        return f"{number(value)} s"
    whole = round(value)
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3_600:,} h {whole % 3_600 // 60} min"


def percent(share: float) -> str:
    """ "0 %", "0.4 %", "62 %"."""
    hundred = share * 100
    return f"{hundred:.0f} %" if hundred >= 9.5 or hundred == 0 else f"{hundred:.1f} %"


def counted(count: int, noun: str) -> str:
    """ "1 turn", "1,234 turns"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def kinds(counts: Mapping[str, int]) -> str:
    """ "cut 3, empty 1", the most frequent first."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered)


def listed(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
