"""AutoGen AgentChat: an agent for each conversation, whose state is saved by hand, a row and a commit a turn.

AutoGen has no store of its own: an agent's state is a value that the program keeps. Here it is written to
SQLite after each turn, and never read back.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import TextMessage
from autogen_core.models import ChatCompletionClient, CreateResult, ModelFamily, ModelInfo, RequestUsage
from serve import reply_to

SETTING = "save_state by hand into SQLite, a row and a commit a turn"


def version() -> str:
    return f"autogen-agentchat {metadata.version('autogen-agentchat')}"


class Scripted(ChatCompletionClient):
    """Answers at once."""

    thinking_s = 0.0

    async def create(self, messages: Sequence[Any], **_options: Any) -> CreateResult:
        said = str(messages[-1].content)
        if self.thinking_s:
            await asyncio.sleep(self.thinking_s)
        usage = RequestUsage(prompt_tokens=0, completion_tokens=0)
        return CreateResult(finish_reason="stop", content=reply_to(said), usage=usage, cached=False)

    def create_stream(self, messages: Sequence[Any], **_options: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        pass

    def actual_usage(self) -> RequestUsage:
        return RequestUsage(prompt_tokens=0, completion_tokens=0)

    total_usage = actual_usage

    def count_tokens(self, messages: Sequence[Any], **_options: Any) -> int:
        return 0

    remaining_tokens = count_tokens

    @property
    def capabilities(self) -> Any:
        return self.model_info

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo(
            vision=False,
            function_calling=False,
            json_output=False,
            family=ModelFamily.UNKNOWN,
            structured_output=False,
        )


class AutoGen:
    """An agent for each conversation, and one file."""

    def __init__(self, path: Path) -> None:
        self.model = Scripted()
        self._agents: dict[str, AssistantAgent] = {}
        self._db = sqlite3.connect(path)
        self._db.execute("PRAGMA journal_mode=WAL").fetchall()
        self._db.execute("CREATE TABLE states (conversation TEXT PRIMARY KEY, state TEXT)")

    async def turn(self, conversation: str, message: str) -> None:
        agent = self._agents.get(conversation)
        if agent is None:
            agent = self._agents[conversation] = AssistantAgent("agent", self.model, system_message=None)
        await agent.on_messages([TextMessage(content=message, source="user")], cancellation_token())
        state: Mapping[str, Any] = await agent.save_state()
        self._db.execute("REPLACE INTO states VALUES (?, ?)", (conversation, json.dumps(state)))
        self._db.commit()

    async def stored(self, conversation: str) -> list[tuple[str, str]]:
        sql = "SELECT state FROM states WHERE conversation = ?"
        ((state,),) = self._db.execute(sql, (conversation,)).fetchall()
        roles = {"UserMessage": "user", "AssistantMessage": "assistant"}
        return [
            (roles[each["type"]], each["content"]) for each in json.loads(state)["llm_context"]["messages"]
        ]

    async def close(self) -> None:
        self._db.close()


def cancellation_token() -> Any:
    from autogen_core import CancellationToken

    return CancellationToken()


async def open_peer(path: Path) -> AutoGen:
    return AutoGen(path)
