"""The model and the tool of a host under test: what they say follows from what they are asked alone."""

from __future__ import annotations

import json
import os
import re
import signal
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import gevent
from attrs import evolve

from actors.models.base import Chunk, ModelRequest
from actors.models.scripted import Reply, ScriptedModel
from actors.tools import Tool
from persistence.records import HistoryEntry, ToolCall

INJECTED = "shown to the model, never stored"
ANY_LIFE = "k"  # messages of this prefix take their time in every life

POISON = 9  # so many steps with tools end the process

_MESSAGE = re.compile(r"(\w+)\.\d+ t(\d) d(\d+)")
_SUMMARY = re.compile(r"summary of (\d+): ([0-9a-f]{8})")


def message(op: str, *, tools: int = 0, delay: int = 0) -> str:
    """A message that makes the model call tools in `tools` steps before it answers, each after `delay` tenths
    of a millisecond, and the tools take half of that; in a later life of the host than that of `op`, nothing
    takes time."""
    return f"{op} t{tools} d{delay}"


def summary(said: Iterable[tuple[str, str]]) -> str:
    """A summary of (role, content) pairs, by which what it stands for can be told; it may begin with one."""
    count, sum_ = 0, 0
    for role, content in said:
        found = _SUMMARY.fullmatch(content) if count == 0 else None
        if found is not None:
            count, sum_ = int(found[1]), int(found[2], 16)
        else:
            count, sum_ = count + 1, zlib.crc32(f"{role} {content}".encode(), sum_)
    return f"summary of {count}: {sum_:08x}"


class Mind:
    """A model whose every answer is a function of the request, but for the time that it takes."""

    def __init__(self, life: str) -> None:
        self._life = life
        self._turns = ScriptedModel(self._answer, keep_requests=0)
        self._summaries = ScriptedModel(self._summarize, keep_requests=0)

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        if request.purpose == "compact":
            return self._summaries.stream(evolve(request, purpose="turn"))
        return self._turns.stream(request)

    def _answer(self, request: ModelRequest) -> Reply:
        said = [each for each in request.messages if each["content"] != INJECTED]
        at = max(place for place, each in enumerate(said) if each["role"] == "user")
        content = said[at]["content"]
        found = _MESSAGE.match(content)
        if found is None:
            return Reply(f"re {content}")
        op, (life, tools, delay) = content.split()[0], found.groups()
        delay_s = int(delay) / 10_000 if life in (self._life, ANY_LIFE) else 0.0
        step = sum(1 for each in said[at:] if each.get("tool_calls"))
        if int(tools) == POISON:
            return Reply("", tool_calls=[("die", {})])
        if step >= int(tools):
            return Reply(f"re {content}", delay_s=delay_s)
        calls = []
        for number in range(1 + step % 2):
            what = f"{op}/{step}/{number}"
            calls.append(ToolCall(what, "note", json.dumps({"what": what, "seconds": delay_s / 2})))
        return Reply("", tool_calls=calls, delay_s=delay_s)

    @staticmethod
    def _summarize(request: ModelRequest) -> Reply:
        talk = [each for each in request.messages if each["role"] != "system"][:-1]
        return Reply(summary((each["role"], each["content"] or "") for each in talk), delay_s=0.0005)


def noting_tool(life: str, path: str) -> Tool:
    """A tool with an effect outside of the database: a line "life what" at the end of a file."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(what: str, seconds: float) -> str:
        os.write(file, f"{life} {what}\n".encode())
        gevent.sleep(seconds)
        return f"did {what}"

    return Tool(note)


def die() -> None:
    """A tool that takes its process down."""
    os.kill(os.getpid(), signal.SIGKILL)


class Injecting:
    """A hook that shows the model what must never be stored."""

    def before_run(self, _agent: str, _cid: int, _history: tuple[HistoryEntry, ...]) -> list[HistoryEntry]:
        return [HistoryEntry("user", INJECTED)]


def as_said(entries: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Stored entries as `summary` takes them."""
    return ((entry.role, entry.content) for entry in entries)
