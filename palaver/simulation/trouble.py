"""The faults of a run: each comes in its time, in whatever life of the process that is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import gevent
from pykka import ActorDeadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from palaver.runtime import Runtime
    from palaver.simulation.outcome import Act
    from palaver.simulation.run import Run


class Trouble:
    """What makes the faults of one life.

    Args:
        crash: ends the process, now.
        spawn: starts a greenlet of the simulation's own.

    Attributes:
        over: no fault begins any more.
    """

    def __init__(
        self, run: Run, rt: Runtime, crash: Callable[[], None], spawn: Callable[..., object]
    ) -> None:
        self.over = False
        self._run = run
        self._rt = rt
        self._crash = crash
        self._spawn = spawn

    def make(self) -> None:
        """Make one after the other, in a greenlet of its own."""
        run = self._run
        while not self.over:
            if run.next_fault is None:
                run.next_fault = next((act for act in run.faults if run.lives(act) or run.behind(act)), None)
            act = run.next_fault
            if act is None or run.behind(act):
                return
            if act.at_s > run.now:
                gevent.sleep(act.at_s - run.now)
            if self.over or run.frozen:
                return
            run.next_fault = None
            run.begins(act)
            self._make(act)

    def _make(self, act: Act) -> None:
        disk, facts = self._run.disk, act.facts
        if act.what == "crash":
            self._run.restart_s = float(str(facts["restart_s"]))
            if facts["how"] == "at once":
                self._crash()
            else:  # at the next commit that writes something
                disk.last, disk.after = disk.commits + 1, facts["how"] != "before a commit"
                disk.torn = float(str(facts.get("torn", 0.0)))
        elif act.what == "disk full":
            self._spawn(self._fill, float(str(facts["for_s"])))
        elif act.what == "death":
            self._kill(int(str(facts["sender"])))

    def _fill(self, for_s: float) -> None:
        run, disk = self._run, self._run.disk
        disk.full = not self.over
        gevent.sleep(for_s)
        disk.full = False
        run.note("world", "room on the disk")

    def _kill(self, sender: int) -> None:
        """Let a conversation's actor die of a message that it does not understand."""
        cid = self._run.senders[sender - 1].cid
        state = self._rt._services.directory.conversations.get(cid)  # noqa: SLF001 - no caller can do this
        if state is not None and state.ref is not None:
            with suppress(ActorDeadError):
                state.ref.tell(object())
