"""The face of Palaver: a blocking API over the actors, for greenlets."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar

import gevent
import gevent.event
import pykka
from gevent.pool import Pool

from actors import compaction
from actors.children import ChildSpec, ChildStatus, ListChildren, RemoveChild, StartChild
from actors.config import AgentConfig, Limits
from actors.errors import AskTimeout, ConversationClosed, InvalidInput, RuntimeClosed, RuntimeFailed
from actors.events import Event
from actors.feed import EventStream
from actors.greenlet import GreenletFuture
from actors.lasting import ask_until_answered
from actors.logs import log
from actors.messages import (
    AgentArrived,
    CancelTurn,
    CloseConversation,
    Compact,
    DeleteSession,
    FindActive,
    FindConversation,
    GetOrCreate,
    ListTickets,
    LoadSession,
    PlaceGone,
    PutAgent,
    RefuseNewWork,
    RemoveAgent,
    SetTimer,
    Settle,
    Steer,
    Submit,
    Suspend,
    SwitchTopic,
    Unpark,
    Wake,
)
from actors.models.base import Model
from actors.opening import take_session
from actors.own_turn import check_not_own_turn
from actors.state import (
    CompactOutcome,
    ConversationInfo,
    ConversationSnapshot,
    ConversationState,
    SwitchOutcome,
)
from actors.storage import Worker
from actors.system import OnFailure, Recover, System, give_up
from actors.text import check_text, check_title
from actors.ticket import OnBusy, Ticket, check_on_busy, unknown_conversation
from actors.tools import Tool
from palaver.copies import Contents, export_running
from palaver.memory import Memory
from palaver.moving import transfer
from palaver.stats import Stats, gather
from palaver.threads import Owner, ThreadFuture
from palaver.timers import SHORTEST_PERIOD_S, Timer, cancelled, check_id, check_seconds, listed, new_timer
from palaver.waiting import check_wait, when_free
from persistence import dead_letters, recovery, sessions, turns
from persistence.dead_letters import DeadLetter
from persistence.errors import PalaverError
from persistence.records import (
    HistoryEntry,
    SessionSummary,
    TimerInfo,
    TurnResult,
    TurnRow,
    UnfinishedSession,
)
from persistence.retention import sessions_older_than
from persistence.sources import Sources
from persistence.worker import DatabaseWorker

logger = logging.getLogger("palaver.runtime")

P = ParamSpec("P")
T = TypeVar("T")

CLEAN_UP_S = 10.0
LISTING_BURST = 2_000  # conversations listed before other greenlets get their turn
NAME_CHARS = 200
RECOVER = ("run", "hold", "fail")
WAKES = 10  # of a conversation that leaves again before it hears what it was woken for
PURGED_AT_ONCE = 32  # sessions whose deletion a commit may have to wait for


class Runtime:
    """A running Palaver. Open one with `Runtime.open`; it is a context manager that shuts down at the end.

    All calls are for greenlets of the thread that opened it, and block the calling greenlet only. From
    another thread there is `from_thread`; everything else raises `WrongThread` there. After `shutdown`
    every call that starts something raises `RuntimeClosed`.
    """

    def __init__(self, system: System, path: str) -> None:
        self._system = system
        self._services = system.services
        self._clock = system.services.clock
        self._conversations = system.services.directory.conversations
        self._owner = Owner()
        self._refusal: RuntimeClosed | None = None
        self._down: gevent.Greenlet | None = None
        self._hurry = gevent.event.Event()
        self.path = path
        self.memory = Memory(self._ask_memory, self._scope, system.services.limits.content_chars)

    # -- opening and shutting down -----------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        model: Model | Mapping[str, Model],
        *,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        hooks: Iterable[object] = (),
        limits: Limits | None = None,
        sources: Sources | None = None,
        worker: Worker | None = None,
        recover: Recover = "run",
        on_failure: OnFailure | None = None,
        wait_s: float = 0.0,
    ) -> Runtime:
        """Open a database and start the actors.

        Args:
            path: the SQLite file, made if it is missing; ":memory:" stores nothing beyond the process.
            model: what answers; or a mapping from `AgentConfig.model` names to models.
            tools: what models may call: `Tool`s, or functions that become tools.
            hooks: objects with any of the four hook methods.
            limits: bounds; the defaults if None.
            sources: clock, random numbers and ids; the machine's if None. A simulation hands in its own.
            worker: runs the database jobs; a thread on `path` if None.
            recover: what becomes of the messages that an earlier process accepted and did not end. "run":
                as soon as an agent is registered, its topics that have such messages are opened and go on.
                "hold": they stay as they are, listed by `unfinished`, until `recover` is called or the
                topic is opened; and timers that are due already are held until `recover` is called. "fail":
                they end as `failed`, now, without being run; timers are no such messages, and fire.
            on_failure: called once, in a greenlet of its own, when the database has failed for good (an I/O
                error at a commit, damage): nothing is stored any more, and every call that needs the file
                raises that `DatabaseFailed`. Likewise with a `RuntimeFailed` when an actor that the runtime
                cannot do without kept dying. A host should end its process then, with a status of its own.
            wait_s: seconds to wait for a file that another process or Runtime holds. A new process takes over
                as soon as the old one lets go; only the calling greenlet waits between two attempts.

        Raises:
            DatabaseInUse: another process or Runtime holds the file, and still does after `wait_s`.
            StorageError: the file cannot be used; the message says why.
            InvalidConfig: a tool or hook that makes no sense.
        """
        _check_model(model)
        if limits is not None and not isinstance(limits, Limits):
            raise InvalidInput(f"limits must be Limits(...), not {limits!r}")
        if recover not in RECOVER:
            raise InvalidInput(f"recover must be one of {', '.join(RECOVER)}, not {recover!r}")
        sources = sources or Sources()
        start = partial(
            System.start,
            models=model,
            tools=[tool if isinstance(tool, Tool) else Tool(tool) for tool in tools],
            hooks=tuple(hooks),
            limits=limits or Limits(),
            sources=sources,
            recover=recover,
            on_failure=on_failure,
        )
        backlog = (limits or Limits()).database_backlog
        check_wait(wait_s, worker)
        attempt = partial(_start_on, path, start, backlog) if worker is None else partial(start, worker)
        return cls(when_free(attempt, wait_s, sources.clock), os.fspath(path))

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()

    def shutdown(self, drain: float = 30.0) -> None:
        """Refuse new work, let accepted turns run for up to `drain` seconds, cancel what is left, commit
        and close the file. Calling it again waits for the first call; with a `drain` of 0 it ends the time
        that the first one gave.

        A turn that runs when the time is over ends `cancelled`. Turns of topics that are still queued stay
        in the journal; those of tmp chats end `closed`.

        Args:
            drain: seconds; 0 cancels at once.
        """
        self._owner.check()
        check_not_own_turn(None, "shutdown")
        if isinstance(drain, bool) or not isinstance(drain, int | float) or not drain >= 0:
            raise InvalidInput(f"drain must be a number of seconds from 0 on, not {drain!r}")
        if self._down is None:
            self._refusal = RuntimeClosed("the runtime is shut down; open a new one")
            # In a greenlet of its own: whoever kills the caller, the file is closed in the end.
            self._down = gevent.spawn(self._shut_down, drain)
        if drain == 0:
            self._hurry.set()
        self._down.get()

    def _shut_down(self, drain: float) -> None:
        self._services.timers.stopping = True
        refs = list(self._refuse_new_work().values())
        settling = gevent.spawn(self._wait_all, [self._ask_quietly(ref, Settle()) for ref in refs], drain)
        gevent.wait([settling, self._hurry], count=1)
        settling.kill()
        self._wait_all([self._ask_quietly(ref, Suspend()) for ref in refs], CLEAN_UP_S)
        self._system.stop()

    def _refuse_new_work(self) -> dict[int, pykka.ActorRef[Any] | None]:
        try:
            refs: dict[int, pykka.ActorRef[Any] | None] = self._ask_registry(RefuseNewWork())
        except PalaverError:  # no registry any more: what lives still ends well
            return {state.id: state.ref for state in self._conversations.values()}
        return refs

    def _ask_quietly(self, ref: pykka.ActorRef[Any] | None, message: object) -> GreenletFuture[None] | None:
        """The future that a conversation answers with, or None if it is gone or does not answer."""
        if ref is None:
            return None
        try:
            reply: GreenletFuture[None] = ref.ask(
                message, block=True, timeout=self._services.limits.ask_timeout_s
            )
        except (pykka.ActorDeadError, pykka.Timeout):
            return None
        return reply

    def _wait_all(self, waiting: Iterable[GreenletFuture[None] | None], seconds: float) -> None:
        deadline = self._clock.monotonic() + seconds
        for future in waiting:
            if future is None:
                continue
            try:
                future.get(timeout=max(0.0, deadline - self._clock.monotonic()))
            except pykka.Timeout:
                return
            except Exception as error:
                words = "a conversation failed while the runtime shut down"
                log(logger, logging.ERROR, words, error=error)

    # -- agents ------------------------------------------------------------------------------------

    def add_agent(self, config: AgentConfig) -> None:
        """Register an agent.

        Raises:
            AgentExists: the name is taken.
            InvalidConfig: an unknown model or tool.
        """
        self._put_agent(config)

    def upsert_agent(self, config: AgentConfig) -> None:
        """Register an agent, in place of one of the same name; running turns end as they began."""
        self._put_agent(config, replace=True)

    def remove_agent(self, name: str) -> bool:
        """Forget an agent; whether it was registered. Its conversations stay, their turns fail."""
        return bool(self._ask_registry(RemoveAgent(name)))

    def agent(self, name: str) -> AgentConfig | None:
        """The config of an agent, registered or ephemeral, or None."""
        self._owner.check()
        found = self._services.agents.find(name)
        return None if found is None else found.config

    def agents(self) -> list[AgentConfig]:
        """The registered agents, in the order of registration; ephemeral ones are left out."""
        self._owner.check()
        return self._services.agents.registered()

    def add_ephemeral(self, config: AgentConfig) -> None:
        """Register an agent that listings leave out, for a job of its own. Errors as `add_agent`."""
        self._put_agent(config, ephemeral=True)

    def remove_ephemeral(self, name: str) -> bool:
        """Forget an ephemeral agent; whether it was there."""
        return bool(self._ask_registry(RemoveAgent(name, ephemeral=True)))

    def _put_agent(self, config: AgentConfig, *, replace: bool = False, ephemeral: bool = False) -> None:
        if not isinstance(config, AgentConfig):
            raise InvalidInput(f"an agent is registered by an AgentConfig, not by {config!r}")
        config = self._services.hooks.build_agent(config)
        self._ask_registry(PutAgent(config, replace, ephemeral))
        self._services.timers.tell(AgentArrived(config.name))

    # -- finding and opening conversations ---------------------------------------------------------

    def get_or_create(self, agent: str, sender: str) -> int:
        """The pair's conversation: that of its active topic, else its tmp chat, made if need be.

        Raises:
            AgentNotRegistered, InvalidInput.
        """
        self._check_pair(agent, sender)
        conversation_id: int = self._ask_registry(GetOrCreate(agent, sender))
        return conversation_id

    def switch_topic(
        self, agent: str, sender: str, title: str, description: str | None = None
    ) -> SwitchOutcome:
        """Make a topic the pair's active one: the live one, the latest stored one, or a new one.

        A topic that is closing is opened anew when it has closed, which may wait for its last turn.

        Args:
            title: one line, up to 200 characters; the same title is the same topic.
            description: what the topic is about; needed when it is new, kept as its memory entry.

        Raises:
            AgentNotRegistered, InvalidTitle, StorageError.
            DescriptionRequired: the topic is new; the topic that was active before stays active.
        """
        self._check_pair(agent, sender)
        title = check_title(title)
        if description is not None:
            check_text(
                description, what="the description", empty=True, most=self._services.limits.content_chars
            )
            description = description.strip() or None
        outcome: SwitchOutcome = self._ask_registry(
            SwitchTopic(agent, sender, title, description), waits=True
        )
        return outcome

    def load(self, handle: str) -> int:
        """Bring a stored session to life; one that is live already gives its live id, one that is closing is
        opened anew when it has closed.

        Raises:
            SessionNotFound, AgentNotRegistered, StorageError.
        """
        check_text(handle, what="the handle", most=NAME_CHARS)
        conversation_id: int = self._ask_registry(LoadSession(handle), waits=True)
        return conversation_id

    def close(self, cid: int, *, mode: Literal["drain", "now"] = "drain") -> bool:
        """Close a conversation; nothing starts in it once this has returned.

        Args:
            mode: "drain" lets the running turn finish, "now" cancels it. Queued turns end as `closed`.

        Returns:
            True if this call closed it, False if it is unknown or another call did.
        """
        if not isinstance(cid, int):
            raise InvalidInput(f"a conversation is named by its id, a whole number, not by {cid!r}")
        if mode not in ("drain", "now"):
            raise InvalidInput(f'mode must be "drain" or "now", not {mode!r}')
        if mode == "drain":
            check_not_own_turn(cid, f"closing conversation {cid}")
        closed: bool = self._ask_registry(CloseConversation(cid, mode), waits=True)
        return closed

    # -- turns -------------------------------------------------------------------------------------

    def send(
        self,
        cid: int,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> TurnResult:
        """Send a message and wait for the turn's result; for a topic, it is committed.

        Args:
            content: the message.
            sender: who says it, in the history; the conversation's sender if "".
            guest: another registered agent that answers this one turn, in text only.
            on_busy: when a turn runs or waits: "enqueue" behind it, "reject", "interrupt" it, or "steer" it.
            key: idempotency key, one per message of this agent and sender: the same key and content give
                the first one's result.
            tool_choice: "auto", "none", "required" or a tool's name, for the first model round.
            timeout: seconds to wait; the turn goes on when they are over.

        Raises:
            ConversationNotFound, ConversationBusy, ConversationClosed, MailboxFull, KeyReused,
            InvalidInput, AgentNotRegistered (an unknown guest), ResultTimeout, StorageError.
            A model failure is no exception but a result with `stop_reason="error"`.
        """
        ticket = self._ticket(cid, content, sender, guest, on_busy, key, tool_choice)
        if on_busy != "reject":
            check_not_own_turn(cid, f"the result of a turn of conversation {cid}")
        self._hand_over(ticket)
        if key is not None or on_busy == "reject":
            ticket = ticket.wait_accepted(timeout)
        return ticket.result(timeout)

    def submit(
        self,
        cid: int,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> Ticket:
        """Send a message and return once it is accepted: for a topic, its row is committed.

        Arguments and errors as `send`; `timeout` is for the acceptance.
        """
        ticket = self._ticket(cid, content, sender, guest, on_busy, key, tool_choice)
        self._hand_over(ticket)
        return ticket.wait_accepted(timeout)

    def stream(
        self,
        cid: int,
        content: str,
        *,
        sender: str = "",
        guest: str | None = None,
        on_busy: OnBusy = "enqueue",
        key: str | None = None,
        tool_choice: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Event]:
        """Send a message and iterate over the turn's events, the last of which is `Done(result)`.

        The message is accepted when this returns. Letting go of the iterator changes nothing: the turn ends
        and is stored. Arguments and errors as `submit`; a storage error of the turn's end is raised by the
        iterator.
        """
        ticket = self._ticket(cid, content, sender, guest, on_busy, key, tool_choice)
        stream = ticket.open_stream(self._services.limits.event_buffer)
        self._hand_over(ticket)
        accepted = ticket.wait_accepted(timeout)
        if accepted is not ticket:
            return accepted.events(self._services.limits.event_buffer)
        return stream

    def steer(self, cid: int, content: str) -> Ticket:
        """Put a message into the running turn at its next step boundary; accepted when this returns.

        Steers are applied in order, all of them. One whose turn ends first becomes the next turn.

        Raises:
            NoActiveTurn, ConversationNotFound, ConversationClosed, MailboxFull, InvalidInput, StorageError.
        """
        ticket = self._ticket(cid, content, "", None, "steer", None, None)
        self._tell(cid, Steer(ticket))
        return ticket.wait_accepted()

    def tickets(self, cid: int) -> list[Ticket]:
        """The accepted turns of a conversation that have not ended: the running one, the steers that it has
        not come to, and those that wait, in the order in which they will run. `Ticket.cancel` ends one.

        Raises:
            ConversationNotFound.
        """
        found: list[Ticket] = self._ask_conversation(cid, ListTickets())
        return found

    def cancel(self, cid: int) -> bool:
        """Cancel the running turn and wait for its clean-up; whether one was running.

        Its completed steps stay stored; queued turns go on.

        Raises:
            ConversationNotFound.
        """
        return bool(self._ask_conversation(cid, CancelTurn()))

    def _ticket(
        self,
        cid: int,
        content: str,
        sender: str,
        guest: str | None,
        on_busy: str,
        key: str | None,
        tool_choice: str | None,
    ) -> Ticket:
        self._check_message(content, sender, key)
        if tool_choice is not None:
            check_text(tool_choice, what="tool_choice", most=NAME_CHARS)
        if guest is not None:
            self._services.agents.get(guest)
        if on_busy == "steer" and (key is not None or guest is not None):
            raise InvalidInput(
                'on_busy="steer" takes no key and no guest: a steer becomes part of another turn'
            )
        return Ticket(
            0,  # until it is told
            cid,
            content,
            sender=sender,
            guest=guest,
            key=key,
            tool_choice=tool_choice,
            on_busy=check_on_busy(on_busy),
            counts=self._services.directory.counts,
        )

    def _check_message(self, content: str, sender: str, key: str | None) -> None:
        check_text(content, what="the message", most=self._services.limits.content_chars)
        if sender:
            check_text(sender, what="the sender", most=NAME_CHARS)
        if key is not None:
            check_text(key, what="the key", most=NAME_CHARS)

    def _hand_over(self, ticket: Ticket) -> None:
        self._tell(ticket.conversation_id, Submit(ticket))

    def unpark(self, cid: int) -> bool:
        """Start a conversation again that kept dying and was parked; whether it was. Its next messages are
        taken, and what its topic had accepted goes on.

        Raises:
            RuntimeClosed.
        """
        return bool(self._ask_registry(Unpark(cid)))

    # -- timers ------------------------------------------------------------------------------------

    def after(
        self, seconds: float, cid: int, content: str, *, sender: str = "", key: str | None = None
    ) -> Timer:
        """Let a message come to a conversation after so many seconds, as if it were submitted then.

        For a topic the timer is stored when this returns: it fires exactly once, whatever ends the process
        before, and opens the topic if that is not live then. That of a tmp chat goes with the chat.

        Args:
            seconds: from now, by the wall clock.
            sender: who says it, in the history; the conversation's sender if "".
            key: its idempotency key, as of `send`; while it is pending, the same key and content give the
                same timer.

        Raises:
            ConversationNotFound, ConversationClosed, KeyReused, InvalidInput, StorageError.
            MailboxFull: the conversation has `limits.timers_per_conversation` timers.
        """
        return self._set_timer(check_seconds(seconds, "seconds"), cid, content, sender, key, None)

    def every(
        self,
        seconds: float,
        cid: int,
        content: str,
        *,
        first_after: float | None = None,
        sender: str = "",
    ) -> Timer:
        """Let a message come again and again, every so many seconds, until the timer is cancelled.

        Periods are counted from the first one. Those that pass while the runtime is down are made up for by
        one message.

        Args:
            first_after: seconds until the first one; `seconds` if None.

        Raises:
            As `after`.
        """
        every_s = check_seconds(seconds, "seconds", SHORTEST_PERIOD_S)
        first = every_s if first_after is None else check_seconds(first_after, "first_after")
        return self._set_timer(first, cid, content, sender, None, every_s)

    def timers(self, cid: int | None = None) -> list[TimerInfo]:
        """The timers that have not ended, of a conversation or all; the one that is due first comes first.

        Raises:
            ConversationNotFound, StorageError.
        """
        self._check_open()
        return listed(self._services, cid, None if cid is None else self._handle(cid))

    def cancel_timer(self, timer_id: int) -> bool:
        """End a timer; False if it had ended before. Once this has returned True, nothing comes of it any
        more; a message that came before goes on.

        Raises:
            StorageError: it is as it was.
        """
        self._check_open()
        return cancelled(self._services, check_id(timer_id))

    def _handle(self, cid: int) -> str | None:
        """The handle of a conversation that is live or has left memory; None for a tmp chat."""
        state = self._conversations.get(check_id(cid, "conversation"))
        if state is not None:
            return state.handle
        handle: str | None = self._ask_registry(FindConversation(cid))
        if handle is None:
            raise unknown_conversation(cid)
        return handle

    def _set_timer(
        self, first: float, cid: int, content: str, sender: str, key: str | None, every_s: float | None
    ) -> Timer:
        self._check_message(content, sender, key)
        reply: GreenletFuture[TimerInfo] = GreenletFuture()
        self._tell(cid, SetTimer(new_timer(self._services, first, content, sender, key, every_s), reply))
        info: TimerInfo = reply.get()
        return Timer(info.id, cid, info.due_at, info.every_s, cancel=self.cancel_timer)

    # -- summaries ---------------------------------------------------------------------------------

    def summarize(self, cid: int) -> str | None:
        """A summary of the live history by the agent's own model; nothing changes. None for an empty one.

        Runs beside turns, on what is committed; only the calling greenlet waits.

        Raises:
            ConversationNotFound, AgentNotRegistered, CompactionFailed.
        """
        self._ref(cid)
        state = self._conversations.get(cid)
        if state is None:
            raise ConversationClosed(f"conversation {cid} is closed")
        if not state.history.entries:
            return None
        agent = self._services.agents.get(state.agent)
        messages = state.history.seen_by("", state.agent)
        return compaction.summarize(self._services, state, agent, messages)

    def compact(self, cid: int) -> CompactOutcome:
        """Replace the live history by a summary, after the turns that were accepted before.

        For a topic the summary is stored as an archive; the transcript stays whole.

        Raises:
            ConversationNotFound, ConversationClosed.
            CompactionFailed, StorageError: nothing has changed.
        """
        check_not_own_turn(cid, f"compacting conversation {cid}")
        outcome: CompactOutcome = self._ask_conversation(cid, Compact())
        return outcome

    # -- looking -----------------------------------------------------------------------------------

    def list_active(self) -> list[ConversationInfo]:
        """All live conversations, in the order in which they became live. Asks no conversation.

        A long listing lets other greenlets run in between, so its lines may be moments apart.
        """
        self._owner.check()
        infos: list[ConversationInfo] = []
        for number, state in enumerate(list(self._conversations.values()), start=1):
            infos.append(state.info(self._clock))
            if number % LISTING_BURST == 0:
                gevent.sleep(0)
        return infos

    def conversation(self, cid: int) -> ConversationSnapshot | None:
        """A conversation as it is now, or None if there is none of this id. Does not wait for a turn. One
        that has left memory is read from the database, and stays there."""
        self._owner.check()
        state = self._conversations.get(cid)
        if state is None and self._services.directory.passive and isinstance(cid, int):
            return self._passive_snapshot(cid)
        return None if state is None else state.snapshot(self._clock)

    def _passive_snapshot(self, cid: int) -> ConversationSnapshot | None:
        """A conversation that has left memory, as it is stored; it stays where it is."""
        handle = self._ask_registry(FindConversation(cid))
        if handle is None:  # it has come back meanwhile, or there never was one
            state = self._conversations.get(cid)
            return None if state is None else state.snapshot(self._clock)
        session = self._job(partial(sessions.load_session, handle=handle))
        summary = session.summary
        state = ConversationState(cid, summary.agent, summary.sender, summary.topic, self._clock.monotonic())
        take_session(state, session)
        state.phase = "idle"
        return state.snapshot(self._clock)

    def conversations(self) -> list[int]:
        """The ids of all live conversations, in the order in which they became live."""
        self._owner.check()
        return list(self._conversations)

    def conversation_count(self) -> int:
        """How many conversations are live."""
        self._owner.check()
        return len(self._conversations)

    def conversation_id(self, agent: str, sender: str) -> int | None:
        """The pair's active conversation, or None; in constant time, and makes nothing."""
        self._owner.check()
        active = self._services.directory.active(agent, sender)
        if active is None and self._services.directory.passive and self._refusal is None:
            active = self._ask_registry(FindActive(agent, sender))
        return active

    def subscribe(self, cid: int | None = None) -> EventStream[tuple[ConversationInfo, Event]]:
        """All conversations' events from now on, as (info, event); close it when done.

        A reader that falls `limits.event_buffer` behind gets `Lagged`. It ends with the runtime. An incident
        that is no conversation's comes with an info whose id is 0.

        Args:
            cid: only this conversation's events. It does not leave memory as long as somebody reads them.
        """
        self._check_open()
        if cid is not None:
            self._ref(cid)
        return self._services.directory.subscribe(cid)

    def stats(self) -> Stats:
        """Counts of this runtime, now."""
        self._owner.check()
        return gather(self._services, closing_down=self._refusal is not None)

    # -- stored sessions ---------------------------------------------------------------------------

    def sessions(
        self, agent: str | None = None, sender: str | None = None, topic: str | None = None
    ) -> list[SessionSummary]:
        """Stored sessions, newest first, filtered by what is given."""
        for what, value in (("the agent", agent), ("the sender", sender), ("the topic", topic)):
            if value is not None:
                check_text(value, what=what, empty=True)
        return self._job(partial(sessions.list_sessions, agent=agent, sender=sender, topic=topic))

    def transcript(self, handle: str) -> list[HistoryEntry]:
        """Every entry of a stored session, in order, compacted ones included.

        Raises:
            SessionNotFound.
        """
        check_text(handle, what="the handle", most=NAME_CHARS)
        return self._job(partial(sessions.transcript, handle=handle))

    def delete_session(self, handle: str) -> bool:
        """Delete a stored session; whether it was there. If it is live, its turns are cancelled and it is
        closed first. Its timers go with it. Nothing brings it back: who opens its topic meanwhile or later
        gets a new session.

        Its archives and its topic's entry stay in memory.
        """
        check_text(handle, what="the handle", most=NAME_CHARS)
        deleted = bool(self._ask_registry(DeleteSession(handle), waits=True))
        if deleted:
            self._services.timers.tell(PlaceGone(handle))
        return deleted

    def turns(self, handle: str) -> list[TurnRow]:
        """The journal of a stored session: every accepted message with its state and result, by id.

        Raises:
            SessionNotFound.
        """
        check_text(handle, what="the handle", most=NAME_CHARS)
        return self._job(partial(turns.turns_of_handle, handle=handle))

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

    def _job(self, job: Callable[..., T]) -> T:
        self._check_open()
        return self._services.store.call(job)

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

    # -- other runtimes, other threads -------------------------------------------------------------

    def transfer_to(self, other: Runtime) -> int:
        """Move all live conversations, topic routers, queued turns and the id counter to another runtime
        of this thread, which has a database of its own; stored sessions move with their memory.

        Returns:
            How many conversations moved.

        Raises:
            AgentNotRegistered, InvalidInput: the other cannot take them; nothing has moved.
        """
        self._check_open()
        if not isinstance(other, Runtime) or other is self:
            raise InvalidInput(f"conversations can be transferred to another Runtime, not to {other!r}")
        other._check_open()
        return transfer(self._services, other._services)

    def from_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> ThreadFuture[T]:
        """Run `function(*args)` in a greenlet of the runtime's thread; for calls from any other thread.

        Returns:
            A `concurrent.futures.Future` of its value, to be waited for in the other thread.
        """
        return self._owner.run(function, *args, **kwargs)

    @property
    def failed(self) -> RuntimeFailed | None:
        """Why nothing new is taken any more, if an actor that the runtime cannot do without kept dying."""
        self._owner.check()
        return self._services.failed

    # -- actors of the user's own ------------------------------------------------------------------

    def supervise(self, spec: ChildSpec) -> pykka.ActorRef[Any]:
        """Start an actor of your own, and restart it when it dies, as `spec` says. When the runtime shuts
        down, these actors are stopped when the conversations have come to rest, the last started first.

        Returns:
            A ref that stays good: after a restart it is the new incarnation's, and meanwhile messages wait.

        Raises:
            InvalidInput: a supervised actor has this name already.
            Exception: whatever the first start raises; the actor is not supervised then.
        """
        if not isinstance(spec, ChildSpec):
            raise InvalidInput(f"an actor is supervised as a ChildSpec(...) says, not {spec!r}")
        ref: pykka.ActorRef[Any] = self._ask_users(StartChild(spec))
        return ref

    def supervised(self) -> list[ChildStatus]:
        """What became of the user's own actors that are supervised, in the order of their start."""
        children: list[ChildStatus] = self._ask_users(ListChildren())
        return children

    def unsupervise(self, name: str) -> bool:
        """Stop a supervised actor, within its time limit, and forget it; whether it was there."""
        check_text(name, what="the actor's name", most=NAME_CHARS)
        there: bool = self._ask_users(RemoveChild(name))
        return there

    # -- asking ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        self._owner.check()
        self._check_refusal()

    def _check_refusal(self) -> None:
        refusal = self._refusal or self._services.failed
        if refusal is not None:
            raise refusal

    def _ref(self, cid: int) -> pykka.ActorRef[Any]:
        """The conversation's actor; one that has left memory, or that is being started again, comes back.

        Raises:
            ConversationNotFound, ConversationClosed, ConversationParked, MailboxFull, StorageError.
        """
        self._check_open()
        if not isinstance(cid, int):
            raise InvalidInput(f"a conversation is named by its id, a whole number, not by {cid!r}")
        state = self._conversations.get(cid)
        if state is None and not self._services.directory.passive:
            raise unknown_conversation(cid)
        if state is None or state.ref is None or not state.ref.is_alive():
            woken: pykka.ActorRef[Any] = self._ask_registry(Wake(cid), waits=True)
            return woken
        return state.ref

    def _tell(self, cid: int, message: Submit | Steer | SetTimer) -> None:
        for _ in range(WAKES):
            ref = self._ref(cid)
            # Only now, as waking it may take a while: ids are in the order in which mailboxes get messages.
            if not isinstance(message, SetTimer):
                message.ticket.turn_id = next(self._services.turn_ids)
            try:
                ref.tell(message)
            except pykka.ActorDeadError:
                continue  # it left between our finding it and our words
            return
        raise ConversationClosed(f"conversation {cid} is closed")

    def _ask_conversation(self, cid: int, message: object) -> Any:
        for _ in range(WAKES):
            try:
                return self._answer(self._ref(cid), message, waits=True)
            except pykka.ActorDeadError:
                continue
        raise ConversationClosed(f"conversation {cid} is closed")

    def _ask_registry(self, message: object, *, waits: bool = False) -> Any:
        self._owner.check()
        if not isinstance(message, RefuseNewWork):
            self._check_refusal()
        return self._ask_service(self._services.registry, message, waits=waits)

    def _ask_memory(self, message: object) -> Any:
        self._check_open()
        return self._ask_service(self._services.memory, message, waits=False)

    def _ask_users(self, message: object) -> Any:
        self._check_open()
        return self._ask_service(self._system.users, message, waits=True)

    def _ask_service(self, ref: pykka.ActorRef[Any] | None, message: object, *, waits: bool) -> Any:
        """The reply of an actor that is restarted when it dies; `waits` as for `_answer`."""
        assert ref is not None
        try:
            return self._answer(ref, message, waits=waits)
        except pykka.ActorDeadError as error:
            raise (
                self._services.failed or RuntimeClosed(f"the runtime is over: {error}; open a new one")
            ) from error

    def _answer(self, ref: pykka.ActorRef[Any], message: object, *, waits: bool) -> Any:
        """An actor's reply; `waits` if a turn may have to end before it comes."""
        timeout = self._services.limits.ask_timeout_s
        try:
            return ask_until_answered(ref, message, timeout=timeout, waits=waits)
        except pykka.Timeout as error:
            raise AskTimeout(f"no answer to {type(message).__name__} within {timeout} s") from error

    @staticmethod
    def _check_pair(agent: str, sender: str) -> None:
        check_text(agent, what="the agent's name", most=NAME_CHARS)
        check_text(sender, what="the sender", most=NAME_CHARS)

    def _scope(self, agent: str, sender: str) -> str:
        self._check_pair(agent, sender)
        return self._services.agents.get(agent).config.scope(sender)


def _start_on(
    path: str | os.PathLike[str], start: Callable[[DatabaseWorker], System], backlog: int
) -> System:
    notify = gevent.get_hub().loop.run_callback_threadsafe
    return start(DatabaseWorker(path, notify=notify, backlog=backlog))


def _path(path: object) -> str | os.PathLike[str]:
    if not isinstance(path, str | os.PathLike):
        raise InvalidInput(f"a path must be text or path-like, not {path!r}")
    return path


def _check_model(model: object) -> None:
    """Refuse what is neither a model nor a mapping from names to models."""
    if isinstance(model, Mapping):
        for name, one in model.items():
            if not isinstance(name, str):
                raise InvalidInput(f"models are mapped from their names, and {name!r} is no text")
            if isinstance(one, Mapping):
                raise InvalidInput(f"the model {name!r} is a mapping; map each name to a model")
            _check_model(one)
    elif isinstance(model, type) or not callable(getattr(model, "stream", None)):
        raise InvalidInput(
            "a model is an object with a stream(request) method, or a mapping from names to such; "
            f"{model!r} is none. ScriptedModel() is one that needs no network"
        )
