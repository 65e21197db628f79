"""The roles, loaded: parameter trees by name, of which some are trained.

A critic starts as a copy of the scorer. Of a score that functions alone make there is none: its critic starts with a fresh head, on
the backbone of the scorer of the other score, or on the policy's.
"""

import re
from pathlib import Path
from typing import NamedTuple

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.data import templates
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import calibrations, peft
from srlhfv_jax.hf.heads import load_guard, load_heads
from srlhfv_jax.hf.load import Pretrained, backbone_name, checkpoint_folder
from srlhfv_jax.losses.calibration import Calibration
from srlhfv_jax.models import score_heads
from srlhfv_jax.models.trees import BASE, complete, with_backbone
from srlhfv_jax.parallel import hosts, offload, rules
from srlhfv_jax.ppo_lag import roles
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.training import state as states

UNSAFE = "unsafe"  # a guard's head of severities, at its first level


class Models(NamedTuple):
    """The roles, loaded: trees by name, of which some are trained."""

    policy: Pretrained  # as loaded: its config, processor and path are those of every role
    places: dict[str, roles.Place]
    trained: dict[str, dict]
    frozen: dict[str, dict]  # where roles share one backbone, BASE among them
    own_towers: frozenset[str]  # trees whose vision tower differs from the policy's
    calibration: Calibration | None = None  # of the cost head, where a constraint is calibrated

    @property
    def base(self) -> dict | None:
        """The backbone under trees that hold adapters."""
        return self.frozen[BASE]["backbone"] if BASE in self.frozen else None

    def backbone(self, tree: dict) -> dict:
        """The backbone of a tree, with its adapter over it if it has one."""
        return with_backbone(self.base, tree)["backbone"]


def load_models(settings: PPOLagConfig, mesh) -> Models:
    """Load every role. Trained trees get buffers of their own. Frozen backbones are kept in the dtype that is computed in."""
    places = roles.of_settings(settings)
    policy, trained, frozen = (_load_adapters if settings.sharing == "adapters" else _load_backbones)(settings, mesh)
    trained = checkpoints.copy(rules.place(trained, mesh))
    base = {BASE: frozen[BASE]} if BASE in frozen else {}
    groups = roles.tower_groups(complete(base | trained | frozen))
    own_towers = frozenset(name for name, first in groups.items() if first != groups["policy"])
    if own_towers:
        hosts.say(f"ppo_lag: {', '.join(sorted(own_towers))} run a vision tower of their own: it differs from the policy's")
    frozen = {name: checkpoints.frozen_in(settings.model.dtype, tree) for name, tree in frozen.items()}
    templates.override(policy.processor, settings.data.chat_template)
    models = Models(policy._replace(params={}, adapter=None), places, trained, frozen, own_towers, load_calibration(settings))
    names = idle_trees(settings, models)
    return models._replace(trained=offload.rest(trained, names), frozen=offload.rest(frozen, names))


def load_calibration(settings: PPOLagConfig) -> Calibration | None:
    """P(unsafe | C) beside the cost head; None where no constraint asks for it.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not any(constraint.settings.calibrated for constraint in settings.costs.values()):
        return None
    return calibrations.required(calibrated_folder(settings), "config.constraint.calibrated")


def calibrated_folder(settings: PPOLagConfig) -> Path:
    """The checkpoint of the cost head, which has the calibration beside it."""
    return checkpoint_folder((settings.cost if settings.sharing == "separate" else "") or settings.scorer)


def idle_trees(settings: PPOLagConfig, models: Models) -> frozenset[str]:
    """The trees that lie in the host's memory while nothing reads them: with "idle" all that a rollout has no use for."""
    if settings.rollout.offload != "idle":
        return frozenset()
    return frozenset(models.trained | models.frozen) - {"policy", BASE}


def _load_backbones(settings: PPOLagConfig, mesh) -> tuple[Pretrained, dict, dict]:
    """(the policy's checkpoint, trained trees, frozen trees), each with a backbone of its own."""

    def load(path: str) -> Pretrained:
        if path not in loaded:
            loaded[path] = checkpoints.load(path, settings.model, mesh)
            checkpoints.refuse_activated(loaded[path])
        return loaded[path]

    def scorer(path: str, *names: str) -> dict:
        model = load(path)
        return {"backbone": model.params, "heads": _heads(path, model.heads, *names)}

    loaded: dict[str, Pretrained] = {}
    policy = load(settings.policy)
    frozen = {}
    if settings.keeps_reference:
        frozen["reference"] = {"backbone": load(settings.reference or settings.policy).params}
    start = {"backbone": policy.params, "heads": {}}  # of a critic without a scorer
    trained = {"policy": {"backbone": policy.params}}
    if settings.guarded:
        frozen["guard"] = {"backbone": load(settings.guard).params, "heads": guard_heads(settings, policy, mesh)}
    if settings.sharing == "shared":
        if settings.heads:
            frozen["scorer"] = scorer(settings.scorer, *settings.heads)
        if settings.ppo.has_critics:
            trained["critic"] = _critic(settings, policy, frozen.get("scorer", start), *settings.scores)
    else:
        for name in settings.heads:
            frozen[name] = scorer((settings.reward if name == "reward" else settings.cost) or settings.scorer, name)
        for name, predicted in (("reward", ("reward",)), ("cost", settings.scores[1:])) if settings.ppo.has_critics else ():
            trained[roles.critic(name)] = _critic(settings, policy, frozen.get(name, start), *predicted)
    for path, model in loaded.items():
        if model.config != policy.config:
            raise UserError(
                f"{path} has another architecture than the policy {settings.policy}: all roles share one tokenizer and shape"
            )
    return policy, trained, frozen


def _load_adapters(settings: PPOLagConfig, mesh) -> tuple[Pretrained, dict, dict]:
    """The same with one backbone for all: the one that the policy's adapter lies over, or the policy itself."""
    lora = settings.lora
    policy = checkpoints.load(
        settings.policy,
        settings.model,
        mesh,
        keep_adapter=True,
        int8=lora.int8,
        activated=lora.activated,
        chat_template=settings.data.chat_template,
    )

    def adapter(path: str) -> dict:
        """The adapter of a checkpoint over the same backbone; {} if the checkpoint is that backbone itself."""
        found = backbone_name(path)
        if found != policy.base:
            raise UserError(
                f"{path} stands on {found} and the policy on {policy.base}: with sharing=adapters all roles are adapters over "
                "one backbone, trained with config.lora.rank above 0"
            )
        folder = checkpoint_folder(path)
        if not peft.is_adapter(folder):
            return {}
        if peft.activation(folder) != policy.config.activation:
            raise UserError(
                f"the adapters of {path} are activated by the tokens {list(peft.activation(folder))} and those of the policy by "
                f"{list(policy.config.activation)} ([]: they act everywhere): train all with one config.lora.activated"
            )
        return peft.read(folder, policy.config, mesh)

    frozen = {BASE: {"backbone": policy.params}}
    if settings.heads:
        scored = load_heads(policy.config, checkpoint_folder(settings.scorer), mesh)
        frozen["scorer"] = {"adapter": adapter(settings.scorer), "heads": _heads(settings.scorer, scored, *settings.heads)}
        if settings.ppo.has_critics and not frozen["scorer"]["adapter"]:
            raise UserError(
                f"{settings.scorer} has no adapter for the critic to start from: train it with config.lora.rank above 0"
            )
    if settings.guarded:
        frozen["guard"] = {"adapter": adapter(settings.guard), "heads": guard_heads(settings, policy, mesh)}
    if settings.keeps_reference:
        frozen["reference"] = {"adapter": adapter(settings.reference or settings.policy)}
    start = policy.adapter
    if start is None:
        key = states.key(settings.seed, 0, "adapter")
        start = checkpoints.fresh_adapter(settings.lora, policy, mesh, key)
    elif lora.rank:
        checkpoints.check_adapter(lora, policy)
    trained = {"policy": {"adapter": start}}
    if settings.ppo.has_critics:
        trained["critic"] = _critic(settings, policy, frozen.get("scorer", {"adapter": start, "heads": {}}), *settings.scores)
    return policy, trained, frozen


def _critic(settings: PPOLagConfig, policy: Pretrained, start: dict, *names: str) -> dict:
    """A critic's tree: that of a scorer, with fresh heads for scores that it has no head of. The first rollout fits them all."""
    fresh = score_heads.init(policy.config, settings.scores, states.key(settings.seed, 0, "heads"))
    return score_heads.critic(start | {"heads": {name: start["heads"].get(name, fresh[name]) for name in names}})


def guard_heads(settings: PPOLagConfig, policy: Pretrained, mesh) -> dict[str, dict]:
    """The heads of a guard that are terms of a cost, as score heads: log-odds that an answer is unsafe, or does the harm of a category.

    Raises:
        UserError: as `load_guard`.
    """
    heads, about = load_guard(policy.config, checkpoint_folder(settings.guard), None)
    severity, categories = heads["severity"], heads["categories"]
    rows = {category_name(name): row for row, name in enumerate(about["categories"])}

    def head(name: str) -> dict:
        if name == UNSAFE:
            return {"kernel": severity["kernel"], "bias": severity["bias"][0]}
        return {"kernel": categories["kernel"][rows[name]], "bias": categories["bias"][rows[name]]}

    return rules.place({"heads": {f"guard_{name}": head(name) for name in settings.guarded}}, mesh)["heads"]


def category_name(category: str) -> str:
    """A category as terms name it: "hate_speech,offensive_language" is hate_speech_offensive_language."""
    return re.sub(r"\W+", "_", category.strip().lower())


def _heads(path: str, found: dict, *names: str) -> dict:
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path} has no {missing[0]} head (it has {sorted(found) or 'none'}): give the workdir of srlhfv scores")
    return {name: found[name] for name in names}
