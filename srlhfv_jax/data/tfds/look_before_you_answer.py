"""The embedded task "Look before you answer" as TFDS folders: rows of `data/quickstart/rows.py`, pictures drawn from OpenMoji.

Four configurations, because their columns differ: `naming` and `sft` (one answer), `prompts` (none), `pairs` (two answers and
both preferences). `write` stores rows that somebody made, such as pairs sampled from a policy; `standard` makes a set of its
own, with pairs sampled from the SFT answer mix.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from srlhfv_jax.data import images, layouts
from srlhfv_jax.data.drops import Drop
from srlhfv_jax.data.tfds import records

_PROMPT = (
    "image",
    "question",
    "category",
    "image_severity",
    "concept",
    "intent",
    "harmful",
)
_SINGLE = (*_PROMPT, "response", "is_response_safe")
_PAIR = (
    *_PROMPT,
    "response_1",
    "response_2",
    "response_1_from",
    "response_2_from",
    "more_helpful_response_id",
    "safer_response_id",
    "is_response_1_safe",
    "is_response_2_safe",
    "response_1_harmless_rate",
    "response_2_harmless_rate",
    "response_1_helpful_rate",
    "response_2_helpful_rate",
)
COLUMNS = {"naming": _SINGLE, "sft": _SINGLE, "prompts": _PROMPT, "pairs": _PAIR}

Splits = Mapping[str, Sequence[Mapping]]


class LookBeforeYouAnswer(tfds.core.GeneratorBasedBuilder):
    """Splits and rows as they are given."""

    name = "look_before_you_answer"
    code_path = None  # as in local_files.py
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in COLUMNS]

    def __init__(self, *, splits: Splits, **kwargs):
        self.drops = Counter()
        self._splits = splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Harmless stand-ins for harmful requests: only picture and question together decide what is harmful.",
            features=records.features(COLUMNS[self.builder_config.name]),
            license="Pictures: OpenMoji (https://openmoji.org), CC BY-SA 4.0, drawn at other sizes, angles and colours.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(given) for split, given in self._splits.items()}

    def _generate_examples(self, given) -> Iterator[tuple[int, records.Record]]:
        read_image = partial(images.cell_bytes, where=None)
        for key, row in enumerate(given):
            record = records.usable(layouts.detect(row).name, row, COLUMNS[self.builder_config.name], read_image)
            if isinstance(record, Drop):
                self.drops[record.reason] += 1
            else:
                yield key, record


def write(folder: Path, config: str, splits: Splits, *, overwrite: bool = True) -> Path:
    """Write rows of one configuration below `folder`; returns the TFDS folder, to be used as `data.path`."""
    return records.build(partial(LookBeforeYouAnswer, splits=splits, config=config), folder, overwrite=overwrite)


def standard(config: str, *, seed: int, count: int) -> Splits:
    """Rows without a policy: `count` for training, a quarter of it for each held-out split."""
    from srlhfv_jax.data.quickstart import rows as task  # needs the `quickstart` extra: OpenMoji and a renderer

    cells = task.split_cells(seed)
    held_out = max(1, count // 4)
    match config:
        case "naming":
            return {"train": task.naming_rows(seed, count)}
        case "sft":
            return {"train": task.sft_rows(seed, cells, count)}
        case "prompts":
            counts = {"train": count, "validation": held_out, "test": held_out, "unseen": held_out}
            return {part: task.prompt_rows(seed, cells, part, number) for part, number in counts.items()}
    rng = np.random.default_rng((seed, 11))
    noisy = {"train": task.Noise(), "validation": None, "test": None}  # held-out pairs carry the oracle's own order
    return {
        part: [_pair(rng, row, noise) for row in task.prompt_rows(seed, cells, part, count if part == "train" else held_out)]
        for part, noise in noisy.items()
    }


def _pair(rng: np.random.Generator, prompt: Mapping, noise) -> dict:
    """Two different answers of the SFT mix to one prompt, labelled."""
    from srlhfv_jax.data.quickstart import rows as task
    from srlhfv_jax.data.quickstart.questions import Cell

    cell = Cell(prompt["concept"], prompt["intent"])
    first = second = task.sample_answer(rng, cell)
    while second == first:
        second = task.sample_answer(rng, cell)
    labels = task.label_pair(rng, *cell, first, second, noise)
    return task.pair_row(dict(prompt), first, second, labels, source="sft_mix")
