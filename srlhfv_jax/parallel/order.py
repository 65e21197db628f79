"""Evaluation order on CPU. Results never change; only peak memory does."""

from typing import TypeVar

import jax

from srlhfv_jax.parallel import mesh

Tree = TypeVar("Tree")


def barrier_on_cpu(tree: Tree) -> Tree:
    """The same values, all of them computed before anything that reads one of them.

    On CPU alone, where XLA computes in an order of its own what does not wait for something, and again what is cheap: a TPU's
    compiler orders by memory itself, and needs more of it with a barrier.
    """
    return jax.lax.optimization_barrier(tree) if on_cpu() else tree


def on_cpu() -> bool:
    """Whether what is traced now is for CPUs."""
    device = mesh.target_device()
    return device is not None and device.platform == "cpu"
