"""One PPO-Lagrangian iteration on tiny models, as a library for tests: `Iteration.calls` is driven with a rollout that is given.

Its optimizers are AdamW without memory and with eps = 1: a parameter moves by -rate * g / (|g| + 1), close to plain descent.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tiny_stages import settings
from tiny_vlm import CONFIG, VOCABULARY, backbone, prompts, scorer

from srlhfv_jax.batches import Experience, Images, PromptBatch, Rollout, SupervisedBatch
from srlhfv_jax.config import MeshConfig, PPOLagConfig
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import complete
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.ppo_lag import experience, roles
from srlhfv_jax.ppo_lag.iteration import Call, Iteration, drive
from srlhfv_jax.ppo_lag.load import Models
from srlhfv_jax.ppo_lag.static import Static
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.training.state import TrainState

R = 7
RATE = 0.05
OPTIMIZER = dict(learning_rate=RATE, schedule="constant", warmup_fraction=0.0, b1=0.0, b2=0.0, eps=1.0, clip_norm=0.0, freeze=())
SETTINGS = {
    "critic_warmup_rate": RATE,
    "ppo.kl_coef": 0.13,
    "ppo.gae_lambda": 0.95,
    "ppo.clip_ratio": 0.2,
    "ppo.clip_value": 5.0,
    "ppo.epochs": 1,
    "ppo.minibatches": 1,
    "ppo.reduction": "token",
    "ppo.missing_eos_penalty": 0.3,
    "constraint.kind": "mean",
    "constraint.budget": -0.2,
    "constraint.controller": "projected",
    "constraint.init": 0.7,
    "constraint.learning_rate": 0.3,
    "constraint.window": 16,
}
SETTINGS |= {f"{tree}_optimizer.{name}": value for tree in ("policy", "critic") for name, value in OPTIMIZER.items()}


class Step(NamedTuple):
    """What one iteration leaves."""

    experience: Experience
    state: TrainState
    metrics: dict[str, Any]

    @property
    def params(self) -> dict[str, dict]:
        return self.state.params


def static(sharing: str = "shared", model: VLMConfig = CONFIG, **changes: Any) -> Static:
    """Where the model has eyes, every tree but the policy has a tower of its own."""
    known = settings(PPOLagConfig, "ppo_lag", **SETTINGS | {"sharing": sharing} | changes)
    own_towers = frozenset(models(sharing)) - {"policy"} if model.vision else frozenset()
    return Static(known, model, roles.of_settings(known), own_towers, VOCABULARY)


def models(sharing: str = "shared") -> dict[str, dict]:
    """Trees of every role: the policy has moved away from the reference, the critics are not the scorer."""
    trees = {"policy": {"backbone": drawn(0)}, "reference": {"backbone": drawn(10)}}
    if sharing == "shared":
        return trees | {"scorer": drawn(20, True), "critic": drawn(30, True)}
    for name, seed, head in (
        ("reward", 20, "reward"),
        ("cost", 20, "cost"),
        ("reward_critic", 30, "reward"),
        ("cost_critic", 30, "cost"),
    ):
        tree = drawn(seed, True)
        trees[name] = {"backbone": tree["backbone"], "heads": {head: tree["heads"][head]}}
    return trees


@functools.cache
def drawn(seed: int, heads: bool = False) -> dict:
    return jax.tree.map(np.asarray, scorer(seed) if heads else backbone(seed))


@functools.cache
def rolled() -> tuple[PromptBatch, Rollout]:
    batch = prompts(rows=8)
    run = jax.jit(functools.partial(generate, CONFIG, response_length=R, vocabulary=VOCABULARY))
    return batch, run(drawn(0), batch, jax.random.key(2))


def iteration(known: Static, trees: dict[str, dict], mesh: Mesh) -> Iteration:
    """The iteration of these trees, which stay as they are."""
    placed = checkpoints.copy(rules.place(trees, mesh))
    trained = {name: placed.pop(name) for name in roles.trained_trees(known.places)}
    policy = Pretrained(known.model, params={}, heads={}, processor=None, path=Path())
    given = Models(policy, known.places, trained, placed, known.own_towers, known.calibration)
    return Iteration(known.settings, given, mesh, VOCABULARY)


def step(
    known: Static,
    rollout: Rollout,
    images: Images | None,
    trees: dict[str, dict],
    *,
    ptx: SupervisedBatch | None = None,
    mesh: Mesh | None = None,
    streams: bool = False,
    warming: bool = False,
) -> Step:
    """The first iteration of a run with this rollout.

    Args:
        streams: score with them, though one gradient step needs none.
    """
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1)) if mesh is None else mesh
    with jax.set_mesh(mesh):
        one = iteration(known, trees, mesh)
        batch = prompts(rows=len(rollout.ended_B))._replace(images=images)
        batch, rollout, ptx = hosts.global_batch(jax.tree.map(np.asarray, (batch, rollout, ptx)), mesh)
        scored = None

        def run(call: Call) -> Any:
            nonlocal scored
            if call.name in ("reshard", "generate"):
                return rollout
            result = call.function(*call.arguments)
            if call.name == "score":
                scored, *rest = result
                if streams:
                    score = jax.jit(functools.partial(experience.score, known, streams=True))
                    scored = score(complete(one.models.frozen | state.params), rollout, batch.images)
                result = scored, *rest
            return result

        state = one.initial_state()
        after, metrics = drive(one.calls(state, batch, ptx, one.keys(0), warming=warming), run)
    return Step(scored, after, metrics)
