"""A runtime for the time of a block: drained when all went well, stopped at once when not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from palaver.runtime import Runtime


@contextmanager
def running(rt: Runtime) -> Iterator[Runtime]:
    """Shut `rt` down when the block ends. If it ends by an exception (Ctrl-C is one), running turns are
    cancelled instead of waited for; the file is closed properly all the same.
    """
    try:
        yield rt
    except BaseException:
        rt.shutdown(drain=0)
        raise
    rt.shutdown()
