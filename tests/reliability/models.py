"""Every failure of a model's endpoint: the turn ends, in time, and its conversation goes on."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import gevent
from attrs import define
from gevent.pool import Pool

from palaver import AgentConfig, Chunk, HistoryEntry, ModelRequest, OpenAIModel, Runtime
from persistence.database import close_database, open_database
from persistence.verify import verify
from reliability.bad_endpoint import KINDS, MANY, MARK, BadEndpoint, Kind
from reliability.check import Check

AT_ONCE = 6
BOUND_S = 45.0  # far over the limits below: a turn that takes longer has none
SHORT_S = 0.15  # only the limit that a fault is to meet: a busy machine must not fail what is good
TOTAL_S = 0.5
PATIENT_S = 30.0


@define
class Endpoints:
    """A model that asks the endpoint that the message wants, within the limit that is to end it."""

    models: dict[str, OpenAIModel]

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        asked = next(str(m["content"]) for m in reversed(request.messages) if m["role"] == "user")
        kind = asked.removeprefix("fault ").rsplit(" ", 1)[0] if asked.startswith("fault ") else ""
        return self.models.get(kind, self.models[""]).stream(request)

    def close(self) -> None:
        for model in self.models.values():
            model.close()


class Host:
    """A runtime whose model is the bad endpoint."""

    def __init__(self, endpoint: BadEndpoint, nowhere: str, full: str, folder: Path, seed: int) -> None:
        def model(url: str, connect_s: float, idle_s: float, total_s: float) -> OpenAIModel:
            return OpenAIModel(
                url,
                max_concurrent=AT_ONCE,
                connect_timeout_s=connect_s,
                idle_timeout_s=idle_s,
                total_timeout_s=total_s,
                retries=1,
                rng=NoJitter(seed),
            )

        patient = model(endpoint.url, PATIENT_S, PATIENT_S, PATIENT_S)
        idle = model(endpoint.url, PATIENT_S, SHORT_S, PATIENT_S)
        total = model(endpoint.url, PATIENT_S, PATIENT_S, TOTAL_S)
        limited = {"idle": idle, "total": total, "connect": model(full, SHORT_S, PATIENT_S, PATIENT_S)}
        self.model = Endpoints(
            {
                **{kind.name: limited.get(kind.limit, patient) for kind in KINDS},
                "429, wait an hour": total,  # all wait as long as one call would
                "refused": model(nowhere, PATIENT_S, PATIENT_S, PATIENT_S),
                "": patient,
            }
        )
        self.rt = Runtime.open(folder / "models.db", self.model, tools=[look])
        self.rt.add_agent(AgentConfig(name="crab", model="m", auto_title=False, compact_threshold=None))

    def meet(self, kind: Kind, number: int) -> None:
        """A good turn, one that meets the fault, and a good one."""
        rt = self.rt
        cid = rt.switch_topic("crab", f"sender {number}", "work", "about it").conversation_id
        assert rt.send(cid, f"before {number}").text == f"re: before {number}"
        asked = f"fault {kind.name} {number}"
        ticket = rt.submit(cid, asked)
        result = ticket.result(timeout=BOUND_S)  # ResultTimeout is a violation: no bound has held
        snapshot = rt.conversation(cid)
        assert snapshot is not None
        _check_turn(kind, ticket.state, result.stop_reason, result.text, result.error, snapshot.history)
        assert rt.send(cid, f"after {number}", timeout=BOUND_S).text == f"re: after {number}"
        if kind.name == "10 MB":
            rt.close(cid)

    def gather(self, endpoint: BadEndpoint) -> None:
        """As many good answers at once as may be under way: none of their slots was lost to a fault."""
        before, endpoint.most_at_once = endpoint.connections, 0
        cids = [
            self.rt.switch_topic("crab", f"last {n}", "work", "about it").conversation_id
            for n in range(AT_ONCE)
        ]
        turns = [gevent.spawn(self.rt.send, cid, f"gather {AT_ONCE}", timeout=BOUND_S) for cid in cids]
        gevent.joinall(turns, raise_error=True)
        assert [turn.value.stop_reason for turn in turns] == ["text_response"] * AT_ONCE, (
            "G17: a slot is lost"
        )
        assert endpoint.most_at_once >= AT_ONCE, "G17: a slot is lost"
        assert endpoint.connections - before <= AT_ONCE


def _check_turn(
    kind: Kind,
    state: str,
    stop_reason: str,
    text: str,
    error: str | None,
    history: Iterable[HistoryEntry],
) -> None:
    said = [(entry.role, entry.content) for entry in history if entry.role != "tool"]
    assert not any(MARK in content for _, content in said[2:] if not content.startswith("fault")), (
        f"G17: a broken round is in history: {said[2:]}"
    )
    if not kind.text:
        assert (state, stop_reason) == ("failed", "error"), (
            f"G17: it ended {state}, {stop_reason}, {text[:99]!r}"
        )
        assert error, "G17: the failure has no words"
        assert kind.error in error, f"G17: it failed for another reason: {error}"
        assert [role for role, _ in said[2:]] == ["user"], f"G17: a broken round is in history: {said[2:]}"
        return
    assert (state, stop_reason) == ("done", "text_response"), f"G17: it ended {state}, {stop_reason}: {error}"
    assert text == kind.text * (MANY if kind.text == "x" else 1), f"G17: {len(text):,} characters came"
    assert said[-1] == ("assistant", text)


class NoJitter(random.Random):
    """Attempts follow at once."""

    def random(self) -> float:
        return 0.0


def look(where: str) -> str:
    """Look somewhere."""
    return f"nothing is {where}"


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Unreachable:
    """Two ports: nobody listens at one, and at the other no connection comes through any more."""

    def __enter__(self) -> Unreachable:
        self._closed = socket.socket()
        self._closed.bind(("127.0.0.1", 0))
        self._full = socket.socket()
        self._full.bind(("127.0.0.1", 0))
        self._full.listen(0)
        self._waiting = [socket.socket() for _ in range(4)]
        for each in self._waiting:
            each.setblocking(False)
            each.connect_ex(self._full.getsockname())
        return self

    def __exit__(self, *_exc: object) -> None:
        for each in (self._closed, self._full, *self._waiting):
            each.close()

    @property
    def closed(self) -> str:
        """Connections are refused."""
        return _url(self._closed)

    @property
    def full(self) -> str:
        """Connections are not made."""
        return _url(self._full)


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def run(count: int, seed: int, folder: Path) -> int:
    """Let `count` turns meet a fault each, all kinds by turns, some at a time."""
    gevent.get_hub().threadpool.apply(len, ((),))  # its own descriptors come with its first use
    before = descriptors()
    with Unreachable() as ports, BadEndpoint() as endpoint:
        host = Host(endpoint, ports.closed, ports.full, folder, seed)
        pool = Pool(AT_ONCE)
        failures: list[BaseException] = []

        def meet(number: int) -> None:
            kind = KINDS[number % len(KINDS)]
            try:
                host.meet(kind, seed * 1_000_003 + number)
            except BaseException as error:
                error.add_note(f"model fault: {kind.name!r}, number {number} of seed {seed}")
                failures.append(error)

        with host.rt:
            for number in range(count):
                if failures:
                    break
                pool.spawn(meet, number)
            pool.join()
            if failures:
                raise failures[0]
            assert endpoint.wrong == [], f"G17: {endpoint.wrong[0]}"
            host.gather(endpoint)
        host.model.close()
        with gevent.Timeout(BOUND_S, AssertionError(f"G17: {endpoint.open} connections are left open")):
            while endpoint.open:
                gevent.idle()
    with gevent.Timeout(BOUND_S, AssertionError(f"G17: {descriptors() - before} descriptors are left open")):
        while descriptors() > before:
            gevent.idle()
    _check_file(folder / "models.db")
    return count


def _check_file(path: Path) -> None:
    db = open_database(path, create=False)
    try:
        assert verify(db) == []
        states = db.execute("SELECT DISTINCT state FROM turns").fetchall()
        assert {*states} <= {("done",), ("failed",)}, f"G2: {states}"
        broken = db.execute("SELECT count(*) FROM entries WHERE instr(body, ?)", [MARK]).fetchall()
        assert broken == [(0,)], "G17: a broken round is stored"
    finally:
        close_database(db)


CHECKS = (Check("model-faults", (17,), "faults", len(KINDS), 200 * len(KINDS), run, chunk=10 * len(KINDS)),)
