"""The curves of a report as one image; needs matplotlib (`pip install -e '.[bench]'`)."""

from __future__ import annotations

import io
from typing import Any

from benchmarks.report import Curve, Report

COLUMNS = 3
PANEL_INCHES = (3.6, 2.5)
DPI = 80  # an image in a document, kept small
COLOURS = 64


class NoMatplotlib(Exception):
    """Says what to install."""


def plot(report: Report, path: str) -> int:
    """Draw every curve into the PNG `path`; how many there were.

    Raises:
        NoMatplotlib: it is not installed.
    """
    curves = [(part.name, curve) for part in report.parts for curve in part.curves]
    pyplot = _pyplot()
    if not curves:
        return 0
    columns = min(COLUMNS, len(curves))
    lines = -(-len(curves) // columns)
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    panels = list(axes.flat)
    for panel, (name, curve) in zip(panels, curves, strict=False):
        _draw(panel, name, curve)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    _save(figure, path)
    pyplot.close(figure)
    return len(curves)


def _save(figure: Any, path: str) -> None:
    """As a PNG of few colours, which is a third of the size."""
    from PIL import Image  # matplotlib brings it

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(COLOURS).save(path, format="PNG", optimize=True)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise NoMatplotlib(
            "no image was made: matplotlib is not installed; pip install -e '.[bench]' brings it"
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(panel: Any, name: str, curve: Curve) -> None:
    """Medians as a line, lowest to highest as a band; sizes on a logarithmic axis."""
    for system, line in curve.lines.items():
        sizes = sorted(line)
        (drawn,) = panel.plot(sizes, [line[size].median for size in sizes], marker="o", ms=3, label=system)
        low, high = ([f(line[size].values) for size in sizes] for f in (min, max))
        panel.fill_between(sizes, low, high, alpha=0.2, color=drawn.get_color())
    panel.set_title(f"{name}: {curve.what}", fontsize=8)
    panel.set_xlabel(curve.against, fontsize=7)
    panel.tick_params(labelsize=7)
    if min(curve.sizes) > 0 and max(curve.sizes) >= 20 * min(curve.sizes):
        panel.set_xscale("log")
    medians = [series.median for line in curve.lines.values() for series in line.values()]
    if min(medians) > 0 and max(medians) > 20 * min(medians):
        panel.set_yscale("log")
    else:
        highest = max(max(series.values) for line in curve.lines.values() for series in line.values())
        panel.set_ylim(0, 1.1 * highest or 1)
    if len(curve.lines) > 1:
        panel.legend(fontsize=6)
