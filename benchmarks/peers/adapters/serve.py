"""Measures one peer, in the peers' own environment: reads a request a line, writes an answer a line, as JSON.

Needs nothing of Palaver: `PYTHON serve.py PEER FOLDER`. A request is `{"do": "load", ...}`, `{"do": "grow",
...}` or `{"do": "together", ...}`; the functions of these names say what their fields are.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

MESSAGE = "m" * 100
ANSWER = "a" * 200
_made: set[str] = set()


class Model(Protocol):
    """`thinking_s` is how long it waits before it answers; it is 0 in all that is timed."""

    thinking_s: float


class Peer(Protocol):
    """What each adapter has, as `open_peer(path)`: an object of this shape."""

    model: Model

    async def turn(self, conversation: str, message: str) -> None:
        """Send a message to a conversation, made if it is new, and wait until its turn is stored."""

    async def stored(self, conversation: str) -> list[tuple[str, str]]:
        """Everything stored of a conversation, as (role, text), role being "user" or "assistant"."""

    async def close(self) -> None:
        """Let go of the file."""


def reply_to(message: str) -> str:
    """What a model answers: 200 characters, which begin with the message's own beginning."""
    head = f"re {message[:12]} "
    return head + ANSWER[len(head) :]


async def load(peer: Peer, senders: int, turns: int, most_s: float) -> dict[str, Any]:
    """Senders, each with a conversation of its own, send so many turns, all at once; none begins one later
    than `most_s` seconds. A conversation is made by a turn that is not counted, once; more rounds go on."""
    names = [f"load-{senders}-{number}" for number in range(senders)]
    latencies: list[float] = []
    errors: list[Exception] = []
    for name in names:
        if name not in _made:
            await peer.turn(name, MESSAGE)
            _made.add(name)
    end = time.perf_counter() + most_s

    async def sender(name: str) -> None:
        for _ in range(turns):
            began = time.perf_counter()
            if began >= end:
                return
            try:
                await peer.turn(name, MESSAGE)
            except Exception as error:
                errors.append(error)
            else:
                latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(sender(name) for name in names))
    spent = time.perf_counter() - began
    latencies.sort()
    count = len(latencies)
    p50, p99 = (latencies[min(count - 1, count * percent // 100)] * 1e3 for percent in (50, 99))
    found = {"turns": count, "turns_per_s": count / spent, "p50_ms": p50, "p99_ms": p99}
    return {**found, "errors": len(errors), "error": _words(errors)}


async def grow(peer: Peer, turns: int, most_s: float) -> dict[str, Any]:
    """One conversation of so many turns; the median milliseconds of each hundred, as far as it came."""
    name = f"grow-{time.time_ns()}"
    end = time.perf_counter() + most_s
    took: list[float] = []
    while len(took) < turns and time.perf_counter() < end:
        began = time.perf_counter()
        await peer.turn(name, MESSAGE)
        took.append((time.perf_counter() - began) * 1e3)
    hundreds = [sorted(took[first : first + 100]) for first in range(0, len(took) - 99, 100)]
    return {"hundreds": [each[len(each) // 2] for each in hundreds]}


async def together(peer: Peer, turns: int, thinking_s: float) -> dict[str, Any]:
    """So many turns at once on one conversation, whose model waits a little: what is stored of them.

    `kept` counts the turns whose message is followed by its own answer, in the order in which they were sent.
    """
    peer.model.thinking_s = thinking_s
    name = f"together-{time.time_ns()}"
    messages = [f"number {number:05}" for number in range(turns)]
    outcomes = await asyncio.gather(*(peer.turn(name, each) for each in messages), return_exceptions=True)
    peer.model.thinking_s = 0.0
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    stored = await peer.stored(name)
    pairs = [
        messages.index(said)
        for (role, said), (other, answer) in pairwise(stored)
        if (role, other) == ("user", "assistant") and said in messages and answer == reply_to(said)
    ]
    kept, last = 0, -1
    for number in pairs:
        if number > last:
            kept, last = kept + 1, number
    return {"kept": kept, "stored": len(stored), "errors": len(errors), "error": _words(errors)}


def _words(errors: Sequence[BaseException]) -> str | None:
    return f"{type(errors[0]).__name__}: {errors[0]}".splitlines()[0][:100] if errors else None


async def serve(name: str, folder: Path) -> None:
    """Answer requests until there are no more."""
    module = importlib.import_module(f"{name}_peer")
    peer: Peer = await module.open_peer(folder / f"{name}.db")
    do = {"load": load, "grow": grow, "together": together}
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a peer prints is no answer
    print(json.dumps({"setting": module.SETTING, "version": module.version()}), file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        request = json.loads(line)
        answer = await do[request.pop("do")](peer, **request)
        print(json.dumps(answer), file=answers, flush=True)
    await peer.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
