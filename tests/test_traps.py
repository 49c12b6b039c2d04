"""Where each of the 28 traps of this stack is shown not to catch us, and tests without a place elsewhere."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal
from gevent.monkey import get_original
from support import PROCESS_S
from turns_support import (
    AGENT,
    blocking_monitor,
    deadline,
    kinds,
    let_run,
    never_blocks_the_hub,
    race,
    runtime,
    services,
)

from actors.bell import bell
from actors.messages import TitleProposed
from palaver import AgentConfig, Reply, ScriptedModel
from persistence.committer import Committer, Item
from persistence.inline import InlineWorker
from persistence.worker import DatabaseWorker
from persistence.writes import WriteSet

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("palaver", "actors", "persistence")

# trap -> the tests that show that our code does not fall into it. All 28 are ones that it could meet.
SHOWN: dict[int, tuple[str, ...]] = {
    1: (  # BaseExceptions out of handlers
        "test_greenlet_actor.py::test_trap_01_any_exception_under_ask_is_answered_and_harms_nobody",
        "test_greenlet_actor.py::test_trap_01_any_exception_under_tell_kills_that_actor_alone",
        "test_greenlet_actor.py::test_trap_01_any_exception_of_a_hook_kills_that_actor_alone",
        "test_greenlet_future.py::test_trap_01_base_exception_is_kept_as_handler_failed",
        "test_tools.py::test_trap_1_a_kill_passes_through_a_tool",
        "test_turns.py::test_whatever_a_model_raises_is_an_error_result_and_harms_nobody_else",
        "test_turns.py::test_whatever_a_tool_raises_is_a_result_that_the_model_can_read",
        "test_turns.py::test_whatever_a_hook_raises_changes_nothing",
    ),
    2: (  # errors under tell and ask
        "test_greenlet_actor.py::test_trap_02_error_under_ask_goes_to_the_asker_and_the_actor_lives",
        "test_greenlet_actor.py::test_trap_02_error_under_tell_kills_and_answers_the_queue",
        "test_traps.py::test_trap_02_a_conversation_that_dies_is_started_again_and_answers_everybody",
    ),
    3: (  # stop is a message, a timeout cancels nothing
        "test_greenlet_actor.py::test_trap_03_stop_comes_after_what_was_queued_before_it",
        "test_greenlet_actor.py::test_trap_03_timeout_of_an_ask_does_not_cancel_the_work",
    ),
    4: (  # asking oneself, cycles of asks
        "test_greenlet_actor.py::test_trap_04_ask_of_itself_raises_instead_of_deadlocking",
        "test_traps.py::test_trap_04_no_actor_asks_another_and_waits",
        "test_turns.py::test_a_tool_may_call_its_runtime_and_never_waits_for_itself",
        "test_turns.py::test_hooks_may_call_the_runtime_even_to_send_when_a_turn_is_done",
    ),
    5: ("test_greenlet_actor.py::test_trap_05_failing_on_start_gives_a_dead_ref_and_answers_the_queue",),
    6: (  # asks that race a death
        "test_greenlet_actor.py::test_trap_06_every_way_to_die_answers_everything_queued",
        "test_traps.py::test_trap_06_every_ask_has_a_deadline",
    ),
    7: (  # pykka's global registry
        "test_greenlet_actor.py::test_trap_07_pykkas_registry_neither_knows_nor_stops_our_actors",
        "test_greenlet_actor.py::test_trap_07_our_life_and_death_never_touch_pykkas_registry",
    ),
    8: (  # the end of the process
        "test_greenlet_actor.py::test_trap_08_and_13_a_process_works_and_ends_quietly",
        "test_traps.py::test_trap_08_a_process_that_forgets_to_shut_down_ends_and_keeps_what_it_acknowledged",
    ),
    9: (  # the size of an actor
        "test_greenlet_actor.py::test_trap_09_idle_actors_cost_no_greenlet",
        "test_greenlet_actor.py::test_trap_09_idle_actor_costs_at_most_1500_bytes",
    ),
    10: (  # calls from other threads
        "test_greenlet_actor.py::test_trap_10_another_thread_is_refused_by_name_and_nothing_is_queued",
        "test_greenlet_future.py::test_trap_10_another_thread_is_refused_by_name",
        "test_threads.py::test_trap_10_a_function_runs_in_the_owners_thread_without_waiting_for_the_hub_to_wake",
        "test_worker.py::test_answers_reach_greenlets_through_the_hub",
    ),
    11: ("test_traps.py::test_trap_11_only_the_command_line_handles_signals_and_through_gevent",),
    12: (  # forks
        "test_worker.py::test_trap_12_a_forked_child_is_refused",
        "test_threads.py::test_trap_12_a_forked_child_is_told_to_open_its_own",
    ),
    13: (  # patch first, import second
        "test_greenlet_actor.py::test_trap_08_and_13_a_process_works_and_ends_quietly",
        "test_layering.py::test_trap_13_no_module_of_the_library_patches_when_it_is_imported",
        "test_cli.py::test_trap_13_the_launcher_patches_before_pykka_is_imported",
    ),
    14: ("test_traps.py::test_trap_14_nothing_of_gevent_runs_in_a_worker_thread",),
    15: (  # killed greenlets of actors
        "test_greenlet_actor.py::test_trap_15_kill_inside_a_handler_under_ask_is_answered",
        "test_greenlet_actor.py::test_trap_15_kill_inside_a_handler_under_tell_leaves_an_actor_that_says_it_is_dead",
        "test_greenlet_actor.py::test_trap_15_kill_inside_a_hook_leaves_an_actor_that_says_it_is_dead",
        "test_greenlet_actor.py::test_trap_15_kill_before_the_first_message_harms_no_actor",
    ),
    16: (  # a blocked hub; all of test_races.py runs under the monitor too
        "test_traps.py::test_trap_16_a_thousand_senders_never_block_the_hub",
        "test_traps.py::test_trap_16_the_monitor_sees_what_blocks",
    ),
    17: ("test_traps.py::test_trap_17_a_commit_that_hangs_stops_nobody_who_does_not_wait_for_it",),
    18: (  # a switch inside a transaction
        "test_traps.py::test_trap_18_what_fails_beside_others_takes_nothing_of_theirs_along",
        "test_traps.py::test_trap_18_an_inline_job_cannot_yield",
    ),
    19: ("test_traps.py::test_trap_19_every_batch_is_one_immediate_transaction",),
    20: (  # what Database(path) does
        "test_database.py::test_trap_20_settings_are_the_ones_that_nothing_is_lost_with",
        "test_database.py::test_trap_20_no_installed_plugin_runs",
        "test_database.py::test_trap_20_the_connection_may_be_used_in_another_native_thread",
    ),
    21: (  # db.conn.execute, lazy rows, tables made by an insert
        "test_worker.py::test_trap_21_rows_that_are_not_fetched_are_refused",
        "test_traps.py::test_trap_21_nothing_is_written_past_sqlite_utils_and_no_insert_makes_a_table",
    ),
    22: ("test_database.py::test_trap_22_processes_that_start_together_do_not_migrate_together",),
    23: (  # a failed fsync
        "test_worker.py::test_trap_23_after_a_failed_commit_all_work_is_refused",
        "test_storage_failures.py::test_after_a_broken_disk_every_call_says_so_and_the_runtime_stops",
    ),
    24: (  # the WAL-reset bug: one connection, exclusive
        "test_database.py::test_trap_20_settings_are_the_ones_that_nothing_is_lost_with",
        "test_database.py::test_a_second_opening_in_this_process_is_refused",
        "test_database.py::test_a_second_process_is_refused_and_may_come_when_the_first_is_done",
        "test_traps.py::test_trap_24_there_is_one_place_that_connects",
    ),
    25: (  # the WAL's growth, FTS5's syntax and triggers
        "test_worker.py::test_trap_25_the_wal_stays_bounded",
        "test_memories.py::test_trap_25_a_query_without_a_word_finds_nothing",
        "test_memories.py::test_trap_25_nothing_in_a_query_is_an_operator",
        "test_memory_face.py::test_trap_25_any_text_is_a_query",
        "test_memory_face.py::test_trap_25_words_with_quotes_and_dashes_are_found",
        "test_memories.py::test_forget_takes_notes_only_and_their_words_with_them",
    ),
    26: ("test_writes.py::test_trap_26_a_thousand_write_sets_are_a_handful_of_statements",),
    27: (  # requests' pool
        "test_openai_model.py::test_trap_27_the_total_time_covers_a_stall_and_its_slot_is_free_again",
        "test_openai_model.py::test_trap_27_a_response_is_closed_even_if_somebody_still_holds_it",
        "test_openai_model.py::test_trap_27_connections_are_kept_for_as_many_requests_as_may_be_under_way",
    ),
    28: (  # a stream that is cut
        "test_openai_model.py::test_trap_28_a_stream_that_is_cut_after_text_is_an_error_and_not_tried_again",
        "test_round.py::test_trap_28_an_end_without_a_finish_reason_is_an_error",
        "test_round.py::test_trap_28_an_empty_round_says_nothing",
        "test_turns.py::test_what_is_no_stream_of_chunks_is_an_error_result",
        "test_turns.py::test_a_round_that_says_nothing_adds_nothing",
    ),
}


@pytest.fixture(autouse=True)
def _must_end() -> Iterator[None]:
    with deadline(60):
        yield


def test_all_28_traps_are_accounted_for_by_tests_that_exist() -> None:
    assert sorted(SHOWN) == list(range(1, 29))
    known = {f"{file}::{name}" for file, name in our_tests()}
    missing = [test for tests in SHOWN.values() for test in tests if test not in known]
    assert missing == []
    assert all(SHOWN.values())


def test_no_test_is_named_after_a_trap_that_is_not_in_the_list() -> None:
    numbers = {int(name.split("_")[2]) for _, name in our_tests() if name.startswith("test_trap_")}
    assert numbers <= set(SHOWN)


def our_tests() -> list[tuple[str, str]]:
    """The test functions of all files, as (file, name)."""
    return [
        (file.name, name)
        for file in sorted(Path(__file__).parent.glob("test_*.py"))
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    ]


# -- reading our own code ------------------------------------------------------------------------------


@functools.cache
def modules(*packages: str) -> list[tuple[Path, ast.Module]]:
    """Our modules, as (path, syntax tree)."""
    return [
        (path.relative_to(ROOT), ast.parse(path.read_text()))
        for package in packages or PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def calls_of(tree: ast.AST, *names: str) -> list[ast.Call]:
    """Calls of methods or functions with these names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in names:
                found.append(node)
    return found


def test_trap_04_no_actor_asks_another_and_waits() -> None:
    """No actor's own code calls `ask`, sleeps or joins; the supervisor stops children in a greenlet apart."""
    actors = 0
    for path, tree in modules("actors"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and path.name != "greenlet.py" and _is_actor(node):
                actors += 1
                waits = calls_of(
                    node, "ask", "sleep", "joinall", "killall", "call", "wait_accepted", "result"
                )
                assert [ast.unparse(call) for call in waits] == [], path
    assert actors >= 6


def _is_actor(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base) for base in node.bases}
    return bool(bases & {"GreenletActor", "ConversationCore", "Ending", "Accepting", "SupervisorCore"})


def test_trap_06_every_ask_has_a_deadline() -> None:
    found = 0
    for path, tree in modules("actors", "palaver"):
        for call in calls_of(tree, "ask"):
            if path.name == "greenlet.py":
                continue
            found += 1
            given = {keyword.arg for keyword in call.keywords}
            assert "timeout" in given, f"{path}: {ast.unparse(call)}"
    assert found > 3


def test_no_thread_changes_what_a_loop_counts() -> None:
    """actors/bell.py says why."""
    for path, tree in modules():
        if path != Path("palaver/simulation/loop.py"):
            assert [n for n in ast.walk(tree) if getattr(n, "attr", "") == "run_callback_threadsafe"] == [], (
                path
            )


def test_trap_11_only_the_command_line_handles_signals_and_through_gevent() -> None:
    for path, tree in modules():
        if path.parts[:2] == ("palaver", "commands") or path == Path("palaver/cli.py"):
            for call in calls_of(tree, "signal"):  # allowed to put back what was there before, no more
                handler = ast.unparse(call.args[1])
                default = handler in ("signal.SIG_DFL", "signal.SIG_IGN")
                assert default or isinstance(call.args[1], ast.Name), f"{path}: {ast.unparse(call)}"
            continue
        assert calls_of(tree, "signal_handler") == [], path
        imported = [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        assert "signal" not in imported, path


def test_trap_14_nothing_of_gevent_runs_in_a_worker_thread() -> None:
    """A worker thread runs `persistence` alone, which has of gevent only the way to the native locks."""
    taken = {}
    for path, tree in modules("persistence"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.split(".")[0] == "gevent"]
                assert names == [], path
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gevent":
                taken[path] = [f"{node.module}.{alias.name}" for alias in node.names]
    native = ["gevent.monkey.get_original"]
    assert taken == {Path("persistence/newfiles.py"): native, Path("persistence/worker.py"): native}


def test_trap_21_nothing_is_written_past_sqlite_utils_and_no_insert_makes_a_table() -> None:
    for path, tree in modules("persistence"):
        for call in calls_of(tree, "execute", "executemany", "executescript"):
            if ast.unparse(call.func).endswith(("conn.execute", "conn.executemany", "executescript")):
                assert "PRAGMA" in ast.unparse(call.args[0]), f"{path}: {ast.unparse(call)}"
        if path.name != "migrations.py":
            making = calls_of(tree, "insert_all", "upsert", "upsert_all", "create_table", "enable_fts")
            assert [ast.unparse(call) for call in making] == [], path
            inserts = [c for c in calls_of(tree, "insert") if isinstance(c.func, ast.Attribute)]
            assert [ast.unparse(call) for call in inserts] == [], path


def test_trap_24_there_is_one_place_that_connects() -> None:
    # A host's client connects to a socket.
    places = [str(path) for path, tree in modules() if calls_of(tree, "connect") and "host" not in path.parts]
    # A backup makes a file of its own, which nobody else knows of yet; new tables are made in memory.
    assert places == ["persistence/backup.py", "persistence/database.py", "persistence/newtables.py"]


# -- running it ----------------------------------------------------------------------------------------


def test_trap_02_a_conversation_that_dies_is_started_again_and_answers_everybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = Signal()

    def wait(_request: Any) -> str:
        go.wait()
        return "told in the next life"

    class Broken(Exception):
        pass

    def fail(*_args: object) -> None:
        raise Broken("a bug of ours")

    with runtime(":memory:", ScriptedModel(wait)) as rt:
        cid = rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id
        other = rt.get_or_create(AGENT, "bob")
        tickets = [rt.submit(cid, f"m{number}") for number in range(5)]
        handle = rt.conversation(cid).handle  # type: ignore[union-attr]
        assert handle is not None
        monkeypatch.setattr("actors.conversation.ConversationActor._title_proposed", fail)
        state = next(s for s in _states(rt) if s.id == cid)
        before = state.ref
        before.tell(TitleProposed("x"))
        let_run()
        assert not before.is_alive()
        monkeypatch.undo()
        go.set()
        assert rt.send(other, "a sibling does not notice").stop_reason == "text_response"
        outcomes = race([ticket.result for ticket in tickets])
        assert [outcome.text for outcome in outcomes] == ["told in the next life"] * 5
        assert rt.load(handle) == cid
        assert rt.send(cid, "and on").stop_reason == "text_response"


def _states(rt: Any) -> list[Any]:
    return [*services(rt).directory.conversations.values()]


PROCESS = """
from gevent import monkey; monkey.patch_all()
import sys
from actors.messages import TitleProposed
from palaver import AgentConfig, Runtime, ScriptedModel
rt = Runtime.open(sys.argv[1], ScriptedModel())
rt.add_agent(AgentConfig(name="crab"))
cid = rt.switch_topic("crab", "alice", "auth", "d").conversation_id
print(rt.send(cid, "acknowledged").text, flush=True)
rt.submit(cid, "accepted")
"""


def test_trap_08_a_process_that_forgets_to_shut_down_ends_and_keeps_what_it_acknowledged(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS, str(path)],
        capture_output=True,
        text=True,
        timeout=PROCESS_S,
        cwd=ROOT,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "acknowledged\n"), ended.stderr
    with runtime(path) as rt:
        (session,) = rt.sessions()
        assert [e.content for e in rt.transcript(session.handle)][:2] == ["acknowledged"] * 2
        cid = rt.load(session.handle)
        assert rt.send(cid, "next").text == "next"  # behind what was accepted
        users = [e.content for e in rt.transcript(session.handle) if e.role == "user"]
        assert users == ["acknowledged", "accepted", "next"]


def test_trap_16_the_monitor_sees_what_blocks() -> None:
    blocks: list[str] = []

    def burn() -> str:
        """Hold the thread, as a blocking call would, until that is noticed."""
        end = time.monotonic() + 10
        while not seen() and time.monotonic() < end:
            pass
        return "burnt"

    def seen() -> bool:
        return any("in burn" in stack for stack in blocks)  # a busy machine may make others look so, too

    model = ScriptedModel([Reply(tool_calls=[("burn", {})]), "done"])
    with runtime(":memory:", model, tools=[burn]) as rt:
        cid = rt.get_or_create(AGENT, "alice")
        with blocking_monitor() as blocks:
            rt.send(cid, "go")
        assert seen()


def nothing() -> str:
    """Do nothing."""
    return "done"


@never_blocks_the_hub
def test_trap_16_a_thousand_senders_never_block_the_hub(tmp_path: Path) -> None:
    config = AgentConfig(name=AGENT, compact_threshold=50)
    model = ScriptedModel(_calls_once, keep_requests=0)
    with runtime(tmp_path / "a.db", model, config, tools=[nothing]) as rt:

        def talk(number: int) -> str:
            cid = rt.switch_topic(AGENT, f"s{number}", "auth", "d").conversation_id
            return rt.send(cid, f"sender {number}").stop_reason

        said = race([partial(talk, number) for number in range(1_000)], seed=1)
        assert said == ["text_response"] * 1_000
        assert len(rt.list_active()) == 1_000


def _calls_once(request: Any) -> Reply:
    if request.messages[-1]["role"] == "user":
        return Reply(tool_calls=[("nothing", {})])
    return Reply("an answer of some length " * 4)


class Held(Committer):
    """A committer whose commits wait in the database thread as long as the gate is locked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = get_original("_thread", "allocate_lock")()

    def _commit(self, db: Any) -> None:
        with self.gate:
            super()._commit(db)


@never_blocks_the_hub
def test_trap_17_a_commit_that_hangs_stops_nobody_who_does_not_wait_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    committer = Held(path)
    with runtime(path, worker=DatabaseWorker(path, notify=bell(), committer=committer)) as rt:
        cid = rt.switch_topic(AGENT, "alice", "auth", "d").conversation_id
        tmp = rt.get_or_create(AGENT, "bob")
        with committer.gate:
            waiting = gevent.spawn(rt.send, cid, "stored")
            let_run()
            for number in range(200):
                assert rt.send(tmp, f"m{number}").text == f"m{number}"
                assert len(rt.list_active()) == 2
                assert rt.conversation(cid) is not None
            assert not waiting.ready()
        assert waiting.get().text == "stored"


def test_trap_18_what_fails_beside_others_takes_nothing_of_theirs_along(tmp_path: Path) -> None:
    with runtime(tmp_path / "a.db") as rt:
        store = services(rt).store

        def job(number: int, db: Any) -> int:
            db.execute(
                "INSERT INTO memory_entries (agent, scope, kind, name, content, created_at)"
                " VALUES ('a', 's', 'note', ?, 'c', 0)",
                [f"n{number}"],
            )
            if number % 3 == 0:
                raise ValueError("this one fails, after its write")
            return number

        outcomes = race([partial(store.call, partial(job, number)) for number in range(300)], seed=2)
        kept = {f"n{number}" for number in range(300) if number % 3}
        assert kinds(outcomes) == {"ValueError": 100, "int": 200}
        stored = store.call(lambda db: db.execute("SELECT name FROM memory_entries").fetchall())
        assert {name for (name,) in stored} == kept


def test_trap_18_an_inline_job_cannot_yield() -> None:
    """In simulation jobs run in a callback of the hub, where a switch is an error and not a silent mix-up."""
    hub = gevent.get_hub()
    timers: list[Any] = []

    def schedule(seconds: float, function: Any) -> None:
        timer = hub.loop.timer(seconds)
        timers.append(timer)
        timer.start(function)

    worker = InlineWorker(":memory:", schedule=schedule)
    worker.start()
    told: list[Any] = []
    worker.submit(lambda _db: gevent.sleep(0), lambda value, error: told.append(error or value))
    while not told:
        gevent.sleep(0)
    worker.stop()
    assert isinstance(told[0], BaseException)


def test_trap_19_every_batch_is_one_immediate_transaction(tmp_path: Path) -> None:
    committer = Committer(tmp_path / "a.db")
    committer.open()
    statements: list[str] = []
    db: Any = committer._db  # noqa: SLF001 - what it really says to SQLite
    db.conn.set_trace_callback(statements.append)
    batch = [Item(WriteSet()), Item(lambda db: db.execute("SELECT 1").fetchall()), Item(lambda _db: 7)]
    committer.run(batch)
    committer.close()
    begun = [each for each in statements if each.upper().startswith(("BEGIN", "COMMIT", "ROLLBACK;"))]
    assert [each.split()[0].upper() for each in begun][:2] == ["BEGIN", "COMMIT"]
    assert begun[0] == "BEGIN IMMEDIATE"
    assert [each for each in begun if each.upper().startswith("BEGIN") and "IMMEDIATE" not in each] == []
