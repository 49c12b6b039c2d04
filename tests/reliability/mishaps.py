"""What goes wrong in a simulated world, how often, and how long things take."""

from __future__ import annotations

import random

from attrs import frozen


@frozen
class Rates:
    """What a seed draws: chances from 0 to 1, and seconds to choose from."""

    model_fails: float
    answer_cut: float
    answer_empty: float
    calls_tools: float
    tool_fails: float
    self_harm: float
    disk_full: float
    deaths: float
    delays: tuple[float, ...]
    commits: tuple[float, ...]
    think: tuple[float, ...]

    @classmethod
    def draw(cls, rng: random.Random) -> Rates:
        """Most of it is off in most worlds, so that what is left shows by itself."""

        def rate(*values: float) -> float:
            return rng.choice((0.0, *values))

        return cls(
            model_fails=rate(0.05, 0.3),
            answer_cut=rate(0.05, 0.2),
            answer_empty=rate(0.05, 0.2),
            calls_tools=rng.choice((0.1, 0.4, 0.7)),
            tool_fails=rate(0.1, 0.5),
            self_harm=rate(0.0, 0.02, 0.1),
            disk_full=rate(0.0, 0.3, 1.0),
            deaths=rate(0.0, 0.0, 1.0),
            delays=rng.choice(((0.0,), (0.0, 0.5), (0.0, 0.5, 2.0, 20.0))),
            commits=rng.choice(((0.0,), (0.0, 0.001, 0.02), (0.0, 0.02, 0.5, 3.0))),
            think=rng.choice(((0.0,), (0.0, 0.0, 0.1, 1.0), (0.0, 0.5, 4.0, 15.0))),
        )
