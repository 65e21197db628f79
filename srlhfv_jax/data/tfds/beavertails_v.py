"""BeaverTails-V with dual preferences (Hugging Face `saferlhf-v/BeaverTails-V`), from parquet files the user downloaded."""

from srlhfv_jax.data.tfds.local_files import LocalFiles, download


class BeavertailsV(LocalFiles):
    """Splits as the files are called: train and evaluation."""

    name = "beavertails_v"
    HUB = "saferlhf-v/BeaverTails-V"
    DESCRIPTION = "Questions about pictures, two answers each: which is more helpful, which is safer, is each safe."
    CITATION = "Safe RLHF-V, arXiv:2503.17682"
    MANUAL_DOWNLOAD_INSTRUCTIONS = download(HUB)
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
