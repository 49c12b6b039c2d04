"""What Prometheus is told, as its own parser reads it."""

from __future__ import annotations

import re

import attrs
import gevent
import pytest
from gevent.pywsgi import WSGIServer
from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from support import PuppetModel, Runtimes, in_thread, opened_runtimes, run_script, topic, until
from turns_support import services

from palaver import DeadLettered, Reply, Runtime, ScriptedModel
from palaver.metrics import RuntimeCollector
from palaver.stats import Stats

__all__ = ["opened_runtimes"]

# Those that are not metrics of their own: a record for people, and what the histogram holds.
NO_METRICS = {"turn_seconds", "largest_batch"}


def registry_of(rt: Runtime) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(RuntimeCollector(rt))
    return registry


def scraped(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples by name and labels."""
    text = generate_latest(registry).decode()
    families = list(text_string_to_metric_families(text))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_scrape_says_what_the_stats_say(runtimes: Runtimes) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    cid = topic(rt)
    ticket = rt.submit(cid, "one")
    model.asked().answer()
    ticket.result()
    rt.submit(cid, "two")
    asked = model.asked()
    rt.submit(cid, "three")
    services(rt).incidents.report(DeadLettered(1, "it died"))
    until(lambda: rt.stats().database_waiting == 0)
    found, stats = scraped(registry_of(rt)), rt.stats()

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("palaver_conversations", state="running") == 1
    assert value("palaver_conversations", state="idle") == 0
    assert value("palaver_turns_total", state="done") == 1
    assert value("palaver_turns_total", state="failed") == 0
    assert value("palaver_turns_accepted_total") == 3
    assert value("palaver_turns_running") == value("palaver_turns_queued") == 1
    assert value("palaver_turns_oldest_waiting_seconds") > 0
    assert value("palaver_database_commits_total") == stats.commits
    assert value("palaver_database_file_bytes") == stats.file_bytes
    assert value("palaver_database_failed") == 0
    assert value("palaver_actor_up", actor="registry") == 1
    assert value("palaver_dead_letters_total") == 1
    assert value("palaver_turn_duration_seconds_count") == 1
    assert value("palaver_turn_duration_seconds_bucket", le="+Inf") == 1
    assert value("palaver_turn_duration_seconds_sum") == stats.turn_seconds.sum_s
    asked.answer()
    model.asked().answer()
    until(lambda: not rt.stats().running)


def test_every_figure_of_the_stats_is_a_metric(runtimes: Runtimes) -> None:
    from palaver.metrics import _FIGURES

    class Touched:
        """Stats that note which of their fields are read."""

        def __init__(self, stats: Stats) -> None:
            self.stats, self.read = stats, set[str]()

        def __getattr__(self, name: str) -> object:
            self.read.add(name)
            return getattr(self.stats, name)

    touched = Touched(runtimes.open().stats())
    for figure in _FIGURES:
        figure.value(touched)  # type: ignore[arg-type]  # has what Stats has
    assert touched.read == {field.name for field in attrs.fields(Stats)} - NO_METRICS


def test_buckets_of_turn_durations_add_up(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    times = services(rt).directory.counts.took
    for seconds in (0.005, 0.2, 0.2, 45.0, 9_999.0):
        times.add(seconds)
    found = scraped(registry_of(rt))
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name.endswith("seconds_bucket")
    }
    assert (buckets["0.01"], buckets["0.25"], buckets["60.0"], buckets["3600.0"]) == (1, 3, 4, 4)
    assert buckets["+Inf"] == found["palaver_turn_duration_seconds_count", ()] == 5
    values = [buckets[bound] for bound in sorted(buckets, key=float)]
    assert values == sorted(values)


def test_names_types_and_units_are_as_prometheus_wants_them(runtimes: Runtimes) -> None:
    registry = registry_of(runtimes.open())
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
    assert len(families) > 20
    for name, family in families.items():
        assert re.fullmatch(r"palaver_[a-z_]+", name)
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "histogram")
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_milliseconds", "_kilobytes"))
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")
    strict = list(parse_openmetrics(generate_openmetrics(registry).decode()))  # refuses what breaks its rules
    units = {family.name: family.unit for family in strict if family.unit}
    assert set(units.values()) == {"seconds", "bytes"}
    assert all(name.endswith(f"_{unit}") for name, unit in units.items())
    assert {name for name in families if name.endswith(("_seconds", "_bytes"))} == {*units}


def test_a_registry_takes_one_runtime_and_its_scrape_needs_nothing_at_registration(
    runtimes: Runtimes,
) -> None:
    first, second = runtimes.open(), runtimes.open()
    registry = registry_of(first)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(RuntimeCollector(second))


def test_a_scrape_from_another_thread_is_answered(runtimes: Runtimes) -> None:
    registry = registry_of(runtimes.open())
    text = in_thread(generate_latest, registry)
    assert b"palaver_turns_running 0.0" in text


def test_a_scrape_works_while_the_runtime_drains_and_after(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    registry = registry_of(rt)
    rt.shutdown()
    assert scraped(registry)["palaver_closing_down", ()] == 1


def test_a_gevent_server_serves_the_metrics(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel([Reply("hello")]))
    rt.send(topic(rt), "hello")
    server = WSGIServer(("127.0.0.1", 0), make_wsgi_app(registry_of(rt)), log=None)
    server.start()
    try:
        with gevent.socket.create_connection(server.address) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
    finally:
        server.stop()
    assert b'palaver_turns_total{state="done"} 1.0' in answer


def test_without_the_package_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import palaver.runtime\n"
        "try:\n    import palaver.metrics\n"
        "except ImportError as error:\n    print(error)\n"
    )
    assert "pip install 'palaver[metrics]'" in run_script(code).stdout
