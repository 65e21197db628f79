"""TFDS folders are written and read without TensorFlow and without network, and give back what was put in."""

import base64
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


FLAGS = ["yes", "No", True, False, 1, 0, "1", "false", " yes ", 1.0, None, "", "tie", "maybe", 2.7, [True], {"a": 1}]
IDS = [0, 1, 2, "0", "1", "2", 1.0, "1.0", "tie", None, "", True, 2.7, "Tie", -1, [1]]
NUMBERS = [0, 3, -3, "2", 2.7, "2.7", "-0.5", None, "", "much", True, 10**400, [2], float("nan")]
TABLES = [
    {"a": True, "b": False},
    {"a": "yes", "b": "false"},
    {"a": 1, "b": None},
    {"b": "0"},
    {},
    None,
    '{"a": true}',
    "a",
    {"a": "maybe"},
    ["a"],
    {"né, ü": True},
]
NAMES = ["violence", None, "", "none", 3, {"a": True}, ["violence"]]
TEXT = {"prompt": "q", "response": "a", "is_safe": False, "category": {"self_harm": True}}
SPELLINGS = [
    (
        BeavertailsV,
        dual_row,
        {"more_helpful_response_id": IDS, "safer_response_id": IDS, "is_response_1_safe": FLAGS, "harmful": FLAGS},
    ),
    (BeavertailsV, dual_row, {"response_2_harmless_rate": NUMBERS, "response_1_helpful_rate": NUMBERS, "category": NAMES}),
    (BeavertailsVQa, qa_row, {"is_response_safe": FLAGS, "category": NAMES, "image_severity": NUMBERS, "harmful": FLAGS}),
    (PkuSaferlhf, pku_row, {"better_response_id": IDS, "safer_response_id": IDS, "is_response_0_safe": FLAGS, "harmful": FLAGS}),
    (PkuSaferlhf, pku_row, {"response_1_severity_level": NUMBERS, "response_0_harm_category": TABLES, "prompt_source": TABLES}),
    (Beavertails, lambda **changes: TEXT | changes, {"is_safe": FLAGS, "category": TABLES, "harmful": FLAGS}),
]


@pytest.mark.parametrize(("kind", "row", "spelt"), SPELLINGS, ids=lambda value: value.name if isinstance(value, type) else None)
def test_reading_through_tfds_is_reading_the_file_for_every_spelling_of_a_label(tmp_path, kind, row, spelt):
    """Row for row: the same examples, and the same rows dropped for the same reasons."""
    rows = [row(**{name: value}) for name, values in spelt.items() for value in values]
    for one in rows:
        if "image" in one:
            one["image"] = base64.b64encode(one["image"]["bytes"]).decode()
    write(tmp_path / "s" / "train.jsonl", rows)
    before = load_examples(settings(tmp_path / "s" / "train.jsonl"))
    folder = build(kind, tmp_path / "s", tmp_path / "t")
    after = load_examples(settings(folder, split="train"))
    assert list(after) == list(before) and len(before) > len(rows) // 3
    assert json.loads((folder / "drops.json").read_text()) == before.drops


def test_pictures_that_a_folder_has_no_place_for_are_not_lost(tmp_path):
    write(tmp_path / "s" / "train.parquet", [pku_row(image={"bytes": png(1), "path": None})])
    with pytest.raises(UserError, match="a row has 1 pictures where a pku_saferlhf folder keeps 0: give its file to the stages"):
        build(PkuSaferlhf, tmp_path / "s", tmp_path / "t")


DAMAGE = {
    "no features": lambda folder: (folder / "features.json").unlink(),
    "empty features": lambda folder: (folder / "features.json").write_bytes(b""),
    "cut features": lambda folder: cut(folder / "features.json"),
    "features of another type": lambda folder: (folder / "features.json").write_text("[1]"),
    "empty info": lambda folder: (folder / "dataset_info.json").write_bytes(b""),
    "cut info": lambda folder: cut(folder / "dataset_info.json"),
    "info of a picture": lambda folder: (folder / "dataset_info.json").write_bytes(png(1)),
    "info of another tool": lambda folder: (folder / "dataset_info.json").write_text('{"mine": {"file_name": "a.json"}}'),
    "another format": lambda folder: changed(folder / "dataset_info.json", "array_record", "tfrecord"),
    "more rows than there are": lambda folder: changed(folder / "dataset_info.json", '"3"', '"900000000000"'),
    "no shard": lambda folder: next(folder.glob("*array_record-*")).unlink(),
    "an empty shard": lambda folder: next(folder.glob("*array_record-*")).write_bytes(b""),
    "a cut shard": lambda folder: cut(next(folder.glob("*array_record-*"))),
    "a shard of noise": lambda folder: next(folder.glob("*array_record-*")).write_bytes(b"noise" * 30000),
    "a class of its choice": lambda folder: changed(
        folder / "features.json", "tensorflow_datasets.core.features.text_feature", "this"
    ),
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path, before, after):
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_one_line_and_imports_nothing(tmp_path, damage):
    write(tmp_path / "s" / "train.jsonl", [pku_row()] * 3)
    folder = build(PkuSaferlhf, tmp_path / "s", tmp_path / "t")
    DAMAGE[damage](folder)
    with pytest.raises(UserError) as caught:
        load_examples(settings(folder, split="train"))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and "this" not in sys.modules


def test_what_other_tools_call_dataset_info_is_no_tfds_folder(tmp_path):
    """LLaMA-Factory and ms-swift list their sets in it, `datasets` describes one beside its parquet files."""
    for place, content in (
        ("", '{"mine": {"file_name": "a.json"}}'),
        ("a/b/", '[{"hf_dataset_id": "x/y"}]'),
        ("a/", '{"splits": {}}'),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "dataset_info.json").write_text(content)
    write(tmp_path / "train.jsonl", [{"question": "q"}])
    (tmp_path / "records.txt").write_text("")
    assert len(load_examples(settings(tmp_path, split="train"))) == 1


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
    assert drops == {"missing_image": 1, "not_an_image": 1, "empty_question": 1}
    assert [len(open_rows(str(folder), split, "").items) for split in ("train", "evaluation")] == [2, 2]


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
