"""Memory that is freed goes back to the system at once, so that a process holds what it uses.

The C library (glibc) raises the size from which a block gets pages of its own with every such block that is freed (up
to 32 MiB); smaller ones stay in its heap, between others that are in use. A fixed threshold keeps every larger block
apart: its pages are taken and cleared anew each time, which costs little beside a matrix product of that size.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
THRESHOLD_BYTES = 2**18


def return_freed_memory() -> bool:
    """For the rest of this process; False where the C library has no such setting (anything but glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return all(set_option(option, THRESHOLD_BYTES) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
