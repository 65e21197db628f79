"""How this process computes on hosts whose CPU is the accelerator. Without one of these calls results are the same, and slower."""

import ctypes
import os
import sys

# Parameters of glibc's mallopt(3), from malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
LARGEST = 2**31 - 1
WIDE_VECTORS = "--xla_cpu_prefer_vector_width="


def prepare() -> None:
    """Both settings below. Call it before JAX starts."""
    keep_freed()
    widen_vectors()


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


def widen_vectors() -> None:
    """Let XLA use vectors of 512 bits, where it takes 256 by itself; a width that XLA_FLAGS already names stays.

    One PPO-Lagrangian iteration of the quickstart's size took 1.03 s without and 0.91 to 0.95 s with them.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if WIDE_VECTORS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {WIDE_VECTORS}512".strip()
