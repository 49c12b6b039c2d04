"""Registered agents, each with its model and the tools it may call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from actors.config import AgentConfig
from actors.errors import AgentExists, AgentNotRegistered, InvalidConfig
from actors.models.base import Message, Model
from actors.tools import ToolRegistry


@frozen
class Agent:
    """An agent that is ready to run: its config, its model, the schemas of its tools."""

    config: AgentConfig
    model: Model
    schemas: list[dict[str, Any]]
    system: tuple[Message, ...] = field(default=())

    def may_call(self, tool: str) -> bool:
        """Whether the agent's config lets it call this tool."""
        return self.config.tools is None or tool in self.config.tools


class AgentTable:
    """The agents of one runtime, registered and ephemeral. The registry actor alone changes it."""

    def __init__(self, models: Model | Mapping[str, Model], tools: ToolRegistry) -> None:
        self._models = models
        self._tools = tools
        self._registered: dict[str, Agent] = {}
        self._ephemeral: dict[str, Agent] = {}

    def find(self, name: str) -> Agent | None:
        """The agent of this name, registered or ephemeral, or None."""
        return self._registered.get(name) or self._ephemeral.get(name)

    def get(self, name: str) -> Agent:
        """The agent of this name.

        Raises:
            AgentNotRegistered: naming it and the ones that there are.
        """
        agent = self.find(name)
        if agent is None:
            known = ", ".join(repr(n) for n in [*self._registered, *self._ephemeral][:10]) or "none"
            raise AgentNotRegistered(
                f"no agent {name!r} is registered (registered: {known}); add it with add_agent"
            )
        return agent

    def put(self, config: AgentConfig, *, replace: bool, ephemeral: bool) -> None:
        """Register an agent.

        Raises:
            AgentExists: the name is taken and `replace` is False.
            InvalidConfig: an unknown model or tool.
        """
        if not replace and self.find(config.name) is not None:
            raise AgentExists(f"an agent {config.name!r} is registered already; upsert_agent replaces it")
        self._tools.check(config.tools)
        agent = Agent(
            config,
            self._model_for(config),
            self._tools.schemas(config.tools),
            ({"role": "system", "content": config.system_prompt},) if config.system_prompt else (),
        )
        (self._ephemeral if ephemeral else self._registered)[config.name] = agent

    def remove(self, name: str, *, ephemeral: bool) -> bool:
        """Forget an agent; whether it was there."""
        return (self._ephemeral if ephemeral else self._registered).pop(name, None) is not None

    def registered(self) -> list[AgentConfig]:
        """The registered agents' configs, in the order of registration."""
        return [agent.config for agent in self._registered.values()]

    def _model_for(self, config: AgentConfig) -> Model:
        if not isinstance(self._models, Mapping):
            return self._models
        model = self._models.get(config.model)
        if model is None:
            known = ", ".join(repr(name) for name in self._models) or "none"
            raise InvalidConfig(f"agent {config.name!r} wants the model {config.model!r}; known are {known}")
        return model
