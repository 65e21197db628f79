"""BeaverTails-V with single answers (Hugging Face `PKU-Alignment/BeaverTails-V`), from parquet files the user downloaded.

Not the same data set as `beavertails_v` in spite of its name: one answer per row, no preferences.
"""

from srlhfv_jax.data.tfds.local_files import LocalFiles, download


class BeavertailsVQa(LocalFiles):
    """Splits as the files are called: train and evaluation."""

    name = "beavertails_v_qa"
    HUB = "PKU-Alignment/BeaverTails-V"
    DESCRIPTION = "Questions about pictures with one answer each, and whether it is safe."
    CITATION = "Safe RLHF-V, arXiv:2503.17682"
    MANUAL_DOWNLOAD_INSTRUCTIONS = download(HUB)
    COLUMNS = (
        "image",
        "question",
        "category",
        "image_severity",
        "response",
        "is_response_safe",
        "harmful",
    )
