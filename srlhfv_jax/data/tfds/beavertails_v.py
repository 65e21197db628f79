"""BeaverTails-V with dual preferences (Hugging Face `saferlhf-v/BeaverTails-V`), from parquet files the user downloaded."""

from srlhfv_jax.data.tfds.local_files import LocalFiles, download


class BeavertailsV(LocalFiles):
    """Splits as the files are called: train and evaluation."""

    name = "beavertails_v"
    HUB = "saferlhf-v/BeaverTails-V"
    DESCRIPTION = "Questions about pictures, two answers each: which is more helpful, which is safer, is each safe."
    CITATION = "Safe RLHF-V, arXiv:2503.17682"
    MANUAL_DOWNLOAD_INSTRUCTIONS = download(HUB)
    COLUMNS = (
        "image",
        "question",
        "category",
        "image_severity",
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
        "harmful",
    )
