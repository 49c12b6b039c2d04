"""What a simulated run is measured by, gathered while it is lived."""

from __future__ import annotations

import gc
from array import array
from collections import Counter
from typing import TYPE_CHECKING

from palaver.simulation.outcome import Outcome, Sample, Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from palaver.simulation.workload import Workload
    from palaver.stats import Stats

SAMPLES = 200
_FIRST_SAMPLE_S = 0.125
_COLLECTED_AFTER = 2_000  # results


class Figures:
    """Figures of all lives of a run.

    Args:
        now: virtual seconds since the run began.
    """

    def __init__(self, workload: Workload, now: Callable[[], float]) -> None:
        self.refused: Counter[str] = Counter()
        self.model_errors: Counter[str] = Counter()
        self.model_calls = 0
        self.tool_calls = 0
        self.crashes = 0
        self.ends = 0  # results that senders have
        self.done = 0  # turns that have ended so, when the last sample was taken
        self.sample_s = workload.sample_s or (workload.duration_s / SAMPLES) or _FIRST_SAMPLE_S
        self._open = True
        self._workload = workload
        self._now = now
        self._begun: dict[int, list[float]] = {}  # act -> when it was sent, and when its first answer began
        self._latency_s = array("d")
        self._wait_s = array("d")
        self._samples: list[Sample] = []
        self._turns: Counter[str] = Counter()  # of earlier lives
        self._commits = 0
        self._first_s: float | None = None
        self._last_s = 0.0
        self._most_live = 0

    # -- messages ----------------------------------------------------------------------------------

    def sent(self, act: int) -> None:
        """A message is handed over, for the first time."""
        now = self._now()
        if self._first_s is None:
            self._first_s = now
        self._begun[act] = [now]

    def answering(self, act: int) -> None:
        """A provider begins an answer."""
        self.model_calls += self._open
        begun = self._begun.get(act)
        if begun is not None and len(begun) == 1:
            begun.append(self._now())

    def answer_failed(self, kind: str) -> None:
        """A provider's answer did."""
        self.model_errors[kind] += self._open

    def tool_called(self) -> None:
        """A tool was."""
        self.tool_calls += self._open

    def ended(self, act: int, *, done: bool) -> None:
        """Its sender has its result."""
        begun, self._last_s = self._begun.pop(act, None), self._now()
        self.ends += 1
        if self.ends % _COLLECTED_AFTER == 0:
            gc.collect(0)  # what was made since the last time; at moments that depend on the run alone
        if done and begun is not None:
            self._latency_s.append(self._last_s - begun[0])
            self._wait_s.append(begun[-1] - begun[0])

    def given_up(self, act: int, error: str) -> None:
        """It was refused, or its sender waits no more."""
        self._begun.pop(act, None)
        self.refused[error] += 1

    @property
    def happened(self) -> int:
        """A number that grows whenever anything goes on."""
        refused = sum(self.refused.values())
        return self.model_calls + self.tool_calls + self.ends + refused

    # -- over time ---------------------------------------------------------------------------------

    def sample(self, stats: Stats, calls: int, waiting: int) -> None:
        """One more sample; when there are twice as many as wanted, every other one goes."""
        live = sum(stats.conversations.values())
        self.done = self._turns["done"] + stats.turns_ended["done"]
        self._most_live = max(self._most_live, live)
        self._samples.append(
            Sample(
                round(self._now(), 6),
                self.done,
                stats.queued,
                stats.running,
                calls,
                waiting + stats.model_calls_waiting,
                live,
                stats.history_bytes,
            )
        )
        if not self._workload.sample_s and len(self._samples) > 2 * SAMPLES:
            del self._samples[::2]
            self.sample_s *= 2

    def end_life(self, stats: Stats) -> None:
        """Take over what a life has counted."""
        self._turns.update(stats.turns_ended)
        self._commits += stats.commits
        self._most_live = max(self._most_live, sum(stats.conversations.values()))

    def close(self) -> None:
        """What still happens is no part of the workload."""
        self._open = False

    def outcome(self, seed: int, real_s: float, violation: Violation | None) -> Outcome:
        """All of it."""
        first = self._first_s or 0.0
        return Outcome(
            workload=self._workload,
            seed=seed,
            virtual_s=max(0.0, self._last_s - first),
            real_s=real_s,
            turns=dict(self._turns),
            refused=dict(sorted(self.refused.items())),
            latency_s=array("d", sorted(self._latency_s)),
            wait_s=array("d", sorted(self._wait_s)),
            samples=tuple(self._samples),
            model_calls=self.model_calls,
            model_errors=dict(sorted(self.model_errors.items())),
            tool_calls=self.tool_calls,
            commits=self._commits,
            crashes=self.crashes,
            most_live=self._most_live,
            violation=violation,
        )
