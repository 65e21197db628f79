"""Operations, traffic and collectives of compiled programs: a loop counts as often as it runs."""

import functools
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from commands import ENVIRONMENT
from jax.sharding import NamedSharding, PartitionSpec as P

from srlhfv_jax.config import MeshConfig
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.plan import count as work, hlo

M, D, F = 24, 40, 56


def shape(*dims: int, at=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=at)


def counted(function, *arguments, loop: int = 1) -> work.Counted:
    return work.count(jax.jit(function).lower(*arguments).compile().as_text(), loop)


def layers(x, stack):
    """Two products a layer."""

    def layer(x, weights):
        up, down = weights
        return jnp.tanh(x @ up) @ down, None

    return jax.lax.scan(layer, x, stack)[0]


@pytest.mark.parametrize("depth", [3, 6, 12])
def test_operations_are_those_of_all_layers(depth):
    found = counted(layers, shape(M, D), (shape(depth, D, F), shape(depth, F, D)))
    assert found.flops == depth * 2 * (2 * M * D * F)


def test_a_loop_without_a_constant_bound_runs_as_often_as_we_say():
    def until_large(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 7.5, lambda x: x @ w, x)

    programs = [counted(until_large, shape(M, D), shape(D, D), loop=R) for R in (1, 17, 34)]
    assert [one.flops for one in programs] == [R * 2 * M * D * D for R in (1, 17, 34)]


def test_loops_in_loops_multiply():
    def rollout(x, stack):
        return jax.lax.fori_loop(0, 5, lambda step, x: layers(x, stack), x)

    found = counted(rollout, shape(M, D), (shape(3, D, F), shape(3, F, D)))
    assert found.flops == 5 * 3 * 2 * (2 * M * D * F)


def test_a_scan_reads_each_layer_of_its_weights_once():
    """Not the whole stack for every layer: traffic grows linearly with depth."""
    traffic = {depth: counted(layers, shape(1, 512), (shape(depth, 512, 512),) * 2).traffic for depth in (8, 16, 32)}
    assert traffic[32] - traffic[16] == pytest.approx(2 * (traffic[16] - traffic[8]), rel=0.02)
    weights = 2 * 4 * 512 * 512
    assert weights <= (traffic[32] - traffic[16]) / 16 < 3.5 * weights  # the CPU copies slices before it multiplies


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))


@pytest.mark.parametrize("depth", [2, 4])
def test_an_all_reduce_in_each_layer_is_counted_for_each(mesh, depth):
    """Column- then row-parallel: one sum of [M, D] over four devices, each of which sends 2 x 3/4 of it."""
    up, down = (NamedSharding(mesh, P(None, *axes)) for axes in ((None, "tensor"), ("tensor", None)))
    whole = NamedSharding(mesh, P())
    stack = (shape(depth, D, F, at=up), shape(depth, F, D, at=down))
    found = counted(layers, shape(M, D, at=whole), stack).collectives()
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"].count == depth
    assert found["all-reduce"].sent == depth * 2 * 3 / 4 * 4 * M * D


def test_an_all_gather_sends_a_shard_to_all_others(mesh):
    gather = functools.partial(jax.lax.with_sharding_constraint, shardings=NamedSharding(mesh, P()))
    found = counted(gather, shape(M, D, at=NamedSharding(mesh, P("tensor")))).collectives()
    assert found == {"all-gather": work.Collective("all-gather", 1, 3 * 4 * (M / 4) * D)}


def test_an_estimate_is_the_slower_of_operations_and_traffic_in_each_part_and_the_links_on_top():
    part = work.Part("body", 3, flops=8.0, traffic=5.0, collectives=(work.Collective("all-reduce", 2, 1.5),))
    other = work.Part("main", 1, flops=2.0, traffic=6.0, collectives=())
    found = work.Counted((part, other), unknown_kernels=0)
    assert found.seconds(flops=4.0, hbm=4.0, ici=0.5) == 3 * (8 / 4) + 6 / 4 + 3 * 1.5 / 0.5


TPU_TEXT = """HloModule f, is_scheduled=true, num_partitions=4

%async (p.0: bf16[8,16], p.1: f32[4,8]) -> (bf16[8,16], bf16[8,64]) {
  %p.0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = f32[4,8]{1,0:T(8,128)} parameter(1)
  %g.0 = bf16[8,64]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=7, replica_groups=[1,4]<=[4], dimensions={1}
  ROOT %t.0 = (bf16[8,16]{1,0}, bf16[8,64]{1,0}) tuple(%p.0, %g.0)
}

%all-reduce-scatter.1 (q.0: f32[16,8]) -> f32[8,8] {
  %q.0 = f32[16,8]{1,0:T(8,128)} parameter(0)
  %r.0 = f32[16,8]{1,0:T(8,128)} all-reduce(%q.0), channel_id=2, replica_groups=mesh['x'=2,'y'=2] {'y'}, to_apply=%add
  ROOT %s.0 = f32[8,8]{1,0:T(8,128)} slice(%r.0), slice={[0:8], [0:8]}
}

ENTRY %main (a: bf16[8,16], b: f32[4,8], c: f32[16,8], d: bf16[6,32,64], e: bf16[6,64,32]) -> f32[8,8] {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[4,8]{1,0:T(8,128)} parameter(1)
  %c = f32[16,8]{1,0:T(8,128)} parameter(2)
  %d = bf16[6,32,64]{2,1,0:T(8,128)(2,1)} parameter(3)
  %e = bf16[6,64,32]{2,1,0:T(8,128)(2,1)S(1)} parameter(4)
  %first = (bf16[8,16]{1,0}, bf16[8,64]{1,0}) fusion(%a, %b), kind=kCustom, calls=%async
  %second = (bf16[8,16]{1,0}, bf16[8,64]{1,0}) fusion(%a, %b), kind=kCustom, calls=%async
  %product = f32[6,32,32]{2,1,0:T(8,128)S(1)} convolution(%d, %e), window={size=6 stride=5 lhs_dilate=6}, dim_labels=0bf_0io->0bf
  %kernel = f32[4]{0:T(128)S(1)} custom-call(), custom_call_target="tpu_custom_call", backend_config={"body":"AB","cost_estimate":{"flops":"11","transcendentals":"3"}}
  ROOT %cut = f32[8,8]{1,0:T(8,128)} fusion(%c), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_what_a_tpu_writes_differently_is_understood():
    found = work.count(TPU_TEXT)
    # A collective in flight beside two fusions is one; a scatter is half an all-reduce, over the two devices of axis y.
    assert found.collectives() == {
        "all-gather": work.Collective("all-gather", 1, 3 * 2 * 8 * 16),
        "reduce-scatter": work.Collective("reduce-scatter", 1, 4 * 16 * 8 / 2),
    }
    assert found.flops == 6 * 2 * 32 * 64 * 32 + 11  # a batch of six products, and what the kernel declares
    assert found.unknown_kernels == 0
    # On-chip memory is free. Read: d once; written: the cut.
    assert found.traffic == 2 * 6 * 32 * 64 + 4 * 8 * 8


def test_an_attribute_of_several_lines_belongs_to_its_instruction_and_hides_nothing_after_it():
    metadata = 'frontend_attributes={kernel_metadata={\n"xprof_metadata":"{\\"block_q\\": 512}"\n}}, backend_config='
    found, main = hlo.parse(
        TPU_TEXT.replace('target="tpu_custom_call", backend_config=', f'target="tpu_custom_call", {metadata}')
    )
    assert hlo.root(found[main]).name == "cut"
    assert '"flops":"11"' in found[main]["kernel"].attributes
    assert set(found) == set(hlo.parse(TPU_TEXT)[0])


def test_a_kernel_that_declares_nothing_is_reported():
    found = work.count(TPU_TEXT.replace("cost_estimate", "other"))
    assert found.unknown_kernels == 1 and found.flops == 6 * 2 * 32 * 64 * 32


def test_the_compiler_for_tpus_gives_the_same_operations():
    """Depth 4 and 8 of attention-like layers, batched products among them, on four chips: a quarter of all operations each."""
    code = """
        import json, sys
        import jax, jax.numpy as jnp
        jax.config.update("jax_platforms", "cpu")
        from jax.sharding import NamedSharding, PartitionSpec as P
        from srlhfv_jax.config import MeshConfig
        from srlhfv_jax.plan import count as work, topology
        from srlhfv_jax.parallel.mesh import make_mesh
        mesh = make_mesh(MeshConfig(1, 1, 4), topology.devices("v5e:2x2"))
        def layer(x_BTD, w_HDh):
            q_BHTh = jnp.einsum("BTD,HDh->BHTh", x_BTD, w_HDh)
            scores = jnp.einsum("BHTh,BHSh->BHTS", q_BHTh, q_BHTh)
            return x_BTD + jnp.einsum("BHTS,BHSh,HDh->BTD", jax.nn.relu(scores), q_BHTh, w_HDh), None
        def run(L):
            x = jax.ShapeDtypeStruct((4, 256, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
            w = jax.ShapeDtypeStruct((L, 8, 512, 128), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "tensor")))
            text = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0]).lower(x, w).compile().as_text()
            found = work.count(text)
            reduced = found.collectives()["all-reduce"]
            return found.flops, reduced.count, reduced.sent
        print(json.dumps([run(4), run(8)]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    B, T, W, H, h = 4, 256, 512, 8, 128
    one = (2 * (2 * B * T * W * H * h) + 2 * (2 * B * H * T * T * h)) / 4
    for depth, (flops, count, sent) in zip((4, 8), json.loads(done.stdout.splitlines()[-1])):
        assert flops == depth * one
        assert count == depth and sent == depth * 2 * 3 / 4 * 2 * B * T * W
