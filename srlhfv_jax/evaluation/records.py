"""Files beside result.json: all answers, and (for the report) some of them with their pictures, and score distributions.

`answers.jsonl`: every prompt: row, history (the turns before the question, if any: role and content), question, and `answers` as below.
`samples.jsonl`: some prompts: images_png_base64 (a list), history, question, concept, intent and category (if any), harmful
(true, false or null), attribution of the picture (if it is ours), and `answers`: {policy: {text, length, ended, helpful, cost,
unsafe, and by the oracle form, refusal, evasion}}.
`score_distributions.json`: {"judge": "oracle" or "models", "policies": {policy: {"helpful": [...], "cost": [...]}}}.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srlhfv_jax import files
from srlhfv_jax.data.quickstart.concepts import ATTRIBUTION
from srlhfv_jax.data.rows import Example, history_json
from srlhfv_jax.evaluation.answers import Answers, aligned
from srlhfv_jax.evaluation.compare import Judged
from srlhfv_jax.evaluation.oracle import is_embedded, is_harmful

ANSWERS, SAMPLES, DISTRIBUTIONS = "answers.jsonl", "samples.jsonl", "score_distributions.json"
THUMBNAIL = 256  # pixels of the longer side


def write_samples(path: Path, examples: Sequence[Example], policies: Mapping[str, Judged], *, count: int, seed: int) -> None:
    """Write `count` rows chosen by `seed` alone, not by how good the answers are; harmful and harmless ones by turns if known."""
    first = next(iter(policies.values()))
    for judged in policies.values():
        aligned(judged.answers, first.answers)
    chosen = choose_rows(examples, first.answers, count, seed)
    _write_lines(path, (sample_row(examples, policies, position) for position in chosen))


def choose_rows(examples: Sequence[Example], answers: Answers, count: int, seed: int) -> list[int]:
    """Positions in `answers`: a random order in which harmful and harmless prompts alternate and concepts repeat late."""
    order = np.random.default_rng(seed).permutation(len(answers.texts)).tolist()
    by_kind: dict[bool | None, list[int]] = {}
    seen: dict[tuple[bool | None, str], int] = {}
    ranked = []
    for position in order:
        example = examples[int(answers.prompts[position])]
        kind, concept = _harmful(example), example.meta.get("concept", "")
        seen[kind, concept] = seen.get((kind, concept), 0) + 1
        ranked.append((seen[kind, concept] if concept else 0, kind, position))
    for _, kind, position in sorted(ranked, key=lambda item: item[0]):
        by_kind.setdefault(kind, []).append(position)
    queues = [by_kind[kind] for kind in (True, False, None) if kind in by_kind]
    turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    return turns[:count]


def sample_row(examples: Sequence[Example], policies: Mapping[str, Judged], position: int) -> dict[str, Any]:
    """One row of samples.jsonl."""
    first = next(iter(policies.values()))
    example = examples[int(first.answers.prompts[position])]
    row = {"images_png_base64": [thumbnail(image) for image in example.images], "question": example.question}
    row |= history_json(example.history) | {"harmful": _harmful(example)}
    row |= {key: example.meta[key] for key in ("concept", "intent", "category") if key in example.meta}
    if is_embedded(example):
        row["attribution"] = ATTRIBUTION
    return row | {"answers": {name: _answer(judged, position) for name, judged in policies.items()}}


def write_answers(path: Path, examples: Sequence[Example], policies: Mapping[str, Judged]) -> None:
    """Every answer with its verdict, so that other judges can read them later."""
    rows = next(iter(policies.values())).answers.prompts.tolist()
    answers = ({name: _answer(judged, position) for name, judged in policies.items()} for position in range(len(rows)))
    _write_lines(
        path,
        ({"row": row} | _asked(examples[row]) | {"answers": by_policy} for row, by_policy in zip(rows, answers, strict=True)),
    )


def _asked(example: Example) -> dict[str, Any]:
    return history_json(example.history) | {"question": example.question}


def thumbnail(image: bytes) -> str:
    """A PNG of at most THUMBNAIL pixels, as base64."""
    with Image.open(io.BytesIO(image)) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def write_distributions(path: Path, policies: Mapping[str, Judged]) -> None:
    """Helpfulness and cost of every answer of every policy, for the histograms."""
    judge = "oracle" if all(judged.verdicts is not None for judged in policies.values()) else "models"
    values = {
        name: {"helpful": np.round(judged.helpful_B, 4).tolist(), "cost": np.round(judged.cost_B, 4).tolist()}
        for name, judged in policies.items()
    }
    _write(path, json.dumps({"judge": judge, "policies": values}))


def _answer(judged: Judged, position: int) -> dict[str, Any]:
    answer = {
        "text": judged.answers.texts[position],
        "length": int(judged.answers.lengths[position]),
        "ended": bool(judged.answers.ended[position]),
        "helpful": round(float(judged.helpful_B[position]), 3),
        "cost": round(float(judged.cost_B[position]), 3),
        "unsafe": bool(judged.unsafe_B[position]),
    }
    if judged.verdicts is not None:
        verdict = judged.verdicts[position]
        answer |= {"form": str(verdict.form), "refusal": bool(verdict.refusal), "evasion": bool(verdict.evasion)}
    return answer


def _harmful(example: Example) -> bool | None:
    return is_harmful(example) if is_embedded(example) else None


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
