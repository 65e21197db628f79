"""Knowledge of the learned reward and cost models, measured against the oracle on held-out pairs of the embedded task."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srlhfv_jax import files
from srlhfv_jax.config import ScoresConfig
from srlhfv_jax.data.quickstart.questions import CONTEXTUAL
from srlhfv_jax.evaluation import pair_accuracy, scoring
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints, inputs


def measure(scorer: Path, data: Path, heldout: Path, settings: ScoresConfig, seed: int) -> dict[str, float]:
    """`reward_model.*` and `cost_model.*` by the oracle's own order on test cells and test pictures.

    `name_probe`: the right name above a wrong one in otherwise equal answers. `sign_accuracy_contextual_image_shuffled`: every
    picture replaced by another row's, the label kept: what is left is what question and answer alone give away.
    """
    mesh = use_mesh(settings.mesh)
    model = checkpoints.load(str(scorer), settings.model, mesh)
    tree = {"backbone": model.params, "heads": model.heads}
    score = scoring.jit_scores(model.config, mesh)

    def scored(path: Path):
        where = dataclasses.replace(settings.data, path=str(path))
        rows = inputs.prepare("pairs", where, model)
        return (*scoring.score_pairs(score, tree, rows, where, mesh), rows)

    scored_heads, labels, rows = scored(heldout)
    intents = [row.example.meta["intent"] for row in rows.rows]
    numbers = pair_accuracy.model_metrics(
        scored_heads["reward"], scored_heads["cost"], *(labels[name] for name in scoring.LABELS)
    )
    contextual = np.isin(intents, CONTEXTUAL)
    numbers["cost_model.sign_accuracy_contextual"] = pair_accuracy.sign_accuracy(
        scored_heads["cost"][contextual], labels["sign_BS"][contextual]
    )

    shuffled = heldout.parent / "pairs_shuffled.parquet"
    shuffle_images(heldout, shuffled, seed)
    scored_heads, labels, rows = scored(shuffled)
    contextual = np.isin([row.example.meta["intent"] for row in rows.rows], CONTEXTUAL)
    numbers["cost_model.sign_accuracy_contextual_image_shuffled"] = pair_accuracy.sign_accuracy(
        scored_heads["cost"][contextual], labels["sign_BS"][contextual]
    )
    scored_heads, labels, _ = scored(data / "name_probe.parquet")
    numbers["reward_model.name_probe"] = pair_accuracy.pair_accuracy(
        scored_heads["reward"], labels["chosen_B"], labels["helpful_weight_B"]
    )
    return numbers


def shuffle_images(source: Path, target: Path, seed: int) -> None:
    """Copy a parquet file of rows, every picture replaced by that of another row."""
    table = pq.read_table(source)
    order = np.random.default_rng((seed, 8)).permutation(table.num_rows)
    at = table.column_names.index("image")
    write_table(target, table.set_column(at, "image", table.column("image").take(order)))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as one parquet file, atomically. Of several processes the first one writes, and all wait for it."""
    if hosts.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        pq.write_table(table, beside)
        files.put(beside, path)
    hosts.barrier(f"{path} is written")
