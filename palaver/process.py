"""What the process that this runs in takes of its machine."""

from __future__ import annotations

import os
import resource
import sys

_PAGE_BYTES = resource.getpagesize()


def rss_bytes() -> int:
    """Bytes of memory that are resident now; where the system does not say so, the most that ever were."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read(100).split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, others kibibytes


def open_descriptors() -> int | None:
    """How many file descriptors are open; None where the system does not say."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder)) - 1  # the one that lists them
        except OSError:
            continue
    return None
