"""The same rows from every kind of file, packed or not; what only looks like rows is refused in one line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import png, settings

from srlhfv_jax.data.sources import load_examples, open_rows
from srlhfv_jax.errors import UserError

ROWS = [{"question": f"wäs\n{i} ?", "response": f'a, "{i}"'} for i in range(5)]


def table(rows, write):
    sink = io.BytesIO()
    write(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def write_stream(made: pa.Table, sink) -> None:
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=2)


def write_file(made: pa.Table, sink) -> None:
    with pa.ipc.new_file(sink, made.schema) as writer:
        writer.write_table(made)


def sheet(rows) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


FILES = {
    "rows.jsonl": lines(ROWS),
    "rows.ndjson": lines(ROWS),
    "lines.json": lines(ROWS),
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "sixteen.json": json.dumps(ROWS).encode("utf-16"),
    "lists.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode(),
    "data.json": json.dumps({"data": ROWS}).encode(),
    "train.json": json.dumps({"train": ROWS, "test": [{"question": "no", "response": "no"}]}).encode(),
    "about.json": json.dumps({"version": "1.0", "data": ROWS}).encode(),
    "rows.csv": sheet(ROWS),
    "noted.csv": b"# version 2\n# of ours\n" + sheet(ROWS),
    "rows.parquet": table(ROWS, pq.write_table),
    "stream.arrow": table(ROWS, write_stream),
    "file.arrow": table(ROWS, write_file),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".xz", ".bz2"])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_has_the_same_rows(tmp_path, name, packing):
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[packing]
    (tmp_path / (name + packing)).write_bytes(pack(FILES[name]))
    for split in ("", "train", "[:]"):
        if name != "train.json" or split == "train":
            opened = open_rows(str(tmp_path / (name + packing)), split, "")
            assert opened.items[0 : len(opened.items)] == ROWS and opened.columns == ("question", "response")
    part = open_rows(str(tmp_path / (name + packing)), "train[1:3]", "").items
    assert (list(part), part[-1]) == (ROWS[1:3], ROWS[2])


def test_a_folder_of_packed_parts_is_one_set(tmp_path):
    for part in range(3):
        (tmp_path / f"train-0000{part}-of-00003.jsonl.xz").write_bytes(lzma.compress(lines(ROWS[part : part + 2])))
    items = open_rows(str(tmp_path), "train", "").items
    expected = [*ROWS[0:2], *ROWS[1:3], *ROWS[2:4]]
    assert list(items) == expected and items[1:5] == expected[1:5] and items[-1] == expected[-1] and items[2:2] == []


def saved(folder, rows):
    """As `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    for number, part in enumerate((rows[:3], rows[3:])):
        (folder / f"data-0000{number}-of-00002.arrow").write_bytes(table(part, write_stream))
    (folder / "cache-0123.arrow").write_bytes(table([{"other": 1}], write_stream))
    (folder / "dataset_info.json").write_text('{"features": {"question": {"dtype": "string", "_type": "Value"}}}')
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00002.arrow"}], "_split": "train"}')


def test_folders_of_save_to_disk_are_read_with_their_splits(tmp_path):
    saved(tmp_path / "one", ROWS)
    assert list(open_rows(str(tmp_path / "one"), "train", "").items) == ROWS
    saved(tmp_path / "dict" / "train", ROWS)
    saved(tmp_path / "dict" / "test", ROWS[:4])
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert list(open_rows(str(tmp_path / "dict"), "train", "").items) == ROWS
    assert list(open_rows(str(tmp_path / "dict"), "test[2:]", "").items) == ROWS[2:4]
    with pytest.raises(UserError, match="has no files of a split 'eval'; it has test, train: set data.split"):
        open_rows(str(tmp_path / "dict"), "eval", "")


def test_pictures_of_a_saved_folder_are_read(tmp_path):
    (tmp_path / "rows").mkdir()
    rows = [{"question": "q", "response": "a", "image": {"bytes": png(4), "path": None}}]
    (tmp_path / "rows" / "data-00000-of-00001.arrow").write_bytes(table(rows, write_stream))
    assert load_examples(settings(tmp_path / "rows"))[0].images == (png(4),)


def test_a_file_that_tells_of_data_sets_is_no_data(tmp_path):
    """`dataset_info.json` of LLaMA-Factory and ms-swift lies beside files of rows."""
    for listing in ({"identity": {"file_name": "identity.json"}}, [{"hf_dataset_id": "a/b"}]):
        (tmp_path / "dataset_info.json").write_text(json.dumps(listing))
        (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
        assert list(open_rows(str(tmp_path), "train", "").items) == ROWS
    (tmp_path / "more.json").write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match="holds files of several kinds, such as more.json, rows.jsonl: give one file"):
        open_rows(str(tmp_path), "", "")
    assert list(open_rows(str(tmp_path), "more", "").items) == ROWS


def test_cells_of_csv_that_are_lists_are_lists(tmp_path):
    row = {
        "messages": json.dumps([{"role": "user", "content": "a ?"}, {"role": "assistant", "content": "b"}]),
        "note": "[x] done",
    }
    (tmp_path / "rows.csv").write_bytes(sheet([row]))
    (example,) = load_examples(settings(tmp_path / "rows.csv"))
    assert (example.question, example.responses, example.meta) == ("a ?", ("b",), {"note": "[x] done"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "3", "a.json is a JSON int: expected a list of objects"),
        ("a.json", "[1]", "item 0 of the list is a JSON int: expected a list of objects"),
        ("a.json", '[{"question": "q"}, []]', "item 1 of the list is a JSON list"),
        (
            "a.json",
            '{"question": "q"}',
            "a JSON object of 'question': expected a list of objects, an object of equally long lists",
        ),
        ("a.json", '{"question": ["a", "b"], "response": ["c"]}', "a JSON object of 'question', 'response': expected a list"),
        ("a.json", "{}", "a JSON object of nothing"),
        ("a.json", '{"a": [{"question": "q"}], "b": [{"question": "q"}]}', "has the lists 'a', 'b': choose one with data.split"),
        ("a.json", '[{"question": "q"}', "a.json is not JSON .*: expected a list of objects"),
        ("a.json", "[" * 100_000, "a.json is not JSON .*: expected a list of objects"),
        ("a.csv", "question,question\na,b\n", "its first line must name every column once, got"),
        ("a.csv", "question,response\na\n", "the row that ends in line 2 has 1 cells and not 2"),
        ("a.csv", 'question,response\na,"b\n', "line 2 is not CSV"),
        ("a.csv.gz", "question\na\n", "a.csv.gz cannot be unpacked .*: is the download complete"),
        ("a.csv.xz", "question\na\n", "a.csv.xz cannot be unpacked .*: is the download complete"),
        ("a.jsonl.bz2", "question\na\n", "a.jsonl.bz2 cannot be unpacked .*: is the download complete"),
        ("a.arrow", "question", "a.arrow cannot be read as arrow .*: is the download complete"),
        ("a.arrow.gz", "question", "a.arrow.gz cannot be unpacked"),
    ],
)
def test_content_of_another_shape_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_rows(str(tmp_path / name), "", "")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("packing", [".gz", ".xz", ".bz2"])
def test_a_packed_file_that_was_cut_is_one_line(tmp_path, packing):
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[packing]
    whole = pack(lines(ROWS * 50))
    for end in range(0, len(whole), max(len(whole) // 40, 1)):
        (tmp_path / f"a.jsonl{packing}").write_bytes(whole[:end])
        try:
            open_rows(str(tmp_path / f"a.jsonl{packing}"), "", "")
        except UserError as error:
            assert "\n" not in str(error)


def test_lines_that_change_under_a_run_are_one_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(ROWS * 5000))
    items = open_rows(str(path), "", "").items
    assert items[3] == ROWS[3]
    os.truncate(path, 60)
    with pytest.raises(UserError, match="rows.jsonl.* is not JSON"):
        items[24999]


def test_rows_are_the_same_by_number_and_in_parts_from_many_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    rows = [{"question": f"q {i}" * (i % 7 + 1)} for i in range(400)]
    (tmp_path / "rows.jsonl").write_bytes(lines(rows))
    items = open_rows(str(tmp_path / "rows.jsonl"), "", "").items
    order = np.random.default_rng(0).permutation(400).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(items.__getitem__, order)) == [rows[i] for i in order]
