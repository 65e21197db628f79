"""BeaverTails-V with dual preferences (Hugging Face `saferlhf-v/BeaverTails-V`), from parquet files the user downloaded."""

from collections import Counter
from pathlib import Path

import tensorflow_datasets as tfds

from srlhfv_jax.data.tfds import records

COLUMNS = {
    "image": "image",
    "question": "text",
    "category": "text",
    "image_severity": "integer",
    "response_1": "text",
    "response_2": "text",
    "response_1_from": "text",
    "response_2_from": "text",
    "more_helpful_response_id": "text",
    "safer_response_id": "text",
    "is_response_1_safe": "text",
    "is_response_2_safe": "text",
    "response_1_harmless_rate": "integer",
    "response_2_harmless_rate": "integer",
    "response_1_helpful_rate": "integer",
    "response_2_helpful_rate": "integer",
}


class BeavertailsV(tfds.core.GeneratorBasedBuilder):
    """Splits as the files are called: train and evaluation."""

    name = "beavertails_v"
    code_path = None  # no checksums lie beside this file; TFDS would look for them through a package it does not declare
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "hf download saferlhf-v/BeaverTails-V --repo-type=dataset --local-dir=FOLDER; use FOLDER."

    def __init__(self, *, source: Path | None = None, **kwargs):
        self.drops = Counter()
        self._source = source  # None: the manual folder of TFDS
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions about pictures, two answers each: which is more helpful, which is safer, is each safe.",
            features=records.features(COLUMNS),
            homepage="https://huggingface.co/datasets/saferlhf-v/BeaverTails-V",
            license="CC-BY-NC-4.0",
            citation="Safe RLHF-V, arXiv:2503.17682",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        splits = records.local_splits(self._source or dl_manager.manual_dir)
        return {split: self._generate_examples(files) for split, files in splits.items()}

    def _generate_examples(self, files):
        return records.from_files(files, self.name, COLUMNS, self.drops)
