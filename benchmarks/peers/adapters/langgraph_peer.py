"""LangGraph: a graph of one node, its state saved by a SQLite saver once a run (`durability="exit"`)."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from serve import reply_to

SETTING = 'SqliteSaver, durability="exit"'


def version() -> str:
    return f"langgraph {metadata.version('langgraph')}"


class Scripted:
    """Answers at once."""

    thinking_s = 0.0

    def __call__(self, state: MessagesState) -> dict[str, Any]:
        if self.thinking_s:
            time.sleep(self.thinking_s)
        return {"messages": [AIMessage(reply_to(str(state["messages"][-1].content)))]}


class LangGraph:
    """A compiled graph and its saver."""

    def __init__(self, saver: SqliteSaver) -> None:
        self.model = Scripted()
        self._saver = saver
        graph = StateGraph(MessagesState)
        graph.add_node("model", self.model)
        graph.add_edge(START, "model")
        graph.add_edge("model", END)
        self._graph = graph.compile(checkpointer=saver)

    async def turn(self, conversation: str, message: str) -> None:
        config: Any = {"configurable": {"thread_id": conversation}}
        given: Any = {"messages": [("user", message)]}
        run = partial(self._graph.invoke, given, config, durability="exit")
        # A model that takes no time needs no thread: without one it is faster.
        await asyncio.to_thread(run) if self.model.thinking_s else run()

    async def stored(self, conversation: str) -> list[tuple[str, str]]:
        state = self._graph.get_state({"configurable": {"thread_id": conversation}})
        roles = {"human": "user", "ai": "assistant"}
        return [(roles[each.type], each.content) for each in state.values["messages"]]

    async def close(self) -> None:
        self._saver.conn.close()


async def open_peer(path: Path) -> LangGraph:
    saver = SqliteSaver(sqlite3.connect(path, check_same_thread=False))
    saver.setup()
    return LangGraph(saver)
