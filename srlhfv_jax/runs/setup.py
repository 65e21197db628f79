"""What every stage does around its loop: mesh and folders before, the export after.

start -> load -> (rows) -> place -> training.loop.run -> finish
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from srlhfv_jax import files
from srlhfv_jax.checkpoint.manager import Manager
from srlhfv_jax.config import DataConfig, GuardConfig, LoraConfig, ModelConfig, ScoresConfig, SFTConfig, choose, to_dict
from srlhfv_jax.data import chat, loader, pictures, sources, tokens
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import card, export, hub
from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.load import Pretrained, load_config_and_processor, load_pretrained
from srlhfv_jax.models import kernels, lora, quantize, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import check_heads, describe, make_mesh
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.runs import unread
from srlhfv_jax.training import metrics
from srlhfv_jax.training.metrics import Writer, write_json, write_result

EXPORT = "export"


class Started(NamedTuple):
    """Where a stage runs and writes."""

    workdir: Path
    mesh: Mesh
    writer: Writer
    manager: Manager


def start(settings: Any, workdir: Path) -> Started:
    """Join the other processes, lay out the mesh, open the workdir."""
    hosts.initialize()
    mesh = make_mesh(settings.mesh)
    kernels.check(settings.model.attention, mesh.devices.flat[0].platform)
    jax.set_mesh(mesh)
    hosts.say(describe(mesh))
    workdir = Path(workdir)
    write_json(workdir / "config.json", to_dict(settings))
    export.clear(workdir)
    manager = Manager(workdir, settings.checkpoint.every_steps, settings.checkpoint.keep, to_dict(settings))
    return Started(workdir, mesh, Writer(workdir, settings.log.tensorboard), manager)


def load(
    path: str,
    model: ModelConfig,
    mesh: Mesh,
    *,
    random_key: jax.Array | None = None,
    keep_adapter: bool = False,
    int8: bool = False,
    activated: bool = False,
) -> Pretrained:
    """A checkpoint in its shards. With `random_key`: only its shapes and processor, the weights drawn anew in place.

    With `keep_adapter` an adapter stays apart, and the backbone, which nobody trains then, is in the dtype of activations, its
    decoder in eight bits with `int8`. A checkpoint that has no adapter is told how those over it will act: `activated` or not.

    Raises:
        UserError: as `load_pretrained`.
    """
    if random_key is None:
        loaded = load_pretrained(
            path,
            dtype=model.dtype if keep_adapter else model.param_dtype,
            mesh=mesh,
            remat=model.remat,
            scan_unroll=unroll(model),
            keep_adapter=keep_adapter,
        )
        params = rules.place(quantize.int8(loaded.params, release=True), mesh) if int8 else loaded.params
        config = computed_in(loaded.config, model)
        if keep_adapter and loaded.adapter is None and activated:
            config = dataclasses.replace(config, activation=tokens.closing(chat.codec(loaded.processor)))
        return loaded._replace(config=config, params=params)
    shape = load_shape(path, model)
    check_heads(shape.config.text.heads, mesh)
    create = functools.partial(vlm.init, shape.config)
    places = rules.shardings(jax.eval_shape(create, random_key), mesh)
    return shape._replace(params=jax.jit(create, out_shardings=places)(random_key))


def load_init(settings: SFTConfig | ScoresConfig | GuardConfig, mesh: Mesh, random_key: jax.Array | None = None) -> Pretrained:
    """What a supervised stage starts from, as its settings want it: `load`."""
    lora = settings.lora
    unread.check(settings)
    check_lora(lora)
    return load(
        settings.init,
        settings.model,
        mesh,
        random_key=random_key,
        keep_adapter=lora.rank > 0,
        int8=lora.int8,
        activated=lora.activated,
    )


def check_lora(lora: LoraConfig) -> None:
    """Raise UserError for what a supervised stage without adapters cannot do."""
    if lora.int8 and not lora.rank:
        raise UserError("config.lora.int8 is for a backbone that stands still: set config.lora.rank above 0 too")
    if lora.activated and not lora.rank:
        raise UserError("config.lora.activated says where adapters act, and there are none: set config.lora.rank above 0 too")


def trained_part(settings: LoraConfig, model: Pretrained, mesh: Mesh, key: jax.Array) -> tuple[dict, dict | None]:
    """What a supervised stage trains of a checkpoint, and what stays frozen under it: its backbone and nothing, or an adapter
    (its own, if it has one) and its backbone.

    Raises:
        UserError: as `fresh_adapter`, or a checkpoint with an adapter of another rank, or one that acts elsewhere.
    """
    if settings.rank == 0:
        refuse_activated(model)
        return {"backbone": model.params}, None
    if model.adapter is None:
        return {"adapter": fresh_adapter(settings, model, mesh, key)}, model.params
    check_rank(settings, model)
    if settings.activated != bool(model.config.activation):
        raise UserError(
            f"{model.path} has an adapter that acts {'from the end of the prompt on' if model.config.activation else 'everywhere'}: set "
            f"config.lora.activated={bool(model.config.activation)}"
        )
    return {"adapter": model.adapter}, model.params


def check_rank(settings: LoraConfig, model: Pretrained) -> None:
    """Raise UserError where a checkpoint's adapter has another rank than the one that is asked for."""
    rank = next(leaf.shape[1] for path, leaf in rules.leaves(model.adapter) if path.endswith("lora_a"))
    if rank != settings.rank:
        raise UserError(
            f"{model.path} has an adapter of rank {rank}: set config.lora.rank={rank}, or merge it with srlhfv export"
        )


def refuse_activated(model: Pretrained) -> None:
    """What is trained as a whole cannot have an adapter in it."""
    if model.config.activation:
        raise UserError(
            f"{model.path} is an activated adapter, which no weights can be merged with: train it as an adapter "
            "(config.lora.rank, or config.sharing='adapters')"
        )


def fresh_adapter(settings: LoraConfig, model: Pretrained, mesh: Mesh, key: jax.Array) -> dict:
    """An adapter that changes nothing yet, over a checkpoint's backbone.

    Raises:
        UserError: nothing to target, or targets that could not be exported.
    """
    fresh = lora.init(settings, model.params, key)
    if fresh.keys() != {"text"}:
        raise UserError(
            f"config.lora.targets {settings.targets} reach outside the decoder: an adapter of PEFT is over text/ alone"
        )
    return rules.place(fresh, mesh)


def load_shape(path: str, model: ModelConfig) -> Pretrained:
    """Config and processor of a checkpoint, without its weights."""
    config, processor = load_config_and_processor(path, dtype=model.param_dtype, remat=model.remat, scan_unroll=unroll(model))
    return Pretrained(computed_in(config, model), {}, {}, processor, Path(path))


def unroll(model: ModelConfig) -> int:
    return model.scan_unroll or UNROLLED


def computed_in(config: VLMConfig, model: ModelConfig) -> VLMConfig:
    """The architecture of a checkpoint, run as the settings say."""
    choose(model.attention, "config.model.attention", *kernels.KERNELS)
    return dataclasses.replace(config, dtype=model.dtype, attention=model.attention, logp_chunk=model.logp_chunk)


def prepare(kind: str, data: DataConfig, model: Pretrained, *, sign: str = "label") -> loader.Prepared:
    """Read and check every row before step 0; says what was dropped and why.

    Raises:
        UserError: no row is left, or the processor makes another number of placeholders than the model has features.
    """
    examples = sources.load_examples(data)
    prepared = loader.fit(kind, examples, model.processor, data, sign=sign)
    if prepared.room is not None:
        check_pictures(model, prepared.codec.reader)
    check_closing(model, prepared)
    drops = examples.drops + prepared.drops
    hosts.say(f"{data.path}: {len(prepared.rows)} of {examples.source_rows} rows used as {kind}; {sources.describe_drops(drops)}")
    return prepared


def fit_loosely(
    kind: str, examples: Sequence[Example], data: DataConfig, model: Pretrained, *, literal: bool = False
) -> loader.Prepared:
    """Rows that are at hand already, in a frame that is as long as the longest of them; lengths in `data` that are not 0 are limits.

    Args:
        literal: as in `loader.fit`.

    Raises:
        UserError: as `prepare`.
    """
    lengths = dict(prompt_length=data.prompt_length or ANY_LENGTH, response_length=data.response_length or ANY_LENGTH)
    limits = lengths | {"batch_size": 1}  # these lengths are no batch's
    prepared = loader.fit(kind, examples, model.processor, dataclasses.replace(data, **limits), literal=literal)
    if prepared.room is not None:
        check_pictures(model, prepared.codec.reader)
    check_closing(model, prepared)
    prompt = max(len(row.prompt) for row in prepared.rows)
    response = max((len(ids) for row in prepared.rows for ids in row.responses), default=data.response_length)
    return prepared._replace(frame=prepared.frame._replace(prompt_length=prompt, response_length=response))


def check_closing(model: Pretrained, *prepared: loader.Prepared) -> None:
    """Prompts must end where activated adapters begin."""
    closing = model.config.activation
    for row in (row for one in prepared for row in one.rows) if closing else ():
        if tuple(row.prompt[-len(closing) :]) != closing or len(row.prompt) == len(closing):
            raise UserError(
                f"row {row.row}: its prompt ends with the tokens {row.prompt[-len(closing) :].tolist()}, and the adapters of {model.path} "
                f"are activated by {list(closing)}: use the chat template that they were trained with"
            )


def unreadable(
    examples: Sequence[Example], model: Pretrained, max_pixels: int, *, prompt_length: int = 0, response_length: int = 0
) -> list[Unusable | None]:
    """Why the model cannot read each example, whose pictures decode; None of one it can.

    Args:
        prompt_length, response_length: longest prompt and answer in tokens; 0: any.
    """
    codec, found = chat.codec(model.processor, max_pixels), []
    limits = dict(prompt_length=prompt_length or ANY_LENGTH, response_length=response_length or ANY_LENGTH)
    for row, example in enumerate(examples):
        try:
            tokens.encode(codec, example, row, literal=True, **limits)
            found.append(None)
        except Unusable as unusable:
            found.append(unusable)
    return found


def check_pictures(model: Pretrained, reader: pictures.Reader) -> None:
    """The processor must cut pictures as the model was made to see them."""
    config, vision = model.config, model.config.vision
    for what, made, wanted in (
        ("the family", reader.family, config.family),
        ("the patch size", reader.patch, vision.patch),
        ("the number of features (= placeholders) of a tile", reader.features, vision.features),
        ("the patches along a feature", reader.merge, vision.merge),
        ("the values of a patch", reader.values, vision.patch_values),
        ("the tile sizes", sorted(reader.pinpoints), sorted(set(reader.pinpoints) & set(config.pinpoints))),
    ):
        if made != wanted:
            raise UserError(
                f"{model.path}: {what} is {made} in its processor files and {wanted} in config.json: correct one of them"
            )


def batches(prepared: loader.Prepared, data: DataConfig, seed: int, mesh: Mesh) -> loader.Batches:
    """Endless shuffled batches: this process's rows of each."""
    own = hosts.own_rows(data.batch_size, mesh)
    return loader.batches(prepared, prepared.kind, None, data, seed=seed, own=own)


def in_order(prepared: loader.Prepared, data: DataConfig, mesh: Mesh) -> Iterator[tuple[Any, np.ndarray]]:
    """Every row once, in order: (a batch on the devices of all processes, which of its rows are real)."""
    own = hosts.own_rows(data.batch_size, mesh)
    for batch, real_B in loader.all_batches(prepared, prepared.kind, None, data, batch_size=data.batch_size, own=own):
        yield hosts.global_batch(batch, mesh), real_B


def describe_parameters(name: str, tree: Any, mesh: Mesh) -> None:
    """Print what lies where, once, for the start of a run."""
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    hosts.say(f"{name}: {count / 1e6:.2f} M parameters\n{rules.table(tree, mesh)}")


def copy(tree: Any) -> Any:
    """A copy with buffers of its own: a donated tree must share none with a frozen one."""
    return jax.tree.map(jnp.copy, tree)


def frozen_in(dtype: str, tree: dict) -> dict:
    """A tree whose backbone nobody trains, in the dtype of its activations: kernels are cast to it wherever they are used."""
    if "backbone" not in tree or jax.tree.leaves(tree["backbone"])[0].dtype == dtype:
        return tree
    return tree | {"backbone": jax.tree.map(lambda leaf: leaf.astype(dtype), tree["backbone"])}


def vocabulary(model: Pretrained) -> Vocabulary:
    """Pad, end and never-sampled ids of a checkpoint: those of its `Codec`, and every row of its vocabulary without a token."""
    codec = chat.codec(model.processor)
    without = set(range(model.config.text.vocab)) - set(codec.tokenizer.get_vocab().values())
    never = {*codec.never_ids, *without, model.config.image_token} - {None, *codec.stop_ids}
    return Vocabulary(pad=codec.pad_id, eos=codec.stop_ids, never=tuple(sorted(never)))


def export_run(
    started: Started,
    config: VLMConfig,
    tree: Any,
    *,
    base: str | Path,
    about: dict[str, Any],
    result: dict[str, float],
    guard: dict[str, Any] | None = None,
) -> None:
    """Write WORKDIR/export and a first WORKDIR/result.json: before anything is measured, which may fail. `guard` is what guard.json
    says of the tree's guard."""
    export_pretrained(
        started.workdir / EXPORT,
        config,
        tree.get("backbone"),
        base=base,
        adapter=tree.get("adapter"),
        heads=tree.get("heads"),
        meta=about,
        guard=tree.get("guard"),
        guard_meta=guard,
    )
    finish(started, about["stage"], result)


def finish(started: Started, stage: str, result: dict[str, float], guard: dict[str, Any] | None = None) -> dict[str, float]:
    """Write WORKDIR/result.json, and the export's card and guard.json, with what was measured; returns the result."""
    if hosts.process_index() == 0:
        if guard is not None:
            export.write_guard_meta(started.workdir / EXPORT, guard)
        files.write_text(started.workdir / EXPORT / "README.md", _card(started.workdir, stage, result))
    write_result(started.workdir, result)
    return result


def _card(workdir: Path, stage: str, result: dict[str, float]) -> str:
    """The model card, from what the first process wrote, which also writes the export."""
    settings = files.read_json(workdir / "config.json")
    trace = [(line["step"], line["lambda"]) for line in metrics.read(workdir / "metrics.jsonl") if "lambda" in line]
    shown = trace[:: max(1, len(trace) // 20)]
    base = settings["policy" if "policy" in settings else "init"]  # as the user named it
    return card.card(base=hub.pinned(base), stage=stage, settings=settings, result=result, trace=shown)


UNROLLED = 1 << 30  # more layers than any stack has
ANY_LENGTH = 1 << 20  # longer than any row
