"""The rows of a rollout, scored by functions: each process its own, and afterwards every process has all of them.

A row that several processes hold is scored by the first of them, so that all go on from one number. Where a function fails on one
process, all of them stop with its message.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax import files
from srlhfv_jax.batches import Rollout
from srlhfv_jax.config import FunctionsConfig, PPOLagConfig
from srlhfv_jax.config.constraints import Condition
from srlhfv_jax.data.loader import Prepared
from srlhfv_jax.errors import UserError
from srlhfv_jax.functions import call, conditions, load
from srlhfv_jax.functions.cache import FILE, Cache
from srlhfv_jax.functions.load import Function
from srlhfv_jax.functions.sample import Sample, sample
from srlhfv_jax.parallel import hosts
from srlhfv_jax.runs.run import Started
from srlhfv_jax.training.loop import Undone
from srlhfv_jax.training.metrics import write_json

IDENTITIES = "functions.json"  # in the workdir: the functions of the run by their content


class Scores(NamedTuple):
    """Scores of a rollout by functions; on every process."""

    sums: dict[str, Float[np.ndarray, "B"]]  # score -> the weighted sum of its functions, NaN where it is not about the row
    each: dict[str, Float[np.ndarray, "B"]]  # "reward.NAME" -> what the function gave, without its weight


class Scorer:
    """Functions, the scores that they gave before, and the rows that each constraint is about."""

    def __init__(
        self,
        functions: Sequence[Function],
        settings: FunctionsConfig,
        cache: Cache,
        mesh: Mesh,
        conditions: Mapping[str, Condition] = MappingProxyType({}),
    ) -> None:
        self._functions, self._settings, self._cache, self._mesh = functions, settings, cache, mesh
        self._conditions = conditions
        # Of each source of prompts, which is kept with it: an id is another object's once its own is gone.
        self._holds: dict[int, tuple[Prepared, dict[str, np.ndarray]]] = {}

    def __call__(self, prompts: Prepared, rollout: Rollout, row_B: Int[Array, "B"]) -> Scores:
        """Score a rollout.

        Args:
            prompts: the rows that were answered.
            row_B: which of them each row of the rollout answers.

        Raises:
            Undone: a function failed on some process.
        """
        about_B = self._about(prompts, hosts.to_host(row_B))
        owner_B = hosts.owners(len(row_B), self._mesh)
        places_B = np.flatnonzero(owner_B == hosts.process_index())
        failed, count = "", len(row_B)
        score_UB, content_B = np.zeros((len(self._functions), count), np.float32), np.zeros((count, 32), np.uint8)
        try:
            samples = self._samples(prompts, rollout, row_B, places_B)
            score_UB[:, places_B] = self._own(samples, {key: holds_B[places_B] for key, holds_B in about_B.items()})
            content_B[places_B] = np.frombuffer(b"".join(one.content for one in samples), np.uint8).reshape(-1, 32)
        except UserError as error:
            failed = str(error)
        failures = list(filter(None, hosts.texts_from_each(failed)))
        if failures:
            raise Undone(failures[0])
        every = hosts.from_each(score_UB)
        score_UB = np.stack([every[owner, :, row] for row, owner in enumerate(owner_B)], axis=1)
        contents = hosts.from_each(content_B)[owner_B, np.arange(len(owner_B))]
        for function, score_B in zip(self._functions, score_UB):
            for row in np.flatnonzero(about_B.get(function.score, np.ones(count, bool))):
                name = f"{function.score}.{function.name}"
                self._cache.put(function.identity, contents[row].tobytes(), name, float(score_B[row]))
        return self._summed(score_UB, about_B)

    def _about(self, prompts: Prepared, row_B: Int[np.ndarray, "B"]) -> dict[str, Bool[np.ndarray, "B"]]:
        """Constraint -> whether it is about each row; without those that are about all."""
        if id(prompts) not in self._holds:
            self._holds[id(prompts)] = prompts, {key: conditions.rows(one, prompts) for key, one in self._conditions.items()}
        return {key: holds[row_B] for key, holds in self._holds[id(prompts)][1].items()}

    def _samples(self, prompts: Prepared, rollout: Rollout, row_B: Array, places_B: Int[np.ndarray, "B"]) -> list[Sample]:
        """The samples of this process."""
        held_B = hosts.own_rows(len(row_B), self._mesh)
        read = rollout.tokens_BT, rollout.response_mask_BR, rollout.ended_B, row_B
        tokens_BT, mask_BR, ended_B, row_B = (array[np.isin(held_B, places_B)] for array in hosts.local_rows(read))
        tokens_BR = tokens_BT[:, -mask_BR.shape[1] :]
        return [
            sample(
                prompts.examples[row], prompts.codec.spoken(tokens_R[mask_R].tolist()), bool(ended), int(row), int(mask_R.sum())
            )
            for tokens_R, mask_R, ended, row in zip(tokens_BR, mask_BR, ended_B, row_B, strict=True)
        ]

    def _own(self, samples: list[Sample], about_B: Mapping[str, Bool[np.ndarray, "B"]]) -> Float[np.ndarray, "U B"]:
        """Scores of this process's samples: what is known of them, and the rest by calls; NaN of those that a constraint is not about."""
        everywhere = [True] * len(samples)
        known = [
            [
                self._cache.get(function.identity, one.content) if about else math.nan
                for one, about in zip(samples, about_B.get(function.score, everywhere))
            ]
            for function in self._functions
        ]
        wanted = [[place for place, score in enumerate(row) if score is None] for row in known]
        found = call.scores(self._functions, wanted, samples, self._settings)
        for (number, place), score in found.items():
            known[number][place] = score
        return np.asarray(known, np.float32).reshape(len(self._functions), len(samples))

    def _summed(self, score_UB: Float[np.ndarray, "U B"], about_B: Mapping[str, Bool[np.ndarray, "B"]]) -> Scores:
        """The sums, and what each function gave."""
        sums: dict[str, np.ndarray] = {key: np.where(holds_B, 0.0, np.nan) for key, holds_B in about_B.items()}
        for function, score_B in zip(self._functions, score_UB):
            weighted_B = function.weight * score_B.astype(np.float64)
            sums[function.score] = sums.get(function.score, 0.0) + weighted_B
        each = {f"{function.score}.{function.name}": score_B for function, score_B in zip(self._functions, score_UB)}
        return Scores({name: sum_B.astype(np.float32) for name, sum_B in sums.items()}, each)


def scorer(settings: PPOLagConfig, functions: Sequence[Function], started: Started) -> Scorer:
    """The scorer of a run, with its cache in the workdir. Says what is summed, and which scores cannot be kept.

    Raises:
        UserError: the cache is damaged.
    """
    hosts.say(f"{settings.stage}: {load.describe(settings)}")
    path, identities = started.workdir / IDENTITIES, {function.place: function.identity for function in functions}
    if path.is_file() and started.manager.steps():
        for place, identity in files.read_json(path).items():
            if identities.get(place) != identity:
                hosts.say(f"warning: {place} is not what it was when this run was started: its iterations so far are by that")
    hosts.barrier(f"{path} is read")
    write_json(path, identities)
    if settings.functions.reward_cache:
        for place in (function.place for function in functions if function.identity is None):
            hosts.say(f"{place} does not tell its content: its scores are not kept, and it is called anew for the same sample")
    cache = Cache(started.workdir / FILE if settings.functions.reward_cache and functions else None)
    about = {key: one.where for key, one in settings.costs.items() if one.where}
    return Scorer(functions, settings.functions, cache, started.mesh, about)


def in_iteration(
    scorer: Scorer, prompts: Prepared, mesh: Mesh
) -> Callable[[Rollout, Array], tuple[dict[str, Array], dict[str, float]]]:
    """(rollout, rows) -> the sums on the devices, and the mean of each function for the log."""
    rows = hosts.row_sharding(mesh)

    def score(rollout: Rollout, row_B: Array) -> tuple[dict[str, Array], dict[str, float]]:
        scores = scorer(prompts, rollout, row_B)
        sums = {name: jax.make_array_from_callback(sum_B.shape, rows, sum_B.__getitem__) for name, sum_B in scores.sums.items()}
        means = {name: score_B[~np.isnan(score_B)].astype(np.float64) for name, score_B in scores.each.items()}
        return sums, {name: float(score_B.mean()) if score_B.size else 0.0 for name, score_B in means.items()}

    return score
