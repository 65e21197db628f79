"""BeaverTails-V with single answers (Hugging Face `PKU-Alignment/BeaverTails-V`), from parquet files the user downloaded.

Not the same data set as `beavertails_v` in spite of its name: one answer per row, no preferences.
"""

from collections import Counter
from pathlib import Path

import tensorflow_datasets as tfds

from srlhfv_jax.data.tfds import records

COLUMNS = {
    "image": "image",
    "question": "text",
    "category": "text",
    "image_severity": "integer",
    "response": "text",
    "is_response_safe": "text",
}


class BeavertailsVQa(tfds.core.GeneratorBasedBuilder):
    """Splits as the files are called: train and evaluation."""

    name = "beavertails_v_qa"
    code_path = None  # as in beavertails_v.py
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "hf download PKU-Alignment/BeaverTails-V --repo-type=dataset --local-dir=FOLDER; use FOLDER."

    def __init__(self, *, source: Path | None = None, **kwargs):
        self.drops = Counter()
        self._source = source  # None: the manual folder of TFDS
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions about pictures with one answer each, and whether it is safe.",
            features=records.features(COLUMNS),
            homepage="https://huggingface.co/datasets/PKU-Alignment/BeaverTails-V",
            license="CC-BY-NC-4.0",
            citation="Safe RLHF-V, arXiv:2503.17682",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        splits = records.local_splits(self._source or dl_manager.manual_dir)
        return {split: self._generate_examples(files) for split, files in splits.items()}

    def _generate_examples(self, files):
        return records.from_files(files, self.name, COLUMNS, self.drops)
