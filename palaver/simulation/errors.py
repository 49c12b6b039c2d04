"""Why a simulation cannot go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


_told: list[Callable[[RealWorldInSimulation], object]] = []


@contextmanager
def refusals_told(tell: Callable[[RealWorldInSimulation], object]) -> Iterator[None]:
    """Within, `tell` hears of every refusal, also of one that is swallowed on its way."""
    _told.append(tell)
    try:
        yield
    finally:
        _told.remove(tell)


def refuse(what: str) -> NoReturn:
    """Raise the error that names what was tried."""
    error = RealWorldInSimulation(f"{what} was asked for inside a simulation; only virtual time runs there")
    for tell in _told:
        tell(error)
    raise error


def refused(what: str) -> Callable[..., NoReturn]:
    """A function, or a method, that refuses `what` whatever it is called with."""

    def refusal(*_args: object, **_options: object) -> NoReturn:
        refuse(what)

    return refusal
