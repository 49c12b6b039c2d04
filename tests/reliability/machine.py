"""The whole public API against a model in plain Python: a Hypothesis state machine on virtual time.

Every rule makes one call on both sides, or answers for the model or a tool; then everything that does not
wait for another rule happens, and both sides must look the same: calls, tickets, queues, histories, journals,
what models are asked. A process ends by shutdown, by a kill, or by a kill in the middle of the next call:
then the file must hold what the plain side held after one of its commits, and none before that which was
acknowledged.

A failure prints its steps. `PALAVER_SHRINK=1` makes them few, in some minutes.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, count
from pathlib import Path
from typing import Any

import gevent
from attrs import frozen
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies._internal.featureflags import FeatureFlags

from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.database import close_database, open_database
from persistence.records import ToolCall
from reliability import compare
from reliability.check import Check
from reliability.plain_chat import DAY_S, Answer, Chat, Message, Promise
from reliability.plain_records import Note, Part, Row
from reliability.plain_world import World
from reliability.stage import AGENTS, Asked, Life, in_memory, quiet, wait

STEPS = 50
MAX_LOOP_STEPS = 10**12
SENDERS = ("ann", "bob")
TOPICS = ("auth", "billing")
WORDS = ("apple", "pear", "plum")
MODES = ("run", "run", "run", "hold", "fail")

picks = st.integers(0, 99)
words = st.sampled_from((*combinations(WORDS, 2), ("note", "apple"), ("auth",), ("about", "2"), ("plum",)))


def now_and_then(every: int, condition: Callable[[Any], Any] = lambda _machine: True) -> Any:
    """A rule that is not to happen at every turn: Hypothesis takes all that are possible as often."""
    return precondition(lambda machine: machine.steps % every == 0 and condition(machine))


agents = st.sampled_from(tuple(AGENTS))
senders = st.sampled_from(SENDERS)
topics = st.sampled_from(TOPICS)
modes = st.sampled_from(MODES)
both = (("crab", "owl"), ("owl", "crab"))
registered = st.sampled_from((*both, *both, *both, ("crab",), ("owl",), ()))


@frozen
class Fuse:
    """A kill that comes in the middle of the next call: so many turns of the loop later, and so much time."""

    turns: int
    halves: int
    mode: str


class Machine(RuleBasedStateMachine):
    """A Palaver, and what it must be."""

    template: Path
    folder: Path
    numbers = count(1)

    def __init__(self) -> None:
        super().__init__()
        # Hypothesis would leave out half of the rules in each example, and with them most of what can meet.
        self._rules_strategy.enabled_rules_strategy = st.just(FeatureFlags())
        self.path = self.folder / f"{next(Machine.numbers)}.db"
        shutil.copyfile(self.template, self.path)
        clock = VirtualClock()
        self.world = World(clock.wall)
        self.view = compare.View(self.world)
        self.fuse: Fuse | None = None
        self.texts = count(1)
        self.keyed: list[tuple[str, str, str, str]] = []  # agent, sender, key, text
        self.lives = 0
        self.steps = 0
        self.boot("run", tuple(AGENTS))

    @initialize(sender=senders, topic=topics, also_tmp=st.booleans())
    def begin(self, sender: str, topic: str, also_tmp: bool) -> None:
        """Something to work with."""
        self.switch("crab", sender, topic, described=True)
        if also_tmp:
            self.get_or_create("owl", sender)
        self.remember("crab", sender, 1, WORDS[:2])
        self.remember("crab", sender, 2, WORDS[1:])

    # -- both sides --------------------------------------------------------------------------------

    def do(
        self,
        plain: Callable[[Promise], Any],
        real: Callable[[], Any],
        same: Callable[[Any, Any], None] = compare.equal,
        then: Callable[[Promise], Promise] = compare.itself,
    ) -> None:
        """Make a call on both sides, and compare them."""
        reply = Promise()
        if self.fuse is not None:
            self._torn(plain, real, reply)
            return
        plain(reply)
        self.view.expect(reply, self.life.call(real), same, then)
        self.settle()

    def settle(self) -> None:
        self.steps += 1
        self.life.settle()
        self.view.check()

    def _torn(self, plain: Callable[[Promise], Any], real: Callable[[], Any], reply: Promise) -> None:
        """A call in whose middle the process is killed."""
        self.steps += 1
        fuse, self.fuse = self.fuse, None
        assert fuse is not None
        marks: dict[Part, int] = {}
        self._record()
        reply.when_settled = lambda: marks.update(self._marks())
        plain(reply)
        call = self.life.call(real)
        self._burn(fuse)
        self._killed(marks if call.ready() else {})
        self.boot(fuse.mode, tuple(AGENTS))

    def _burn(self, fuse: Fuse) -> None:
        for _ in range(fuse.turns):
            gevent.sleep(0)
        if fuse.halves:
            wait(fuse.halves * 0.0005)

    def _record(self) -> None:
        places: list[Part] = [(a, s, t) for a in AGENTS for s in SENDERS for t in TOPICS]
        scopes: list[Part] = [(a, s) for a in AGENTS for s in (*SENDERS, "")]
        self.world.store.record(places + scopes)

    def _marks(self) -> dict[Part, int]:
        recorded = self.world.store.recorded
        return {} if recorded is None else {part: len(copies) - 1 for part, copies in recorded.items()}

    def _killed(self, marks: dict[Part, int]) -> None:
        """Kill the process, and let the plain side be what the file holds, if it may be that."""
        ended = self.view.ended_tickets()
        self.life.kill()
        compare.adopt(self.path, self.world.store, marks)
        self.view.check_stored_results(ended)
        self.world.crash()

    # -- processes ---------------------------------------------------------------------------------

    def boot(self, mode: str, names: tuple[str, ...], fuse: Fuse | None = None) -> None:
        """A new process on the same file, with these agents registered in this order."""
        self.steps += 1
        if fuse is not None:
            self._record()
        self.lives += 1
        self.life = Life(self.path, self.lives, mode)
        self.view.begin(self.life)
        self.world.boot(mode, [AGENTS[name] for name in names])
        for name in names:
            self.life.rt.add_agent(AGENTS[name])
        if fuse is not None:
            self._burn(fuse)
            self._killed({})
            self.boot(fuse.mode, names)
            return
        self.settle()
        self.view.check_everything()

    @now_and_then(11, lambda self: self.fuse is None and self._busy())
    @rule(mode=modes, names=registered, drain=st.sampled_from((0, 5)))
    def restart(self, mode: str, names: tuple[str, ...], drain: float) -> None:
        """Shut down, and open again."""
        self.world.shut_down()
        spent = self.life.shut_down(drain)
        assert spent < drain + 2, f"the shutdown took {spent} s"
        self.view.check_end()
        self.boot(mode, names)

    @now_and_then(7, lambda self: self.fuse is None and self._busy())
    @rule(
        mode=modes,
        names=registered,
        again=st.integers(0, 12),
        times=st.sampled_from((1, 1, 1, 2, 3, 4)),
    )
    def kill(self, mode: str, names: tuple[str, ...], again: int, times: int) -> None:
        """Kill the process, and perhaps the next ones when they have recovered, or while they do."""
        for time in range(times):
            if time:
                self.boot("run", both[0])
            self._record()
            self._killed(self._marks())
        fuse = Fuse(again * 3, 0, mode) if 0 < again < 4 else Fuse(0, again - 4, mode) if again > 4 else None
        self.boot(mode, names, fuse)

    @now_and_then(3, lambda self: self.fuse is None and self._busy())
    @rule(turns=st.integers(0, 12), halves=st.integers(0, 6), mode=modes)
    def light_the_fuse(self, turns: int, halves: int, mode: str) -> None:
        """The process will be killed in the middle of the next call."""
        self.steps += 1
        self.fuse = Fuse(turns, halves, mode)

    @precondition(lambda self: self.world.unfinished)
    @rule(pick=picks, mode=st.sampled_from(("run", "fail")), one=st.booleans())
    def recover(self, pick: int, mode: str, one: bool) -> None:
        """Take up what an earlier process left."""
        left = self.world.unfinished
        handle = chosen(left, pick).handle if one and left else None
        self.do(
            partial(self.world.recover, handle, mode),
            partial(self.life.rt.recover, handle, mode=mode),  # type: ignore[arg-type]  # one of the two
        )

    @now_and_then(5, lambda self: self.keyed)
    @rule()
    def a_day_passes(self) -> None:
        """Keys are free again after it."""
        wait(DAY_S + 1)
        self.settle()

    # -- agents ------------------------------------------------------------------------------------

    @now_and_then(6)
    @rule(name=agents, what=st.sampled_from(("add", "upsert", "remove")))
    def an_agent_comes_or_goes(self, name: str, what: str) -> None:
        if what == "remove":
            self.do(partial(self.world.remove_agent, name), partial(self.life.rt.remove_agent, name))
        else:
            self.put_agent(name, replace=what == "upsert")

    @precondition(lambda self: len(self.world.agents) < len(AGENTS))
    @rule(replace=st.booleans())
    def an_agent_comes_back(self, replace: bool) -> None:
        missing = [name for name in AGENTS if name not in self.world.agents]
        self.put_agent(missing[0], replace=replace)

    def put_agent(self, name: str, *, replace: bool) -> None:
        config, rt = AGENTS[name], self.life.rt
        self.do(
            lambda reply: self.world.put_agent(config, reply, replace=replace),
            partial(rt.upsert_agent if replace else rt.add_agent, config),
        )

    # -- conversations -----------------------------------------------------------------------------

    def _chat(self, pick: int) -> Chat | None:
        """A live conversation, or now and then one that is gone."""
        gone = self.view.gone[-1:] if pick % 7 == 0 else []
        found = self.world.chats + gone
        return chosen(found, pick) if found else None

    @precondition(lambda self: self.steps % 2 == 0 or not self.world.chats)
    @rule(
        agent=agents,
        sender=senders,
        topic=topics,
        way=st.sampled_from(("get", "switch", "describe", "describe", "describe", "load")),
        pick=picks,
    )
    def open_one(self, agent: str, sender: str, topic: str, way: str, pick: int) -> None:
        """By any of the three ways."""
        if way == "get":
            self.get_or_create(agent, sender)
        elif way == "load":
            handle = self._handle(pick)
            self.do(partial(self.world.load, handle), partial(self.life.rt.load, handle), self.view.same_chat)
        else:
            self.switch(agent, sender, topic, described=way == "describe")

    @precondition(lambda self: self.world.closing)
    @rule(pick=picks, described=st.booleans(), delete=st.booleans())
    def open_what_closes(self, pick: int, described: bool, delete: bool) -> None:
        """And perhaps delete it while somebody waits for it to have closed."""
        agent, sender, topic = place = chosen([*self.world.closing], pick)
        self.switch(agent, sender, topic, described=described)
        if delete and place in self.world.closing:
            self.delete(self.world.store.sessions[place].handle)

    def get_or_create(self, agent: str, sender: str) -> None:
        self.do(
            partial(self.world.get_or_create, agent, sender),
            partial(self.life.rt.get_or_create, agent, sender),
            self.view.same_chat,
        )

    def switch(self, agent: str, sender: str, topic: str, *, described: bool) -> None:
        description = f"about {topic}" if described else None
        self.do(
            partial(self.world.switch, (agent, sender, topic), description),
            partial(self.life.rt.switch_topic, agent, sender, topic, description),
            self.view.same_switch,
        )

    @precondition(lambda self: self.world.closing or (self.steps % 7 == 0 and self.world.store.sessions))
    @rule(pick=picks, kill=st.booleans())
    def delete_session(self, pick: int, kill: bool) -> None:
        """And perhaps kill the process: the ids of what is gone are not given again."""
        torn = self.fuse is not None
        self.delete(self._handle(pick))
        if kill and not torn:
            self._record()
            self._killed(self._marks())
            self.boot("run", both[0])

    def delete(self, handle: str) -> None:
        self.do(partial(self.world.delete, handle), partial(self.life.rt.delete_session, handle))

    def _handle(self, pick: int) -> str:
        closing = [chat.session for chat in self.world.closing.values()]
        known = closing if closing and pick % 2 else [*self.world.store.sessions.values()]
        return chosen(known, pick).handle if known and pick % 11 else "unknown"

    @precondition(
        lambda self: (
            any(chat.closing for chat in self.world.chats) or (self.steps % 3 == 0 and self.world.chats)
        )
    )
    @rule(pick=picks, mode=st.sampled_from(("drain", "drain", "now")))
    def close(self, pick: int, mode: str) -> None:
        closing = [chat for chat in self.world.chats if chat.closing]
        chat = chosen(closing, pick) if closing and pick % 2 else self._chat(pick)
        assert chat is not None
        self.do(
            partial(self.world.close, chat, mode),
            partial(self.life.rt.close, chat.cid, mode=mode),  # type: ignore[arg-type]  # one of the two
        )

    # -- messages ----------------------------------------------------------------------------------

    @precondition(lambda self: self.world.chats)
    @rule(
        pick=picks,
        how=st.sampled_from(("submit", "submit", "send", "stream")),
        on_busy=st.sampled_from(("enqueue", "enqueue", "enqueue", "reject", "interrupt", "steer")),
        keyed=st.booleans(),
        guest=st.sampled_from((None, None, None, "owl", "crab")),
        sender=st.sampled_from(("", "", "carl")),
    )
    def say(self, pick: int, how: str, on_busy: str, keyed: bool, guest: str | None, sender: str) -> None:
        """A new message."""
        chat, number = self._chat(pick), next(self.texts)
        assert chat is not None
        text, key = f"m{number}", f"k{number}" if keyed and on_busy != "steer" else None
        if on_busy == "steer" or guest not in self.world.agents or guest == chat.agent:
            guest = None
        if key is not None:
            self.keyed.append((chat.agent, chat.sender, key, text))
        self._say(chat, how, text, on_busy=on_busy, key=key, guest=guest, sender=sender)

    @precondition(lambda self: self._busy())
    @rule(pick=picks)
    def say_more(self, pick: int) -> None:
        """One more message to a conversation that is busy."""
        chat = chosen(self._busy(), pick)
        self._say(chat, "submit", f"m{next(self.texts)}", on_busy="enqueue", key=None, guest=None, sender="")

    def _busy(self) -> list[Chat]:
        return [chat for chat in self.world.chats if chat.turn is not None]

    @precondition(lambda self: self.world.chats and self.keyed)
    @rule(
        pick=picks,
        which=picks,
        how=st.sampled_from(("submit", "send", "stream")),
        on_busy=st.sampled_from(("enqueue", "enqueue", "reject", "interrupt")),
        other=st.integers(0, 4),
    )
    def say_again(self, pick: int, which: int, how: str, on_busy: str, other: int) -> None:
        """A message with a key that was used before, most often with the same content."""
        agent, sender, key, text = chosen(self.keyed[-6:], which)
        mine = [chat for chat in self.world.chats if (chat.agent, chat.sender) == (agent, sender)]
        chat = chosen(mine or self.world.chats, pick)
        text = text if other else f"not {text}"
        self._say(chat, how, text, on_busy=on_busy, key=key, guest=None, sender="")

    def _say(self, chat: Chat, how: str, text: str, **options: Any) -> None:
        row = Row(
            self.world.number(), text, options["sender"] or chat.sender, options["guest"], options["key"]
        )
        message = Message(row, options["on_busy"])
        if how == "submit" or self.fuse is not None:
            call: Callable[..., Any] = self.life.rt.submit
            same, then = self.view.same_ticket, compare.itself
        elif how == "send":
            call, same, then = self.life.rt.send, self.view.same_result, compare.the_end
        else:
            call = lambda *a, **k: [*self.life.rt.stream(*a, **k)]  # noqa: E731 - one call of three
            same, then = partial(self.view.same_events, message), compare.the_end
        self.do(
            lambda reply: self.world.of(chat, reply) and chat.submit(message, reply),
            partial(call, chat.cid, text, **options),
            same,
            then,
        )

    @precondition(lambda self: self._busy() or (self.world.chats and self.steps % 5 == 0))
    @rule(pick=picks)
    def steer(self, pick: int) -> None:
        busy = self._busy()
        chat = self._chat(pick) if pick % 5 == 0 or not busy else chosen(busy, pick)
        assert chat is not None
        row = Row(self.world.number(), f"s{next(self.texts)}", chat.sender)
        self.do(
            lambda reply: self.world.of(chat, reply) and chat.steer(Message(row, "steer"), reply),
            partial(self.life.rt.steer, chat.cid, row.text),
            self.view.same_ticket,
        )

    @now_and_then(3, lambda self: self.world.chats)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        chat = self._chat(pick)
        assert chat is not None
        self.do(
            lambda reply: self.world.of(chat, reply) and chat.cancel(reply),
            partial(self.life.rt.cancel, chat.cid),
        )

    @now_and_then(3, lambda self: self.view.tickets)
    @rule(pick=picks)
    def cancel_ticket(self, pick: int) -> None:
        message, chat = chosen(self.view.tickets, pick)
        self.do(partial(chat.cancel_message, message), message.ticket.cancel)

    @now_and_then(7, lambda self: self.view.tickets)
    @rule(pick=picks)
    def ask_ticket(self, pick: int) -> None:
        """A result that is not waited for long."""
        message, _ = chosen(self.view.tickets, pick)
        self.do(
            partial(compare.ends_in_time, message),
            partial(message.ticket.result, timeout=0.05),
            self.view.same_result,
        )

    # -- answers -----------------------------------------------------------------------------------

    def _thinking(self) -> list[Chat]:
        return [c for c in self.world.chats if c.turn is not None and c.turn.phase == "model"]

    def _answer(self, chat: Chat, answer: Answer) -> None:
        asked = self.view.asked(chat)
        self.do(
            lambda reply: (reply.keep(None), chat.model_answers(answer)),
            partial(asked.answer.set, answer),
        )

    @precondition(lambda self: self._thinking())
    @rule(pick=picks, tokens=st.sampled_from((10, 10, 5_000)))
    def model_says(self, pick: int, tokens: int) -> None:
        self._answer(chosen(self._thinking(), pick), Answer(f"a{next(self.texts)}", tokens=tokens))

    @precondition(lambda self: self._thinking())
    @rule(pick=picks, error=st.booleans())
    def model_fails(self, pick: int, error: bool) -> None:
        """It raises, or says nothing."""
        self._answer(chosen(self._thinking(), pick), Answer(error="unwell" if error else ""))

    @precondition(lambda self: self._thinking())
    @rule(
        pick=picks,
        names=st.sampled_from((("count",), ("work",), ("count", "work"), ("work", "work"))),
        tokens=st.sampled_from((10, 10, 5_000)),
    )
    def model_calls(self, pick: int, names: tuple[str, ...], tokens: int) -> None:
        number = next(self.texts)
        calls = tuple(ToolCall(f"c{number}-{place}", name, "{}") for place, name in enumerate(names))
        self._answer(chosen(self._thinking(), pick), Answer("", calls, tokens))

    def _working(self) -> list[tuple[Chat, Any]]:
        return [(c, call) for c in self.world.chats if c.turn is not None for call in c.turn.open_calls]

    @precondition(lambda self: self._working())
    @rule(pick=picks)
    def tool_ends(self, pick: int) -> None:
        chat, call = chosen(self._working(), pick)
        output = f"o{next(self.texts)}"
        self.do(
            lambda reply: (reply.keep(None), chat.tool_answers(call, output)),
            partial(self.life.tools[call.call.id].set, output),
        )

    # -- summaries ---------------------------------------------------------------------------------

    @now_and_then(2, lambda self: self.world.chats)
    @rule(pick=picks)
    def compact(self, pick: int) -> None:
        chat = self._chat(pick)
        assert chat is not None
        self.do(
            lambda reply: self.world.of(chat, reply) and chat.compact(reply),
            partial(self.life.rt.compact, chat.cid),
            self.view.same_compaction,
        )

    def _summarizing(self) -> list[Chat]:
        return [chat for chat in self.world.chats if compare.summarizes(chat)]

    @precondition(lambda self: self._summarizing())
    @rule(pick=picks, well=st.sampled_from((True, True, True, False)))
    def summary_arrives(self, pick: int, well: bool) -> None:
        """For a compaction."""
        chat = chosen(self._summarizing(), pick)
        asked = self.view.asked_summary(chat)
        text = f"summary {next(self.texts)} {chosen(WORDS, pick)}" if well else ""
        self.do(
            lambda reply: (reply.keep(None), chat.summary_arrives(text)),
            partial(asked.answer.set, Answer(text)),
        )

    @now_and_then(4, lambda self: self.world.chats and self.fuse is None and not self.view.summaries)
    @rule(pick=picks)
    def summarize(self, pick: int) -> None:
        """Ask for a summary that changes nothing."""
        chat = self._chat(pick)
        assert chat is not None
        before: list[Asked] = [*self.life.model.waiting]
        reply = Promise()
        self.view.summaries_of(chat, reply)
        self.view.expect(reply, self.life.call(partial(self.life.rt.summarize, chat.cid)))
        self.life.settle()
        self.view.note_summaries([asked for asked in self.life.model.waiting if asked not in before])
        self.view.check()

    @precondition(lambda self: self.view.summaries and self.fuse is None)
    @rule()
    def a_summary_is_told(self) -> None:
        asked, reply = self.view.summaries.pop()
        asked.answer.set(Answer("told"))
        reply.keep("told")
        self.settle()

    # -- memory ------------------------------------------------------------------------------------

    @now_and_then(4)
    @rule(agent=agents, sender=senders, number=st.integers(1, 3), words=words, forget=st.booleans())
    def a_note_changes(
        self, agent: str, sender: str, number: int, words: Sequence[str], forget: bool
    ) -> None:
        if forget:
            self.do(
                partial(self.world.forget, agent, sender, f"note {number}"),
                partial(self.life.rt.memory.forget, agent, sender, f"note {number}"),
            )
        else:
            self.remember(agent, sender, number, words)

    @now_and_then(3)
    @rule(agent=agents, sender=senders, words=words, topic=st.sampled_from((False, False, True)))
    def recall(self, agent: str, sender: str, words: Sequence[str], topic: bool) -> None:
        memory = self.life.rt.memory
        self.do(
            partial(self.world.recall, agent, sender, words, "topic" if topic else None),
            partial(memory.search_topics if topic else memory.recall, agent, sender, " ".join(words), 100),
            compare.same_notes_in_any_order,
        )

    def remember(self, agent: str, sender: str, number: int, words: Sequence[str]) -> None:
        note = Note("note", f"note {number}", " ".join(words), (chosen(WORDS, number),))
        self.do(
            partial(self.world.remember, agent, sender, note),
            partial(self.life.rt.memory.remember, agent, sender, note.name, note.content, note.aliases),
            compare.same_note,
        )

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # what a failed step leaves is not compared
                self.view.check_everything()
        finally:
            self.life.kill()
            gone(self.path)


def chosen(items: Any, pick: int) -> Any:
    """One of the items."""
    return items[pick % len(items)]


def gone(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def run(examples: int, seed_: int, folder: Path) -> int:
    """So many examples of 50 steps each."""
    shrinking = (Phase.shrink,) if os.environ.get("PALAVER_SHRINK") else ()
    chosen_settings = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(Phase.generate, *shrinking),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    done = count()

    class Counted(Machine):
        def __init__(self) -> None:
            super().__init__()
            next(done)

    with quiet(), in_memory(folder) as inside:
        Machine.folder, Machine.template = inside, inside / "template.db"
        close_database(open_database(Machine.template))
        try:
            run_virtual(
                lambda: run_state_machine_as_test(
                    seed(seed_)(Counted), settings=chosen_settings, _min_steps=0 if shrinking else STEPS - 1
                ),
                max_steps=MAX_LOOP_STEPS,
            )
        except BaseException as error:
            error.add_note(
                f"to see it again: reliability.machine.run({examples}, {seed_}, folder); PALAVER_SHRINK=1"
            )
            raise
    return next(done)


CHECKS = (Check("state-machine", (5, 7, 8, 11, 20), "examples", quick=200, long=2_000, run=run, chunk=100),)
