"""TFDS folders are written and read without TensorFlow and without network, and give back what was put in."""

import json
import os
import subprocess
import sys
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import dual_row, jpeg, pku_row, png, qa_row, settings

from srlhfv_jax.data import taxonomies
from srlhfv_jax.data.sources import load_examples, open_rows
from srlhfv_jax.data.tfds import look_before_you_answer, records
from srlhfv_jax.data.tfds.beavertails import Beavertails
from srlhfv_jax.data.tfds.beavertails_v import BeavertailsV
from srlhfv_jax.data.tfds.beavertails_v_qa import BeavertailsVQa
from srlhfv_jax.data.tfds.pku_saferlhf import PkuSaferlhf
from srlhfv_jax.errors import UserError


def flags(names: tuple[str, ...], *present: str) -> dict[str, bool]:
    return {name: name in present for name in names}


VIOLENT = flags(taxonomies.PKU_SAFERLHF, "Violence")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(kind, source, target, *, overwrite=False):
    return records.build(partial(kind, source=source), target, overwrite=overwrite)


CASES = [
    (BeavertailsV, "train-00000-of-00001.parquet", lambda i: dual_row(question=f"q {i}", image={"bytes": png(i), "path": None})),
    (BeavertailsVQa, "train-00000-of-00001.parquet", lambda i: qa_row(question=f"q {i}", image={"bytes": jpeg(i), "path": None})),
    (
        PkuSaferlhf,
        "train.jsonl",
        lambda i: pku_row(prompt=f"q {i}", response_0_harm_category=VIOLENT, response_1_harm_category=VIOLENT),
    ),
    (
        Beavertails,
        "train.jsonl",
        lambda i: {
            "prompt": f"q {i}",
            "response": "a",
            "is_safe": i % 2 == 0,
            "category": flags(taxonomies.BEAVERTAILS, *["self_harm"] * (i % 2)),
        },
    ),
]


@pytest.mark.parametrize(("kind", "file", "row"), CASES, ids=lambda case: case.name if isinstance(case, type) else None)
def test_a_written_data_set_gives_back_the_same_examples_in_order(tmp_path, kind, file, row):
    write(tmp_path / "source" / file, [row(i) for i in range(7)])
    folder = build(kind, tmp_path / "source", tmp_path / "tfds")
    assert folder == tmp_path / "tfds" / kind.name / "1.0.0"
    before = load_examples(settings(tmp_path / "source"))
    after = load_examples(settings(tmp_path / "tfds", split="train"))
    assert after.layout == kind.name and len(after) == 7
    for a, b in zip(before, after, strict=True):
        assert a._replace(meta=dict(a.meta)) == b._replace(meta=dict(b.meta))
    assert [e.question for e in load_examples(settings(folder, split="train[2:4]"))] == ["q 2", "q 3"]


def test_unusable_rows_are_left_out_and_counted(tmp_path):
    rows = [
        dual_row(),
        dual_row(image=None),
        dual_row(image={"bytes": b"junk", "path": None}),
        dual_row(response_1_harmless_rate=None),
    ]
    write(tmp_path / "s" / "train-00000-of-00001.parquet", rows)
    write(tmp_path / "s" / "evaluation-00000-of-00001.parquet", [dual_row(question="")] + [dual_row()] * 2)
    folder = build(BeavertailsV, tmp_path / "s", tmp_path / "t")
    drops = json.loads((folder / "drops.json").read_text())
    assert drops == {"missing_image": 1, "not_an_image": 1, "missing_label": 1, "empty_question": 1}
    assert [len(open_rows(str(folder), split, "").items) for split in ("train", "evaluation")] == [1, 2]


def test_a_data_set_is_not_overwritten_unasked(tmp_path):
    write(tmp_path / "s" / "train.parquet", [dual_row()] * 2)
    build(BeavertailsV, tmp_path / "s", tmp_path / "t")
    with pytest.raises(UserError, match="exists already: remove it, or give --overwrite"):
        build(BeavertailsV, tmp_path / "s", tmp_path / "t")
    write(tmp_path / "s" / "train.parquet", [dual_row()] * 3)
    folder = build(BeavertailsV, tmp_path / "s", tmp_path / "t", overwrite=True)
    assert len(open_rows(str(folder), "train", "").items) == 3


def test_files_of_another_layout_are_refused(tmp_path):
    write(tmp_path / "s" / "train.parquet", [qa_row()])
    with pytest.raises(
        UserError, match="has the layout beavertails_v_qa, this builder writes beavertails_v: choose --name=beavertails_v_qa"
    ):
        build(BeavertailsV, tmp_path / "s", tmp_path / "t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no .parquet or .jsonl files: download the data set there first"):
        build(BeavertailsV, tmp_path / "empty", tmp_path / "t")


def test_an_unknown_split_is_named_with_those_there_are(tmp_path):
    write(tmp_path / "s" / "train.parquet", [dual_row()])
    write(tmp_path / "s" / "evaluation.parquet", [dual_row()])
    folder = build(BeavertailsV, tmp_path / "s", tmp_path / "t")
    for split in ("test", ""):
        with pytest.raises(UserError, match=f"has no split '{split}': choose data.split from evaluation, train"):
            open_rows(str(folder), split, "")


def test_a_folder_of_several_data_sets_needs_a_choice(tmp_path):
    write(tmp_path / "s" / "train.parquet", [dual_row()])
    write(tmp_path / "q" / "train.parquet", [qa_row()])
    build(BeavertailsV, tmp_path / "s", tmp_path / "t")
    build(BeavertailsVQa, tmp_path / "q", tmp_path / "t")
    with pytest.raises(UserError, match="holds 2 TFDS data sets: give one of beavertails_v/1.0.0, beavertails_v_qa/1.0.0"):
        open_rows(str(tmp_path / "t"), "train", "")


@pytest.mark.parametrize(
    ("config", "layout", "responses"),
    [("naming", "beavertails_v_qa", 1), ("sft", "beavertails_v_qa", 1), ("prompts", "plain", 0), ("pairs", "beavertails_v", 2)],
)
def test_the_embedded_task_is_a_data_set_like_any_other(tmp_path, config, layout, responses):
    made = look_before_you_answer.standard(config, seed=1, count=8)
    look_before_you_answer.write(tmp_path, config, made)
    examples = load_examples(settings(tmp_path, split="train"))
    assert examples.layout == layout and len(examples) == 8 and not examples.drops
    for row, example in zip(made["train"], examples, strict=True):
        assert (example.images, example.question) == ((row["image"],), row["question"]) and len(example.responses) == responses
        assert {"concept": row["concept"], "intent": row["intent"]}.items() <= example.meta.items()


def test_pairs_of_a_policy_replace_those_of_an_earlier_round(tmp_path):
    rows = look_before_you_answer.standard("pairs", seed=2, count=8)["test"]
    look_before_you_answer.write(tmp_path, "pairs", {"train": rows})
    folder = look_before_you_answer.write(tmp_path, "pairs", {"train": rows[:1]})
    assert len(load_examples(settings(folder, split="train"))) == 1


def test_neither_tensorflow_nor_jax_nor_the_network_is_used(tmp_path):
    write(tmp_path / "s" / "train.parquet", [dual_row()] * 3)
    code = f"""
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from functools import partial
from pathlib import Path
from srlhfv_jax.data.sources import open_rows
from srlhfv_jax.data.tfds import records
from srlhfv_jax.data.tfds.beavertails_v import BeavertailsV
records.build(partial(BeavertailsV, source=Path({str(tmp_path / "s")!r})), Path({str(tmp_path / "t")!r}), overwrite=False)
assert len(list(open_rows({str(tmp_path / "t")!r}, "train", "").items)) == 3
assert not {{"tensorflow", "jax", "torch"}} & set(sys.modules), set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
