"""PKU-SafeRLHF (text only, Hugging Face `PKU-Alignment/PKU-SafeRLHF`), from jsonl or parquet files the user downloaded."""

from collections import Counter
from pathlib import Path

import tensorflow_datasets as tfds

from srlhfv_jax.data.tfds import records

HARM_CATEGORIES = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)

COLUMNS = {
    "prompt": "text",
    "response_0": "text",
    "response_1": "text",
    "prompt_source": "text",
    "response_0_source": "text",
    "response_1_source": "text",
    "is_response_0_safe": "flag",
    "is_response_1_safe": "flag",
    "response_0_harm_category": HARM_CATEGORIES,
    "response_1_harm_category": HARM_CATEGORIES,
    "response_0_severity_level": "integer",
    "response_1_severity_level": "integer",
    "better_response_id": "integer",
    "safer_response_id": "integer",
    "response_0_sha256": "text",
    "response_1_sha256": "text",
}


class PkuSaferlhf(tfds.core.GeneratorBasedBuilder):
    """Splits as the files are called: train and test."""

    name = "pku_saferlhf"
    code_path = None  # as in beavertails_v.py
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "hf download PKU-Alignment/PKU-SafeRLHF --repo-type=dataset --local-dir=FOLDER; use FOLDER."

    def __init__(self, *, source: Path | None = None, **kwargs):
        self.drops = Counter()
        self._source = source  # None: the manual folder of TFDS
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions with two answers each: which is more helpful, which is safer, harm categories and severity.",
            features=records.features(COLUMNS),
            homepage="https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
            license="CC-BY-NC-4.0",
            citation="PKU-SafeRLHF, arXiv:2406.15513",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        splits = records.local_splits(self._source or dl_manager.manual_dir)
        return {split: self._generate_examples(files) for split, files in splits.items()}

    def _generate_examples(self, files):
        return records.from_files(files, self.name, COLUMNS, self.drops)
