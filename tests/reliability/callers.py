"""What else a caller of a simulated world does: conversations, memory, listings."""

from __future__ import annotations

from contextlib import suppress

from gevent import Timeout
from pykka import ActorDeadError

from palaver import StorageError
from reliability.cast import SCOPES
from reliability.talking import Talking


class Sender(Talking):
    """A whole caller."""

    # -- conversations -----------------------------------------------------------------------------

    def _open(self) -> str:
        rng, rt, chance = self._rng, self._rt, self._rng.random()
        if chance < 0.75:
            title = rng.choice(self._world.titles)
            self._cid = rt.switch_topic(self._agent, self._sender, title, "d").conversation_id
            shown = rt.conversation(self._cid)
            # One that has left memory has its session, and opens again for its next message.
            early = shown is not None and shown.state == "opening" and shown.handle is None
            self._world.require(not early, 11, f"conversation {self._cid} was given out before it was open")
        elif chance < 0.9:
            self._cid = rt.get_or_create(self._agent, self._sender)
        else:
            stored = rt.sessions(agent=self._agent, sender=self._sender)
            if stored:
                self._cid = rt.load(rng.choice(stored).handle)
        return f"{self._cid} {self._world.watch.handle_of(self._cid)}"

    def _cancel(self) -> str:
        return f"{self._rt.cancel(self._cid)}"

    def _compact(self) -> str:
        outcome = self._rt.compact(self._cid)
        if outcome.archive is not None and outcome.summary is not None:
            scope = self._scope()
            key = (self._agent, scope, outcome.archive)
            known = self._world.ledger.archives
            self._world.require(key not in known, 10, f"two archives are called {key}")
            known[key] = outcome.summary
        return f"{outcome.archive}"

    def _summarize(self) -> str:
        try:
            return f"{self._rt.summarize(self._cid)}"
        except Timeout:  # the model's own, which cannot be told from one of the caller's
            return "timed out"

    def _close(self) -> str:
        cid, now = self._cid, self._rng.random() < 0.5
        try:
            closed = self._rt.close(cid, mode="now" if now else "drain")
        except StorageError:
            if self._rt.conversation(cid) is None:  # closed all the same, and what it left is in `unfinished`
                self._gone(cid)
            raise
        self._gone(cid)
        self._cid = 0
        return f"now={now} {closed}"

    def _gone(self, cid: int) -> None:
        world = self._world
        if not world.ledger.frozen:
            world.watch.closed[cid] = True
            left = world.ledger.unended(cid)
            world.require(not left, 2, f"conversation {cid} was closed, and {left} have no end")

    def _kill(self) -> None:
        """Let the conversation's actor die of a message that it does not understand."""
        state = self._rt._services.directory.conversations.get(self._cid)  # noqa: SLF001 - no caller can do this
        if state is not None and state.ref is not None:
            with suppress(ActorDeadError):
                state.ref.tell(object())

    def _delete(self) -> str | None:
        stored = self._rt.sessions(agent=self._agent, sender=self._sender)
        if not stored:
            return None
        handle, deleted = self._rng.choice(stored).handle, self._world.ledger.deleted
        deleted.setdefault(handle, False)
        gone = self._rt.delete_session(handle)
        deleted[handle] = True
        return f"{handle} {gone}"

    # -- memory ------------------------------------------------------------------------------------

    def _scope(self) -> str:
        return self._sender if SCOPES[self._agent] == "sender" else ""

    def _remember(self) -> str:
        world, scope = self._world, (self._agent, self._scope())
        content = f"note {world.number_of()}"
        may_be = self._may_be(content)
        self._rt.memory.remember(self._agent, self._sender, f"of {self.name}", content)
        may_be[:] = [content]
        world.notes[content] = scope
        world.require(content in self._recalled(), 1, f"{content!r} is not recalled")
        return content

    def _recalled(self) -> list[str]:
        """The contents of the notes that the caller finds; all must be of its scope."""
        scope, notes = (self._agent, self._scope()), self._world.notes
        entries = self._rt.memory.recall(self._agent, self._sender, "note", limit=100)
        found = [entry.content for entry in entries]
        others = [each for each in found if notes.get(each, scope) != scope]
        self._world.require(not others, 1, f"{scope} recalls what is another's: {others}")
        return found

    def _forget(self) -> str:
        may_be = self._may_be(None)
        self._rt.memory.forget(self._agent, self._sender, f"of {self.name}")
        may_be[:] = [None]
        return ""

    def _may_be(self, content: str | None) -> list[str | None]:
        """What the caller's note may hold from now on."""
        name = (self._agent, self._scope(), f"of {self.name}")
        may_be = self._world.ledger.notes.setdefault(name, [None])
        may_be.append(content)
        return may_be

    # -- looking -----------------------------------------------------------------------------------

    def _look(self) -> str:
        rt, world = self._rt, self._world
        world.watch.look()
        rt.stats(), rt.conversation(self._cid), rt.conversation_id(self._agent, self._sender)
        for summary in rt.sessions(agent=self._agent):
            entries = rt.transcript(summary.handle)
            world.require(len(entries) >= summary.entry_count, 3, f"{summary} has {len(entries)} entries")
        return f"{rt.conversation_count()} live, {len(self._recalled())} notes"
