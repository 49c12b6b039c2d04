"""Names for files, from names that users gave: safe everywhere, readable where that can be."""

from __future__ import annotations

import re
import unicodedata
from base64 import b32encode
from hashlib import sha256

MOST_CHARS = 48
MOST_BYTES = 120
HASH_CHARS = 13  # 64 bits

_PLAIN = re.compile(rf"[a-z0-9](?:[a-z0-9._-]{{0,{MOST_CHARS - 2}}}[a-z0-9])?")
_RESERVED = re.compile(r"(con|prn|aux|nul|clock|com[0-9]|lpt[0-9])(\..*)?")  # of Windows, with any suffix


def file_name(name: str, *, identity: str = "") -> str:
    """A file name, without suffix, for `name`: another one for every other name.

    A plain name (lower-case ASCII letters and digits, ".", "_" and "-" within) is its own file name. Any
    other is its letters and digits and, after a "~", a hash of the name: file systems that ignore case or
    normalize Unicode, that have words of their own, or that cut long names do no harm. No file name begins
    with "_" or ".".

    Args:
        identity: where the file name turned out to be taken (short hashes can be made equal on purpose), all
            that tells this name from others: the file name gets the whole hash of that.
    """
    if identity:
        return f"{_readable(name)}~{_hash(identity)}"
    if _PLAIN.fullmatch(name) and not _RESERVED.fullmatch(name):
        return name
    return f"{_readable(name)}~{_hash(name)[:HASH_CHARS]}"


def _hash(text: str) -> str:
    return b32encode(sha256(text.encode()).digest()).decode().lower().rstrip("=")


def _readable(name: str) -> str:
    folded = unicodedata.normalize("NFC", name[: 4 * MOST_CHARS].casefold())
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split()
    text = "-".join(words)[:MOST_CHARS]
    while len(text.encode()) > MOST_BYTES:
        text = text[:-1]
    return text.strip("-")
