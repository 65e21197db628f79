"""Damaged checkpoints, adapters, and heads of scores and guards."""

import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
from fault_damage import Inputs, damaged, damaged_bytes, damaged_tensors
from fault_runs import random_checkpoint
from safetensors.numpy import load_file, save_file

from srlhfv_jax.config import LoraConfig
from srlhfv_jax.data import chat
from srlhfv_jax.guard import scoring
from srlhfv_jax.guard.judge import Guard
from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.models import guard_heads, lora, score_heads
from srlhfv_jax.parallel import rules
from srlhfv_jax.runs.checkpoints import vocabulary

TARGETS = ("text/.*(q_proj|up_proj)",)
EXTREMES = (1e300, 1e-300, 1e38, 10**9)


def checkpoints(folder: Path, draw: random.Random) -> Inputs:
    """A checkpoint with damage to one of its files, loaded with its tokenizer and template."""
    good, place = random_checkpoint(folder), folder / "checkpoint"

    def use() -> None:
        loaded = load_pretrained(place)
        vocabulary(loaded)
        chat.codec(loaded.processor, 0)

    names = sorted(path.name for path in good.iterdir() if path.suffix in (".json", ".jinja", ".safetensors"))
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good, place)
        name = draw.choice(names)
        content = (place / name).read_bytes()
        if name.endswith(".json") and draw.random() < 0.8:
            done, changed = damaged(json.loads(content), draw)
            (place / name).write_text(json.dumps(changed))
        elif draw.random() < 0.1:
            (place / name).unlink()
            done = "gone"
        else:
            size = 600 if name.endswith(".safetensors") else len(content)  # of weights the header: flipped weights are weights
            done, head = damaged_bytes(content[:size], draw)
            (place / name).write_bytes(head + content[size:])
        yield f"{name} {done}", use


def adapters(folder: Path, draw: random.Random) -> Inputs:
    """An adapter with damage to its settings, its tensors, its other files, or the checkpoint that it lies over."""
    base, good, place, under = random_checkpoint(folder), folder / "adapter_good", folder / "adapter", folder / "adapter_base"
    loaded = load_pretrained(base)
    settings = LoraConfig(rank=4, alpha=8.0, targets=TARGETS, int8=False, activated=False)
    fresh = jax.tree.map(lambda leaf: leaf + 0.01, lora.init(settings, loaded.params, jax.random.key(0)))
    export_pretrained(good, loaded.config, None, base=base, adapter=fresh)
    config, weights = good / "adapter_config.json", load_file(good / "adapter_model.safetensors")
    described = json.loads(config.read_text())

    def use() -> None:
        model = load_pretrained(place, keep_adapter=True)
        numbers = [np.asarray(leaf) for leaf in jax.tree.leaves(model.adapter)]
        assert all(np.isfinite(one).all() for one in numbers), "the adapter holds numbers that are not finite"
        held = len(load_file(place / "adapter_model.safetensors")) // 2
        scales = [np.asarray(leaf) for path, leaf in rules.leaves(model.adapter) if path.endswith("lora_scale")]
        acting = sum(int(np.count_nonzero(scale)) for scale in scales)
        assert acting == held, f"{held} modules have an adapter and {acting} act"
        merged = load_pretrained(place)
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(merged.params)), (
            "merged weights are not finite"
        )

    while True:
        for old in (place, under):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(good, place)
        changed, (way,) = dict(described), draw.choices(("settings", "tensors", "bytes", "base", "beside"), (4, 3, 2, 2, 1))
        if way == "settings":
            done, changed = damaged(described, draw)
            if isinstance(changed, dict) and draw.random() < 0.1:
                name = draw.choice(("lora_alpha", "r", "rank_pattern", "alpha_pattern", "layers_to_transform", "use_rslora"))
                odd = draw.choice(EXTREMES)
                changed[name] = {"q_proj": odd} if name.endswith("pattern") else odd
                done = f"{done}; {name} -> {changed[name]}"
        elif way == "tensors":
            done, tensors = damaged_tensors(weights, draw)
            save_file(tensors, place / "adapter_model.safetensors")
        elif way == "bytes":
            victim = draw.choice(sorted(path for path in place.iterdir() if path.is_file()))
            done, content = damaged_bytes(victim.read_bytes()[:2000], draw)
            victim.write_bytes(content)
            done = f"{victim.name} {done}"
        elif way == "base":
            done = draw.choice(
                ("itself", "another adapter", "missing", "no weights", "another model", "a file", "nobody/nothing")
            )
            changed["base_model_name_or_path"] = _odd_base(done, base, good, place, under)
        else:
            name = draw.choice(
                ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "mm_projector.bin", "a.safetensors")
            )
            done, content = damaged_bytes((base / name).read_bytes() if (base / name).is_file() else b"{}", draw)
            (place / name).write_bytes(content)
            done = f"{name} beside, {done}"
        if way in ("settings", "base"):
            (place / "adapter_config.json").write_text(json.dumps(changed))
        yield f"{way}: {done}", use


def _odd_base(way: str, base: Path, good: Path, place: Path, under: Path) -> str:
    """The name of a checkpoint that an adapter cannot lie over."""
    if way in ("no weights", "another model", "a file"):
        shutil.copytree(base, under)
    if way == "no weights":
        (under / "model.safetensors").unlink()
    elif way == "another model":
        config = json.loads((under / "config.json").read_text())
        config["text_config"]["intermediate_size"] *= 2
        (under / "config.json").write_text(json.dumps(config))
    names = {"itself": place, "another adapter": good, "missing": under / "none", "a file": under / "config.json"}
    return "nobody/nothing" if way == "nobody/nothing" else str(names.get(way, under))


def heads(folder: Path, draw: random.Random) -> Inputs:
    """A checkpoint with score heads and a guard, with damage to one of their four files."""
    base, good, place = random_checkpoint(folder), folder / "heads_good", folder / "heads"
    loaded, categories = load_pretrained(base), ("violence", "privacy")
    about = {"categories": list(categories), "thresholds": {"input": 0.4, "output": 0.6}, "max_pixels": 0}
    about |= {"template": scoring.template_hash(chat.codec(loaded.processor)), "taxonomy": "own"}
    about |= {"severities": ["safe", "minor", "moderate", "severe"], "false_positive_rate": 0.05}
    export_pretrained(
        good,
        loaded.config,
        loaded.params,
        base=base,
        heads=score_heads.init(loaded.config, ("reward", "cost"), jax.random.key(0)),
        meta={"stage": "scores"},
        guard=guard_heads.init(loaded.config, len(categories), jax.random.key(1)),
        guard_meta=about,
    )
    names = [f"{name}.{kind}" for name in ("guard", "guard_heads", "score_heads") for kind in ("json", "safetensors")]
    names = [name for name in names if (good / name).is_file()]

    def use() -> None:
        model = load_pretrained(place)
        described = json.loads((place / "score_heads.json").read_text("utf-8-sig"))
        assert described["sign"].startswith("cost > 0 means unsafe"), "the heads' sign is another"
        assert sorted(model.heads) == sorted(described["heads"]) == ["cost", "reward"], f"heads {sorted(model.heads)} are used"
        judge = Guard.load(place)
        assert judge.thresholds and all(0 <= value <= 1 for value in judge.thresholds.values()), f"{judge.thresholds}"
        assert len(set(judge.categories)) == len(judge.categories), f"{judge.categories}"
        leaves = jax.tree.leaves((judge.tree["guard"], model.heads))
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves), "heads hold numbers that are not finite"
        said = json.loads((place / "guard.json").read_text("utf-8-sig"))
        assert (said["pooling"], said["after"]) == ("last_token", "final_norm"), "the guard reads another position"
        assert said["severities"] == about["severities"], "the guard's levels are others"

    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good, place)
        name = draw.choice(names)
        if name.endswith(".json") and draw.random() < 0.8:
            done, changed = damaged(json.loads((good / name).read_text()), draw)
            (place / name).write_text(json.dumps(changed))
        elif name.endswith(".safetensors") and draw.random() < 0.7:
            done, tensors = damaged_tensors(load_file(good / name), draw)
            save_file(tensors, place / name)
        else:
            done, content = damaged_bytes((good / name).read_bytes()[:2000], draw)
            (place / name).write_bytes(content)
        yield f"{name} {done}", use
