"""A runtime's counts as Prometheus metrics; needs the extra `palaver[metrics]`.

registry = CollectorRegistry()
registry.register(RuntimeCollector(rt))
generate_latest(registry)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from attrs import field, frozen

from actors.counts import Durations
from actors.errors import WrongThread
from palaver.runtime import Runtime
from palaver.stats import Stats

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "palaver.metrics needs the package prometheus_client: pip install 'palaver[metrics]'"
    ) from error

ANSWER_S = 10.0

Value = float | None
Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


@frozen
class _Figure:
    """One metric: its name without `palaver_`, its help, and where its value is; by `label`, if it has one.
    The unit, where there is one, ends the name."""

    name: str
    words: str
    value: Callable[[Stats], Value | Mapping[str, Value]]
    label: str = ""
    unit: str = ""
    family: Family = field(default=GaugeMetricFamily)

    def metric(self, stats: Stats | None) -> Metric:
        """The metric, with the samples of `stats`."""
        labels = [self.label] if self.label else []
        made = self.family(f"palaver_{self.name}", self.words, labels=labels, unit=self.unit)
        value = None if stats is None else self.value(stats)
        if isinstance(value, Mapping):
            for name, each in value.items():
                made.add_metric([name], each or 0)
        elif value is not None:
            made.add_metric([], value)
        return made


def _count(
    name: str, words: str, value: Callable[[Stats], Value | Mapping[str, Value]], label: str = ""
) -> _Figure:
    unit = "seconds" if name.endswith("_seconds") else ""
    return _Figure(name, words, value, label, unit, family=CounterMetricFamily)


_FIGURES = (
    _Figure("uptime_seconds", "Since the runtime was opened.", lambda s: s.uptime_s, unit="seconds"),
    _Figure("conversations", "Live conversations, by state.", lambda s: s.conversations, "state"),
    _Figure("conversations_passive", "Topics that left memory and are there.", lambda s: s.passive),
    _Figure("history_bytes", "Histories in memory, about.", lambda s: s.history_bytes, unit="bytes"),
    _Figure("turns_running", "Turns that run.", lambda s: s.running),
    _Figure("turns_queued", "Accepted turns and steers that wait.", lambda s: s.queued),
    _Figure(
        "turns_held_limit", "The most that may run and wait: Limits.queued_total.", lambda s: s.queued_most
    ),
    _Figure(
        "turns_oldest_waiting_seconds",
        "Age of the accepted turn that has waited longest; 0 if none waits.",
        lambda s: s.oldest_waiting_s or 0.0,
        unit="seconds",
    ),
    _count("turns_accepted", "Turns and steers accepted.", lambda s: s.turns_accepted),
    _count(
        "turns_brought_back",
        "Turns that an earlier process or another runtime had accepted.",
        lambda s: s.turns_brought_back,
    ),
    _count("turns", "Turns that ended, by state.", lambda s: s.turns_ended, "state"),
    _count("steers_applied", "Steers that were put into a running turn.", lambda s: s.steers_applied),
    _Figure("model_calls_running", "Calls of models under way.", lambda s: s.model_calls),
    _Figure(
        "model_calls_waiting",
        "Calls of models that wait for their turn, or for their endpoint.",
        lambda s: s.model_calls_waiting,
    ),
    _count("model_pause_seconds", "For which endpoints asked to be left alone.", lambda s: s.model_pauses_s),
    _Figure("tool_calls_running", "Calls of tools under way.", lambda s: s.tool_calls),
    _Figure("tool_calls_waiting", "Calls of tools that wait for their turn.", lambda s: s.tool_calls_waiting),
    _Figure("timers_pending", "Timers that have not ended.", lambda s: s.timers),
    _count("database_commits", "Transactions committed.", lambda s: s.commits),
    _count("database_jobs", "Database jobs done.", lambda s: s.database_jobs),
    _Figure("database_jobs_waiting", "Jobs that wait for the database thread.", lambda s: s.database_waiting),
    _Figure(
        "database_failed",
        "1 when the database has failed and nothing is stored any more.",
        lambda s: s.database_failed is not None,
    ),
    _Figure("database_file_bytes", "Size of the database file.", lambda s: s.file_bytes, unit="bytes"),
    _Figure("database_wal_bytes", "Size of its write-ahead log.", lambda s: s.wal_bytes, unit="bytes"),
    _Figure("resident_memory_bytes", "Memory of the whole process.", lambda s: s.rss_bytes, unit="bytes"),
    _Figure("event_readers", "Readers of Runtime.subscribe.", lambda s: s.subscribers),
    _count(
        "events_missed", "Events that readers missed because they fell behind.", lambda s: s.lagged_events
    ),
    _Figure("actor_up", "1 when the actor is there and answers.", lambda s: s.actors_alive, "actor"),
    _count("actor_restarts", "Actors that died and were started again.", lambda s: s.restarts),
    _count("actors_parked", "Actors that kept dying and were not started again.", lambda s: s.parked),
    _count("passivations", "Idle topics that left memory.", lambda s: s.passivations),
    _count("expirations", "Idle tmp chats that ended.", lambda s: s.expirations),
    _count("overflows", "Times that a bound was reached.", lambda s: s.overflows),
    _count("overflows_by_limit", "The same, by the field of Limits.", lambda s: s.overflowed, "limit"),
    _Figure(
        "turns_queued_peak",
        "The most that waited in one conversation, and that one sender had, at any time.",
        lambda s: s.most_queued,
        "of",
    ),
    _count("dead_letters", "Messages that were given up.", lambda s: s.dead_letters),
    _Figure("closing_down", "1 when new work is refused.", lambda s: s.closing_down),
)


class RuntimeCollector(Collector):
    """What `rt.stats()` says, as metrics whose names begin with `palaver_`.

    Register it with a registry; the metrics are made when that is scraped, in any thread. One runtime to a
    registry: a second one's metrics would have the same names, and the registry refuses them.
    """

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def describe(self) -> Iterator[Metric]:
        """The metrics without values: the registry wants their names."""
        return _metrics(None)

    def collect(self) -> Iterator[Metric]:
        """The metrics, now."""
        return _metrics(self._stats())

    def _stats(self) -> Stats:
        try:
            return self._rt.stats()
        except WrongThread:
            return self._rt.from_thread(self._rt.stats).result(timeout=ANSWER_S)


def _metrics(stats: Stats | None) -> Iterator[Metric]:
    for figure in _FIGURES:
        yield figure.metric(stats)
    took = HistogramMetricFamily(
        "palaver_turn_duration_seconds",
        "How long turns ran, from their beginning to the commit of their end.",
        unit="seconds",
    )
    if stats is not None:
        took.add_metric([], _buckets(stats.turn_seconds), stats.turn_seconds.sum_s)
    yield took


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    """Each bound, and how many were at most that long."""
    names = [*map(str, durations.bounds), "+Inf"]
    buckets, so_far = [], 0
    for name, count in zip(names, durations.counts, strict=True):
        so_far += count
        buckets.append((name, float(so_far)))
    return buckets
