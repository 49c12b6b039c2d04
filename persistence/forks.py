"""Whether this is still the process that made something, told without a system call.

`os.getpid()` asks the kernel each time, and every call of a runtime and every job of a database has to know.
"""

from __future__ import annotations

import os

process: object = object()
"""Another one in each process: `made_in is forks.process` where nobody has forked since."""


def _forked() -> None:
    global process  # there is one process
    process = object()


os.register_at_fork(after_in_child=_forked)
