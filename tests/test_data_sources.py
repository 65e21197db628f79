"""Rows are the same from every kind of file; no picture and no path is trusted; every dropped row is counted."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import bomb, dual_row, jpeg, pku_row, png, processor, settings

from srlhfv_jax.data import images, loader
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
@pytest.mark.parametrize("decode_first", [False, True])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_picture_is_a_counted_drop(tmp_path, cell, reason, decode_first):
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
    examples = load_examples(settings(path, decode_first=decode_first))
    assert examples.drops == {reason: 1} and examples.kept == (0, 2) and len(examples) == 2
    assert examples.dropped[0].row == 1 and examples.source_rows == 3


def test_no_picture_is_decoded_before_the_first_batch_unless_all_are_to_be(tmp_path, monkeypatch):
    """A PNG whose checksums are right, and whose pixels end too early: asked for, it is a counted drop; otherwise the batch says it."""
    damaged = bomb(30, 26) + b"\x00\x00\x00\x00IEND\xaeB`\x82"
    rows = [{"question": f"what {i} ?", "image": {"bytes": png(i) if i else damaged, "path": None}} for i in range(4)]
    path, decoded = write_parquet(tmp_path / "rows.parquet", rows), []
    monkeypatch.setattr(images, "decode", lambda encoded, decode=images.decode: decoded.append(encoded) or decode(encoded))
    fitted = loader.fit("prompts", load_examples(settings(path)), processor(), settings(path))
    assert len(fitted.rows) == 4 and not decoded
    with pytest.raises(UserError, match=r"row 0 \('what 0 \?'\) cannot be used: truncated_image.*set data.decode_first=true"):
        next(loader.batches(fitted, "prompts", None, settings(), seed=0))
    examples = load_examples(settings(path, decode_first=True))
    assert examples.drops == {"truncated_image": 1} and examples.kept == (1, 2, 3)


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


@pytest.mark.parametrize("name", ["é" * 300, "../" + "\u0e01" * 80, "\ud800" * 300, "x/" * 900, "a\u0300" * 400 + ".png"])
def test_a_message_of_many_reasons_long_names_and_long_columns_is_short(tmp_path, name):
    place = tmp_path / ("deep " * 20) / ("deeper " * 10)
    place.mkdir(parents=True)
    odd = [{"question": "q", "response": "a", "image": cell} for cell in (name, name, "http://a/b", 3, "data:image/png;base64,!")]
    odd += [{"question": "", "response": "a"}, {"question": "q", "response": ""}]
    columns = {f"picture {number} {name}": "a.png" for number in range(20)}
    path = write_jsonl(place / "rows.jsonl", [row | columns for row in odd])
    with pytest.raises(UserError, match="none of the 7 rows can be used") as caught:
        load_examples(settings(path))
    assert len(str(caught.value)) <= 600 and "\n" not in str(caught.value)


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
        (
            "nowhere",
            "",
            "",
            r"nowhere' does not exist: expected a file of rows \(.jsonl, .ndjson, .json, .csv, .parquet, .arrow\), a folder",
        ),
        ("rows.jsonl", "test", "", r"is one file: it takes a slice such as '\[:1000\]', not the split name 'test'"),
        ("rows.jsonl", f"[:{'9' * 5000}]", "", r"split '\[:9+\.\.\. \(\d+ characters\) is not understood"),
        ("a" * 300, "", "", "does not exist"),
        ("a\0b", "", "", "does not exist"),
        ("rows.jsonl", "", "a" * 300, "image folder .* does not exist"),
        ("named", "train", "", "has no files of a split 'train'; it has test: set data.split"),
        ("two", "train", "", "has no files of a split 'train'; it has a, b: set data.split"),
        ("packed", "", "", r"train.jsonl.gz cannot be unpacked \(Not a gzipped file .*: is the download complete\?"),
        ("text", "", "", r"found .gz, .zst \(unpack it: gunzip FILE.gz\)"),
        ("list.json", "", "", "list.json is a JSON object of 'question': expected a list of objects, an object of equally long"),
        ("saved", "", "", r"data-00000.arrow cannot be read as arrow \(.*: is the download complete\?"),
        ("mixed", "", "", "holds files of several kinds, such as info.json, rows.jsonl: give one file, or a folder of one kind"),
        ("about", "", "", "expected .jsonl, .json, .csv, .parquet or .arrow files .*; found neither"),
        ("rows.jsonl", "[1:2:3]", "", r"split '\[1:2:3\]' is not understood"),
        ("rows.jsonl", "", "gone", "image folder .*gone' does not exist"),
        ("folder", "test", "", "has no files of a split 'test'; it has train"),
        ("empty", "", "", "expected .jsonl, .json, .csv, .parquet or .arrow files .* of one kind"),
    ],
)
def test_mistakes_in_paths_are_named(tmp_path, path, split, image_dir, message):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "q"}])
    write_jsonl(tmp_path / "folder" / "train.jsonl", [{"question": "q"}])
    for empty in ("empty", "named", "two", "packed", "saved", "text", "mixed", "about"):
        (tmp_path / empty).mkdir()
    for file in (
        "named/test.jsonl",
        "two/a.jsonl",
        "two/b.jsonl",
        "packed/train.jsonl.gz",
        "list.json",
        "saved/data-00000.arrow",
        "text/rows.txt.gz",
        "text/rows.zst",
        "mixed/rows.jsonl",
        "mixed/info.json",
        "about/dataset_info.json",
    ):
        (tmp_path / file).write_text('{"question": "q"}')
    (tmp_path / "saved" / "dataset_info.json").write_text('{"features": {}, "splits": {}}')
    with pytest.raises(UserError, match=message):
        open_rows(str(tmp_path / path), split, str(tmp_path / image_dir) if image_dir else "")


@pytest.mark.parametrize("split", ["", "train", "[:2]", "train[:2]", "train[:50%]"])
@pytest.mark.parametrize("path", ["rows.jsonl", "one", "parts", "train.jsonl", "test.jsonl"])
def test_one_set_needs_no_split(tmp_path, path, split):
    """One file, or a folder whose files are one set without the name of a split; the config files' default is "train"."""
    every = [{"question": f"q {i}"} for i in range(4)]
    for name in ("rows.jsonl", "train.jsonl", "test.jsonl", "one/rows.jsonl"):
        write_jsonl(tmp_path / name, every)
    for part in range(2):
        write_jsonl(tmp_path / "parts" / f"data-0000{part}-of-00002.jsonl", every[2 * part : 2 * part + 2])
    assert questions(tmp_path / path, split) == [f"q {i}" for i in range(2 if "[" in split else 4)]


def test_converted_parquet_is_split_by_its_folders(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / "default" / split / "0000.parquet", [{"question": split}])
    assert questions(tmp_path, "train") == ["train"] and questions(tmp_path, "test") == ["test"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_unicode_encoding_and_line_end_is_read(tmp_path, encoding, end):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        (end.join(json.dumps({"question": text}, ensure_ascii=False) for text in ("wäs", "שלום")) + end).encode(encoding)
    )
    assert questions(path) == ["wäs", "שלום"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "wäs"}\n'.encode("latin-1"), r":1 is not JSON \(which is utf-8 text; .*\): write it anew as UTF-8$"),
        (b'{"question": ' + b"1" * 5000 + b"}", ":1 is not JSON"),
        (b'{"question": ' + b"[" * 100000 + b"}", ":1 is not JSON"),
        (b'{"question": "q"}\n\x00\x01', ":2 is not JSON"),
    ],
)
def test_lines_that_no_reader_takes_are_one_short_line(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_rows(str(tmp_path / "rows.jsonl"), "", "")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_damaged_parquet_is_one_line_wherever_it_is_cut_or_changed(tmp_path):
    whole = write_parquet(tmp_path / "train.parquet", [pku_row()] * 3).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(4, len(whole), 60):
        changed = whole[:place] if place % 3 == 0 else whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :]
        (tmp_path / "train.parquet").write_bytes(changed)
        try:
            load_examples(settings(tmp_path))
        except UserError as error:
            assert "\n" not in str(error)


def test_parquet_files_of_different_types_are_named(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [pku_row()])
    write_parquet(tmp_path / "train-1.parquet", [pku_row(better_response_id="0")])
    with pytest.raises(UserError, match="columns of different types .*better_response_id.*: write them with one type"):
        open_rows(str(tmp_path), "", "")


def test_no_usable_row_shows_what_was_wrong_with_the_first_and_what_was_not_read(tmp_path, capsys):
    rows = [{"prompt": "what ?", "responses": ["a cat", "a dog"], "chosen": "a cat", "picture": "a.png"}] * 2
    with pytest.raises(UserError, match="row 0: chosen must be 0, 1 or 'tie', got 'a cat'; not read: the columns picture, "):
        load_examples(settings(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert "picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"image_path": "a.png"}, "image_path"),
        ({"image_url": "https://x/a"}, "image_url"),
        ({"img": "a"}, "img"),
        ({"shot": "x/a.JPG"}, "shot"),
        ({"cell": "data:image/png;base64,AAAA"}, "cell"),
        ({"output": "a"}, "output"),
        ({"gold_answer": "a"}, "gold_answer"),
        ({"label": 1}, "label"),
        ({"isSafe": 1, "is_toxic": 0}, "is_toxic"),
    ],
)
def test_a_column_that_should_perhaps_be_read_is_named(tmp_path, capsys, row, named):
    assert len(load_examples(settings(write_jsonl(tmp_path / "rows.jsonl", [{"question": "q"} | row])))) == 1
    warning = capsys.readouterr().err
    assert "read as plain, without the columns " in warning and named in warning and warning.count("\n") == 1


@pytest.mark.parametrize("row", [dual_row(), pku_row(), {"question": "q", "response": "a", "source": "s", "topic": "t"}])
def test_columns_of_published_sets_are_no_surprise(tmp_path, capsys, row):
    write_parquet(tmp_path / "rows.parquet", [row])
    load_examples(settings(tmp_path / "rows.parquet"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "WEBP", "GIF"])
def test_a_ramp_stays_a_ramp(mode):
    import io

    from PIL import Image

    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (8, 1)))
    kind = {"CMYK": "JPEG", "WEBP": "WEBP", "GIF": "GIF"}.get(mode, "PNG")
    shown = (
        Image.fromarray(np.asarray(ramp, np.uint16) * 257)
        if mode == "I;16"
        else ramp.convert(mode if kind in ("PNG", "JPEG") else "L")
    )
    buffer = io.BytesIO()
    shown.save(buffer, kind)
    found = np.asarray(images.decode(buffer.getvalue()), int)[:, :, 0].mean(axis=0).reshape(16, 16).mean(axis=1)
    assert np.all(np.abs(found - np.arange(7.5, 256, 16)) < 12), found


def test_pictures_in_text_are_read_and_what_is_none_is_a_counted_drop(tmp_path):
    import base64

    text = base64.b64encode(png(3)).decode()
    write_jsonl(tmp_path / "rows.jsonl", [])
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    good = [text, wrapped, f"data:image/png;base64,{text}", {"bytes": text}, base64.b64encode(jpeg(1)).decode()]
    bad = {
        "a\0b": "missing_image",
        "x\udfff y.png": "missing_image",
        "a" * 5000: "missing_image",
        "iVBORw0KGgo" + " " * 100_000 + "!": "missing_image",  # in no time
        text[:-3]: "not_an_image",
        "data:image/png;base64,%%%": "not_an_image",
        "https://example.org/a.png": "image_not_here",
        "file:///etc/hostname": "image_not_here",
        "ring": "missing_image",
    }
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    cells = [*good, *bad, 5, {"url": "a"}, ["a.png"]]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "q", "image": cell} for cell in cells])
    examples = load_examples(settings(path))
    assert [example.images for example in examples] == [(png(3),)] * 4 + [(jpeg(1),)]
    assert [drop.reason for drop in examples.dropped] == [*bad.values(), "not_an_image", "not_an_image", "missing_image"]


def test_links_are_followed_inside_the_data_the_hub_s_cache_and_a_folder_that_is_allowed(tmp_path):
    """Snapshots of the hub's cache are trees of links to ../../../blobs; elsewhere a link out of the data needs data.allow_dir."""
    snapshot, disk = tmp_path / "datasets--a--b" / "snapshots" / "1f", tmp_path / "disk"
    for folder in (snapshot / "images", snapshot / "more", tmp_path / "datasets--a--b" / "blobs", disk):
        folder.mkdir(parents=True)
    (tmp_path / "datasets--a--b" / "blobs" / "77").write_bytes(png(1))
    (disk / "b.png").write_bytes(png(2))
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/77")
    (snapshot / "images" / "inner.png").symlink_to("../more/c.png")
    (snapshot / "more" / "c.png").write_bytes(png(3))
    (snapshot / "linked").symlink_to(disk)
    cells = ["images/a.png", "images/inner.png", "linked/b.png", "../../blobs/77", str(disk / "b.png")]
    path = write_jsonl(snapshot / "rows.jsonl", [{"question": "q", "image": cell} for cell in cells])
    examples = load_examples(settings(path))
    assert examples.kept == (0, 1, 3) and examples.drops == {"path_outside_folder": 2}
    assert load_examples(settings(path, allow_dir=str(disk))).kept == (0, 1, 2, 3, 4)
    beside = write_jsonl(snapshot / "two.jsonl", [{"question": "q", "image": "inner.png"}])
    assert (
        len(load_examples(settings(beside, image_dir=str(snapshot / "images")))) == 1
    )  # the tree of the data, not of the pictures
