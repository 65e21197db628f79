"""Record of a stage for `srlhfv plan`: how it is compiled, and the arithmetic by which its settings are searched."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.plan.programs import Plan


def undivided(settings: Any, shards: int) -> Iterator[Any]:
    """The settings of a stage that has nothing of its own to make in parts."""
    yield settings


class PlannedStage(NamedTuple):
    """One stage. Bytes are those of one device; `split` are the bytes of the decoder's weights there once fsdp's shards are gathered."""

    compile: Callable[[Any, VLMConfig, Mesh, int], Plan]  # (settings, config, mesh, limit in bytes)
    # (settings, config, devices) -> trees and optimizer states while a rollout samples, and while the update runs: exact
    state_bytes: Callable[[Any, VLMConfig, Sequence[jax.Device]], tuple[int, int]]
    passes: Callable[[Any], tuple[int, float]]  # trees that are trained, and other forward passes over every row
    sequences: Callable[[Any], int]  # of a row
    adapters: Callable[[Any], bool]  # whether adapters are trained
    minibatches: Callable[[Any], int] = lambda settings: 1  # gradient steps of a batch
    variants: Callable[[Any, int], Iterator[Any]] = (
        undivided  # (settings, shards of rows) -> settings in which its own parts differ
    )
    searched: Callable[[Any], dict[str, Any]] = lambda settings: {}  # the settings that `variants` changes, by name
    # of a rollout: copies of weights, one part's keys and values, and what is read and gathered while it decodes
    copied_bytes: Callable[[Any, VLMConfig, Sequence[jax.Device]], int] = lambda settings, config, devices: 0
    cache_bytes: Callable[[Any, VLMConfig], float] = lambda settings, config: 0
    decoding: Callable[[Any, VLMConfig, float], tuple[float, int]] = lambda settings, config, split: (0.0, 0)


def item(config: VLMConfig) -> int:
    """Bytes of a number of the decoder."""
    return 2 if config.dtype == "bfloat16" else 4


def powers(largest: int) -> list[int]:
    """1, 2, 4, ... that divide `largest`."""
    return [2**power for power in range(largest.bit_length()) if largest % 2**power == 0]
