"""Roles and the parameters that play them. A role is a place: a parameter tree (models/trees.py) and, for a score, a head on it.

Loading, rollout and scoring ask only for places, so a new way of sharing is a new table here.
"""

from collections.abc import Collection
from typing import Mapping, NamedTuple

import jax
import jax.numpy as jnp

from srlhfv_jax.config import PPOLagConfig, choose

ROLES = ("policy", "reference", "reward", "cost", "reward_critic", "cost_critic")
SCORES = ("reward", "cost")
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


def assign(sharing: str, learned: Collection[str] = SCORES, critics: Collection[str] = CRITICS) -> dict[str, Place]:
    """Role -> place. "shared": one backbone scores, one criticises, each with two heads; "adapters": the same, but all of them
    are adapters over one backbone; "separate": one backbone per role (the paper).

    Args:
        learned: scores that have a learned head; the others have no place: functions make them (functions/).
        critics: those that there are; none where advantages are of groups.
    """
    choose(sharing, "sharing", "shared", "adapters", "separate")
    every = SEPARATE if sharing == "separate" else SHARED
    absent = {*SCORES, *CRITICS} - {*learned, *critics}
    return {role: place for role, place in every.items() if role not in absent}


def of_settings(settings: PPOLagConfig) -> dict[str, Place]:
    """Role -> place, as a run's settings say."""
    places = assign(settings.sharing, settings.learned, CRITICS if settings.ppo.has_critics else ())
    return places if settings.reference != "none" else {role: place for role, place in places.items() if role != "reference"}


def learned(places: Mapping[str, Place]) -> list[str]:
    """Scores that have a learned head."""
    return [role for role in SCORES if role in places]


def critic_trees(places: Mapping[str, Place]) -> list[str]:
    """The trees that hold the two critic heads: one when they share a backbone, none without critics."""
    return sorted({places[role].tree for role in CRITICS if role in places})


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
