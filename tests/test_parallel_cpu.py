"""How a process computes where the CPU is the accelerator: flags that a user's own outrank, and memory that is kept."""

import os
import subprocess
import sys

import pytest

from srlhfv_jax.parallel import cpu


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--xla_cpu_prefer_vector_width=512"),
        ("--xla_dump_to=x", "--xla_dump_to=x --xla_cpu_prefer_vector_width=512"),
        ("--xla_cpu_prefer_vector_width=256", "--xla_cpu_prefer_vector_width=256"),
    ],
)
def test_a_flag_is_added_unless_it_is_set(monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
        cpu.set_flag(cpu.WIDE_VECTORS)
        assert os.environ["XLA_FLAGS"] == after


FREED = """
import ctypes, sys
from srlhfv_jax.parallel import cpu
if sys.argv[1] == "kept":
    cpu.prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,)
block = libc.malloc(200_000_000)
ctypes.memset(block, 1, 200_000_000)
libc.free(block)
print(int(open("/proc/self/statm").read().split()[1]) * 4096)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_allocation():
    resident = [int(subprocess.check_output([sys.executable, "-c", FREED, how])) for how in ("kept", "returned")]
    assert resident[0] - resident[1] > 150_000_000


TEMPORARIES = """
import os, sys
from srlhfv_jax.parallel import cpu
os.environ["XLA_FLAGS"] = ""
if sys.argv[1] == "kept":
    cpu.prepare()
import jax, jax.numpy as jnp
from srlhfv_jax.models import stack

def loss(kernels, x, remat):
    layer = lambda x, kernel, index: jnp.sin(jnp.exp(jnp.tanh(x)) @ kernel)
    return jnp.sum(stack.run(layer, kernels, x, unroll=0, remat=remat))

gradient = jax.jit(jax.grad(loss), static_argnums=2)
shapes = jax.ShapeDtypeStruct((8, 32, 32), "float32"), jax.ShapeDtypeStruct((4096, 32), "float32")
sizes = [gradient.lower(*shapes, remat).compile().memory_analysis().temp_size_in_bytes for remat in ("none", "dots", "layer")]
print(*sizes)
"""


def test_an_unrolled_stack_that_is_computed_again_keeps_less():
    kept, merged = (
        [int(size) for size in subprocess.check_output([sys.executable, "-c", TEMPORARIES, how]).split()]
        for how in ("kept", "merged")
    )
    assert len(set(merged)) == 1  # what the flag is for
    none, dots, layer = kept
    assert layer < 0.8 * dots and dots < 0.8 * none
