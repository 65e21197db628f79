"""A head is a dot product; roles say which tree and head serve whom; equal towers are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srlhfv_jax.errors import UserError
from srlhfv_jax.models import score_heads, vlm
from srlhfv_jax.models.config import RopeConfig, TextConfig, VisionConfig, VLMConfig
from srlhfv_jax.ppo_lag import roles

ROPE = RopeConfig(500.0)
TEXT = TextConfig(vocab=9, width=8, mlp=8, layers=1, heads=2, kv_heads=2, head_dim=4, norm_eps=1e-6, rope=ROPE, tied_head=True)
VISION = VisionConfig(image_size=4, patch=2, width=8, mlp=8, layers=2, heads=2, norm_eps=1e-5, activation="gelu")
CONFIG = VLMConfig("llava", TEXT, VISION, 8)


def created(config, seed: int):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


def test_every_head_is_its_own_float32_dot_product():
    hidden_BTD = jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.bfloat16)
    made = score_heads.init(CONFIG, ("reward", "cost"), jax.random.key(1))
    scores = score_heads.scores(made, hidden_BTD)
    assert not np.allclose(made["reward"]["kernel"], made["cost"]["kernel"])
    for name in ("reward", "cost"):
        assert scores[name].shape == (2, 3) and scores[name].dtype == jnp.float32
        expected = np.asarray(hidden_BTD, np.float32) @ np.asarray(made[name]["kernel"])
        np.testing.assert_allclose(scores[name], expected, rtol=1e-5)


def test_heads_start_with_scores_of_unit_size():
    wide = VLMConfig("llama", TextConfig(9, 4096, 8, 1, 2, 2, 4, 1e-6, ROPE, True), None, None)
    kernel_D = score_heads.init(wide, ("cost",), jax.random.key(2))["cost"]["kernel"]
    assert abs(float(jnp.std(kernel_D)) * 4097**0.5 - 1) < 0.05


ROLES = ("policy", "reference", "reward", "cost", "reward_critic", "cost_critic")


def test_shared_roles_live_in_four_trees_and_separate_ones_in_six():
    shared, separate = roles.assign("shared"), roles.assign("separate")
    assert tuple(shared) == tuple(separate) == ROLES
    assert {place.tree for place in shared.values()} == {"policy", "reference", "scorer", "critic"}
    assert [place.tree for place in separate.values()] == list(ROLES)
    for places in (shared, separate):
        assert [places[role].head for role in ROLES] == [None, None, "reward", "cost", "reward", "cost"]
    with pytest.raises(UserError, match="'shared', 'adapters', 'separate', got 'mixed'"):
        roles.assign("mixed")


def test_trees_with_equal_towers_are_grouped_whatever_else_differs():
    one, other = created(CONFIG, 0), created(CONFIG, 1)
    same_tower = {**other, "vision": jax.tree.map(jnp.array, one["vision"])}
    same_tower["vision"] = {**same_tower["vision"], "unused": other["vision"]["unused"]}  # never runs
    nearly = jax.tree.map(jnp.array, one)
    nearly["vision"]["embeddings"]["class_embedding"] = nearly["vision"]["embeddings"]["class_embedding"].at[3].add(1e-6)
    trees = {name: {"backbone": tree} for name, tree in dict(policy=one, other=other, same=same_tower, nearly=nearly).items()}
    expected = {"policy": "policy", "other": "other", "same": "policy", "nearly": "nearly"}
    assert roles.tower_groups(trees) == expected


def test_text_only_trees_are_one_group():
    plain = VLMConfig("llama", TEXT, None, None)
    trees = {name: {"backbone": created(plain, seed)} for seed, name in enumerate(("policy", "critic"))}
    assert roles.tower_groups(trees) == {"policy": "policy", "critic": "policy"}
