"""Bad input gets its own clear error, at once, and leaves nothing half-written."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import gevent
import pytest
from support import (
    CRAB,
    PATIENCE_S,
    PROCESS_S,
    ROOT,
    PuppetModel,
    Runtimes,
    handle_of,
    history_of,
    opened_runtimes,  # noqa: F401 - a fixture
    texts,
    topic,
    until,
)

from palaver import (
    AgentConfig,
    AgentNotRegistered,
    ConversationNotFound,
    DatabaseInUse,
    DatabaseTooNew,
    DatabaseUnusable,
    Done,
    Event,
    HistoryEntry,
    InvalidConfig,
    InvalidInput,
    InvalidTitle,
    Limits,
    PalaverError,
    Reply,
    Runtime,
    ScriptedModel,
    SessionNotFound,
    TextDelta,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallsBegin,
    ToolResult,
)

ODD = "a\x00b\ud800c"
MENDED = "a\ufffdb\ufffdc"


def rows(runtimes: Runtimes, rt: Runtime) -> int:
    """How many rows the file has that a message or topic would add to."""
    tables = ("sessions", "turns", "keys", "steers", "entries", "events", "memory_entries")
    return sum(runtimes.sql(rt, f"SELECT count(*) FROM {table}")[0][0] for table in tables)


# -- messages --------------------------------------------------------------------------------------

BAD_CONTENT = [
    ("", "the message is empty"),
    (" \n\t", "the message is empty"),
    ("x" * 10_000_000, "the message has 10,000,000 characters; at most 1,000,000"),
    ("nul \x00", "the message has a NUL character at position 4"),
    ("half \ud83e", "the message has half of a surrogate pair at position 5"),
    (None, "the message must be text, not NoneType"),
    (b"bytes", "the message must be text, not bytes"),
]


@pytest.mark.parametrize(("content", "words"), BAD_CONTENT, ids=[words[-20:] for _, words in BAD_CONTENT])
def test_bad_content_is_refused_and_not_stored(runtimes: Runtimes, content: Any, words: str) -> None:
    model = PuppetModel()
    rt = runtimes.open(model)
    tmp, work = rt.get_or_create("crab", "alice"), topic(rt)
    running = [rt.submit(cid, "good") for cid in (tmp, work)]
    asked = [model.asked() for _ in running]
    before = rows(runtimes, rt)
    for cid in (tmp, work):
        for call in (rt.send, rt.submit, rt.stream, rt.steer):
            with pytest.raises(InvalidInput, match=words):
                call(cid, content)
    assert rows(runtimes, rt) == before
    for one in asked:
        one.answer("fine")
    assert [ticket.result().text for ticket in running] == ["fine", "fine"]


def test_a_message_of_the_most_characters_is_taken_whole(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel(["short"]))
    cid = topic(rt)
    long = "é🦀" * 500_000
    assert rt.send(cid, long).text == "short"
    assert rt.transcript(handle_of(rt, cid))[0].content == long


def test_the_bound_of_a_message_is_a_limit_that_can_be_set(runtimes: Runtimes) -> None:
    rt = runtimes.open(limits=Limits(content_chars=5))
    cid = rt.get_or_create("crab", "alice")
    assert rt.send(cid, "12345").text == "12345"
    with pytest.raises(InvalidInput, match="6 characters; at most 5"):
        rt.send(cid, "123456")


@pytest.mark.parametrize("bad", ["", "  ", "\x00", "\ud800", "x" * 201])
@pytest.mark.parametrize("name", ["sender", "key", "tool_choice"])
def test_bad_names_in_a_message_are_refused_by_their_name(runtimes: Runtimes, name: str, bad: str) -> None:
    rt = runtimes.open()
    cid = topic(rt)
    before = rows(runtimes, rt)
    if name == "sender" and not bad:
        assert rt.send(cid, "hello", sender="").text == "hello"  # "" is the conversation's own sender
        return
    for call in (rt.send, rt.submit, rt.stream):
        with pytest.raises(InvalidInput, match=name):
            call(cid, "hello", **{name: bad})
    assert rows(runtimes, rt) == before


def test_an_unknown_agent_is_named_with_those_that_there_are(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    calls: list[Callable[[], object]] = [
        lambda: rt.get_or_create("eel", "alice"),
        lambda: rt.switch_topic("eel", "alice", "work", "d"),
        lambda: rt.send(rt.get_or_create("crab", "alice"), "hello", guest="eel"),
    ]
    for call in calls:
        with pytest.raises(AgentNotRegistered, match=r"'eel'.*'crab'.*add_agent"):
            call()


@pytest.mark.parametrize("sender", ["", "  ", "\x00", "\ud800", "x" * 201, None, 7])
def test_a_bad_sender_is_refused(runtimes: Runtimes, sender: Any) -> None:
    rt = runtimes.open()
    for call in (
        lambda: rt.get_or_create("crab", sender),
        lambda: rt.switch_topic("crab", sender, "work", "d"),
    ):
        with pytest.raises(InvalidInput, match="sender"):
            call()
    assert rt.conversation_count() == 0


def test_odd_but_good_senders_are_kept_apart(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    senders = ["alice", "Alice", " alice", "alice\n", "🦀", "日本", "'; DROP TABLE sessions; --", "a/b", "%"]
    ids = [topic(rt, "work", sender) for sender in senders]
    assert len(set(ids)) == len(senders)
    for sender, cid in zip(senders, ids, strict=True):
        rt.send(cid, f"I am {sender}")
        assert rt.switch_topic("crab", sender, "work").conversation_id == cid
        assert [s.sender for s in rt.sessions(sender=sender)] == [sender]
    assert len(rt.sessions()) == len(senders)


# -- titles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("a" * 1_000, "1,000 characters; at most 200"),
        ("two\nlines", "control characters"),
        ("nul\x00", "NUL"),
        ("half \ud83e", "surrogate"),
        (None, "must be text"),
        (7, "must be text"),
    ],
)
def test_a_bad_title_is_refused_and_opens_nothing(runtimes: Runtimes, title: Any, words: str) -> None:
    rt = runtimes.open()
    before = rows(runtimes, rt)
    with pytest.raises(InvalidTitle, match=f"topic's title.*{words}"):
        rt.switch_topic("crab", "alice", title, "d")
    assert rt.conversations() == []
    assert rows(runtimes, rt) == before


@pytest.mark.parametrize(
    "title", ["🦀 emoji", "a" * 200, "'quoted' \"twice\"", "100 %_", "../../etc", "日本語"]
)
def test_an_odd_title_works_through_restart_and_compaction(runtimes: Runtimes, title: str) -> None:
    rt = runtimes.open()
    cid = topic(rt, title)
    rt.send(cid, "hello")
    archive = rt.compact(cid).archive
    later = runtimes.reopen(rt)
    outcome = later.switch_topic("crab", "alice", title)
    assert outcome.resumed
    [entry] = later.memory.entries("crab", "alice", "archive")
    assert entry.name == archive
    assert history_of(later, outcome.conversation_id)[0] == ("user", entry.content)
    assert [s.topic for s in later.sessions()] == [title]


def test_space_around_a_title_does_not_make_another_topic(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = topic(rt, "work")
    for same in (" work", "work  ", "\u2003work\n"):
        assert rt.switch_topic("crab", "alice", same).conversation_id == cid
    assert [session.topic for session in rt.sessions()] == ["work"]


@pytest.mark.parametrize("description", ["\x00", "\ud800", "x" * 1_000_001, 7])
def test_a_bad_description_is_refused_and_opens_nothing(runtimes: Runtimes, description: Any) -> None:
    rt = runtimes.open()
    with pytest.raises(InvalidInput, match="description"):
        rt.switch_topic("crab", "alice", "work", description)
    assert rt.conversations() == []


# -- handles and ids -------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", ["", "\x00", "\ud800", None, 7, "x" * 201])
def test_a_bad_handle_is_an_error_of_ours(runtimes: Runtimes, handle: Any) -> None:
    rt = runtimes.open()
    for call in (rt.load, rt.transcript):
        with pytest.raises((InvalidInput, SessionNotFound)):
            call(handle)
    with contextlib.suppress(InvalidInput):
        assert rt.delete_session(handle) is False


@pytest.mark.parametrize("filters", [{"agent": "\ud800"}, {"sender": "\ud800"}, {"topic": "\ud800"}])
def test_sessions_of_a_name_that_cannot_be_are_none_or_an_error_of_ours(
    runtimes: Runtimes, filters: dict[str, str]
) -> None:
    rt = runtimes.open()
    topic(rt)
    with contextlib.suppress(InvalidInput):
        assert rt.sessions(**filters) == []


@pytest.mark.parametrize(
    ("cid", "error"),
    [
        (0, ConversationNotFound),
        (-1, ConversationNotFound),
        (99, ConversationNotFound),
        (10**30, ConversationNotFound),
        ("1", InvalidInput),
        (None, InvalidInput),
        (1.5, InvalidInput),
        ([1], InvalidInput),
    ],
)
def test_an_id_that_is_not_live_is_not_found_and_one_that_is_none_is_refused(
    runtimes: Runtimes, cid: Any, error: type[PalaverError]
) -> None:
    rt = runtimes.open()
    calls: list[Callable[[], object]] = [
        lambda: rt.send(cid, "x"),
        lambda: rt.submit(cid, "x"),
        lambda: rt.stream(cid, "x"),
        lambda: rt.steer(cid, "x"),
        lambda: rt.cancel(cid),
        lambda: rt.summarize(cid),
        lambda: rt.compact(cid),
    ]
    for call in calls:
        with pytest.raises(error, match=re.escape(repr(cid))):
            call()
    if error is ConversationNotFound:
        assert rt.close(cid) is False
        assert rt.conversation(cid) is None


def test_an_unknown_mode_of_close_is_refused(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    cid = rt.get_or_create("crab", "alice")
    with pytest.raises(InvalidInput, match=r"drain.*now.*'later'"):
        rt.close(cid, mode="later")  # type: ignore[arg-type]
    assert rt.conversations() == [cid]


# -- what models, tools and hooks say --------------------------------------------------------------


def test_model_output_is_mended_and_the_turn_goes_on(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel([Reply(ODD, reasoning=ODD), "next"], titles=[ODD], summaries=[ODD]))
    cid = topic(rt)
    assert rt.send(cid, "hello").text == MENDED
    assert rt.send(cid, "again").text == "next"
    entry = rt.transcript(handle_of(rt, cid))[1]
    assert (entry.content, entry.reasoning) == (MENDED, MENDED)
    assert rt.compact(cid).summary == MENDED
    later = runtimes.reopen(rt)
    assert history_of(later, topic(later)) == [("user", MENDED)]


def test_model_output_is_mended_in_events_too(runtimes: Runtimes) -> None:
    script = [Reply(ODD, reasoning=ODD, tool_calls=[ToolCall("id1", ODD, ODD)]), "done"]
    rt = runtimes.open(ScriptedModel(script))
    events = list(rt.stream(topic(rt), "hello"))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == MENDED + "done"
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == MENDED
    assert [event.name for event in events if isinstance(event, ToolCallsBegin)] == [MENDED]
    for event in events:
        assert "\x00" not in repr(event).replace("\\x00", "\x00")
        assert "\\ud800" not in repr(event)


def test_tool_names_arguments_and_output_are_mended(runtimes: Runtimes) -> None:
    given: list[str] = []

    def echo(text: str) -> str:
        given.append(text)
        return ODD

    calls = [ToolCall("i\x00d", "echo", '{"text": "a\\u0000b\\ud800c"}'), ToolCall("id2", ODD, "{}")]
    model = ScriptedModel([Reply(tool_calls=calls), "done"])
    rt = runtimes.open(model, tools=[echo])
    cid = topic(rt)
    assert rt.send(cid, "hello").text == "done"
    assert given == [MENDED]
    _, answer, first, second, _ = rt.transcript(handle_of(rt, cid))
    assert [call.name for call in answer.tool_calls] == ["echo", MENDED]
    assert (first.tool_call_id, first.content) == ("i\ufffdd", MENDED)
    assert second.content.startswith("error: there is no tool")


@pytest.mark.parametrize("error", [ValueError(ODD), RuntimeError(ODD)])
def test_errors_of_models_and_tools_are_mended(runtimes: Runtimes, error: Exception) -> None:
    def broken() -> None:
        raise error

    rt = runtimes.open(ScriptedModel([Reply(tool_calls=[("broken", {})]), error]), tools=[broken])
    cid = topic(rt)
    result = rt.send(cid, "hello", key="k")
    assert result.stop_reason == "error"
    assert MENDED in (result.error or "")
    assert MENDED in rt.transcript(handle_of(rt, cid))[2].content
    later = runtimes.reopen(rt)
    assert later.send(topic(later), "hello", key="k") == result


def test_a_hook_that_gives_odd_text_harms_nothing(runtimes: Runtimes) -> None:
    class Hook:
        def preprocess(self, _agent: str, _content: str) -> str:
            return ODD

        def before_run(self, *_args: object) -> list[HistoryEntry]:
            return [HistoryEntry("user", ODD)]

    rt = runtimes.open(ScriptedModel(["fine", "fine"]), hooks=[Hook()])
    cid = topic(rt)
    assert rt.send(cid, "hello").text == "fine"
    assert texts(rt.transcript(handle_of(rt, cid))) == [("user", MENDED), ("assistant", "fine")]


def test_10_mb_of_model_output_and_tool_output_end_in_a_result(runtimes: Runtimes) -> None:
    script = [
        Reply("x" * 10_000_000, tool_calls=[("read", {})], chunk_chars=None),
        "done",
    ]
    model = ScriptedModel(script)
    rt = runtimes.open(model, tools=[Tool(lambda: "y" * 10_000_000, name="read")])
    cid = topic(rt)
    events: list[Event] = list(rt.stream(cid, "hello"))
    assert isinstance(events[-1], Done)
    assert events[-1].result.text == "done"
    [output] = [event.output for event in events if isinstance(event, ToolResult)]
    assert output.startswith("y" * 200_000)
    assert len(output) < 201_000
    assert "9,800,000 characters left out" in output


def test_a_model_that_forgets_its_tools_names_gets_errors_to_read(runtimes: Runtimes) -> None:
    rt = runtimes.open(ScriptedModel([Reply(tool_calls=[ToolCall("id", "", "")]), "done"]))
    assert rt.send(topic(rt), "hello").text == "done"


# -- configuration ---------------------------------------------------------------------------------


def test_duplicate_and_reserved_tool_names_are_refused_before_the_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "agents.db"
    look = Tool(lambda: "up", name="look")
    for tools in ([look, look], [Tool(lambda: "x", name="recall")]):
        with pytest.raises(InvalidConfig, match="two tools named"):
            Runtime.open(path, ScriptedModel(), tools=tools)
    assert not path.exists()


@pytest.mark.parametrize("tool", [5, "look", None, [print]])
def test_something_that_is_no_tool_is_refused(tmp_path: Path, tool: Any) -> None:
    path = tmp_path / "agents.db"
    with pytest.raises(InvalidConfig):
        Runtime.open(path, ScriptedModel(), tools=[tool])
    assert not path.exists()


@pytest.mark.parametrize("hook", [object(), "hook", None, len])
def test_something_that_is_no_hook_is_refused(tmp_path: Path, hook: Any) -> None:
    path = tmp_path / "agents.db"
    with pytest.raises(InvalidConfig, match="on_build_agent, before_run, on_event, preprocess"):
        Runtime.open(path, ScriptedModel(), hooks=[hook])
    assert not path.exists()


@pytest.mark.parametrize("model", [None, "gpt-x", 5, object(), ScriptedModel])
def test_something_that_is_no_model_is_refused(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "agents.db"
    with pytest.raises(InvalidInput, match=r"stream|ScriptedModel\(\)"):
        Runtime.open(path, model)
    assert not path.exists()


@pytest.mark.parametrize("models", [{"m": None}, {"m": "gpt-x"}, {5: ScriptedModel()}, {"m": ScriptedModel}])
def test_a_mapping_of_something_else_than_models_is_refused(tmp_path: Path, models: Any) -> None:
    path = tmp_path / "agents.db"
    with pytest.raises(InvalidInput):
        Runtime.open(path, models)
    assert not path.exists()


@pytest.mark.parametrize("limits", [5, {"queued_total": 5}, "many"])
def test_something_that_is_no_limits_is_refused(tmp_path: Path, limits: Any) -> None:
    path = tmp_path / "agents.db"
    with pytest.raises(InvalidInput, match=r"[Ll]imits"):
        Runtime.open(path, ScriptedModel(), limits=limits)
    assert not path.exists()


@pytest.mark.parametrize("config", [None, "crab", {"name": "crab"}])
def test_an_agent_that_is_no_agent_config_is_refused(runtimes: Runtimes, config: Any) -> None:
    rt = runtimes.open(agents=())
    for call in (rt.add_agent, rt.upsert_agent, rt.add_ephemeral):
        with pytest.raises(InvalidInput, match="AgentConfig"):
            call(config)
    assert rt.agents() == []


@pytest.mark.parametrize(
    ("change", "words"), [({"tools": ("look", "listen")}, "'look', 'listen'"), ({"model": "m2"}, "'m2'")]
)
def test_an_agent_of_unknown_tools_or_model_is_refused(
    runtimes: Runtimes, change: dict[str, Any], words: str
) -> None:
    rt = runtimes.open({"m": ScriptedModel()})
    with pytest.raises(InvalidConfig, match=words):
        rt.upsert_agent(attrs.evolve(CRAB, **change))
    assert rt.agent("crab") == CRAB


def test_a_bad_agent_config_names_its_field() -> None:
    bad: dict[str, Any] = {
        "name": "",
        "model": None,
        "system_prompt": "\ud800",
        "description": 5,
        "tools": 5,
        "max_iterations": 0,
        "thinking": "yes",
        "tool_choice": "",
        "compact_threshold": 0,
        "compact_tool_max_len": -1,
        "auto_title": None,
        "memory_scope": "all",
    }
    assert list(bad) == [attribute.name for attribute in attrs.fields(AgentConfig)]
    for field, value in bad.items():
        with pytest.raises(InvalidConfig, match=field):
            AgentConfig(**{"name": "crab", field: value})


@pytest.mark.parametrize("drain", [None, "30", float("nan")])
def test_a_drain_that_is_no_time_is_refused_and_nothing_is_shut_down(runtimes: Runtimes, drain: Any) -> None:
    rt = runtimes.open()
    with pytest.raises(InvalidInput, match="drain"):
        rt.shutdown(drain=drain)
    assert rt.send(rt.get_or_create("crab", "alice"), "still here").text == "still here"


# -- database paths --------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(path: Path | str, error: type[PalaverError], words: str, folder: Path) -> None:
    """Opening `path` fails in these words, twice, and leaves `folder` as it was."""
    before = digests(folder)
    for _ in range(2):
        with gevent.Timeout(PATIENCE_S), pytest.raises(error, match=words):
            Runtime.open(path, ScriptedModel())
    assert digests(folder) == before


def test_a_path_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    refused(tmp_path / "agents", DatabaseUnusable, "is a directory", tmp_path)


def test_a_path_in_a_directory_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere" / "agents.db", DatabaseUnusable, "no directory.*nowhere", tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_a_path_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("just a file")
    refused(tmp_path / "file" / "agents.db", DatabaseUnusable, "cannot be opened", tmp_path)


@pytest.mark.parametrize(("path", "words"), [("", "empty"), ("a\x00b", "NUL")])
def test_a_path_that_cannot_be_one(tmp_path: Path, path: str, words: str) -> None:
    refused(path, DatabaseUnusable, words, tmp_path)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="there is no /proc on this system")
def test_a_read_only_path_that_not_even_root_may_write(tmp_path: Path) -> None:
    """/proc ignores who asks: a file there stays read-only, and none can be made."""
    refused("/proc/version", DatabaseUnusable, "/proc/version.*(read-only|opened|not a)", tmp_path)
    refused("/proc/agents.db", DatabaseUnusable, "/proc/agents.db.*opened", tmp_path)


def test_a_file_of_a_read_only_mount(tmp_path: Path) -> None:
    """A real read-only file system, for whoever may mount one (root, which file modes do not stop)."""
    with Runtime.open(tmp_path / "agents.db", ScriptedModel()):
        pass
    target = tmp_path / "mounted"
    target.mkdir()
    script = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"'
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import sys; from palaver import Runtime, ScriptedModel, DatabaseUnusable\n"
        "for name in ('agents.db', 'new.db'):\n"
        "    try: Runtime.open(sys.argv[1] + '/' + name, ScriptedModel())\n"
        "    except DatabaseUnusable as error: print(name, error)\n"
    )
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "agents.db").rename(source / "agents.db")
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(source), str(target)]
    try:
        ran = subprocess.run(
            [*command, sys.executable, "-c", code, str(target)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=PROCESS_S,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare on this system")
    if "unshare:" in ran.stderr or "mount:" in ran.stderr:
        pytest.skip("this user may not mount")
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["agents.db", "new.db"], ran.stderr
    assert "read-only" in lines[0] or "write" in lines[0]
    assert "write" in lines[1] or "opened" in lines[1]
    assert [path.name for path in source.iterdir()] == ["agents.db"]


@pytest.mark.parametrize(
    "content", [b"this is not a database" * 100, b"SQLite format 3\x00" + b"\xff" * 2_000]
)
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agents.db"
    path.write_bytes(content)
    refused(path, DatabaseUnusable, "agents.db.*(not an SQLite database|damaged|opened)", tmp_path)


def test_the_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "agents.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE recipes (name TEXT)")
    conn.close()
    refused(path, DatabaseUnusable, "another program", tmp_path)


def test_a_file_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "agents.db"
    with Runtime.open(path, ScriptedModel()):
        pass
    with sqlite3.connect(path) as conn:
        columns = [row[1] for row in conn.execute("PRAGMA table_info(_sqlite_migrations)")]
        values = {"migration_set": "palaver", "name": "m999_future", "applied_at": "2030-01-01"}
        used = [column for column in columns if column in values]
        conn.execute(
            f"INSERT INTO _sqlite_migrations ({', '.join(used)}) VALUES ({', '.join('?' * len(used))})",
            [values[column] for column in used],
        )
    conn.close()
    refused(path, DatabaseTooNew, "newer Palaver.*m999_future", tmp_path)


_HOLD = """
from gevent import monkey; monkey.patch_all()
import sys
from palaver import Runtime, ScriptedModel
with Runtime.open(sys.argv[1], ScriptedModel()):
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _HOLD, str(tmp_path / "agents.db")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    yield process
    process.communicate("close\n", timeout=PROCESS_S)


def test_a_file_that_another_process_holds(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    path = tmp_path / "agents.db"
    for _ in range(2):
        with pytest.raises(DatabaseInUse, match=r"agents.db.*in use by process"):
            Runtime.open(path, ScriptedModel())
    holder.communicate("close\n", timeout=PROCESS_S)
    with Runtime.open(path, ScriptedModel()) as rt:
        assert rt.sessions() == []


def test_a_file_that_another_runtime_of_this_process_holds(runtimes: Runtimes) -> None:
    rt = runtimes.open()
    with pytest.raises(DatabaseInUse, match="in use by this process"):
        Runtime.open(rt.path, ScriptedModel())
    assert rt.send(topic(rt), "unharmed").text == "unharmed"


def test_a_refused_opening_leaves_no_thread_and_the_next_one_works(tmp_path: Path) -> None:
    path = tmp_path / "agents.db"
    path.mkdir()
    for _ in range(20):
        with pytest.raises(DatabaseUnusable):
            Runtime.open(path, ScriptedModel())
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir())) if tasks.exists() else 0
    for _ in range(20):
        with pytest.raises(DatabaseUnusable):
            Runtime.open(path, ScriptedModel())
    # A thread that has ended is there for the kernel a moment longer; twenty that were left would stay.
    # The hub's pool may have grown meanwhile: it starts another where one has not yet said that it is free.
    most = before + gevent.get_hub().threadpool.maxsize
    until(lambda: not tasks.exists() or len(list(tasks.iterdir())) <= most)
    path.rmdir()
    with Runtime.open(path, ScriptedModel()) as rt:
        assert rt.sessions() == []
