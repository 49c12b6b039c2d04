"""Objects by import path, `module:object`."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from typing import Any

from actors.errors import InvalidConfig

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_path(text: str) -> bool:
    """Whether `text` looks like `package.module:object`."""
    return _PATH.fullmatch(text) is not None


def load(path: str) -> Any:
    """The object that an import path names. Imports its module, and so runs what that does when imported.

    Raises:
        InvalidConfig: there is no such module or object, or the module raised something.
    """
    if not is_import_path(path):
        raise InvalidConfig(f'an import path looks like "package.module:object", not {path!r}')
    module, _, names = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
        raise InvalidConfig(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return reduce(getattr, names.split("."), found)
    except AttributeError as error:
        raise InvalidConfig(f"{module} has no {names}: {error}") from error
