"""The calls of a runtime for what is left undone, given up, copied or too old."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Literal

from gevent.pool import Pool

from actors.errors import InvalidInput
from actors.messages import (
    DeleteSession,
)
from actors.system import give_up
from actors.text import check_text
from actors.ticket import Ticket
from palaver.asking import NAME_CHARS
from palaver.copies import Contents, export_running
from palaver.looking import Looking
from persistence import dead_letters, recovery, sessions
from persistence.dead_letters import DeadLetter
from persistence.records import (
    UnfinishedSession,
)
from persistence.retention import sessions_older_than

PURGED_AT_ONCE = 32  # sessions whose deletion a commit may have to wait for


class Keeping(Looking):
    """The part of `Runtime` for operators: recovery, dead letters, copies, retention."""

    # -- messages that were given up ---------------------------------------------------------------

    def dead_letters(self, agent: str | None = None, sender: str | None = None) -> list[DeadLetter]:
        """Messages that were given up because they took their process or conversation down each time, in the
        order in which they were. Of one agent or sender where given."""
        return self._job(partial(dead_letters.dead_letters, agent=agent, sender=sender))

    def dead_letter(self, turn_id: int) -> DeadLetter:
        """One of them.

        Raises:
            DeadLetterNotFound.
        """
        return self._job(partial(dead_letters.dead_letter, turn_id=turn_id))

    def retry_dead_letter(self, turn_id: int) -> Ticket:
        """Send a message again that was given up, as a new turn at the end of its conversation's queue. Its
        key, if it had one, still stands for the turn that failed.

        Raises:
            DeadLetterNotFound, AgentNotRegistered, MailboxFull, StorageError (it was tried again before).
        """
        letter = self._job(partial(dead_letters.to_retry, turn_id=turn_id))
        cid = self.load(letter.handle)
        ticket = self._ticket(
            cid, letter.content, letter.said_by, letter.guest, "enqueue", None, letter.tool_choice
        )
        ticket.retries = turn_id
        self._hand_over(ticket)
        return ticket.wait_accepted()

    # -- what earlier processes left undone --------------------------------------------------------

    def unfinished(self) -> list[UnfinishedSession]:
        """Stored sessions that are not live and have accepted messages that have not ended, in the order
        of the oldest of these."""
        found = self._job(recovery.unfinished_sessions)
        live = {state.handle for state in self._conversations.values()}
        return [session for session in found if session.handle not in live]

    def recover(self, handle: str | None = None, *, mode: Literal["run", "fail"] = "run") -> int:
        """Take up what `unfinished` lists: of one session, or of all whose agent is registered.

        Args:
            mode: "run" opens the topics, and their turns go on, and lets timers fire that were held since
                the opening; "fail" ends the messages as `failed`, and leaves timers as they are.

        Returns:
            How many sessions were taken up.

        Raises:
            SessionNotFound, AgentNotRegistered: only where `handle` is given.
            MailboxFull: all that may be live is at work. What was taken up before goes on, and a later call
                takes up the rest.
            StorageError.
        """
        if mode not in ("run", "fail"):
            raise InvalidInput(f'mode must be "run" or "fail", not {mode!r}')
        left = self.unfinished()
        if handle is not None:
            check_text(handle, what="the handle", most=NAME_CHARS)
            self._job(partial(sessions.get_session, handle=handle))
            left = [session for session in left if session.handle == handle]
        elif mode == "run":
            left = [session for session in left if self._services.agents.find(session.agent) is not None]
        if mode == "fail":
            give_up(self._services, [session.handle for session in left])
        else:
            self._services.timers.release(handle)
            for session in left:
                self.load(session.handle)
        return len(left)

    # -- copies and retention ----------------------------------------------------------------------

    def backup(self, to: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Copy the database into the new file `to`, a database like any other, while everything goes on: no
        commit waits for more than a small step of the copy. Blocks the calling greenlet.

        The copy is of one moment, and holds everything that was acknowledged before the call. It appears
        under its name when it is complete and synced. If anything fails, or the caller is killed, nothing is
        left of it, and the runtime is none the worse.

        Args:
            progress: called now and then with the pages copied and the pages in all, which may change.

        Raises:
            StorageError: there is something under that name, or it cannot be written; or the runtime was
                shut down before the copy was complete.
        """
        self._check_open()
        self._services.store.backup(_path(to), progress)

    def export(self, directory: str | os.PathLike[str]) -> Contents:
        """Write all that the database holds as text into the new directory `directory`: sessions as JSON
        lines, memory as Markdown. As `backup` in all else; needs room for a copy of the file besides.

        Returns:
            How much of what was written.

        Raises:
            StorageError: the directory is not empty, or cannot be written.
        """
        self._check_open()
        return export_running(self._services.store, _path(directory))

    def purge_sessions(self, older_than_s: float, agent: str | None = None, sender: str | None = None) -> int:
        """Delete stored sessions that have not changed for `older_than_s` seconds; how many. Those that are
        live stay, and those with messages that have not ended or with timers. Everything else goes on
        meanwhile.

        As `delete_session`: archives and topics stay in memory.

        Args:
            agent, sender: only sessions of these.

        Raises:
            StorageError: one could not be deleted; those before it are.
        """
        if type(older_than_s) not in (int, float) or not older_than_s >= 0:
            raise InvalidInput(f"older_than_s must be a number of seconds from 0 on, not {older_than_s!r}")
        for what, value in (("the agent", agent), ("the sender", sender)):
            if value is not None:
                check_text(value, what=what)
        before, after, purged = self._clock.wall() - older_than_s, 0, 0
        find = partial(sessions_older_than, before=before, agent=agent, sender=sender, at_most=PURGED_AT_ONCE)
        pool = Pool(PURGED_AT_ONCE)
        try:
            while found := self._job(partial(find, after=after)):
                requests = [DeleteSession(old.handle, before) for old in found]
                purged += sum(pool.imap(partial(self._ask_registry, waits=True), requests))
                after = found[-1].id
        finally:
            pool.kill()
        return purged


def _path(path: object) -> str | os.PathLike[str]:
    if not isinstance(path, str | os.PathLike):
        raise InvalidInput(f"a path must be text or path-like, not {path!r}")
    return path
