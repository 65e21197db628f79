"""BeaverTails (text only, Hugging Face `PKU-Alignment/BeaverTails`), from jsonl or parquet files the user downloaded: for guards."""

from collections import Counter
from pathlib import Path

import tensorflow_datasets as tfds

from srlhfv_jax.data import taxonomies
from srlhfv_jax.data.tfds import records

COLUMNS = {"prompt": "text", "response": "text", "category": taxonomies.BEAVERTAILS, "is_safe": "flag"}


class Beavertails(tfds.core.GeneratorBasedBuilder):
    """Splits as the files are called: train and test. The hub has two sizes of both: give the folder of one."""

    name = "beavertails"
    code_path = None  # as in beavertails_v.py
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "hf download PKU-Alignment/BeaverTails --repo-type=dataset --local-dir=FOLDER; unpack the files of one size, use their folder."
    )

    def __init__(self, *, source: Path | None = None, **kwargs):
        self.drops = Counter()
        self._source = source  # None: the manual folder of TFDS
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions with one answer each: is it safe, and in which of 14 ways is it not.",
            features=records.features(COLUMNS),
            homepage="https://huggingface.co/datasets/PKU-Alignment/BeaverTails",
            license="CC-BY-NC-4.0",
            citation="BeaverTails, arXiv:2307.04657",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        splits = records.local_splits(self._source or dl_manager.manual_dir)
        return {split: self._generate_examples(files) for split, files in splits.items()}

    def _generate_examples(self, files):
        return records.from_files(files, self.name, COLUMNS, self.drops)
