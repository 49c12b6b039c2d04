"""Why a simulation cannot go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from persistence.errors import PalaverError


class SimulationError(PalaverError):
    """A simulation cannot go on."""


class RealWorldInSimulation(SimulationError):
    """Simulated code reached for something that does not run on virtual time; the message names it."""


class SimulationStuck(SimulationError):
    """The function waits, and nothing is scheduled that could ever wake it."""


class TooManySteps(SimulationError):
    """The step limit is reached: the function spins, or needs a higher `max_steps`."""


def refuse(what: str) -> NoReturn:
    """Raise the error that names what was tried."""
    raise RealWorldInSimulation(f"{what} was asked for inside a simulation; only virtual time runs there")


def refused(what: str) -> Callable[..., NoReturn]:
    """A function, or a method, that refuses `what` whatever it is called with."""

    def refusal(*_args: object, **_options: object) -> NoReturn:
        refuse(what)

    return refusal
