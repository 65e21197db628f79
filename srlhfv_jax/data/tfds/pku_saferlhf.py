"""PKU-SafeRLHF (text only, Hugging Face `PKU-Alignment/PKU-SafeRLHF`), from jsonl or parquet files the user downloaded."""

from srlhfv_jax.data.tfds.local_files import LocalFiles, download


class PkuSaferlhf(LocalFiles):
    """Splits as the files are called: train and test."""

    name = "pku_saferlhf"
    HUB = "PKU-Alignment/PKU-SafeRLHF"
    DESCRIPTION = "Questions with two answers each: which is more helpful, which is safer, harm categories and severity."
    CITATION = "PKU-SafeRLHF, arXiv:2406.15513"
    MANUAL_DOWNLOAD_INSTRUCTIONS = download(HUB)
    COLUMNS = (
        "prompt",
        "response_0",
        "response_1",
        "prompt_source",
        "response_0_source",
        "response_1_source",
        "is_response_0_safe",
        "is_response_1_safe",
        "response_0_harm_category",
        "response_1_harm_category",
        "response_0_severity_level",
        "response_1_severity_level",
        "better_response_id",
        "safer_response_id",
        "response_0_sha256",
        "response_1_sha256",
        "harmful",
    )
