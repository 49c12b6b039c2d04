"""The real runtime on virtual time.

Every public name can be imported from here. They are looked up when first used, so that a program may import
this before it lets gevent patch the process.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palaver.simulation.distributions import (
        Distribution,
        Empirical,
        Exponential,
        Fixed,
        LogNormal,
        Uniform,
    )
    from palaver.simulation.errors import (
        RealWorldInSimulation,
        SimulationError,
        SimulationStuck,
        TooManySteps,
    )
    from palaver.simulation.loop import VirtualClock, run_virtual
    from palaver.simulation.outcome import Act, Outcome, Sample, Violation, percentile
    from palaver.simulation.reports import report_html, report_json, report_text
    from palaver.simulation.runs import Point, Standing, Sweep, run_seeds, sweep
    from palaver.simulation.shrinking import shrink
    from palaver.simulation.simulating import simulate
    from palaver.simulation.workload import (
        Arrivals,
        Contradiction,
        Disk,
        Faults,
        Provider,
        Senders,
        Tools,
        Workload,
    )
    from palaver.simulation.worlds import World, world

# The same imports, for when the program runs: module -> names.
_HOMES = {
    "distributions": ("Distribution", "Empirical", "Exponential", "Fixed", "LogNormal", "Uniform"),
    "errors": ("RealWorldInSimulation", "SimulationError", "SimulationStuck", "TooManySteps"),
    "loop": ("VirtualClock", "run_virtual"),
    "outcome": ("Act", "Outcome", "Sample", "Violation", "percentile"),
    "reports": ("report_html", "report_json", "report_text"),
    "runs": ("Point", "Standing", "Sweep", "run_seeds", "sweep"),
    "shrinking": ("shrink",),
    "simulating": ("simulate",),
    "workload": (
        "Arrivals",
        "Contradiction",
        "Disk",
        "Faults",
        "Provider",
        "Senders",
        "Tools",
        "Workload",
    ),
    "worlds": ("World", "world"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Act",
    "Arrivals",
    "Contradiction",
    "Disk",
    "Distribution",
    "Empirical",
    "Exponential",
    "Faults",
    "Fixed",
    "LogNormal",
    "Outcome",
    "Point",
    "Provider",
    "RealWorldInSimulation",
    "Sample",
    "Senders",
    "SimulationError",
    "SimulationStuck",
    "Standing",
    "Sweep",
    "TooManySteps",
    "Tools",
    "Uniform",
    "Violation",
    "VirtualClock",
    "Workload",
    "World",
    "percentile",
    "report_html",
    "report_json",
    "report_text",
    "run_seeds",
    "run_virtual",
    "shrink",
    "simulate",
    "sweep",
    "world",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'palaver.simulation' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"palaver.simulation.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
