"""Rows in parts, one part after the other: what a function gives does not change, only how much of it is in memory at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import rules

Tree = TypeVar("Tree")


def split(batch: Tree, parts: int) -> Tree:
    """[B, ...] -> [parts, B / parts, ...]; part i takes the rows i, i + parts, ...

    Strided, because rows are split over devices in contiguous blocks: every device has its share of every part, and no row moves.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch)


def join(batch: Tree) -> Tree:
    """[parts, B / parts, ...] -> [B, ...]: `split` undone."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), batch)


def repeat(batch: Tree, times: int) -> Tree:
    """[B, ...] -> [B * times, ...]: each row so many times, as neighbours, on the device that it is on."""
    return batch if times == 1 else jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), batch)


def over_rows(function: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """`function` of a batch, where each row of what it gives depends on the same row of the batch alone."""
    if parts == 1:
        return function(batch)
    return join(jax.lax.map(lambda part: function(rules.keep_rows(part)), split(batch, parts)))


def check(rows: int, parts: int, name: str) -> None:
    """Raise UserError unless `parts`, the setting `name`, divides `rows`."""
    if parts < 1 or rows % parts:
        raise UserError(f"{name} {parts} must divide the {rows} rows that it makes parts of: change it, or the batch size")
