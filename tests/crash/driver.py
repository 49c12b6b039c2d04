"""The driver's side: starting the zygote, giving orders, hearing what lives say, killing them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import frozen
from gevent.monkey import get_original

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0  # of silence; a life that is stuck says so before
_AT_ONCE = 1 << 16
_CODE = "from gevent import monkey; monkey.patch_all(); from crash.zygote import main; main()"

_close = get_original("os", "close")  # gevent's waits for a hub
_select = get_original("select", "select")


@frozen
class Kill:
    """SIGKILL `later_us` microseconds after the life's `acks`th acknowledgement."""

    acks: int
    later_us: int = 0


class Driver:
    """A zygote, and the lives that it forks. Everything ends when this process does."""

    def __init__(self) -> None:
        orders_in, self._orders = os.pipe()
        self._reports, reports_out = os.pipe()
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        self._zygote = subprocess.Popen(
            [sys.executable, "-c", _CODE],
            stdin=orders_in,
            stdout=reports_out,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # an interrupt from the keyboard is for the driver alone
        )
        _close(orders_in)
        _close(reports_out)
        self._received = b""
        self._waiting: list[dict[str, Any]] = []
        assert self.hear()["e"] == "ready"

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        _close(self._orders)  # the zygote ends, and takes every life with it
        self._zygote.wait()
        _close(self._reports)

    def begin(self, order: dict[str, Any]) -> None:
        """Fork a life."""
        self._order(order)

    def kill(self, life: str) -> None:
        """End a life with SIGKILL; how it ended is heard later."""
        self._order({"kill": life})

    def hear(self) -> dict[str, Any]:
        """The next thing that a life, or the zygote, says.

        Raises:
            AssertionError: nothing is said any more, or a life did not end as it should.
        """
        while not self._waiting:
            readable, _, _ = _select([self._reports], [], [], PATIENCE_S)
            assert readable, f"no life said anything for {PATIENCE_S} s"
            data = os.read(self._reports, _AT_ONCE)
            assert data, "the zygote is gone; what it printed says why"
            *lines, self._received = (self._received + data).split(b"\n")
            self._waiting = [json.loads(line) for line in reversed(lines)]
        event = self._waiting.pop()
        assert event["e"] != "crash", f"life {event['life']} crashed: {event['words']}"
        return event

    def live(self, order: dict[str, Any], kill: Kill | None = None) -> Iterator[dict[str, Any]]:
        """Let a life live until it ends; everything that it said, the last being how it ended.

        One that has nothing left to do is killed.
        """
        life, acks, killed = order["life"], 0, False
        self.begin(order)
        while True:
            event = self.hear()
            assert event["life"] == life, f"{event} comes while {life} lives"
            yield event
            acks += event["e"] == "ack"
            due = kill is not None and event["e"] == "ack" and acks == kill.acks
            if due and kill is not None:
                _spin(kill.later_us)
            if (due or event["e"] == "idle") and not killed:
                self.kill(life)
                killed = True
            if event["e"] == "ended":
                assert event["status"] in (0, -signal.SIGKILL), f"life {life} ended with {event['status']}"
                return

    def _order(self, order: dict[str, Any]) -> None:
        data = json.dumps(order).encode() + b"\n"
        while data:
            data = data[os.write(self._orders, data) :]


def _spin(us: int) -> None:
    """Let some microseconds pass, exactly."""
    end = time.perf_counter() + us / 1_000_000
    while time.perf_counter() < end:
        pass
