"""Google ADK: an agent with a model of our own, and sessions in SQLite."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator
from importlib import metadata
from pathlib import Path
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import DatabaseSessionService
from google.genai.types import Content, Part
from serve import reply_to

SETTING = "DatabaseSessionService on SQLite in WAL mode"
APP, USER = "app", "user"


def version() -> str:
    return f"google-adk {metadata.version('google-adk')}"


class Scripted(BaseLlm):
    """Answers at once."""

    thinking_s: float = 0.0

    async def generate_content_async(
        self, llm_request: Any, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        said = llm_request.contents[-1].parts[0].text
        if self.thinking_s:
            await asyncio.sleep(self.thinking_s)
        yield LlmResponse(content=Content(role="model", parts=[Part(text=reply_to(said))]))


class GoogleAdk:
    """A runner on one agent."""

    def __init__(self, path: Path) -> None:
        self.model = Scripted(model="scripted")
        url = f"sqlite+aiosqlite:///{path}"
        self._sessions = DatabaseSessionService(url, connect_args={"timeout": 60})
        agent = LlmAgent(name="agent", model=self.model, instruction="")
        self._runner = Runner(app_name=APP, agent=agent, session_service=self._sessions)
        self._made: dict[str, asyncio.Task[Any]] = {}

    async def turn(self, conversation: str, message: str) -> None:
        if conversation not in self._made:
            made = self._sessions.create_session(app_name=APP, user_id=USER, session_id=conversation)
            self._made[conversation] = asyncio.ensure_future(made)
        await self._made[conversation]
        content = Content(role="user", parts=[Part(text=message)])
        async for _event in self._runner.run_async(
            user_id=USER, session_id=conversation, new_message=content
        ):
            pass

    async def stored(self, conversation: str) -> list[tuple[str, str]]:
        session = await self._sessions.get_session(app_name=APP, user_id=USER, session_id=conversation)
        assert session is not None
        roles = {"user": "user", "model": "assistant"}
        return [
            (roles[event.content.role], event.content.parts[0].text)
            for event in session.events
            if event.content and event.content.parts
        ]

    async def close(self) -> None:
        await self._runner.close()


async def open_peer(path: Path) -> GoogleAdk:
    logging.disable(logging.CRITICAL)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
    return GoogleAdk(path)
