"""Roles and the parameters that play them. A role is a place: a parameter tree (models/trees.py) and, for a score, a head on it.

Loading, rollout and scoring ask only for places, so a new way of sharing is a new table here.
"""

from collections.abc import Sequence
from typing import Mapping, NamedTuple

import jax
import jax.numpy as jnp

from srlhfv_jax.config import PPOLagConfig, choose

SCORES = ("reward", "cost")  # of a run with one constraint
CRITICS = ("reward_critic", "cost_critic")


class Place(NamedTuple):
    """The place of a role."""

    tree: str
    head: str | None


SHARED = {
    "policy": Place("policy", None),
    "reference": Place("reference", None),
    "reward": Place("scorer", "reward"),
    "cost": Place("scorer", "cost"),
    "reward_critic": Place("critic", "reward"),
    "cost_critic": Place("critic", "cost"),
}

SEPARATE = {
    "policy": Place("policy", None),
    "reference": Place("reference", None),
    "reward": Place("reward", "reward"),
    "cost": Place("cost", "cost"),
    "reward_critic": Place("reward_critic", "reward"),
    "cost_critic": Place("cost_critic", "cost"),
}


def critic(score: str) -> str:
    """The role that predicts a score."""
    return f"{score}_critic"


def assign(
    sharing: str,
    scores: Sequence[str] = SCORES,
    heads: Sequence[str] = SCORES,
    *,
    guarded: Sequence[str] = (),
    critics: bool = True,
) -> dict[str, Place]:
    """Role -> place. "shared": one backbone scores, one criticises, each with several heads; "adapters": the same, but all of them
    are adapters over one backbone; "separate": one backbone per role (the paper), and one for the critics of all costs.

    Args:
        scores: the reward, then the costs; those after "cost" are of further constraints. Each has a critic.
        heads: of the scorer, those that are read; functions make what has none (functions/).
        guarded: of the guard, those that are read.
        critics: false where advantages are of groups.
    """
    choose(sharing, "sharing", "shared", "adapters", "separate")
    every = SEPARATE if sharing == "separate" else SHARED
    places = {role: every[role] for role in ("policy", "reference", *heads)}
    places |= {f"guard_{name}": Place("guard", f"guard_{name}") for name in guarded}
    if critics:
        places |= {
            critic(score): every[critic("reward" if score == "reward" else "cost")]._replace(head=score) for score in scores
        }
    return places


def of_settings(settings: PPOLagConfig) -> dict[str, Place]:
    """Role -> place, as a run's settings say."""
    places = assign(settings.sharing, settings.scores, settings.heads, guarded=settings.guarded, critics=settings.ppo.has_critics)
    return places if settings.reference != "none" else {role: place for role, place in places.items() if role != "reference"}


def critics(places: Mapping[str, Place]) -> list[str]:
    """The roles that predict scores: the reward's first."""
    return [role for role, place in places.items() if place.head is not None and role == critic(place.head)]


def heads(places: Mapping[str, Place]) -> list[str]:
    """The roles that score answers."""
    return [role for role, place in places.items() if place.head is not None and role not in critics(places)]


def critic_trees(places: Mapping[str, Place]) -> list[str]:
    """The trees that hold the critics' heads: one when they share a backbone, none without critics."""
    return sorted({places[role].tree for role in critics(places)})


def trained_trees(places: Mapping[str, Place]) -> list[str]:
    """Every tree an update changes."""
    return [places["policy"].tree, *critic_trees(places)]


def tower_groups(trees: Mapping[str, dict]) -> dict[str, str]:
    """Tree name -> the first tree with an equal vision tower, which computes the features for both.

    Compared value by value on the device, so it works on sharded arrays. Text-only trees are all in the first one's group.
    """
    groups: dict[str, str] = {}
    for name, tree in trees.items():
        equal = (first for first in groups.values() if _same_tower(trees[first]["backbone"], tree["backbone"]))
        groups[name] = next(equal, name)
    return groups


def _same_tower(one: dict, other: dict) -> bool:
    towers = [_run_part(backbone) for backbone in (one, other)]
    if jax.tree.structure(towers[0]) != jax.tree.structure(towers[1]):
        return False
    pairs = list(zip(*map(jax.tree.leaves, towers)))
    if any(a.shape != b.shape for a, b in pairs):
        return False
    return all(a is b for a, b in pairs) or bool(_all_equal(*zip(*pairs)))


def _run_part(backbone: dict) -> dict:
    """The leaves of the tower that reach the features."""
    return {name: part for name, part in backbone.get("vision", {}).items() if name != "unused"}


@jax.jit
def _all_equal(ones, others):
    return jnp.all(jnp.stack([jnp.array_equal(a, b) for a, b in zip(ones, others)]))
