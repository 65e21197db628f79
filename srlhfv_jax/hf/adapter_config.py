"""adapter_config.json of PEFT: every setting of a LoRA is honoured here, changes nothing of what is computed, or is refused by name."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax.errors import UserError, reason, shown
from srlhfv_jax.files import described, fits, read_json

CONFIG = "adapter_config.json"
ACTIVATION = "alora_invocation_tokens"
NUMBERS = dict[str, int | float]
HONOURED = {
    "peft_type": str,
    "base_model_name_or_path": str,
    "revision": str | None,  # of the backbone on the hub
    "r": int,
    "lora_alpha": float,
    "rank_pattern": dict[str, int] | None,
    "alpha_pattern": dict[str, float] | None,
    "use_rslora": bool,
    "target_modules": list[str] | str | None,
    "exclude_modules": list[str] | str | None,
    "layers_to_transform": list[int] | int | None,
    "layers_pattern": list[str] | str | None,
    ACTIVATION: list[int] | None,
}
# They say how an adapter was begun, trained or stored. fan_in_fan_out: PEFT turns it off over the linear layers of these families.
WITHOUT_EFFECT = (
    *("auto_mapping", "peft_version", "task_type", "inference_mode", "lora_dropout", "fan_in_fan_out", "runtime_config"),
    *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("qalora_group_size", "ensure_weight_tying"),
)
# These let the backbone as it is. The others ("pissa", "olora", "corda", "loftq", ...) subtract the adapter from it on loading.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
TINY, HUGE = 2.0**-126, 2.0**127  # normal numbers of float32
NOTHING = (None, False, 0, "", [], {})


class Settings(NamedTuple):
    """The fields of an adapter_config.json that decide what its tensors mean."""

    origin: str
    base: str  # the checkpoint that it lies over: a folder, or a hub id, then with "@" and a revision if it names one
    rank: int
    alpha: float
    ranks: dict[str, int]  # of modules that a regular expression matches
    alphas: dict[str, float]
    rooted: bool  # scaled by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski, arXiv 2312.03732)
    targets: list[str] | str | None  # names, or a regular expression; None: not said
    excluded: list[str] | str
    layers: tuple[int, ...]  # (): all
    layer_lists: tuple[str, ...]  # what the list of these layers is called
    activation: tuple[int, ...]  # the tokens from which on it acts; (): it acts on all


def read(folder: Path) -> Settings:
    """The settings of an adapter.

    Raises:
        UserError: not a LoRA, or a setting of the wrong type or out of its range, or one that is not supported.
    """
    path = folder / CONFIG
    fields, origin = read_json(path), str(path)
    _check(fields, origin)
    if not fields.get("base_model_name_or_path"):
        raise UserError(f"{path} does not say base_model_name_or_path: which checkpoint does the adapter lie over?")
    revision, layers, lists = (fields.get(name) for name in ("revision", "layers_to_transform", "layers_pattern"))
    return Settings(
        origin=origin,
        base=fields["base_model_name_or_path"] + (f"@{revision}" if revision else ""),
        rank=fields["r"],
        alpha=fields["lora_alpha"],
        ranks=fields.get("rank_pattern") or {},
        alphas=fields.get("alpha_pattern") or {},
        rooted=fields.get("use_rslora", False),
        targets=fields.get("target_modules"),
        excluded=fields.get("exclude_modules") or [],
        layers=(layers,) if isinstance(layers, int) else tuple(layers or ()),
        layer_lists=(lists,) if isinstance(lists, str) and lists else tuple(lists or ()),
        activation=tuple(fields.get(ACTIVATION) or ()),
    )


def _check(fields: dict[str, Any], origin: str) -> None:
    for name, kind in HONOURED.items():
        if name in fields and not fits(fields[name], kind):
            raise UserError(f"{origin}: {name} must be {described(kind)}, got {shown(fields[name])}")
    for name, value in fields.items():
        plain = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": BEGINNINGS}.get(name, NOTHING)
        if value not in plain and (name not in HONOURED and name not in WITHOUT_EFFECT or name == "peft_type"):
            raise UserError(f"{origin}: {name} is {shown(value)}, which is not supported: only plain LoRA adapters are read")
    for name in ("r", "lora_alpha"):
        if not fields.get(name, 0) > 0:
            raise UserError(f"{origin}: {name} must be a positive number, got {shown(fields.get(name))}")
    for name in ("rank_pattern", "alpha_pattern"):
        if any(not value > 0 for value in (fields.get(name) or {}).values()):
            raise UserError(f"{origin}: {name} must have positive numbers, got {shown(fields[name])}")
    if any(token < 0 for token in fields.get(ACTIVATION) or ()):
        raise UserError(f"{origin}: {ACTIVATION} must be token ids, got {shown(fields[ACTIVATION])}")


def rank_and_scale(settings: Settings, module: Iterable[str]) -> tuple[int, float]:
    """Rank and scale of the adapter over a module, which is given by each of its names.

    Raises:
        UserError: the scale is 0 or infinite in float32.
    """
    rank = next(_matching(settings.ranks, module, settings.origin), settings.rank)
    alpha = next(_matching(settings.alphas, module, settings.origin), settings.alpha)
    scale = alpha / (math.sqrt(rank) if settings.rooted else rank)
    if not TINY <= scale <= HUGE:
        raise UserError(f"{settings.origin}: lora_alpha {alpha} with rank {shown(rank)} is a scale that float32 does not hold")
    return rank, scale


def targeted(settings: Settings, module: Iterable[str]) -> bool | None:
    """Whether there is an adapter over a module, by what PEFT goes by; None: the settings do not say.

    Args:
        module: each of its names.
    """
    if settings.targets is None:
        return None
    if any(_named(settings.excluded, name, settings.origin) for name in module):
        return False
    if settings.targets != "all-linear" and not any(_named(settings.targets, name, settings.origin) for name in module):
        return False
    if not settings.layers or isinstance(settings.targets, str):
        return True
    patterns = [rf"(?:^|.*?\.){one}\.(\d+)\." for one in settings.layer_lists] or [r".*?\.[^.]*\.(\d+)\."]
    numbers = [found[1] for name in module for one in patterns if (found := _match(one, name, settings.origin))]
    return bool(numbers) and int(numbers[0]) in settings.layers


def _matching(pattern: dict[str, Any], module: Iterable[str], origin: str):
    return (value for name in module for key, value in pattern.items() if _match(rf"(.*\.)?({key})$", name, origin))


def _named(names: list[str] | str, module: str, origin: str) -> bool:
    if isinstance(names, str):
        return bool(names) and bool(_match(rf"(?:{names})\Z", module, origin))
    return any(module == name or module.endswith(f".{name}") for name in names)


def _match(pattern: str, text: str, origin: str) -> re.Match | None:
    try:
        return re.match(pattern, text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{origin}: {shown(pattern)} is no regular expression ({reason(error)})") from None
