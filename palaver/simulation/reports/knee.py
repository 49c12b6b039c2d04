"""Where a curve turns: the value from which more brings little, or costs much."""

from __future__ import annotations

from collections.abc import Sequence

FLAT = 0.1
SENSITIVITY = 1.0


def knee(xs: Sequence[float], ys: Sequence[float], sensitivity: float = SENSITIVITY) -> int | None:
    """The place of the knee of a curve, or None if it has none.

    The method is Kneedle (Satopaa, Albrecht, Irwin and Raghavan, "Finding a 'Kneedle' in a Haystack:
    Detecting Knee Points in System Behavior", ICDCS Workshops 2011) without its smoothing, since a point is a
    whole run: both axes are scaled to the unit square, and the curve is turned so that it rises and flattens.
    A local maximum of its distance above the diagonal is a knee if the distance falls below that maximum by
    `sensitivity` mean distances of two neighbouring xs before it rises again. The highest such maximum
    counts.

    Args:
        xs: ascending, no two the same.
        ys: a value for each. A curve whose ys differ by less than a tenth of the greatest is flat, and has
            no knee.
        sensitivity: how sure to be; the paper's S.
    """
    span = (max(xs) - min(xs), max(ys) - min(ys)) if xs else (0.0, 0.0)
    if len(xs) < 3 or span[1] <= FLAT * max(map(abs, ys)):
        return None
    above, backwards = _above_the_diagonal(xs, ys, span)
    drop = sensitivity / (len(xs) - 1)
    found = [n for n in _maxima(above) if _falls(above, n, above[n] - drop)]
    if not found:
        return None
    best = max(found, key=above.__getitem__)
    return len(xs) - 1 - best if backwards else best


def _above_the_diagonal(
    xs: Sequence[float], ys: Sequence[float], span: tuple[float, float]
) -> tuple[list[float], bool]:
    """The difference curve of the turned curve, and whether its points are in the opposite order."""
    across = [(x - min(xs)) / span[0] for x in xs]
    up = [(y - min(ys)) / span[1] for y in ys]
    if up[-1] < up[0]:
        up = [1 - y for y in up]
    if sum(y - x for x, y in zip(across, up, strict=True)) >= 0:  # it flattens
        return [y - x for x, y in zip(across, up, strict=True)], False
    return [x - y for x, y in zip(reversed(across), reversed(up), strict=True)], True  # it steepens


def _maxima(values: Sequence[float]) -> list[int]:
    inner = range(1, len(values) - 1)
    return [n for n in inner if values[n] > 0 and values[n - 1] < values[n] >= values[n + 1]]


def _falls(values: Sequence[float], start: int, below: float) -> bool:
    """Whether the values after `start` fall below `below` before one is higher than that at `start`."""
    for value in values[start + 1 :]:
        if value < below:
            return True
        if value > values[start]:
            return False
    return False
