"""Inputs of `launch/end_to_end.sh --tiny`: the shape of a small LLaVA, and preference pairs in the columns and folders of BeaverTails-V.

    python launch/tiny_inputs.py FOLDER

Writes FOLDER/shape (tokenizer, image processor and config.json, no weights) and FOLDER/pairs/CATEGORY/SPLIT-00000-of-00001.parquet
with the splits train and evaluation. The rows are those of the embedded task (extra `quickstart`).
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from srlhfv_jax.data.quickstart import processor
from srlhfv_jax.data.tfds import look_before_you_answer as task

TRAIN_ROWS = 64
SPLITS = {"train": "train", "validation": "evaluation"}  # of the embedded task -> of BeaverTails-V


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    processor.write_base(folder / "shape", patch=16, vision_layers=1, vision_width=16, text_layers=2, text_width=16, heads=2)
    rows = task.standard("pairs", seed=0, count=TRAIN_ROWS)
    for ours, published in SPLITS.items():
        for category in sorted({row["category"] for row in rows[ours]}):
            place = folder / "pairs" / category
            place.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist([row for row in rows[ours] if row["category"] == category])
            pq.write_table(table, place / f"{published}-00000-of-00001.parquet")


if __name__ == "__main__":
    main()
