"""The models of a configuration: `[models.NAME]`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from actors.errors import InvalidConfig
from actors.models.base import Chunk, Model, ModelRequest
from actors.models.endpoint import Endpoint
from actors.models.openai import OpenAIModel
from actors.models.scripted import Reply, ScriptedModel
from actors.models.unlisted import for_model
from palaver.host.importing import is_import_path, load
from palaver.toml.fields import SECONDS, TEXT, Field
from palaver.toml.lines import Path
from palaver.toml.reading import Reader

KINDS = ("openai", "echo", "scripted")
_ENV = 'put it into an environment variable and name that: api_key_env = "NAME"'
_HINTS = {"api_key": f"a key is never written into the file; {_ENV}"}
_SECRET_WORDS = ("auth", "key", "token", "secret", "cookie", "password")
_TABLE = Field((dict,), "a table")
_OPENAI = (
    "max_concurrent",
    "connect_timeout_s",
    "idle_timeout_s",
    "total_timeout_s",
    "retries",
    "extra",
)


class Renamed:
    """A model that its endpoint knows by another name than the configuration."""

    def __init__(self, model: Model, name: str) -> None:
        self._model = model
        self._name = name

    def stream(self, request: ModelRequest) -> Iterator[Chunk]:
        """What the model answers, asked by its own name."""
        return self._model.stream(for_model(request, self._name))

    def close(self) -> None:
        """Close the model, if it can be."""
        getattr(self._model, "close", lambda: None)()


def read_models(reader: Reader, environ: Mapping[str, str]) -> dict[str, Model]:
    """The models by name; whatever is wrong with one is noted in `reader`."""
    models: dict[str, Model] = {}
    if not reader.table(("models",)) and not reader.data.get("models"):
        reader.problem(("models",), 'is missing: at least one model, as in [models.echo] with kind = "echo"')
    for name in reader.tables(("models",)):
        model = _model(reader, ("models", name), environ)
        if model is not None:
            models[name] = model
    return models


def _model(reader: Reader, path: Path, environ: Mapping[str, str]) -> Model | None:
    allowed = f'one of {", ".join(KINDS)}, or an import path as in "my_models:Mine"'
    kind = reader.value((*path, "kind"), Field((str,), allowed), required=True)
    if kind is None:
        return None
    makers = {"openai": _openai, "echo": _echo, "scripted": _scripted}
    if kind not in makers and not is_import_path(kind):
        reader.problem((*path, "kind"), f"must be {allowed}, not {kind!r}")
        return None
    try:
        return makers.get(kind, _imported)(reader, path, environ)
    except InvalidConfig as error:
        reader.problem((*path, "kind"), error)
        return None


def _openai(reader: Reader, path: Path, environ: Mapping[str, str]) -> Model | None:
    reader.known(
        path, ("kind", "base_url", "model", "api_key_env", "headers", "headers_env", *_OPENAI), _HINTS
    )
    before = len(reader.problems)
    base_url = reader.value((*path, "base_url"), TEXT, required=True)
    name = reader.value((*path, "model"), TEXT)
    key = _from_environment(reader, (*path, "api_key_env"), environ)
    _try(reader, (*path, "api_key_env"), lambda: Endpoint("http://host/v1", key))
    headers = {**_headers(reader, path), **_headers_from_environment(reader, path, environ)}
    options = {name: value for name, value in reader.table(path).items() if name in _OPENAI}
    for option, value in options.items():
        _try(reader, (*path, option), lambda: Endpoint("http://host/v1", **{option: value}))  # noqa: B023
    if base_url is not None:
        _try(reader, (*path, "base_url"), lambda: Endpoint(base_url))
    if len(reader.problems) > before:
        return None
    model = OpenAIModel(base_url, key, headers=headers, **options)
    return model if name is None else Renamed(model, name)


def _try(reader: Reader, path: Path, make: Callable[[], object]) -> None:
    """Note at `path` what `make` finds wrong: so that each key is blamed for its own value."""
    try:
        make()
    except InvalidConfig as error:
        words = str(error)
        reader.problem(path, words.removeprefix(f"{path[-1]} "))


def _from_environment(reader: Reader, path: Path, environ: Mapping[str, str]) -> str | None:
    name = reader.value(path, Field((str,), "the name of an environment variable"))
    if name is None:
        return None
    if not environ.get(name):
        reader.problem(path, f"the environment has no variable {name!r}, or it is empty")
        return None
    return environ[name]


def _headers(reader: Reader, path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in reader.value((*path, "headers"), _TABLE, {}):
        if any(word in name.lower() for word in _SECRET_WORDS):
            words = f"a secret is never written into the file; name its variable in headers_env.{name}"
            reader.problem((*path, "headers", name), words)
        elif (value := reader.value((*path, "headers", name), TEXT)) is not None:
            _try(reader, (*path, "headers", name), lambda: Endpoint("http://h/v1", headers={name: value}))  # noqa: B023
            found[name] = value
    return found


def _headers_from_environment(reader: Reader, path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    names = reader.value((*path, "headers_env"), _TABLE, {})
    read = {name: _from_environment(reader, (*path, "headers_env", name), environ) for name in names}
    return {name: value for name, value in read.items() if value is not None}


def _echo(reader: Reader, path: Path, _environ: Mapping[str, str]) -> Model:
    reader.known(path, ("kind", "delay_s"))
    delay_s = _delay(reader, path)
    if not delay_s:
        return ScriptedModel(keep_requests=0)

    def echo(request: ModelRequest) -> Reply:
        said = [message for message in request.messages if message["role"] == "user"]
        return Reply(str(said[-1]["content"]) if said else "", delay_s=delay_s)

    return ScriptedModel(echo, keep_requests=0)


def _scripted(reader: Reader, path: Path, _environ: Mapping[str, str]) -> Model:
    reader.known(path, ("kind", "replies", "delay_s"))
    replies = [reply for _, reply in reader.texts((*path, "replies"))]
    if not replies:
        reader.problem((*path, "replies"), "must be a list of one text or more, said one after the other")
    return _repeating(replies or [""], _delay(reader, path))


def _repeating(replies: Iterable[str], delay_s: float) -> Model:
    forever = itertools.cycle(replies)
    return ScriptedModel(lambda _request: Reply(next(forever), delay_s=delay_s), keep_requests=0)


def _delay(reader: Reader, path: Path) -> float:
    delay = reader.value((*path, "delay_s"), SECONDS, 0.0)
    if not 0 <= delay < float("inf"):
        reader.problem((*path, "delay_s"), f"must be seconds, 0 or more, not {delay}")
        return 0.0
    return float(delay)


def _imported(reader: Reader, path: Path, _environ: Mapping[str, str]) -> Model | None:
    """An object of the user's: a model as it is, or what makes one, called with `options`."""
    reader.known(path, ("kind", "options"))
    options = reader.value((*path, "options"), _TABLE, {})
    found: Any = load(reader.table(path)["kind"])
    if isinstance(found, type) or not callable(getattr(found, "stream", None)):
        if not callable(found):
            raise InvalidConfig("is neither a model, with a method stream(request), nor makes one")
        try:
            found = found(**options)
        except Exception as error:
            raise InvalidConfig(f"could not be made: {type(error).__name__}: {error}") from error
    elif options:
        reader.problem((*path, "options"), "are for a class or function; this is a model already")
    if not callable(getattr(found, "stream", None)):
        raise InvalidConfig("made something that has no method stream(request), so it is no model")
    return found  # type: ignore[no-any-return]  # checked to have what a model has
