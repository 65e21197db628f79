"""Rows are the same from every kind of file; no picture and no path is trusted; every dropped row is counted."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import bomb, dual_row, jpeg, pku_row, png, settings

from srlhfv_jax.data import images, pictures
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.sources import load_examples, open_rows
from srlhfv_jax.errors import UserError


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def questions(path, split=""):
    return [row["question"] for row in open_rows(str(path), split, "").items]


def test_parquet_and_json_lines_with_image_files_give_the_same_examples(tmp_path):
    rows = [dual_row(question=f"what {i} ?", image={"bytes": png(i), "path": f"{i}.png"}) for i in range(5)]
    table = write_parquet(tmp_path / "a" / "rows.parquet", rows)
    for i in range(5):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / f"{i}.png").write_bytes(png(i))
    lines = write_jsonl(tmp_path / "b" / "rows.jsonl", [row | {"image": row["image"]["path"]} for row in rows])
    assert list(load_examples(settings(table))) == list(load_examples(settings(lines)))


def test_images_may_lie_in_another_folder(tmp_path):
    (tmp_path / "pictures" / "x").mkdir(parents=True)
    (tmp_path / "pictures" / "x" / "1.jpg").write_bytes(jpeg(3))
    lines = write_jsonl(tmp_path / "rows.jsonl", [{"question": "what ?", "image": "x/1.jpg"}])
    examples = load_examples(settings(lines, image_dir=str(tmp_path / "pictures")))
    assert examples[0].images == (jpeg(3),)


def test_a_folder_is_read_by_split_over_all_its_files(tmp_path):
    for category in ("animal_abuse", "privacy"):
        for part in range(2):
            rows = [dual_row(question=f"{category} {part} {i}") for i in range(3)]
            write_parquet(tmp_path / category / f"train-0000{part}-of-00002.parquet", rows)
        write_parquet(tmp_path / category / "evaluation-00000-of-00001.parquet", [dual_row(question=f"{category} e")])
    assert questions(tmp_path, "evaluation") == ["animal_abuse e", "privacy e"]
    train = questions(tmp_path, "train")
    assert len(train) == 12 and train[5:7] == ["animal_abuse 1 2", "privacy 0 0"]
    assert questions(tmp_path, "train[5:7]") == train[5:7]
    assert questions(tmp_path, "train[50%:]") == train[6:]
    assert questions(tmp_path, "train[:-10]") == train[:2]
    assert len(questions(tmp_path)) == 14


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"bytes": b"not a picture at all", "path": None}, "not_an_image"),
        ({"bytes": png(1)[:-40], "path": None}, "truncated_image"),
        ({"bytes": jpeg(1)[:-200], "path": None}, "truncated_image"),
        ({"bytes": bomb(9000, 9000), "path": None}, "image_too_large"),
        ({"bytes": bomb(60000, 60000), "path": None}, "image_too_large"),
        ("nowhere.png", "missing_image"),
        ("../outside.png", "path_outside_folder"),
        ("/etc/hostname", "path_outside_folder"),
        ("link.png", "path_outside_folder"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_picture_is_a_counted_drop(tmp_path, cell, reason):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(png(1))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    good = {"bytes": png(2), "path": None}
    rows = [dual_row(image=value) for value in (good, cell, good)]
    if isinstance(cell, str):
        (folder / "good.png").write_bytes(png(2))
        path = write_jsonl(folder / "rows.jsonl", [dual_row(image=value) for value in ("good.png", cell, "good.png")])
    else:
        path = write_parquet(folder / "rows.parquet", rows)
    examples = load_examples(settings(path))
    assert examples.drops == {reason: 1} and examples.kept == (0, 2) and len(examples) == 2
    assert examples.dropped[0].row == 1 and examples.source_rows == 3


def test_a_palette_or_gray_picture_becomes_rgb():
    for name in ("L", "P", "RGBA"):
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.new(name, (5, 4)).save(buffer, "PNG")
        assert images.decode(buffer.getvalue()).mode == "RGB"


def test_a_picture_format_of_no_use_is_refused():
    with pytest.raises(Unusable) as caught:
        images.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert caught.value.reason == "not_an_image"


def test_text_only_rows_need_no_folder_of_images(tmp_path):
    examples = load_examples(settings(write_jsonl(tmp_path / "train.jsonl", [pku_row(), pku_row(prompt="")])))
    assert examples.layout == "pku_saferlhf" and examples[0].images == () and examples.drops == {"empty_question": 1}


def test_examples_are_read_again_and_slices_are_lists(tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", [dual_row(question=f"q {i}") for i in range(4)])
    examples = load_examples(settings(path))
    assert examples[2] == examples[-2] and [example.question for example in examples[1:3]] == ["q 1", "q 2"]


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_one_after_the_other_they_are_what_they_are_by_number(tmp_path, write):
    """Many are read at once then: 150 rows, of which some are dropped, and a part of them."""
    rows = [{"question": "" if i % 50 == 49 else f"q {i}", "response": f"a {i % 7}"} for i in range(150)]
    path = write(tmp_path / f"rows.{write.__name__.removeprefix('write_')}", rows)
    for split, kept in (("", range(150)), ("[40:137]", range(40, 137))):
        examples = load_examples(settings(path, split=split))
        assert list(examples) == [examples[i] for i in range(len(examples))]
        assert [example.question for example in examples] == [f"q {i}" for i in kept if i % 50 != 49]


def test_no_usable_row_is_an_error_that_counts_the_reasons(tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", [dual_row(question=""), dual_row(question=""), dual_row(response_1="")])
    with pytest.raises(UserError, match=r"none of the 3 rows can be used \(empty_question 2 .*, empty_response 1 "):
        load_examples(settings(path))


def test_mistakes_in_files_are_named(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "q"}\n{"question": \n')
    with pytest.raises(UserError, match=r"bad.jsonl:2 is not JSON .*expected one object per line"):
        open_rows(str(bad), "", "")
    bad.write_text("[1, 2]\n")
    with pytest.raises(UserError, match="bad.jsonl:1 is a JSON list"):
        open_rows(str(bad), "", "")
    whole = write_parquet(tmp_path / "p" / "train.parquet", [dual_row()]).read_bytes()
    (tmp_path / "p" / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train.parquet cannot be read as parquet .*is the download complete"):
        open_rows(str(tmp_path / "p"), "", "")


@pytest.mark.parametrize(
    ("path", "split", "image_dir", "message"),
    [
        ("nowhere", "", "", r"nowhere' does not exist: expected a .jsonl or .parquet file"),
        ("rows.jsonl", "train", "", r"is one file: it takes a slice such as '\[:1000\]', not the split name 'train'"),
        ("rows.jsonl", "[1:2:3]", "", r"split '\[1:2:3\]' is not understood"),
        ("rows.jsonl", "", "gone", "image folder .*gone' does not exist"),
        ("folder", "test", "", "has no files of a split 'test'; it has train"),
        ("empty", "", "", "expected .jsonl or .parquet files of one kind"),
    ],
)
def test_mistakes_in_paths_are_named(tmp_path, path, split, image_dir, message):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "q"}])
    write_jsonl(tmp_path / "folder" / "train.jsonl", [{"question": "q"}])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_rows(str(tmp_path / path), split, str(tmp_path / image_dir) if image_dir else "")


def test_pixels_are_those_of_the_checkpoints_image_processor():
    from tiny_data import PATCH, SIZE, processor

    image = images.decode(png(5))
    expected = processor()(images=image, text="<image>", return_tensors="np")["pixel_values"][0]
    got = next(pictures.cut(pictures.reader(processor()), [image]))
    n = SIZE // PATCH
    assert got.dtype == np.float32 and got.shape == (n * n, 3 * PATCH * PATCH)
    by_patch = got.reshape(n, n, 3, PATCH, PATCH)
    for y in range(n):
        for x in range(n):
            np.testing.assert_array_equal(by_patch[y, x], expected[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH])
