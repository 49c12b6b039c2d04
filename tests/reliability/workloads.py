"""Whole workloads of the simulation language, as a user would write them, with every guarantee checked.

`examples/workloads/faulty.toml` and `storm.toml`, three seeds of the one and then one of the other. The
second check lives them in two processes with different hash seeds: what they trace must be the same to the
byte.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from palaver.simulation import Outcome, Workload, simulate
from palaver.simulation.simulating import quietly
from reliability.check import Check
from reliability.twice import TESTS, told_twice

SPAN = 1_000_000  # workloads of one part
COLLECTED_AFTER = 20  # workloads
EXAMPLES = TESTS.parent / "examples" / "workloads"
FAULTY = Workload.from_toml(EXAMPLES / "faulty.toml")
STORM = Workload.from_toml(EXAMPLES / "storm.toml")

DIGESTS = """
from gevent import monkey; monkey.patch_all()
import sys
from pathlib import Path
from reliability.workloads import digests
for line in digests(range(int(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3])):
    print(line)
"""


def workload_of(seed: int) -> Workload:
    """The workload that a seed lives."""
    return STORM if seed % 4 == 3 else FAULTY


def live(seeds: Iterable[int], folder: Path, trace: io.StringIO | None = None) -> Iterator[Outcome]:
    """Each seed's workload, lived to its end. Its file is in `folder`."""
    with quietly():
        for count, seed in enumerate(seeds, start=1):
            yield simulate(workload_of(seed), seed, database=folder / "simulated.db", trace=trace)
            for path in folder.glob("simulated.db*"):
                path.unlink()
            if count % COLLECTED_AFTER == 0:
                gc.collect()


def run(count: int, seed: int, folder: Path) -> int:
    """Live `count` workloads: those of this part or, from `SPAN` on, those from this seed on."""
    done = 0
    for outcome in live(_seeds(count, seed), folder):
        found = outcome.violation
        if found is not None:
            again = f"python tests/reliability --part workloads 1 {outcome.seed}"
            where = f"examples/workloads/{outcome.workload.name}.toml --seed {outcome.seed}"
            words = f"G{found.guarantee}: {found.words}, at {found.at_s:.6f} s"
            raise AssertionError(f"{words} of palaver simulate {where}; {again}")
        done += 1
    return done


def hunt(seeds: int, enough: int) -> None:
    """Live so many seeds, or until `enough` of them have shown a violation; a line of JSON for each, in which
    `guarantee` is 0 where all held."""
    with TemporaryDirectory(prefix="palaver-hunt-") as folder:
        for outcome in live(_seeds(seeds, 1), Path(folder)):
            found = outcome.violation
            facts = (outcome.seed, 0, "") if found is None else (outcome.seed, found.guarantee, found.words)
            print(json.dumps(facts), flush=True)
            enough -= found is not None
            if not enough:
                return


def _seeds(count: int, seed: int) -> range:
    first = seed if seed >= SPAN else seed * SPAN
    return range(first, first + count)


def digests(seeds: Iterable[int], folder: Path) -> Iterator[str]:
    """For each seed, how long its trace is, and the digest of it."""
    trace = io.StringIO()
    for outcome in live(seeds, folder, trace):
        written = trace.getvalue()
        trace.seek(0)
        trace.truncate()
        yield f"{outcome.seed} {len(written)} {hashlib.sha256(written.encode()).hexdigest()}"


def run_twice(count: int, seed: int, folder: Path) -> int:
    """Live `count` workloads in two fresh processes at once, and compare what they trace."""
    seeds = _seeds(count, seed)
    first, second = told_twice(DIGESTS, folder, seeds.start, seeds.stop)
    for one, other in zip(first, second, strict=True):
        number = one.partition(" ")[0]
        again = f"python tests/reliability --part traces 1 {number}"
        assert one == other, f"seed {number} has two traces: {one} and {other}; {again}"
    assert len(first) == len({*first}) == count
    return len(first)


CHECKS = (
    Check(
        name="workloads",
        guarantees=(2, 5, 6, 7, 11, 13, 19),
        unit="seeds",
        quick=8,
        long=5_000,
        run=run,
    ),
    Check(name="traces", guarantees=(2,), unit="seeds", quick=4, long=50, run=run_twice, chunk=25),
)
