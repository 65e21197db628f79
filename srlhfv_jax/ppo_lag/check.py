"""Refusals of settings of PPO-Lagrangian before a model is loaded."""

import math
import re

from jax.sharding import Mesh

from srlhfv_jax.config import ConstraintConfig, PPOConfig, PPOLagConfig, unread
from srlhfv_jax.config.base import value_at
from srlhfv_jax.config.constraints import Constraint
from srlhfv_jax.config.terms import MODEL
from srlhfv_jax.errors import UserError, nearest, shown
from srlhfv_jax.hf import calibrations, heads
from srlhfv_jax.hf.load import checkpoint_folder
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.parallel import hosts, microbatches
from srlhfv_jax.parallel.mesh import row_shards
from srlhfv_jax.ppo_lag import load
from srlhfv_jax.runs import checkpoints

FLOORS = 2  # a budget of so many times what the scorer says of the safest answers leaves room for others


def check(settings: PPOLagConfig) -> None:
    """Everything about the settings that can be refused before a model is loaded."""
    check_lora(settings)
    unread.check(settings)
    check_constraints(settings)
    check_warm_start(settings)
    check_groups(settings)
    check_clips(settings.ppo)
    check_reference(settings)
    if settings.ppo.overlong > settings.data.response_length:
        raise UserError(
            f"config.ppo.overlong {settings.ppo.overlong} must be at most config.data.response_length {settings.data.response_length}"
        )
    check_parts(settings)
    for name, optimizer in (("policy", settings.policy_optimizer), ("critic", settings.critic_optimizer)):
        if not any(re.search(pattern, "backbone/vision/x") for pattern in optimizer.freeze):
            raise UserError(
                f"config.{name}_optimizer.freeze must hold 'vision/': image features are computed once per rollout and shared by the roles"
            )
    if settings.sharing != "separate" and settings.heads and not settings.scorer:
        raise UserError(
            "config.scorer is empty: expected the workdir or export of srlhfv scores (or sharing=separate with reward and cost, or "
            "functions in config.reward_fn and config.cost_fn)"
        )
    if settings.guarded and not settings.guard:
        raise UserError("config.guard is empty: expected the workdir or export of srlhfv guard, whose heads are costs here")
    if not settings.policy:
        raise UserError("config.policy is empty: expected the workdir or export of srlhfv sft, or a Hugging Face folder")


def check_checkpoints(settings: PPOLagConfig) -> None:
    """Open every checkpoint, without reading its weights."""
    check_calibration(settings)
    check_guard(settings)
    named = {"policy": settings.policy, "reference": settings.reference, "scorer": settings.scorer}
    for name, path in (named | {"reward": settings.reward, "cost": settings.cost}).items():
        checkpoints.refuse_revised(path, f"config.{name}")
    checkpoints.check_checkpoint(settings.policy, "config.policy")
    checkpoints.check_units(settings.policy_optimizer, settings.policy)
    if settings.reference and settings.keeps_reference:
        checkpoints.check_checkpoint(settings.reference, "config.reference")
    if settings.sharing != "separate":
        if settings.heads:
            checkpoints.check_checkpoint(settings.scorer, "config.scorer", *settings.heads)
        return
    for head in settings.heads:
        path = settings.reward if head == "reward" else settings.cost
        checkpoints.check_checkpoint(path or settings.scorer, f"config.{head if path else 'scorer'}", head)


def check_calibration(settings: PPOLagConfig) -> None:
    """Raise UserError unless a calibrated cost is that of the head alone, which is what was calibrated, and has a calibration. Warn of a
    budget that only declining can meet."""
    for constraint in settings.costs.values():
        if constraint.settings.calibrated and [(term.name, term.weight) for term in constraint.terms] != [(MODEL, 1)]:
            raise UserError(
                f"{_path(settings, constraint)}.calibrated is about the cost head by itself, and {constraint.place} is something else: "
                "calibrated=False, or the term 'model' alone"
            )
    if load.load_calibration(settings) is None:
        return
    floor = calibrations.floor(load.calibrated_folder(settings))
    for constraint in settings.costs.values():
        budget = constraint.settings.budget
        if constraint.settings.calibrated and budget < FLOORS * floor:
            hosts.say(
                f"warning: {_path(settings, constraint)}.budget is {budget:g}, and the scorer holds even the tenth of held-out answers that "
                f"costs least for unsafe with probability {floor:.3f}: with less than {FLOORS} times that, a policy may come to decline "
                "everything; raise the budget, or fit a better scorer"
            )


def check_guard(settings: PPOLagConfig) -> None:
    """Raise UserError unless the guard judges answers, has the categories that are costs, and is asked as in its training."""
    if not settings.guarded:
        return
    checkpoints.check_checkpoint(settings.guard, "config.guard")
    about = heads.describe_guard(checkpoint_folder(settings.guard))
    known = [load.UNSAFE, *map(load.category_name, about["categories"])]
    for name in settings.guarded:
        if name not in known:
            raise UserError(f"config.guard={settings.guard} has no category {name}; {nearest(name, known)}")
    if "output" not in about["thresholds"]:
        raise UserError(
            f"config.guard={settings.guard} judges questions only: give one that was trained with 'output' in config.parts"
        )
    data = settings.data
    pairs = {
        "system_prompt": (about.get("system_prompt", ""), data.system_prompt),
        "max_pixels": (about["max_pixels"], data.max_pixels),
    }
    for name, (value, asked) in pairs.items():
        if value != asked:
            raise UserError(
                f"config.guard={settings.guard} was trained with config.data.{name}={shown(value)}, and here it is {shown(asked)}: it "
                "reads what the policy reads"
            )


def check_constraints(settings: PPOLagConfig) -> None:
    """Raise UserError for a constraint that cannot be kept, or not as it is said to be."""
    for constraint in settings.costs.values():
        limits, path = constraint.settings, _path(settings, constraint)
        lagrangian.check(limits, path)
        if limits.controller not in ("none", "fixed"):
            check_budget(limits, path)
        if limits.window < settings.data.batch_size:
            raise UserError(
                f"{path}.window {limits.window} is smaller than a rollout, config.data.batch_size {settings.data.batch_size}: the multiplier "
                "would not see all of it; raise the window"
            )
        if limits.controller == "p3o" and settings.microbatches > 1:
            raise UserError(
                f"config.microbatches must be 1 with {path}.controller='p3o', got {settings.microbatches}: its penalty is of a whole "
                "step's mean"
            )


def check_warm_start(settings: PPOLagConfig) -> None:
    """Raise UserError for a warm start of multipliers that do not start, or whose closed form is that of another problem."""
    answers, ppo, path = settings.lambda_warm_start, settings.ppo, "config.lambda_warm_start"
    if answers == 0:
        return
    for constraint in settings.costs.values():
        controller, of = constraint.settings.controller, _path(settings, constraint)
        if controller not in ("log", "projected", "pid"):
            raise UserError(
                f"{path} is for the controllers 'log', 'projected' and 'pid', got {of}.controller={controller!r}: leave it at 0"
            )
    if answers % ppo.group_size:
        raise UserError(f"{path} {answers} must be a multiple of config.ppo.group_size {ppo.group_size}, the answers of one call")
    if ppo.kl_coef == 0:
        raise UserError(
            f"{path} needs config.ppo.kl_coef above 0: without a KL its policy is the best answer alone; leave it at 0"
        )
    scaled = {"scale_scores": "none", "whiten": "none"} | ({"group_scale": "none"} if ppo.advantage == "group" else {})
    for name, unscaled in scaled.items():
        if (value := value_at(ppo, name)) != unscaled:
            raise UserError(
                f"{path} needs config.ppo.{name}={unscaled!r}, got {value!r}: reward and cost are divided by deviations there, and lambda "
                "has another unit"
            )


def check_budget(constraint: ConstraintConfig, path: str) -> None:
    """Raise UserError for a budget that no policy can keep, or every one does."""
    low, high = {"mean": (-math.inf, math.inf), "rectified": (0.0, math.inf), "probability": (0.0, 1.0)}[constraint.kind]
    if not low <= constraint.budget <= high:
        bounds = f"from 0 to {high:g}" if high < math.inf else "at least 0"
        raise UserError(f"{path}.budget must be {bounds} with kind {constraint.kind!r}, whose mean is, got {constraint.budget}")


def _path(settings: PPOLagConfig, constraint: Constraint) -> str:
    return f"config.constraints: {constraint.name}" if settings.constraints else "config.constraint"


def check_lora(settings: PPOLagConfig) -> None:
    """Raise UserError for what roles without adapters cannot do."""
    if settings.lora.rank and settings.sharing != "adapters":
        raise UserError(
            f"config.lora.rank {settings.lora.rank} is for config.sharing='adapters', got {settings.sharing!r}, which trains whole models"
        )
    if settings.lora.int8 and settings.sharing != "adapters":
        raise UserError("config.lora.int8 is for the backbone under sharing=adapters: the others train theirs, or own it")
    if settings.lora.activated and settings.sharing != "adapters":
        raise UserError(
            f"config.lora.activated is for config.sharing='adapters', got {settings.sharing!r}: the others have no adapters"
        )


def check_groups(settings: PPOLagConfig) -> None:
    """Raise UserError unless groups have several answers each and divide the batch."""
    ppo, rows = settings.ppo, settings.data.batch_size
    if not ppo.has_critics and ppo.group_size < 2:
        raise UserError(
            f"config.ppo.group_size must be at least 2 with config.ppo.advantage={ppo.advantage!r}, got {ppo.group_size}: an answer is "
            "compared with the others to its prompt; 8 is usual"
        )
    if rows % ppo.group_size:
        raise UserError(
            f"config.data.batch_size {rows}, the answers of an iteration, must be a multiple of config.ppo.group_size {ppo.group_size}, "
            "the answers to one prompt"
        )


def check_reference(settings: PPOLagConfig) -> None:
    """Raise UserError for a reference that cannot be what it is said to be."""
    moving = settings.moving_reference
    if moving.every and moving.decay:
        raise UserError("config.moving_reference: give every or decay, not both: a copy, or a moving average")
    if moving.moves and settings.reference:
        raise UserError(
            f"config.moving_reference starts at the policy's own start: leave config.reference empty, got {settings.reference!r}"
        )


def check_clips(ppo: PPOConfig) -> None:
    """Raise UserError for bounds of the policy's loss that exclude each other."""
    if ppo.dual_clip and ppo.dual_clip <= 1:
        raise UserError(f"config.ppo.dual_clip must be above 1 (3 is usual), or 0 for none, got {ppo.dual_clip}")
    if ppo.objective == "log" and ppo.clip_ratio >= 1:
        raise UserError(
            f"config.ppo.clip_ratio must be below 1 with config.ppo.objective='log', got {ppo.clip_ratio}: log(1 - it) is a bound"
        )
    if ppo.objective == "log" and ppo.dual_clip:
        raise UserError("config.ppo.dual_clip bounds ratios: with config.ppo.objective='log' leave it at 0")


def check_rows(settings: PPOLagConfig, mesh: Mesh) -> None:
    """Raise UserError unless the rows of every part divide over the mesh."""
    for name, (rows, count) in _parts(settings).items():
        hosts.check_batch(rows // count, mesh, f"with {name} {count} a part of")
    slots, answers, devices = settings.rollout.slots, settings.ppo.group_size, row_shards(mesh)
    if slots % (devices * answers) or slots > settings.data.batch_size:
        raise UserError(
            f"config.rollout.slots must be a multiple of {devices * answers}, {answers} answers to a prompt on each of {devices} devices, and "
            f"at most config.data.batch_size {settings.data.batch_size}, got {slots}; 0 answers all prompts at once"
        )


def check_parts(settings: PPOLagConfig) -> None:
    """Raise UserError unless minibatches divide the rows, and parts of each kind theirs."""
    if settings.data.batch_size % settings.ppo.minibatches:
        raise UserError(
            f"config.data.batch_size {settings.data.batch_size} must be a multiple of config.ppo.minibatches {settings.ppo.minibatches}"
        )
    for name, (rows, count) in _parts(settings).items():
        microbatches.check(rows, count, name)


def _parts(settings: PPOLagConfig) -> dict[str, tuple[int, int]]:
    """Setting -> (rows, the parts it makes of them)."""
    rows, rollout = settings.data.batch_size, settings.rollout
    return {
        "config.microbatches": (rows // settings.ppo.minibatches, settings.microbatches),
        "config.rollout.microbatches": (settings.prompts, rollout.microbatches),
        "config.rollout.score_microbatches": (rows, rollout.score_microbatches),
    }
