"""`srlhfv weights patch`: two policies as patches of the base that both were trained from. The sum itself is in `weights/patch.py`.

rows -> gradient of the base's loss on their answers -> scores of both patches -> OUT/export, with the sets' sizes in OUT/result.json
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from srlhfv_jax.batches import PreferenceBatch, SupervisedBatch
from srlhfv_jax.config import DataConfig, MeshConfig, inference, to_dict
from srlhfv_jax.data import sources
from srlhfv_jax.data.given import RowSettings, single_pass
from srlhfv_jax.data.loader import Prepared
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.errors import UserError, short
from srlhfv_jax.hf import card, export, hub
from srlhfv_jax.hf.load import Pretrained, checkpoint_folder
from srlhfv_jax.losses import masked, sft
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.runs import checkpoints, inputs, same_model
from srlhfv_jax.weights import patch as patches
from srlhfv_jax.weights.patch import Recipe, Tree

MESH = MeshConfig(data=-1, fsdp=1, tensor=1)
MODEL = dataclasses.replace(inference("float32"), remat="layer")  # activations are computed again: rows may be long
LESS_SAFE = Choice("safer", "none", False)  # of a pair the other answer than the winner


@dataclasses.dataclass(frozen=True)
class Settings(RowSettings):
    """Settings of one patched policy: the flags of `srlhfv weights patch`, whose help says what each is."""

    base: str
    safety: str
    utility: str
    data: str
    out: str
    alpha: float
    beta: float
    top_safety: float  # a
    top_utility: float  # b
    keep: float  # p
    rescale: bool
    prompt_length: int  # tokens (P); 0 = that of the longest prompt
    response_length: int  # tokens (R); 0 = that of the longest answer
    batch_size: int
    seed: int


def check(settings: Settings) -> None:
    """Check the numbers and the place, and open all that is to be read before the first weights are.

    Raises:
        UserError: a share that is none, a place that has something, or checkpoints that are not three of one model.
    """
    hosts.initialize()
    shares = {"top_safety": settings.top_safety, "top_utility": settings.top_utility, "keep": settings.keep}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"--{name} must be from 0 to 1, got {value:g}")
    out = Path(settings.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is a file, or has something in it: give a new folder")
    paths = _paths(settings)
    for name, path in paths.items():
        checkpoints.check_checkpoint(path, name.partition("=")[0])
    first: dict[Path, str] = {}
    for name, path in paths.items():
        folder = checkpoint_folder(path).resolve()
        if folder in first:
            raise UserError(f"{first[folder]} and {name} are one checkpoint: there is nothing to patch; give three")
        first[folder] = name
    same_model.check(paths)
    hosts.check_batch(settings.batch_size, make_mesh(MESH), "--batch_size of")
    sources.check(_data(settings))


def run(settings: Settings, out: Path) -> dict[str, float]:
    """Write the patched policy to OUT/export, as a checkpoint in float32, or in bfloat16 where all three are stored in it.

    Returns:
        The sizes of the sets, and the loss of the base on the rows (nats per token), of which the gradient was taken.

    Raises:
        UserError: no row can be used, a policy has the weights of the base, or a gradient is not finite.
    """
    paths = _paths(settings)
    gradient, numbers = _gradient(settings)
    base, safety, utility = same_model.in_memory(paths, "patched")
    for name, model in zip(paths, (base, safety, utility)):
        if model is not base and _same(base.params, model.params):
            raise UserError(f"{name} has the weights of --base={settings.base}: there is nothing to patch; train it first")
    recipe = Recipe(settings.alpha, settings.beta, settings.top_safety, settings.top_utility, settings.keep, settings.rescale)
    key = jax.random.key(settings.seed)
    params, sizes = patches.patch(base.params, safety.params, utility.params, gradient, recipe, key)
    if hosts.process_index() == 0:
        print("\n".join(patches.described(sizes)), flush=True)
    numbers |= {f"entries.{name}": float(count) for name, count in sizes._asdict().items()}
    _write(settings, out, base, params, numbers)
    return numbers


def _paths(settings: Settings) -> dict[str, str]:
    return {f"--{name}={path}": path for name, path in _named(settings).items()}


def _named(settings: Settings) -> dict[str, str]:
    return {"base": settings.base, "safety": settings.safety, "utility": settings.utility}


def _data(settings: Settings) -> DataConfig:
    lengths = dict(prompt_length=settings.prompt_length, response_length=settings.response_length)
    return single_pass(settings.data, settings, **lengths, batch_size=settings.batch_size)


def _same(a: Tree, b: Tree) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _gradient(settings: Settings) -> tuple[Tree, dict[str, float]]:
    """Gradient of the mean loss of the rows' answers at the base, on the host, with that loss and the number of rows."""
    mesh, data = make_mesh(MESH), _data(settings)
    with jax.set_mesh(mesh):
        base = checkpoints.load(settings.base, MODEL, mesh)
        total, loss, tokens, rows = _sum(base, data, mesh)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(total)):
        raise UserError(
            f"--base={settings.base} has a gradient on --data={short(settings.data)} that is not finite: look at its weights"
        )
    gradient = jax.tree.map(lambda leaf: leaf / np.float32(tokens), total)
    return gradient, {"loss": loss / tokens, "rows": float(rows)}


def _sum(base: Pretrained, data: DataConfig, mesh: Mesh) -> tuple[Tree, float, float, int]:
    """Sum of the gradients on the host, that of the losses, tokens and rows."""
    prepared = _rows(data, base)

    @jax.jit
    def add(total: Tree, params: Tree, batch) -> tuple[Tree, masked.Mean]:
        def of_params(params: Tree) -> masked.Mean:
            return answers_loss(base.config, {"backbone": params}, batch)

        (loss, count), gradient = jax.value_and_grad(of_params, has_aux=True)(params)
        return jax.tree.map(jnp.add, total, gradient), (loss, count)

    total, loss, tokens = jax.tree.map(jnp.zeros_like, base.params), 0.0, 0.0
    for batch, _ in inputs.in_order(prepared, data, mesh):
        total, sums = add(total, base.params, batch)
        one, count = hosts.to_host(sums)
        loss, tokens = loss + float(one), tokens + float(count)
    return hosts.to_host(total), loss, tokens, len(prepared.rows)


def _rows(data: DataConfig, base: Pretrained) -> Prepared:
    """Rows with one answer, or pairs, as the first of them is.

    Raises:
        UserError: none can be used, or there are rows of the other kind.
    """
    examples = sources.load_examples(data)
    kind = "preference" if len(examples[0].responses) == 2 else "supervised"
    prepared = inputs.fit_loosely(kind, examples, data, base, choice=LESS_SAFE)
    if kind == "supervised" and any(len(row.responses) == 2 for row in prepared.rows):
        raise UserError(f"--data={short(data.path)} has rows with one answer and pairs: give either")
    drops = sources.describe_drops(examples.drops + prepared.drops)
    hosts.say(f"{data.path}: {len(prepared.rows)} of {examples.source_rows} rows used as {kind}; {drops}")
    return prepared


def answers_loss(config: VLMConfig, tree: Tree, batch: SupervisedBatch | PreferenceBatch) -> masked.Mean:
    """The loss of `srlhfv sft` on the answers of rows, (sum, tokens); of a pair on the one that loses."""
    features = sequences.encode(config, tree, batch.images)
    if isinstance(batch, SupervisedBatch):
        return sft.sft(sequences.response_logp(config, tree, batch, features)[0], batch.response_mask_BR)
    rows_B, loser_B = jnp.arange(len(batch.winner_B)), 1 - batch.winner_B
    logp_BSR = sequences.pair_logp(config, tree, batch, features)
    return sft.sft(logp_BSR[rows_B, loser_B], batch.response_mask_BSR[rows_B, loser_B])


def _write(settings: Settings, out: Path, base: Pretrained, params: Tree, numbers: dict[str, float]) -> None:
    readme = base.path / "README.md"
    text = card.patched(
        *(hub.pinned(path) for path in _named(settings).values()),
        origin=card.base_named_in(readme.read_text("utf-8", "replace")) if readme.is_file() else "",
        settings=to_dict(settings),
        result=numbers,
        sees=base.config.vision is not None,
    )
    export.export_pretrained(out / "export", base.config, params, base=base.path, card=text)
