"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_TRIM = 2**31 - 1
_LARGEST_MMAP = (2**30, 2**25)  # what glibc takes now, and what it took before


def keep_freed_memory() -> None:
    """Lets this process keep the memory it frees, for its next use.

    A network's step on a CPU allocates and frees hundreds of megabytes. By default glibc gives much of that back to
    the system at the end of each step, and the next one pays for every page again. The process' largest size hardly
    changes. Where the C library is another one, nothing happens.

    Source: mallopt(3).
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_MMAP):
            mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM)
