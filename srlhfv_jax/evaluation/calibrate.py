"""`srlhfv calibrate`: P(unsafe | cost) and normalisers of a scorer, from labels on rows that it was not trained on.

rows -> every labelled response with its scores (scoring) -> fits (calibrators) -> calibration.json beside the heads, and in the workdir
with result.json, where the report draws it.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from srlhfv_jax.config import DataConfig, inference
from srlhfv_jax.data import sources
from srlhfv_jax.data.given import RowSettings, single_pass
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import calibrators, scoring, seen
from srlhfv_jax.evaluation.compare_policies import ALL_DEVICES
from srlhfv_jax.evaluation.score_metrics import COST, REWARD
from srlhfv_jax.evaluation.statistics import sigmoid
from srlhfv_jax.hf import calibrations, hub, weights
from srlhfv_jax.hf.load import checkpoint_folder
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.training import metrics


@dataclasses.dataclass(frozen=True)
class Settings(RowSettings):
    """Settings of one calibration: the flags of `srlhfv calibrate`, whose help says what each is."""

    workdir: str
    scorer: str
    data: str
    fit: str
    batch_size: int
    seed: int
    dtype: str


class Labelled(NamedTuple):
    """Labelled responses with their scores."""

    rows: tuple[int, ...]  # of the data
    unsafe_B: Bool[np.ndarray, "B"]
    scores: dict[str, Float[np.ndarray, "B"]]  # by head


class Responses(Sequence[Example]):
    """Each labelled response of some rows as a row of its own; pictures are read at every access."""

    def __init__(self, examples: Sequence[Example]):
        labels = [(row, example.unsafe) for row, example in enumerate(examples)]
        self.places = [(row, side) for row, unsafe in labels for side, label in enumerate(unsafe) if label is not None]
        self.unsafe = [bool(unsafe[side]) for _, unsafe in labels for side in range(len(unsafe)) if unsafe[side] is not None]
        self._examples = examples

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        row, side = self.places[index]
        example = self._examples[row]
        return Example(example.images, example.question, (example.responses[side],), history=example.history)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))


def check(settings: Settings) -> None:
    """Open all that is to be read before the first weights are.

    Raises:
        UserError: a mistake in what was given.
    """
    hosts.initialize()
    hosts.check_batch(settings.batch_size, use_mesh(ALL_DEVICES), "--batch_size of")
    checkpoints.check_checkpoint(settings.scorer, "--scorer", COST)
    if hub.is_model_id(settings.scorer):
        raise UserError(
            f"--scorer={settings.scorer} is a model of the hub: give a folder, beside whose heads the numbers can be kept"
        )
    scoring.check_score_heads(settings.scorer, inference(settings.dtype))
    sources.check(_data(settings))


def run(settings: Settings, workdir: Path) -> dict[str, float]:
    """Score, fit, write; returns the numbers."""
    labelled = _score(settings)
    cost_B, unsafe_B = labelled.scores[COST], labelled.unsafe_B
    kind = settings.fit or calibrators.usual(len(cost_B))
    calibration = calibrators.fit(kind, cost_B, unsafe_B)
    before_B, after_B = sigmoid(cost_B), calibrators.held_out(kind, cost_B, unsafe_B, labelled.rows, settings.seed)
    drawn = {"sigmoid(cost)": before_B} | ({} if after_B is None else {"calibrated": after_B})
    normalisers = {COST: {"scale": calibrators.scale(cost_B)}}
    if REWARD in labelled.scores:
        normalisers[REWARD] = calibrators.affine(labelled.scores[REWARD])._asdict()
    numbers = {"answers": float(len(unsafe_B)), "unsafe_share": float(unsafe_B.mean())}
    numbers["probability_at_zero"] = float(calibrators.probability(calibration, np.zeros(1))[0])
    safest_B = np.sort(cost_B)[: math.ceil(len(cost_B) / 10)]
    numbers[calibrations.FLOOR] = float(calibrators.probability(calibration, safest_B).mean())
    numbers |= {f"{head}.{name}": value for head, values in normalisers.items() for name, value in values.items()}
    for suffix, probability_B in zip(("", "_calibrated"), drawn.values()):
        numbers |= {f"{name}{suffix}": value for name, value in calibrators.numbers(probability_B, unsafe_B).items()}
    content = {"data": settings.data, "unsafe": calibrations.described(calibration)} | normalisers
    content |= {
        "numbers": numbers,
        "reliability": {name: calibrators.reliability(some_B, unsafe_B) for name, some_B in drawn.items()},
    }
    for folder in (checkpoint_folder(settings.scorer), workdir):
        metrics.write_json(folder / weights.CALIBRATION, content)
    hosts.say(_sentence(kind, numbers))
    return numbers


def _score(settings: Settings) -> Labelled:
    """Every labelled response that the scorer can read.

    Raises:
        UserError: none is labelled, or all are labelled alike.
    """
    data, mesh = _data(settings), use_mesh(ALL_DEVICES)
    examples = sources.load_examples(data)
    responses = Responses(examples)
    if not len(responses):
        raise UserError(f"--data={settings.data} labels no response as safe or unsafe: give rows with such labels")
    calibrators.check_classes(np.array(responses.unsafe))
    _warn_of_training_rows(settings, examples)
    loaded = checkpoints.load(settings.scorer, inference(settings.dtype), mesh)
    prepared = inputs.fit_loosely("supervised", responses, data, loaded, literal=True)
    score, tree = scoring.jit_scores(loaded.config, mesh), scoring.scorer_tree(loaded)
    batches = inputs.in_order(prepared, data, mesh)
    scores = scoring.model_scores(lambda batch: hosts.to_host(score(tree, batch, batch.images)), batches)
    places = [row.row for row in prepared.rows]
    hosts.say(f"calibrate: {len(places)} of {len(responses)} labelled responses of {len(examples)} rows")
    return Labelled(
        tuple(responses.places[place][0] for place in places), np.array([responses.unsafe[place] for place in places]), scores
    )


def _warn_of_training_rows(settings: Settings, examples: Sequence[Example]) -> None:
    """Say how many prompts the scorer was trained on: its costs there are surer than elsewhere."""
    overlapping, _ = seen.overlaps(examples, seen.record(settings.scorer))
    for (workdir, setting, data), rows in overlapping:
        hosts.say(
            f"warning: {len(rows)} of {len(examples)} prompts of --data were read by {workdir} ({setting}={data.path}): a scorer is surer "
            "of what it was trained on, and so the calibration is too sure elsewhere"
        )


def _sentence(kind: str, numbers: dict[str, float]) -> str:
    errors = f"calibration error {numbers['calibration_error']:.3f} as sigmoid(cost)"
    if "calibration_error_calibrated" in numbers:
        errors += f", {numbers['calibration_error_calibrated']:.3f} calibrated (of answers left out of the fit)"
    return f"calibrate: {kind} on {numbers['answers']:.0f} answers: {errors}; P(unsafe) at cost 0 is {numbers['probability_at_zero']:.3f}"


def _data(settings: Settings) -> DataConfig:
    return single_pass(settings.data, settings, prompt_length=0, response_length=0, batch_size=settings.batch_size)
