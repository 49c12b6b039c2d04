"""Whether a simulated run tells what a real one would: one workload, simulated, and lived by the clock."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import subprocess  # noqa: E402  # gevent patches first
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402

import gevent  # noqa: E402
from attrs import frozen  # noqa: E402

from benchmarks.report import Curve, Goal, Part, Row, Series, Tell  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.work import temporary_file  # noqa: E402
from palaver import AgentConfig, OpenAIModel, Runtime, ScriptedModel  # noqa: E402
from palaver.simulation import Workload, percentile, simulate  # noqa: E402
from palaver.simulation.plan import Plan  # noqa: E402
from palaver.simulation.sender import AGENT, content_of  # noqa: E402

ABOUT = """500 senders, each with a topic, who think between their messages, and a provider whose answers
take log-normal seconds, 100 at once, so that most wait for a place. Simulated; and real: a Runtime on the
real loop, its database thread and a file, `OpenAIModel`, and an HTTP endpoint in a process of its own that
draws the same seconds for the same messages and lets as many in at once. The simulation is told only how long
a commit takes here, as measured just before."""
WORKLOAD = """
name = "fidelity"
duration_s = {seconds}
[senders]
count = {senders}
turns = 0
think_s = {{ exponential = {think_s} }}
[arrivals]
kind = "closed"
spread_s = {spread_s}
[provider]
first_token_s = {{ lognormal = {{ median = {median_s}, p95 = {p95_s} }} }}
tokens_out = 50
concurrency = {places}
[disk]
commit_s = {commit_s}
"""
FULL = {
    "senders": 500,
    "seconds": 45,
    "spread_s": 15.0,
    "think_s": 6.0,
    "median_s": 4.0,
    "p95_s": 10.0,
    "places": 100,
}
QUICK = {
    "senders": 50,
    "seconds": 2.5,
    "spread_s": 0.5,
    "think_s": 1.0,
    "median_s": 0.5,
    "p95_s": 1.25,
    "places": 10,
}
SEED = 1
MOST_OFF = 0.10
PERCENTS = (0, 5, 10, 25, 50, 75, 90, 95, 99, 100)
COMMITS = 20
PATIENCE_S = 300.0


@frozen
class Lived:
    """What a run came to.

    Args:
        throughput: turns a second, from the first message to the last result.
        latencies: of each turn, in seconds, ascending.
        busy: the share of one core that this process took.
    """

    throughput: float
    latencies: Sequence[float]
    busy: float = 0.0


def measured_commit_s() -> float:
    """How long a message takes to be accepted, when nobody else sends one: a commit, and little else."""
    with temporary_file() as path, Runtime.open(path, ScriptedModel()) as rt:
        rt.add_agent(AgentConfig(name=AGENT))
        took = []
        for number in range(COMMITS):
            began = time.perf_counter()
            rt.memory.remember(AGENT, "somebody", f"note {number}", "a note")
            took.append(time.perf_counter() - began)
    return median(took)


def simulated(workload: Workload) -> Lived:
    outcome = simulate(workload, SEED, check=False)
    return Lived(outcome.throughput, outcome.latency_s)


@contextmanager
def endpoint(file: Path) -> Iterator[str]:
    """The URL of the endpoint, in a process that ends with the block."""
    command = [sys.executable, "-m", "benchmarks.slow_provider", str(file), str(SEED)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def real(workload: Workload, url: str, tell: Tell) -> Lived:
    """The same plan, by the clock."""
    plan, count, seconds = Plan(workload, SEED), workload.senders.count, workload.duration_s
    with temporary_file() as path, _opened(path, url, workload) as rt:

        def sender(index: int) -> None:
            cid = 0
            for act in plan.steps(index):
                gevent.sleep(act.at_s)
                if time.perf_counter() - began >= seconds:
                    return
                cid = cid or rt.switch_topic(AGENT, act.who, "topic 0", "work").conversation_id
                at = time.perf_counter()
                result = rt.send(cid, content_of(act), timeout=PATIENCE_S)
                if result.stop_reason != "text_response":
                    raise AssertionError(result)
                sent.append(at)
                ended.append(time.perf_counter())
                tell(f"{len(sent):,} turns, by the clock, for {seconds:.0f} s")

        sent: list[float] = []
        ended: list[float] = []
        began, worked = time.perf_counter(), time.process_time()
        gevent.joinall([gevent.spawn(sender, index) for index in range(1, count + 1)], raise_error=True)
        busy = (time.process_time() - worked) / (time.perf_counter() - began)
    latencies = sorted(end - at for at, end in zip(sent, ended, strict=True))
    return Lived(len(sent) / (max(ended) - min(sent)), latencies, busy)


def _opened(path: Path, url: str, workload: Workload) -> Runtime:
    model = OpenAIModel(url, max_concurrent=workload.senders.count, idle_timeout_s=PATIENCE_S, retries=0)
    rt = Runtime.open(path, model, limits=workload.limits)
    rt.add_agent(AgentConfig(name=AGENT, model="m", auto_title=False, compact_threshold=None))
    return rt


def run(quick: bool, tell: Tell) -> Part:
    tell("how long a commit takes")
    commit_s = measured_commit_s()
    text = WORKLOAD.format(**(QUICK if quick else FULL), commit_s=round(commit_s, 6))
    workload = Workload.from_text(text)
    tell("simulated")
    began = time.perf_counter()
    told = simulated(workload)
    real_s = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workload.toml"
        file.write_text(text)
        with endpoint(file) as url:
            seen = real(workload, url, tell)
    runs = {"simulated": told, "real": seen}
    figures = {
        "turns/s": {name: lived.throughput for name, lived in runs.items()},
        **{
            f"latency p{percent}, s": {
                name: percentile(each.latencies, percent) for name, each in runs.items()
            }
            for percent in (50, 95)
        },
    }
    rows = [
        Row(what, {name: Series((value,)) for name, value in found.items()})
        for what, found in figures.items()
    ]
    goals = [
        Goal(f"{what}: simulated off by", abs(found["simulated"] / found["real"] - 1), MOST_OFF, at_most=True)
        for what, found in figures.items()
    ]
    lines = {
        name: {float(percent): Series((percentile(lived.latencies, percent),)) for percent in PERCENTS}
        for name, lived in runs.items()
    }
    notes = (
        f"a commit took {commit_s * 1e3:.1f} ms; simulated in {real_s:.1f} s; the real run took "
        f"{len(seen.latencies) / seen.throughput:.0f} s and {seen.busy:.0%} of a core; where it does not get "
        "what it needs of one, it is slower than simulated",
    )
    curve = Curve("latency of a turn, s", "percent of the turns that took at most so long", lines)
    return Part("fidelity", ABOUT, rows, [curve], goals, notes, setting("gevent", "requests", "sqlite-utils"))
