"""Ours beside other runtimes for agents, each with its own way to keep conversations."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402  # gevent patches first
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

from benchmarks.peers import environment  # noqa: E402
from benchmarks.report import Curve, Goal, Line, Part, Row, Series, Tell, ratio  # noqa: E402
from benchmarks.showing import setting  # noqa: E402
from benchmarks.turns import Load, ours  # noqa: E402
from benchmarks.work import MESSAGE, open_topics, running, temporary_file  # noqa: E402
from palaver import ModelRequest, Reply, ScriptedModel  # noqa: E402

ABOUT = """S senders, each with a conversation of its own, each send T turns one after the other, all at
once: a message of 100 characters, a model without latency that answers 200. Each system stores with its own
means, at the setting that is best for it; a slow one is stopped after some seconds, and its rate is that of
the turns it came to. AutoGen has no store: its state is written by hand and never read back. `kept`: of 20
turns sent at once to one conversation whose model takes 10 ms, those stored in order, each followed by its
own answer."""
LOADS = (Load(1, 200), Load(100, 20), Load(1_000, 10))
FEW = (Load(1, 200), Load(20, 20))
OWN_STORE = ("langgraph", "openai_agents", "google_adk")
TURNS = 1_000  # of one conversation, to see how the cost of a turn grows
AT_ONCE = 20
THINKING_S = 0.01


class Peer:
    """One peer in a process of its own, in the environment of the peers."""

    def __init__(self, name: str, env: Path, folder: str) -> None:
        command = [str(environment.python(env)), str(environment.ADAPTERS / "serve.py"), name, folder]
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.facts = self._answer()

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """What `adapters/serve.py` has measured."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **fields}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def growing(turns: int) -> list[float]:
    """Ours: the median milliseconds of each hundred turns of one conversation."""
    took = []
    with temporary_file() as path, running(path, compact_threshold=None) as rt:
        (conversation,) = open_topics(rt, 1)
        for _ in range(turns):
            began = time.perf_counter()
            rt.send(conversation, MESSAGE)
            took.append((time.perf_counter() - began) * 1e3)
    return [sorted(took[first : first + 100])[50] for first in range(0, turns - 99, 100)]


def together() -> int:
    """Ours: how many of 20 turns at once on one conversation are kept, in order."""

    def echo(request: ModelRequest) -> Reply:
        return Reply(f"re {request.messages[-1]['content']}", delay_s=THINKING_S, chunk_chars=0)

    messages = [f"number {number:05}" for number in range(AT_ONCE)]
    with temporary_file() as path, running(path, ScriptedModel(echo, keep_requests=0)) as rt:
        (conversation,) = open_topics(rt, 1)
        sends = [gevent.spawn(rt.send, conversation, each) for each in messages]
        gevent.joinall(sends, raise_error=True)
        shown = rt.conversation(conversation)
        assert shown is not None
        said = [entry.content for entry in shown.history]
    expected = [text for each in messages for text in (each, f"re {each}")]
    return sum(said[2 * n : 2 * n + 2] == expected[2 * n : 2 * n + 2] for n in range(AT_ONCE))


def run(quick: bool, tell: Tell) -> Part:
    env = environment.folder()
    there = environment.installed(env)
    notes = [
        f"{name} is not installed; `python -m benchmarks.peers setup` installs it"
        for name, found in there.items()
        if not found
    ]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        peers = []
        for name in [name for name, found in there.items() if found]:
            tell(f"starting {name}")
            try:
                peers.append(Peer(name, env, folder))
            except RuntimeError as error:
                notes.append(f"{error}, before it was measured")
                continue
            stack.callback(peers[-1].close)
        notes += [f"{peer.name} is {peer.facts['version']}: {peer.facts['setting']}" for peer in peers]
        return _measure(peers, quick, tell, notes)


def _measure(peers: Sequence[Peer], quick: bool, tell: Tell, notes: list[str]) -> Part:
    loads, rounds, most_s, turns = (FEW, 1, 0.5, 200) if quick else (LOADS, 5, 2.5, TURNS)
    rates: dict[Load, dict[str, list[float]]] = {load: {} for load in loads}
    for turn in range(rounds):
        for load, found in rates.items():
            tell(f"round {turn + 1} of {rounds}, {load.name}: ours")
            found.setdefault("ours", []).append(ours(load).turns_per_s)
            for peer in peers:
                tell(f"round {turn + 1} of {rounds}, {load.name}: {peer.name}")
                answer = peer.ask("load", senders=load.senders, turns=load.turns, most_s=most_s)
                found.setdefault(peer.name, []).append(answer["turns_per_s"])
                if answer["errors"]:
                    notes.append(
                        f"{peer.name}, {load.name}: {answer['errors']} turns failed: {answer['error']}"
                    )
    rows = [
        Row(f"turns/s, {load.name}", {name: Series(tuple(values)) for name, values in found.items()})
        for load, found in rates.items()
    ]
    tell("20 turns at once on one conversation")
    kept = {"ours": Series((float(together()),))}
    for peer in peers:
        answer = peer.ask("together", turns=AT_ONCE, thinking_s=THINKING_S)
        kept[peer.name] = Series((float(answer["kept"]),))
        notes.append(
            f"{peer.name}, 20 turns at once: {answer['stored']} messages stored, {answer['errors']} failed"
            + (f" ({answer['error']})" if answer["error"] else "")
        )
    rows.append(Row("kept, of 20 turns at once on one conversation", kept))
    curve = _growth(peers, turns, 1.0 if quick else 12.0, tell)
    return Part("peers", ABOUT, rows, [curve], _goals(rows, curve), notes, setting("gevent", "sqlite-utils"))


def _growth(peers: Sequence[Peer], turns: int, most_s: float, tell: Tell) -> Curve:
    tell(f"{turns:,} turns of one conversation: ours")
    lines: dict[str, Line] = {"ours": _hundreds(growing(turns))}
    for peer in peers:
        tell(f"{turns:,} turns of one conversation: {peer.name}")
        hundreds = peer.ask("grow", turns=turns, most_s=most_s)["hundreds"]
        if hundreds:  # none where it did not come to a hundred in its time
            lines[peer.name] = _hundreds(hundreds)
    return Curve("ms per turn", "turns of the conversation so far", lines)


def _hundreds(medians: Sequence[float]) -> Line:
    return {100.0 * (number + 1): Series((each,)) for number, each in enumerate(medians)}


def _goals(rows: Sequence[Row], curve: Curve) -> list[Goal]:
    *rates, kept = rows
    goals = []
    for row in rates[1:]:
        systems: Mapping[str, Series] = row.systems
        stores = [ratio(systems["ours"], systems[name]) for name in OWN_STORE if name in systems]
        if stores:
            goals.append(Goal(f"{row.what}, over the best with its own store", min(stores), 10))
        if "autogen" in systems:
            goals.append(Goal(f"{row.what}, over AutoGen", ratio(systems["ours"], systems["autogen"]), 2))
    goals.append(Goal("the last hundred turns over the first", curve.growth("ours"), 1.3, at_most=True))
    goals.append(Goal("kept, of 20 turns at once", kept.systems["ours"].median, AT_ONCE))
    return goals
