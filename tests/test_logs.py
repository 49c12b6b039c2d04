"""The log: stable fields in the text and on the record, and as JSON lines."""

from __future__ import annotations

import ast
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, PuppetModel, Runtimes, opened_runtimes, topic
from turns_support import runtime

from actors.logs import log
from actors.state import ConversationState
from palaver import DeadLettered, Reply, ScriptedModel
from palaver.logs import JsonFormatter, set_up
from persistence.errors import StorageError

__all__ = ["opened_runtimes"]

STATE = ConversationState(7, "crab", "alice", None, 0.0)
FIRST = ["time", "level", "logger", "message"]


@pytest.fixture(name="lines")
def json_lines() -> Iterator[Any]:
    """What the loggers `palaver.*` said so far, each line read as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("palaver")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


logger = logging.getLogger("palaver.test")


# -- the text --------------------------------------------------------------------------------------------


def test_a_line_is_words_and_then_fields_in_a_fixed_order(caplog: pytest.LogCaptureFixture) -> None:
    log(logger, logging.WARNING, "a turn was slow", STATE, turn=3, seconds=4.5, tool=None)
    (record,) = caplog.records
    assert record.getMessage() == "a turn was slow: agent=crab sender=alice conversation=7 seconds=4.5 turn=3"
    assert (record.agent, record.turn, record.seconds) == ("crab", 3, 4.5)  # type: ignore[attr-defined]
    assert not hasattr(record, "tool")


def test_a_line_says_where_it_was_written(caplog: pytest.LogCaptureFixture) -> None:
    log(logger, logging.WARNING, "here")
    (record,) = caplog.records
    assert (record.filename, record.funcName) == ("test_logs.py", "test_a_line_says_where_it_was_written")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("naïve-ключ", "naïve-ключ"),
        ("two words", '"two words"'),
        ("", '""'),
        ("line\nERROR palaver: forged", r'"line\nERROR palaver: forged"'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("\x1b[31m", '"\\u001b[31m"'),
        (1.5, "1.5"),
    ],
)
def test_nobodys_text_makes_lines_or_fields_of_its_own(
    value: object, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    log(logger, logging.WARNING, "words", value=value)
    assert caplog.records[0].getMessage() == f"words: value={shown}"


def test_what_is_not_logged_is_not_looked_at() -> None:
    class Unreadable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError("looked at")

    quiet = logging.getLogger("palaver.test.quiet")
    quiet.setLevel(logging.ERROR)
    log(quiet, logging.INFO, "words", Unreadable())  # type: ignore[arg-type]  # has none of the fields


# -- JSON ------------------------------------------------------------------------------------------------


def test_a_line_of_json_has_the_stable_names_first(lines: Any) -> None:
    log(logger, logging.WARNING, "a turn was slow", STATE, turn=3, seconds=4.5)
    (line,) = lines()
    assert [*line] == [*FIRST, "agent", "sender", "conversation", "turn", "seconds"]
    assert line["message"] == "a turn was slow"
    assert (line["level"], line["logger"]) == ("WARNING", "palaver.test")
    assert (line["agent"], line["sender"], line["conversation"], line["turn"]) == ("crab", "alice", 7, 3)


def test_time_is_utc_to_the_millisecond() -> None:
    record = logging.makeLogRecord({"msg": "x", "created": 1_700_000_000.1239})
    assert json.loads(JsonFormatter().format(record))["time"] == "2023-11-14T22:13:20.123+00:00"


def test_an_error_is_one_field_of_one_line(lines: Any) -> None:
    def fails() -> None:
        raise StorageError("no\nroom")

    with pytest.raises(StorageError) as raised:
        fails()
    log(logger, logging.ERROR, "it failed", STATE, error=raised.value)
    (line,) = lines()
    assert line["error"].startswith("Traceback (most recent call last):")
    assert line["error"].endswith("persistence.errors.StorageError: no\nroom")


def test_lines_of_other_libraries_are_whole(lines: Any) -> None:
    logging.getLogger("palaver.other").warning(
        "%s of %d", "one", 2, extra={"request": "r-1"}, stack_info=True
    )
    (line,) = lines()
    assert (line["message"], line["request"]) == ("one of 2", "r-1")
    assert line["error"].startswith("Stack")


class Unshowable:
    def __str__(self) -> str:
        raise ValueError


def test_whatever_a_field_holds_the_line_can_be_written_and_read(lines: Any) -> None:
    log(
        logger,
        logging.ERROR,
        "odd \ud800",
        half="\ud800",
        path=Path("/x"),
        of={1: 2},
        time="mine",
    )
    around: list[object] = []
    around.append(around)
    extra = {"bad": Unshowable(), "around": around, "keys": {(1, 2): 3}, "nan": float("inf")}
    logger.error("x", extra=extra)
    odd, bad = lines()
    assert bad["nan"] == "inf"
    assert (bad["around"], bad["keys"]) == ("[[...]]", "{(1, 2): 3}")
    assert (odd["path"], odd["half"], odd["of"]) == ("/x", "\ud800", {"1": 2})
    assert odd["time"] != "mine"
    assert bad["bad"] == "<Unshowable that cannot be shown>"


def test_every_line_can_be_encoded() -> None:
    record = logging.makeLogRecord({"msg": "half \ud800 of it"})
    assert json.loads(JsonFormatter().format(record).encode())["message"] == "half \ud800 of it"


def test_set_up_writes_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", root)
    stream = io.StringIO()
    set_up(logging.INFO, "json", stream)
    root.info("hello")
    root.debug("not this")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["hello"]


def test_the_command_logs_json_when_it_is_asked_to(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "palaver", "-v", "--log-format", "json", "chat", "--db"]
    said = subprocess.run(
        [*command, str(tmp_path / "a.db")],
        input="/topic work: about work\nhello\n/compact\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in said.stderr.splitlines()]
    (compacted,) = [line for line in lines if line["message"] == "compacted"]
    assert (compacted["agent"], compacted["sender"], compacted["archive"]) == ("assistant", "me", "work-1")


# -- what a runtime says ---------------------------------------------------------------------------------


def test_a_failing_tool_says_whose_it_is(lines: Any, tmp_path: Path) -> None:
    def breaks() -> str:
        raise RuntimeError("broken")

    script = ScriptedModel([Reply(tool_calls=[("breaks", {})]), "done"])
    with runtime(tmp_path / "a.db", script, tools=[breaks]) as rt:
        cid = topic(rt)
        result = rt.send(cid, "hello")
    (line,) = [line for line in lines() if line["logger"] == "palaver.tools"]
    assert line["message"] == "a tool failed"
    assert (line["agent"], line["sender"], line["conversation"]) == ("crab", "alice", cid)
    assert (line["turn"], line["tool"]) == (result.turn_id, "breaks")
    assert "RuntimeError: broken" in line["error"]


def test_a_failing_hook_says_whose_it_is(lines: Any, tmp_path: Path) -> None:
    class Breaks:
        def before_run(self, *_: object) -> None:
            raise RuntimeError("broken")

        def preprocess(self, *_: object) -> None:
            raise RuntimeError("broken")

    with runtime(tmp_path / "a.db", hooks=[Breaks()]) as rt:
        cid = topic(rt)
        rt.send(cid, "hello")
    said = [line for line in lines() if line["logger"] == "palaver.hooks"]
    assert [(line["hook"], line["agent"], line.get("conversation")) for line in said] == [
        ("preprocess", "crab", None),
        ("before_run", "crab", cid),
    ]


def test_an_incidents_line_has_its_fields(lines: Any, runtimes: Runtimes) -> None:
    rt = runtimes.open(PuppetModel())
    rt._services.incidents.report(DeadLettered(5, "it died of x=1"), STATE)  # noqa: SLF001
    (line,) = [line for line in lines() if line["logger"] == "palaver.incidents"]
    assert line["message"] == "a message was given up"
    assert (line["turn"], line["reason"], line["agent"]) == (5, "it died of x=1", "crab")


def log_calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            on = node.func.value
            if isinstance(on, ast.Name) and on.id in ("logger", "logging") and node.func.attr in LEVELS:
                yield node


LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
# pykka's own lines, in pykka's words; what they are about is an actor.
OF_PYKKA = {"actors/greenlet.py"}


def test_the_library_logs_through_one_function_so_that_fields_are_stable() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for package in ("actors", "palaver")
        for path in (ROOT / package).rglob("*.py")
        for call in log_calls(path)
        if str(path.relative_to(ROOT)) not in OF_PYKKA
    }
    assert found == set()
