"""PKU-SafeRLHF (text only, Hugging Face `PKU-Alignment/PKU-SafeRLHF`), from jsonl or parquet files the user downloaded."""

from srlhfv_jax.data import taxonomies
from srlhfv_jax.data.tfds.local_files import LocalFiles, download


class PkuSaferlhf(LocalFiles):
    """Splits as the files are called: train and test."""

    name = "pku_saferlhf"
    HUB = "PKU-Alignment/PKU-SafeRLHF"
    DESCRIPTION = "Questions with two answers each: which is more helpful, which is safer, harm categories and severity."
    CITATION = "PKU-SafeRLHF, arXiv:2406.15513"
    MANUAL_DOWNLOAD_INSTRUCTIONS = download(HUB)
    COLUMNS = {
        "prompt": "text",
        "response_0": "text",
        "response_1": "text",
        "prompt_source": "text",
        "response_0_source": "text",
        "response_1_source": "text",
        "is_response_0_safe": "flag",
        "is_response_1_safe": "flag",
        "response_0_harm_category": taxonomies.PKU_SAFERLHF,
        "response_1_harm_category": taxonomies.PKU_SAFERLHF,
        "response_0_severity_level": "integer",
        "response_1_severity_level": "integer",
        "better_response_id": "integer",
        "safer_response_id": "integer",
        "response_0_sha256": "text",
        "response_1_sha256": "text",
    }
