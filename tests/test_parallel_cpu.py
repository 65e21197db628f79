"""How a process computes where the CPU is the accelerator: flags that a user's own outrank, and memory that is kept."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from srlhfv_jax.models import stack
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parallel.mesh import AXES


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
        host_cpu.set_flag(host_cpu.WIDE_VECTORS)
        assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ("", None, None),
        ("--xla_force_host_platform_device_count=1", None, None),
        ("--xla_force_host_platform_device_count=64", None, "256"),
        ("--xla_force_host_platform_device_count=64 --xla_dump_to=x", "5", "5"),
        ("--xla_force_host_platform_device_count=2 --xla_force_host_platform_device_count=96", None, "384"),
    ],
)
def test_fake_devices_have_threads_enough_to_wait_in_several_collectives(monkeypatch, flags, before, after):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("NPROC", raising=False)
    if before:
        monkeypatch.setenv("NPROC", before)
    host_cpu.give_fake_devices_threads()
    assert os.environ.get("NPROC") == after


@pytest.mark.parametrize(
    ("platforms", "files", "expected"),
    [
        ("", (), True),
        ("", ("nvidia0",), False),
        ("", ("accel0",), False),
        ("cpu", ("nvidia0",), True),
        ("cuda,cpu", (), False),
        ("", ("nvidiactl",), True),
    ],
)
def test_nothing_is_set_where_a_gpu_or_a_tpu_computes(tmp_path, monkeypatch, platforms, files, expected):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(host_cpu, "DEVICE_FILES", [pattern.replace("/dev", str(tmp_path)) for pattern in host_cpu.DEVICE_FILES])
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("XLA_FLAGS", "")
    assert host_cpu.computes_on_cpu() == expected
    if not expected:
        host_cpu.prepare()
        assert os.environ["XLA_FLAGS"] == ""


FREED = """
import ctypes, sys
from srlhfv_jax.parallel import host_cpu
if sys.argv[1] == "kept":
    host_cpu.prepare()
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


TRIMMED = FREED.replace(
    "print(",
    """
import jax
before = int(open("/proc/self/statm").read().split()[1])
for seconds in (0.1, 2.0):
    jax.monitoring.record_event_duration_secs(host_cpu.COMPILED, seconds)
    print((before - int(open("/proc/self/statm").read().split()[1])) * 4096)
sys.exit()
print(""",
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_a_long_compilation_freed_is_given_back():
    after = subprocess.check_output([sys.executable, "-c", TRIMMED, "kept"]).split()
    short, long = map(int, after)
    assert short < 10_000_000 and long > 150_000_000


TEMPORARIES = """
import os, sys
from srlhfv_jax.parallel import host_cpu
os.environ["XLA_FLAGS"] = ""
if sys.argv[1] == "kept":
    host_cpu.prepare()
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


ORDERED = """
import os, sys
from srlhfv_jax.parallel import host_cpu
os.environ["XLA_FLAGS"] = ""
if sys.argv[1] == "ordered":
    host_cpu.prepare()
import jax
from srlhfv_jax.config import OptimizerConfig
from srlhfv_jax.models import stack
from srlhfv_jax.training import optimizer, step

def forward(kernels, x):
    return stack.run(lambda x, kernel, index: jax.nn.silu(x @ kernel), kernels, x, unroll=0, remat="none")

def descend(params, opt_state, x):
    gradients = jax.tree.map(lambda kernel: kernel @ x, params)
    return step.apply_updates(transform, params, opt_state, gradients)[:2]

square = jax.ShapeDtypeStruct((256, 256), "float32")
kernels = {f"kernel{i}": square for i in range(8)}
transform = optimizer.make(OptimizerConfig("adamw", 1e-3, 0.0, "constant", 0.0, 0.1, 0.9, 0.95, 1e-8, 1.0, (), (), "", ""), kernels, 9)
lowered = (
    jax.jit(forward).lower(jax.ShapeDtypeStruct((8, 256, 256), "float32"), jax.ShapeDtypeStruct((4, 256), "float32")),
    jax.jit(descend, donate_argnums=(0, 1)).lower(kernels, jax.eval_shape(transform.init, kernels), square),
)
print(*[one.compile().memory_analysis().temp_size_in_bytes for one in lowered])
"""


def test_layers_are_cut_out_of_a_stack_one_by_one_and_clipped_gradients_lie_beside_nothing():
    ordered, left_alone = (
        [int(size) for size in subprocess.check_output([sys.executable, "-c", ORDERED, how]).split()]
        for how in ("ordered", "left alone")
    )
    stack, layer = 8 * 256 * 256 * 4, 256 * 256 * 4
    assert left_alone[0] >= stack and ordered[0] < 3 * layer
    assert ordered[1] < 0.7 * left_alone[1]


@pytest.mark.parametrize(("platform", "cut"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_other_compilers_order_the_layers_of_a_stack_themselves(platform, cut):
    device = AbstractDevice("of some kind", num_cores=1, platform=platform)
    with use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, abstract_device=device)):
        layer = functools.partial(stack.run, lambda x, kernel, index: x @ kernel, unroll=0, remat="none")
        made = jax.make_jaxpr(layer)(jnp.ones((3, 2, 2)), jnp.ones(2))
    assert ("optimization_barrier" in str(made)) == cut
