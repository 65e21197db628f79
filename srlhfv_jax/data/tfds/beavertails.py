"""BeaverTails (text only, Hugging Face `PKU-Alignment/BeaverTails`), from jsonl or parquet files: rows for a guard."""

from srlhfv_jax.data.tfds.local_files import LocalFiles, download


class Beavertails(LocalFiles):
    """Splits as the files are called: train and test. The hub has two sizes of both: give the folder of one."""

    name = "beavertails"
    HUB = "PKU-Alignment/BeaverTails"
    DESCRIPTION = "Questions with one answer each: is it safe, and in which of 14 ways is it not."
    CITATION = "BeaverTails, arXiv:2307.04657"
    MANUAL_DOWNLOAD_INSTRUCTIONS = download(HUB, "unpack the files of one size, use their folder.")
    COLUMNS = ("prompt", "response", "category", "is_safe", "harmful")
