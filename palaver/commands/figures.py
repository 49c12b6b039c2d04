"""Numbers as people read them."""

from __future__ import annotations

BYTES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def amount(count: int) -> str:
    """ "512 bytes", "12.1 MiB"."""
    size, unit = float(count), 0
    while size >= 1023.95 and unit < len(BYTES) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count:,} bytes" if unit == 0 else f"{size:,.1f} {BYTES[unit]}"


def span(seconds: float) -> str:
    """ "0.25 s", "9.5 s", "42 s", "3 min 5 s", "2 h 10 min", "9 d 4 h"."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60} min"
    return f"{whole // 86_400:,} d {whole % 86_400 // 3_600} h"


def rate(per_second: float) -> str:
    """ "1,204", "48.2", "0.031", "0"."""
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 10 else f"{per_second:.2g}" if per_second else "0"
