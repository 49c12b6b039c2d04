"""Forks one life of a host after the other: importing Palaver takes half a second, a fork a few milliseconds.

Runs as a process of its own, without a hub or a second thread, so that a fork of it is as good as new. Orders
come in as lines of JSON (`{"life": ..}` begins one, `{"kill": life}` ends one with SIGKILL), what lives say
goes out as lines of JSON, and so does how each ended. When its orders end, so does everything.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
from typing import Any

from gevent.monkey import get_original

from crash.host import live
from crash.life import Voice

# The real ones: gevent's would make a hub here, which every child would inherit.
_close = get_original("os", "close")
_fork = get_original("os", "fork")
_waitpid = get_original("os", "waitpid")
_select = get_original("select", "select")

AT_ONCE = 1 << 16


class Zygote:
    """The process that forks. Each child has two pipes with it, by which either notices the other's end."""

    def __init__(self, orders: int, reports: int) -> None:
        self._orders = orders
        self._reports = reports
        self._voice = Voice(reports, "")
        self._living: dict[str, tuple[int, int, int]] = {}  # pid, its sign of life, ours
        self._received = b""

    def run(self) -> None:
        """Obey until the orders end, then end every life."""
        self._voice.say(e="ready")
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more
            while self._wait():
                pass
        for pid, _sign, _ours in self._living.values():
            os.kill(pid, signal.SIGKILL)
            _waitpid(pid, 0)

    def _wait(self) -> bool:
        signs = {sign: life for life, (_pid, sign, _ours) in self._living.items()}
        readable, _, _ = _select([self._orders, *signs], [], [])
        for sign in readable:
            if sign != self._orders:
                self._bury(signs[sign])
        return self._orders not in readable or self._obey()

    def _obey(self) -> bool:
        data = os.read(self._orders, AT_ONCE)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "kill" in order:
                self._kill(order["kill"])
            else:
                self._begin(order)
        return bool(data)

    def _begin(self, order: dict[str, Any]) -> None:
        alive, held_by_child = os.pipe()
        held_by_child_alive, ours = os.pipe()
        pid = _fork()
        if pid == 0:
            # Whoever holds these keeps another life from noticing an end.
            for fd in (self._orders, alive, ours):
                _close(fd)
            for _pid, sign, its in self._living.values():
                _close(sign)
                _close(its)
            live(order, self._reports, held_by_child_alive)
        _close(held_by_child)
        _close(held_by_child_alive)
        self._living[order["life"]] = (pid, alive, ours)

    def _kill(self, life: str) -> None:
        if life in self._living:  # not waited for yet, so the pid is still this child's
            os.kill(self._living[life][0], signal.SIGKILL)

    def _bury(self, life: str) -> None:
        pid, sign, ours = self._living.pop(life)
        _, status = _waitpid(pid, 0)
        _close(sign)
        _close(ours)
        self._voice.say(e="ended", life=life, pid=pid, status=os.waitstatus_to_exitcode(status))


def main() -> None:
    """Obey the orders on standard input; speak on standard output, which is no child's to print on."""
    orders, reports = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    gc.collect()
    gc.freeze()  # or the first collection of every child would copy all its pages
    Zygote(orders, reports).run()
