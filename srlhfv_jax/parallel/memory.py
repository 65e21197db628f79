"""How this process gets memory from the operating system, on hosts that compute on their CPU."""

import ctypes
import sys

# Parameters of glibc's mallopt(3), from malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
LARGEST = 2**31 - 1


def keep_freed() -> None:
    """Keep freed memory for the next allocation. Call it before JAX starts its threads; does nothing where there is no glibc.

    XLA on CPU allocates its temporaries anew for every call. glibc hands blocks of that size back at once, and each step pays for
    the page faults again: a gradient of the quickstart's size took 345 ms with them and 274 ms without.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(ARENA_MAX, 1)  # the heaps of other arenas are too small for such blocks and fall back to mmap
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, LARGEST)
