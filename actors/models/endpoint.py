"""Where a model is reached, and within which bounds: validated once, secrets kept out of sight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from attrs import Attribute, field, frozen

from actors.errors import InvalidConfig

_OWN_FIELDS = ("messages", "stream")
_SECRET_WORDS = ("auth", "key", "token", "secret", "cookie", "password")
_SECRET_PART_CHARS = 8


def _url(_self: Any, _attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise InvalidConfig(f"base_url must be text, not {type(value).__name__}")
    try:
        parts = urlsplit(value)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise InvalidConfig(f"base_url is no URL: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise InvalidConfig("base_url holds a user or password; give them as api_key or headers")
    if not fits or not value.isprintable() or " " in value:
        raise InvalidConfig(f"base_url must look like https://host/v1, not {value!r}")
    if parts.query or parts.fragment:
        raise InvalidConfig(f"base_url must not have a query or fragment: {value!r}")


def _key(_self: Any, _attribute: Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise InvalidConfig("api_key must be printable ASCII without spaces (it is not shown here)")
    if not value:
        raise InvalidConfig("api_key is empty; give None where the endpoint wants none")


def _header_map(value: Mapping[str, str] | None) -> dict[str, str]:
    headers = dict(value or {})
    for name, text in headers.items():
        for part in (name, text):
            if not (isinstance(part, str) and part.isascii() and part.isprintable()):
                raise InvalidConfig(
                    f"headers must map text to text, in printable ASCII; {name!r} does not fit"
                )
    return headers


def _json_map(value: Mapping[str, Any] | None) -> dict[str, Any]:
    extra = dict(value or {})
    for name in _OWN_FIELDS:
        if name in extra:
            raise InvalidConfig(f"extra cannot hold {name!r}: that is Palaver's own")
    try:
        json.dumps(extra)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"extra must be a mapping that JSON can hold: {error}") from error
    return extra


def _seconds(_self: Any, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InvalidConfig(f"{attribute.name} must be a number of seconds above 0, not {value!r}")


def _count(_self: Any, attribute: Attribute[Any], value: object) -> None:
    least = 0 if attribute.name == "retries" else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidConfig(f"{attribute.name} must be a whole number, {least} or more, not {value!r}")


@frozen
class Endpoint:
    """An OpenAI-compatible endpoint. The fields are those of `OpenAIModel`.

    Raises:
        InvalidConfig: naming the field.
    """

    base_url: str = field(validator=_url)
    api_key: str | None = field(default=None, validator=_key, repr=False)
    max_concurrent: int = field(default=64, validator=_count)
    connect_timeout_s: float = field(default=10, validator=_seconds)
    idle_timeout_s: float = field(default=60, validator=_seconds)
    total_timeout_s: float = field(default=600, validator=_seconds)
    retries: int = field(default=3, validator=_count)
    headers: dict[str, str] = field(default=None, converter=_header_map, repr=False)
    extra: dict[str, Any] = field(default=None, converter=_json_map, repr=False)

    @property
    def url(self) -> str:
        """Where chat completions are asked for."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def authorize(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key, if there is one.

        requests is always given this: without it, it would take credentials from a netrc file.
        """
        if self.api_key is not None:
            prepared.headers["Authorization"] = f"Bearer {self.api_key}"
        return prepared

    def without_secrets(self, text: str) -> str:
        """`text` without the key and the values of headers whose names speak of keys or authorization."""
        secrets = [self.api_key or ""]
        for name, value in self.headers.items():
            if any(word in name.lower() for word in _SECRET_WORDS):
                secrets += [value, *(part for part in value.split() if len(part) >= _SECRET_PART_CHARS)]
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, "[secret]")
        return text
