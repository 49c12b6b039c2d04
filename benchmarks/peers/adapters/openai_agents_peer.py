"""OpenAI Agents SDK: an agent with a model of our own, and a `SQLiteSession` for each conversation."""

from __future__ import annotations

import asyncio
from importlib import metadata
from pathlib import Path
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, SQLiteSession, Usage, set_tracing_disabled
from openai.types.responses import ResponseOutputMessage, ResponseOutputText
from serve import reply_to

SETTING = "SQLiteSession on one file, tracing off"


def version() -> str:
    return f"openai-agents {metadata.version('openai-agents')}"


class Scripted(Model):
    """Answers at once."""

    thinking_s = 0.0

    async def get_response(self, *_more: Any, **given: Any) -> ModelResponse:
        said = given["input"] if isinstance(given["input"], str) else given["input"][-1]["content"]
        if self.thinking_s:
            await asyncio.sleep(self.thinking_s)
        text = ResponseOutputText(annotations=[], text=reply_to(said), type="output_text")
        message = ResponseOutputMessage(
            id="message", content=[text], role="assistant", status="completed", type="message"
        )
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *_more: Any, **_options: Any) -> Any:
        raise NotImplementedError


class OpenAIAgents:
    """One agent, and sessions by conversation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.model = Scripted()
        self._agent = Agent(name="agent", instructions="", model=self.model)
        self._config = RunConfig(tracing_disabled=True)
        self._sessions: dict[str, SQLiteSession] = {}

    def _session(self, conversation: str) -> SQLiteSession:
        if conversation not in self._sessions:
            self._sessions[conversation] = SQLiteSession(conversation, self._path)
        return self._sessions[conversation]

    async def turn(self, conversation: str, message: str) -> None:
        session = self._session(conversation)
        await Runner.run(self._agent, message, session=session, run_config=self._config)

    async def stored(self, conversation: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for item in await self._session(conversation).get_items():
            each: Any = item
            content = each["content"]
            found.append((each["role"], content if isinstance(content, str) else content[0]["text"]))
        return found

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()


async def open_peer(path: Path) -> OpenAIAgents:
    set_tracing_disabled(True)
    return OpenAIAgents(path)
