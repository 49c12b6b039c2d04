"""The state machine of the whole public API, and what it has found, each as a claim of its own."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest
from reliability import machine
from turns_support import AGENT, HeldModel, deadline, let_run, runtime

from palaver import AgentConfig, KeyReused, Runtime, ScriptedModel
from palaver.simulation.loop import VirtualClock, run_virtual
from persistence.inline import InlineWorker
from persistence.sources import seeded_sources

EXAMPLES = 20  # `tests/test_reliability.py` runs 200 with another seed, the long run 2,000


def test_the_public_api_does_what_a_model_in_plain_python_says(tmp_path: Path) -> None:
    assert machine.run(EXAMPLES, 2, tmp_path) >= EXAMPLES


def test_a_shutdown_does_not_wait_for_a_conversation_that_is_closing(tmp_path: Path) -> None:
    def shut_down_while_closing() -> float:
        clock, path, model = VirtualClock(), tmp_path / "a.db", HeldModel()
        worker = InlineWorker(path, schedule=gevent.spawn_later)
        rt = Runtime.open(path, model, worker=worker, sources=seeded_sources(clock, 0))
        rt.add_agent(AgentConfig(name=AGENT))
        cid = rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id
        rt.submit(cid, "runs")
        closing = gevent.spawn(rt.close, cid)
        let_run()
        began = clock.monotonic()
        rt.shutdown(drain=0)
        assert closing.get() is True
        return clock.monotonic() - began

    assert run_virtual(shut_down_while_closing) < 1


@pytest.mark.parametrize("topic", [True, False])
def test_a_retry_that_would_interrupt_has_no_effect_of_its_own(tmp_path: Path, *, topic: bool) -> None:
    model = HeldModel()
    with deadline(), runtime(tmp_path / "a.db", model) as rt:
        if topic:
            rt.switch_topic(AGENT, "alice", "auth", "d")
        cid = rt.get_or_create(AGENT, "alice")
        first = rt.submit(cid, "pay", key="k")
        held = model.next()
        assert rt.submit(cid, "pay", key="k", on_busy="interrupt") is first
        assert rt.submit(cid, "pay", key="k", on_busy="reject") is first
        with pytest.raises(KeyReused):
            rt.submit(cid, "pay twice", key="k", on_busy="interrupt")
        held.say("paid")
        assert first.result().text == "paid"


def test_an_interrupt_waits_for_a_compaction(tmp_path: Path) -> None:
    with deadline(), runtime(tmp_path / "a.db", ScriptedModel()) as rt:
        cid = rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id
        rt.send(cid, "hello")
        compacting = gevent.spawn(rt.compact, cid)
        gevent.sleep(0)
        ticket = rt.submit(cid, "urgent", on_busy="interrupt")
        assert compacting.get().archive == "auth-1"
        assert ticket.result().text == "urgent"


def test_steers_that_a_tmp_chat_did_not_come_to_end_closed_at_a_shutdown(tmp_path: Path) -> None:
    model = HeldModel()
    with deadline():
        rt = Runtime.open(tmp_path / "a.db", model)
        rt.add_agent(AgentConfig(name=AGENT))
        cid = rt.get_or_create(AGENT, "alice")
        turn = rt.submit(cid, "runs")
        model.next()
        steer, queued = rt.steer(cid, "steers"), rt.submit(cid, "waits")
        rt.shutdown(drain=0)
        assert [ticket.state for ticket in (turn, steer, queued)] == ["cancelled", "closed", "closed"]


def test_a_guests_turn_is_brought_back_when_the_guest_is_registered(tmp_path: Path) -> None:
    path, model = tmp_path / "a.db", HeldModel()
    with deadline():
        with runtime(path, model, AgentConfig(name=AGENT), AgentConfig(name="owl"), checked=False) as rt:
            cid = rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id
            rt.submit(cid, "runs")
            model.next()
            rt.submit(cid, "what says the owl?", guest="owl")
            rt.shutdown(drain=0)
        with runtime(path, ScriptedModel(), AgentConfig(name=AGENT)) as rt:
            let_run()
            assert rt.conversations() == []
            rt.add_agent(AgentConfig(name="owl"))
            while rt.unfinished() or any(info.state != "idle" for info in rt.list_active()):
                gevent.sleep(0)
            (session,) = rt.sessions()
            assert [row.state for row in rt.turns(session.handle)] == ["cancelled", "done"]
