"""A training run of a hundred parameters with everything a stage has: loader position, keys, decay, a frozen part, evaluation.

Imported by tests, and run as a process of its own that ends itself where it is told to:

    python tests/tiny_training.py WORKDIR [--kill=WHERE:STEP]      WHERE = seal or evaluate (SIGKILL), or term (SIGTERM)
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from srlhfv_jax.checkpoint import manifest
from srlhfv_jax.checkpoint.manager import Manager
from srlhfv_jax.config import MeshConfig, OptimizerConfig
from srlhfv_jax.losses.masked import Loss
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.training import loop, metrics, optimizer, state, step

STEPS = 10
ROWS = 8
OPTIMIZER = OptimizerConfig(
    learning_rate=3e-2,
    head_learning_rate=0.0,
    schedule="cosine",
    warmup_fraction=0.2,
    algorithm="adamw",
    weight_decay=0.1,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip_norm=0.7,
    freeze=("projector/linear_2",),
    part_rates=(),
    frozen_units="",
    only_units="",
)
SETTINGS = {"seed": 3, "optimizer": {"learning_rate": 3e-2}, "log": {"every_steps": 1}}


class Batches:
    """Rows made from their index alone."""

    def __init__(self, end: int | None = None, how: int = 0) -> None:
        self.position = 0
        self._end = (end, how)  # at which batch, with which signal

    def __next__(self) -> np.ndarray:
        self.position += 1
        if self.position == self._end[0]:
            os.kill(os.getpid(), self._end[1])
        return np.random.default_rng(self.position).normal(size=(ROWS, 6)).astype(np.float32)

    def get_state(self) -> dict:
        return {"position": self.position}

    def set_state(self, state: dict) -> None:
        self.position = state["position"]


def initial() -> dict:
    """Parameters whose paths the sharding rules know."""
    keys = jax.random.split(jax.random.key(7), 3)
    return {
        "text": {"embed": {"embedding": jax.random.normal(keys[0], (6, 4))}, "norm": {"scale": jnp.full(4, 1.3)}},
        "projector": {
            "linear_1": {"kernel": jax.random.normal(keys[1], (8, 4)), "bias": jnp.zeros(8)},
            "linear_2": {"kernel": jax.random.normal(keys[2], (8, 2)) / 3},
        },
    }


def loss(params, x):
    """A two-layer regression on a fixed function of the row; a row with a negative first entry weighs 0.3."""
    weight = jnp.where(x[:, 0] < 0, 0.3, 1.0)
    hidden = (x @ params["text"]["embed"]["embedding"]) * params["text"]["norm"]["scale"][None, :]
    first, second = params["projector"]["linear_1"], params["projector"]["linear_2"]
    out = jnp.tanh(hidden @ first["kernel"].T + first["bias"][None, :]) @ second["kernel"]
    error = jnp.sum((out - jnp.sin(x[:, :2])) ** 2, axis=1)
    metrics = {"plain_error": (jnp.sum(error), jnp.float32(len(error)))}
    return Loss(jnp.sum(weight * error), jnp.sum(weight), metrics, rows={"out": out})


@functools.cache
def update_of(microbatches: int = 2):
    """(optimizer, jitted and donated training step), compiled once per mesh."""
    transform = optimizer.make(OPTIMIZER, initial(), STEPS)
    trainable = optimizer.trainable(OPTIMIZER, initial())

    def update(current, x):
        noise = 0.05 * jax.random.normal(state.key(3, current.step, "rollout"), x.shape)
        grads, numbers, _ = step.accumulate(loss, current.params, x + noise, microbatches, trainable)
        params, opt_state, norm = step.apply_updates(transform, current.params, current.opt_state, grads)
        return state.TrainState(params, opt_state, current.step + 1, current.extra * 1.1), numbers | norm

    return transform, jax.jit(update, donate_argnums=0)


def train(
    workdir: Path,
    mesh,
    *,
    steps=STEPS,
    batches=None,
    evaluate=None,
    every=3,
    evaluate_every=4,
    change=None,
    stop=None,
    export=None,
    best=None,
    evaluate_first=False,
):
    """Run to `steps`, resuming; returns (final state as NumPy, notes). `change(step_fn)` may wrap the step."""
    jax.set_mesh(mesh)
    params = rules.place(initial(), mesh)
    transform, update = update_of()
    step_fn = update if change is None else change(update)
    notes = {"best": None}

    def judge(current, step):
        value = float(jnp.sum(current.params["text"]["embed"]["embedding"] ** 2))
        if notes["best"] is None or value < notes["best"]:
            notes["best"] = value
        return {"size": value}

    final = loop.run(
        name="tiny",
        step_fn=lambda current, x: step_fn(current, hosts.global_batch(x[hosts.own_rows(ROWS, mesh)], mesh)),
        state=state.create(params, transform, mesh, extra=jnp.float32(0.37)),
        batches=Batches() if batches is None else batches,
        total_steps=steps,
        manager=Manager(workdir, every, 2, SETTINGS),
        writer=metrics.Writer(workdir),
        evaluate=judge if evaluate is None else evaluate,
        evaluate_every=evaluate_every,
        stop=stop,
        notes=notes,
        export=export,
        best=best,
        evaluate_first=evaluate_first,
    )
    return hosts.to_host(final), notes


def rows(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def main(workdir: str, kill: str = "--kill=never:0") -> None:
    where, at = kill.removeprefix("--kill=").split(":")
    at = int(at)

    def die_in_evaluation(current, step):
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"size": float(jnp.sum(current.params["text"]["embed"]["embedding"] ** 2))}

    def die_while_sealing(folder, target):
        if int(folder.name) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder, target)

    write = manifest.write
    if where == "seal":
        manifest.write = die_while_sealing
    hosts.initialize()
    train(
        Path(workdir),
        make_mesh(MeshConfig(data=-1 if jax.process_count() > 1 else 1, fsdp=1, tensor=1)),
        batches=Batches(at, signal.SIGTERM) if where == "term" else Batches(),
        evaluate=die_in_evaluation,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
