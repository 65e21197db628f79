"""Settings of a process that computes on the host's CPU.

Without one of these calls results are the same up to rounding, and take longer or more memory; on fake devices a run can hang.
"""

import ctypes
import glob
import mmap
import os
import re
import sys

# Parameters of glibc's mallopt(3), from malloc.h, and of madvise(2).
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
NEVER = -1  # of TRIM_THRESHOLD
HUGE_PAGE = 1 << 21

COMPILED = "/jax/core/compile/backend_compile_duration"  # what JAX calls the event
LARGE = 0.5  # seconds of compiling that leave much freed memory behind

# Vectors of 512 bits, where XLA takes 256 by itself. One PPO-Lagrangian iteration of the quickstart's size took 1.03 s without and
# 0.91 to 0.95 s with them; on a machine that has none of this width there was no difference.
WIDE_VECTORS = "--xla_cpu_prefer_vector_width=512"
# Without it XLA drops barriers early on CPU, and merges what `jax.checkpoint` computes again with what was computed before:
# nothing is saved (tests/test_parallel_cpu.py). XLA for GPUs has a pass of that name too, and no program with a barrier compiles
# there without it.
KEEP_BARRIERS = "--xla_disable_hlo_passes=cse_barrier_expander"


FAKE_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
THREADS_OF_A_DEVICE = 4

DEVICE_FILES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")  # of GPUs and TPUs


def prepare() -> None:
    """All settings below, unless there is a GPU or a TPU. Call it before JAX starts."""
    if not computes_on_cpu():
        return
    set_flag(WIDE_VECTORS)
    set_flag(KEEP_BARRIERS)
    give_fake_devices_threads()
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            keep_freed(libc)
            use_huge_pages(libc)
            trim_after_compiling(libc)


def computes_on_cpu() -> bool:
    """Whether JAX will compute on the CPU, told without starting it: JAX_PLATFORMS begins with it, or no other device is there."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(glob.glob(pattern) for pattern in DEVICE_FILES)


def give_fake_devices_threads() -> None:
    """Several devices of one CPU share a pool of threads, and one that waits in a collective keeps its thread.

    XLA starts a program's collectives as soon as their inputs are there, so one device can wait in two of them at once. With as
    many threads as devices, XLA's own choice on a small machine, the others then have none left: a run of Gemma 3 on eight devices
    and two cores hung twice in five starts, and with four threads a device in none of seven. NPROC is where XLA looks.
    """
    count = FAKE_DEVICES.findall(os.environ.get("XLA_FLAGS", ""))
    if count and int(count[-1]) > 1:
        os.environ.setdefault("NPROC", str(max(THREADS_OF_A_DEVICE * int(count[-1]), os.cpu_count() or 1)))


def keep_freed(libc: ctypes.CDLL) -> None:
    """Keep freed memory for the next allocation. Call it before JAX starts its threads.

    XLA on CPU allocates its temporaries anew for every call. glibc hands blocks of that size back at once, and each step pays for
    the page faults again: a gradient of the quickstart's size took 345 ms with them and 274 ms without.
    """
    libc.mallopt(ARENA_MAX, 1)  # the heaps of other arenas are too small for such blocks and fall back to mmap
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, NEVER)


def use_huge_pages(libc: ctypes.CDLL) -> None:
    """Ask for pages of 2 MiB wherever the heap may grow to: room for three quarters of the machine's memory, none of it touched.

    With these pages, and nothing given back, an update of 150 M parameters (benchmarks/update.py --size=medium --remat=dots) took
    9.2 s; with small pages and a heap trimmed at 2 GiB 12.2 s.
    """
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.free.argtypes = (ctypes.c_void_p,)
    block = libc.malloc(room)  # one piece at the end of the heap, which keeps it
    if block is None:
        return
    start = -(-block // HUGE_PAGE) * HUGE_PAGE
    libc.madvise(start, (block + room - start) // HUGE_PAGE * HUGE_PAGE, mmap.MADV_HUGEPAGE)
    libc.free(block)


def trim_after_compiling(libc: ctypes.CDLL) -> None:
    """Give back what a compiler has freed. It lies in pieces between what stays, and the temporaries of a step, one block for each
    call, fit into none of them: an iteration of 150 M parameters (benchmarks/ppo_lag_iteration.py --size=medium --sharing=shared
    --remat=dots) took 7.1 GB without and 6.3 GB with it.
    """
    import jax

    def trim(event: str, seconds: float, **_) -> None:
        if event == COMPILED and seconds >= LARGE:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)


def set_flag(flag: str) -> None:
    """Add a flag to XLA_FLAGS, unless they give it a value already."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.partition("=")[0] + "=" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
