"""The JSON text between a model and a tool: arguments in, a result out."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from actors.errors import InvalidInput
from actors.text import mend_text
from persistence.errors import PalaverError

_UNSTORABLE_ESCAPE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")


class BadArguments(InvalidInput):
    """A model's arguments do not fit the tool; the message is for the model."""


class BadResult(PalaverError):
    """A tool returned something that JSON cannot hold."""


def read_arguments(text: str) -> dict[str, Any]:
    """A JSON object from a model's text; empty text is an object without members.

    What cannot be stored or sent, half of a surrogate pair or a NUL, is shown as U+FFFD.

    Raises:
        BadArguments: not JSON (NaN and Infinity are not), not an object, or nested too deeply.
    """
    text = mend_text(text)
    try:
        values = _DECODER.decode(text) if text.strip() else {}
        if _UNSTORABLE_ESCAPE.search(text):
            values = _mended(values)
    except RecursionError:
        raise BadArguments("the arguments are nested too deeply") from None
    except ValueError as error:
        raise BadArguments(f"the arguments are not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadArguments("the arguments must be a JSON object, with each argument by its name")
    return values


def result_text(result: Any) -> str:
    """What a tool returned, as text for the model: text as it is, None as "", anything else as JSON.

    Raises:
        BadResult: JSON cannot hold it (NaN, bytes, an object of a class, a circle).
    """
    if result is None:
        return ""
    if isinstance(result, str):
        return str.__str__(result)
    try:
        return _ENCODER.encode(result)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadResult(
            f"the tool ran, but returned something that JSON cannot hold ({type(result).__name__}: {error})"
        ) from error


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON; give a number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large a number")
    return number


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return mend_text(value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {mend_text(key): _mended(item) for key, item in value.items()}
    return value


# Made once: json.loads and json.dumps with options make a new one at every call.
_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
