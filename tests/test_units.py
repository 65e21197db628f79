"""Units that stand still: which entries they have, that these are the same bits behind any optimizer, and files that are refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_ppo
import tiny_training
import tiny_vlm

from srlhfv_jax.errors import UserError
from srlhfv_jax.models import vlm
from srlhfv_jax.parallel import rules
from srlhfv_jax.training import optimizer as optimizers, step, units
from srlhfv_jax.training.units import SETS, UnitScores

L, F, H, WIDTH = 2, 24, 4, 4  # of the tiny model, with 2 heads of keys and values
NEURONS, HEADS = ((0, 3), (1, 0), (1, 23)), ((0, 1), (1, 2), (1, 3))
SHARES = dict.fromkeys(SETS, 0.1)


def picked(places, width: int) -> np.ndarray:
    mask = np.zeros((L, width), bool)
    mask[tuple(zip(*places))] = True
    return mask


def write(path, *, still: str = "safety", layers: int = L) -> str:
    """A file of units in which NEURONS and HEADS are the units of one set, and the others are empty."""
    none = UnitScores(np.zeros((layers, F), bool), np.zeros((layers, H), bool))
    scores = UnitScores(np.zeros((layers, F)), np.zeros((layers, H)))
    of = UnitScores(picked(NEURONS, F), picked(HEADS, H)) if layers == L else none
    sets = dict.fromkeys(SETS, none) | {still: of}
    units.write(path, units.UnitsFile("of these", SHARES, scores, scores, sets))
    return str(path)


def config(**changes):
    return dataclasses.replace(tiny_training.OPTIMIZER, freeze=(), **changes)


def expected(shapes: dict) -> dict[str, np.ndarray]:
    """The entries of NEURONS and HEADS, one by one."""
    masks = {path: np.zeros(leaf.shape, bool) for path, leaf in rules.leaves(shapes)}
    at = "backbone/text/layers/{}/kernel".format
    for layer, neuron in NEURONS:
        for name in ("gate_proj", "up_proj", "down_proj"):
            masks[at(f"mlp/{name}")][layer, neuron] = True
    for layer, head in HEADS:
        for name, place in (("q_proj", head), ("o_proj", head), ("k_proj", head // 2), ("v_proj", head // 2)):
            masks[at(f"self_attn/{name}")][layer, WIDTH * place : WIDTH * (place + 1)] = True
    return masks


@functools.cache
def shapes() -> dict:
    """Those of the tiny decoder, with a head of scores beside it."""
    text = dataclasses.replace(tiny_vlm.CONFIG, vision=None, image_token=None)
    backbone = jax.eval_shape(lambda: vlm.init(text, jax.random.key(0)))
    return {"backbone": backbone, "heads": {"reward": {"kernel": jax.ShapeDtypeStruct((16,), jnp.float32)}}}


def tree(dtype: str = "float32") -> dict:
    """Parameters with -0 among them and numbers below the least normal one."""
    rng = np.random.default_rng(0)

    def fill(leaf) -> jax.Array:
        values = rng.normal(size=leaf.shape).astype(np.float32)
        values.reshape(-1)[::3], values.reshape(-1)[1::7] = -0.0, -1e-40
        return jnp.asarray(values.astype(jnp.dtype(dtype)))

    return jax.tree.map(fill, shapes())


def bits(leaf) -> np.ndarray:
    return np.asarray(leaf).view(np.uint16 if leaf.dtype == jnp.bfloat16 else np.uint32)


def after(settings, params: dict, steps: int = 3) -> dict:
    """Parameters after some steps of gradients that are 0 nowhere."""
    transform, still = optimizers.make(settings, params, steps), units.still(settings, params)

    @jax.jit
    def move(params):
        def one(carry, number):
            params, state = carry
            grads = jax.tree.map(
                lambda leaf: jnp.cos(number + jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape).astype(leaf.dtype),
                params,
            )
            return step.apply_updates(transform, params, state, grads, still)[:2], None

        return jax.lax.scan(one, (params, transform.init(params)), jnp.arange(steps, dtype=jnp.float32))[0][0]

    return move(params)


def test_the_weights_of_a_unit_are_what_makes_it_and_what_reads_it(tmp_path):
    masks = units.still(config(frozen_units=write(tmp_path / "u")), shapes())
    for path, whole in expected(shapes()).items():
        found = np.broadcast_to(masks[path], whole.shape) if path in masks else np.zeros(whole.shape, bool)
        np.testing.assert_array_equal(found, whole, err_msg=path)


def test_only_units_is_the_complement_in_the_backbone_and_heads_beside_it_move(tmp_path):
    only = units.still(config(only_units=write(tmp_path / "u", still="redundant")), shapes())
    masks = expected(shapes())
    for path, leaf in rules.leaves(shapes()):
        if not path.startswith("backbone/"):
            assert path not in only
        elif "k_proj" not in path and "v_proj" not in path:
            np.testing.assert_array_equal(np.broadcast_to(only[path], leaf.shape), ~masks[path], err_msg=path)
    # Keys and values move where all heads that share them do: those of heads 2 and 3 in layer 1.
    shared = np.ones((L, 2 * WIDTH), bool)
    shared[1, WIDTH:] = False
    np.testing.assert_array_equal(only["backbone/text/layers/self_attn/k_proj/kernel"][:, :, 0], shared)


@pytest.mark.parametrize(
    "algorithm, dtype, setting, still",
    [
        ("adamw", "float32", "frozen_units", "safety"),
        ("muon", "bfloat16", "frozen_units", "complex"),
        ("muon", "float32", "only_units", "redundant"),
    ],
)
@pytest.mark.parametrize("devices", [1, 8])
def test_what_stands_still_has_the_same_bits_behind_any_optimizer(tmp_path, algorithm, dtype, setting, still, devices, request):
    mesh = request.getfixturevalue("one_device" if devices == 1 else "eight_devices")
    jax.set_mesh(mesh)
    settings = config(algorithm=algorithm, weight_decay=0.3, **{setting: write(tmp_path / "u", still=still)})
    before = tree(dtype)
    moved = dict(rules.leaves(after(settings, rules.place(before, mesh))))
    masks = units.still(settings, before)
    for path, leaf in rules.leaves(before):
        mask = np.broadcast_to(masks.get(path, False), leaf.shape)
        np.testing.assert_array_equal(bits(moved[path])[mask], bits(leaf)[mask], err_msg=path)
        if not mask.all():
            assert (bits(moved[path]) != bits(leaf))[~mask].mean() > 0.5, path


def test_gradients_of_what_stands_still_do_not_count_in_clipping(tmp_path):
    """SGD clipped at norm 1: gradients of 1e6 at a neuron that stands still would leave nothing for the others."""
    settings = config(frozen_units=write(tmp_path / "u"), clip_norm=0.7)
    params = tree()
    still = units.still(settings, params)
    grads = jax.tree.map(jnp.zeros_like, params)
    kernel = jnp.zeros((L, F, 16)).at[0, 3].set(1e6).at[0, 4, 0].set(0.5)
    grads["backbone"]["text"]["layers"]["mlp"]["down_proj"]["kernel"] = kernel
    transform = optimizers._clip(0.7)
    moved, _, told = step.apply_updates(transform, params, transform.init(params), grads, still)
    down, was = (of["backbone"]["text"]["layers"]["mlp"]["down_proj"]["kernel"] for of in (moved, params))
    np.testing.assert_allclose(down[0, 4, 0] - was[0, 4, 0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(told["grad_norm"], 4e6, rtol=1e-6)  # sqrt(16) x 1e6: of every gradient


def test_files_that_cannot_be_used_are_refused(tmp_path):
    good = tmp_path / "u"
    write(good)
    cut, other, deeper = tmp_path / "cut", tmp_path / "other", tmp_path / "deeper"
    cut.write_bytes(good.read_bytes()[:-9])
    other.write_text("no units")
    write(deeper, layers=3)
    for path, said in ((cut, "damaged"), (other, "damaged"), (tmp_path / "none", "is no file"), (deeper, "architecture")):
        with pytest.raises(UserError, match=said):
            units.still(config(frozen_units=str(path)), shapes())
    with pytest.raises(UserError, match="exclude each other"):
        units.still(config(frozen_units=str(good), only_units=str(good)), shapes())
    with pytest.raises(UserError, match="adapter moves every unit"):
        units.still(config(frozen_units=str(good)), {"adapter": shapes()["backbone"]})
    with pytest.raises(UserError, match="other weights"):
        units.check(config(only_units=str(good)), "of others")
    units.check(config(only_units=str(good)), "of these")
    assert units.still(config(), shapes()) == {}


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = write(tmp_path / "u", still="complex")
    found = units.read(path, "x")
    assert (found.fingerprint, found.shares) == ("of these", SHARES)
    np.testing.assert_array_equal(found.sets["complex"].heads, picked(HEADS, H))
    assert [path.name for path in tmp_path.iterdir()] == ["u"]


@pytest.mark.slow
def test_in_ppo_the_policy_has_units_that_stand_still_and_the_critic_none(tmp_path):
    trees, (batch, rollout) = tiny_ppo.models(), tiny_ppo.rolled()
    known = tiny_ppo.static(**{"policy_optimizer.frozen_units": write(tmp_path / "u")})
    params = tiny_ppo.step(known, rollout, batch.images, trees).params
    for name, still in (("policy", True), ("critic", False)):
        before, after = (of["backbone"]["text"]["layers"]["mlp"]["down_proj"]["kernel"] for of in (trees[name], params[name]))
        same = (np.asarray(before) == np.asarray(after)).all(axis=2)
        np.testing.assert_array_equal(same, picked(NEURONS, F) if still else np.zeros((L, F), bool))
