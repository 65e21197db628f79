"""The same few prompts, answered again and again while a run goes on: WORKDIR/same_prompts.jsonl, the report and trackers.

One line is one prompt: number, images_png_base64, history, question, and `answers`: {step: {text, length, ended, reward, cost, and what
a guard says}}, of step 0 (before the run has learned anything) to the last. Each answer of a prompt is drawn with the same random key: what changes
between two of them is the policy.
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from srlhfv_jax import files
from srlhfv_jax.data import loader
from srlhfv_jax.data.rows import Example, history_json, prompt_of
from srlhfv_jax.evaluation.answers import Answers
from srlhfv_jax.evaluation.records import thumbnail
from srlhfv_jax.parallel import hosts
from srlhfv_jax.runs.stage import Verdicts
from srlhfv_jax.training.metrics import Writer
from srlhfv_jax.training.trackers import Sample

FILE = "same_prompts.jsonl"


def first(prompts: loader.Prepared, count: int) -> loader.Prepared:
    """The first prompts of a source, in its order; once each, where an example makes several rows."""
    return prompts._replace(rows=tuple({row.row: row for row in prompts.rows}.values())[:count])


def record(
    writer: Writer,
    prompts: loader.Prepared,
    step: int,
    answers: Answers,
    scores: Mapping[str, Float[np.ndarray, "B"]],
    verdicts: Verdicts | None = None,
) -> list[Mapping[str, Any]]:
    """Add the answers of a step to the file and tell trackers. Those of this step and later, of a run that was killed, are replaced.

    Args:
        scores: of the answers by learned models, by head; NaN: there is none.
        verdicts: of a guard, which all processes ask together; None: there is none.

    Returns the columns of the verdicts.
    """
    examples = [prompts.examples[prompt.row] for prompt in prompts.rows]
    judged = [{}] * len(examples) if verdicts is None else verdicts([prompt_of(example) for example in examples], answers.texts)
    if hosts.process_index() > 0:
        return judged
    path = writer.path.with_name(FILE)
    known = read(path)
    rows, samples = [], []
    for position, example in enumerate(examples):
        answer = {
            "text": answers.texts[position],
            "length": int(answers.lengths[position]),
            "ended": bool(answers.ended[position]),
            **{name: float(score_B[position]) for name, score_B in scores.items() if not np.isnan(score_B[position])},
            **judged[position],
        }
        row = _prompt(position, example)
        before = known[position]["answers"] if position < len(known) and _same(known[position], row) else {}
        row["answers"] = {at: old for at, old in before.items() if int(at) < step} | {str(step): answer}
        rows.append(row)
        samples.append(Sample(position, _asked(example), tuple(map(_picture, row["images_png_base64"])), answer))
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    writer.samples(step, samples)
    return judged


def read(path: Path) -> list[dict[str, Any]]:
    """The prompts of a file with their answers; [] where there is none.

    Raises:
        UserError: a line is damaged.
    """
    if not path.is_file():
        return []
    rows = []
    with path.open("rb") as lines:
        for number, row in files.json_lines(lines, path, advice="remove the file"):
            files.take(row, "answers", dict[str, dict], f"{path}:{number}", advice="remove the file")
            rows.append(row)
    return rows


def _prompt(number: int, example: Example) -> dict[str, Any]:
    row = {"number": number, "images_png_base64": [thumbnail(image) for image in example.images]}
    return row | history_json(example.history) | {"question": example.question}


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows are of one prompt: a run that goes on may have been given other ones."""
    return all(row.get(name) == value for name, value in other.items())


def _asked(example: Example) -> str:
    return "\n\n".join([*(f"{turn.role}: {turn.text}" for turn in example.history), example.question])


def _picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))
