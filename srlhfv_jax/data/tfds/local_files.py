"""Base of the builders of published data sets: they read files that the user downloaded, and differ in columns and words."""

from collections import Counter
from pathlib import Path

import tensorflow_datasets as tfds

from srlhfv_jax.data.tfds import records


class LocalFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits as the files are called. A data set sets `name`, which is the layout of its rows, and the five constants below."""

    code_path = None  # no checksums lie beside this file; TFDS would look for them through a package it does not declare
    VERSION = tfds.core.Version("1.0.0")

    COLUMNS: tuple[str, ...]
    DESCRIPTION: str
    HUB: str  # its id there
    CITATION: str
    MANUAL_DOWNLOAD_INSTRUCTIONS: str

    def __init__(self, *, source: Path | None = None, **kwargs):
        self.drops = Counter()
        self._source = source  # None: the manual folder of TFDS
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=records.features(self.COLUMNS),
            homepage=f"https://huggingface.co/datasets/{self.HUB}",
            license="CC-BY-NC-4.0",  # of all four
            citation=self.CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        splits = records.local_splits(self._source or dl_manager.manual_dir)
        return {split: self._generate_examples(files) for split, files in splits.items()}

    def _generate_examples(self, files):
        return records.from_files(files, self.name, self.COLUMNS, self.drops)


def download(hub: str, then: str = "use FOLDER.") -> str:
    """Instructions for getting the files."""
    return f"hf download {hub} --repo-type=dataset --local-dir=FOLDER; {then}"
