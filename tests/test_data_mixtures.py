"""Several sources, columns under other names, data that lies elsewhere, and rows in memory."""

import dataclasses
import http.server
import json
import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tiny_data import dual_row, png, processor, settings

from srlhfv_jax.cli import flags
from srlhfv_jax.config import SFTConfig
from srlhfv_jax.data import columns, loader, mixtures, places, sources
from srlhfv_jax.data.answers import AnsweredTurns
from srlhfv_jax.data.blind import WithBlind
from srlhfv_jax.data.mixtures import Mixture
from srlhfv_jax.errors import UserError


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(word: str, count: int) -> list[dict]:
    words = "a cat dog knife no yes what is this how do I use it".split()
    return [{"question": f"{word} {words[i % 13]} {words[i // 13]} ?", "response": "yes ."} for i in range(count)]


@pytest.fixture
def two(tmp_path):
    """A small source and one that is four times as large, with a row each that cannot be used."""
    small = write(tmp_path / "small.jsonl", [*answers("what", 10), {"question": "", "response": "x"}])
    large = write(tmp_path / "large.jsonl", [{"question": "is", "response": ""}, *answers("how", 40)])
    return small, large


def drawn(stream: loader.Batches, prepared: loader.Prepared, count: int) -> list[int]:
    """The rows of so many batches, found by their prompts."""
    prompts = {row.prompt.tobytes(): number for number, row in enumerate(prepared.rows)}
    taken = []
    for _ in range(count):
        batch = next(stream)
        width = prepared.frame.prompt_length
        taken += [prompts[row[:width][mask[:width]].tobytes()] for row, mask in zip(batch.tokens_BT, batch.mask_BT)]
    return taken


def prepared(path, **changes):
    data = settings(path, batch_size=5, workers=1, **changes)
    return loader.fit("supervised", sources.load_examples(data), processor(), data), data


def test_a_name_that_exists_may_have_commas(two, tmp_path):
    small, large = two
    odd = write(tmp_path / "a,b" / "c,d.jsonl", answers("what", 3))
    for path, expected in (
        (f"{odd}:0.25,{small}:0.75", [(str(odd), 0.25), (str(small), 0.75)]),
        (f"{small}, {odd},{large}", [(str(small), None), (str(odd), None), (str(large), None)]),
        (f"{odd}:0.5,{tmp_path / 'no,where'}:0.5", None),
    ):
        if expected is None:
            with pytest.raises(UserError, match="give every source a weight"):
                mixtures.parse(path)
        else:
            assert [tuple(one) for one in mixtures.parse(path)] == expected


def test_sources_without_weights_are_one_set_and_drops_are_told_by_source(two):
    examples = sources.load_examples(settings(f"{two[0]},{two[1]}"))
    assert isinstance(examples, Mixture) and len(examples) == 50 and examples.source_rows == 52
    alone = [list(sources.load_examples(settings(path))) for path in two]
    assert list(examples) == alone[0] + alone[1] == [examples[i] for i in range(50)]
    assert examples[-1] == alone[1][-1] and examples[8:12] == alone[0][8:] + alone[1][:2]
    assert examples.drops == {"empty_question": 1, "empty_response": 1} and [drop.row for drop in examples.dropped] == [10, 11]
    said = sources.describe_sources(examples)
    assert "small.jsonl: 10 of 11 rows, empty_question 1" in said and "large.jsonl: 40 of 41 rows, empty_response 1" in said
    rows, data = prepared(f"{two[0]},{two[1]}")
    taken = Counter(drawn(loader.batches(rows, "supervised", None, data, seed=3), rows, 20))
    assert set(taken.values()) == {2}  # two epochs: each row twice


def test_weights_say_how_often_a_source_is_drawn(two):
    rows, data = prepared(f"{two[0]}:0.75, {two[1]}:0.25")
    taken = drawn(loader.batches(rows, "supervised", None, data, seed=3), rows, 80)
    small = [number for number in taken if number < 10]
    assert abs(len(small) / 400 - 0.75) < 0.01
    assert set(Counter(small).values()) == {30} and set(Counter(n for n in taken if n >= 10).values()) <= {2, 3}
    assert taken == drawn(loader.batches(rows, "supervised", None, data, seed=3), rows, 80)
    assert taken != drawn(loader.batches(rows, "supervised", None, data, seed=4), rows, 80)


def test_a_mixture_goes_on_where_it_was_and_not_with_other_weights(two):
    rows, data = prepared(f"{two[0]}:3,{two[1]}:1")
    stream = loader.batches(rows, "supervised", None, data, seed=3)
    first = drawn(stream, rows, 7)
    state = json.loads(json.dumps(stream.get_state()))
    expected = drawn(stream, rows, 9)
    again = loader.batches(rows, "supervised", None, data, seed=3)
    again.set_state(state)
    assert drawn(again, rows, 9) == expected and first != expected
    others, data = prepared(f"{two[0]}:1,{two[1]}:1")
    with pytest.raises(UserError, match="give it the same data again"):
        loader.batches(others, "supervised", None, data, seed=3).set_state(state)


@pytest.mark.parametrize("wrapped", ["answers", "pairs"])
def test_weights_hold_where_rows_are_made_of_a_sources_rows(two, wrapped):
    """Every answer of a conversation, or a pair and what its winner is preferred to."""
    data = settings(path=f"{two[0]}:0.75,{two[1]}:0.25")
    examples = sources.load_examples(data)
    plain = loader.fit("supervised", examples, processor(), data)
    every = AnsweredTurns(examples, True) if wrapped == "answers" else WithBlind(examples, {}, loader.HELPFUL)
    assert loader.fit("supervised", every, processor(), data).shares == plain.shares != ()


def test_evaluation_sees_every_row_once_whatever_the_weights(two):
    rows, data = prepared(f"{two[0]}:9,{two[1]}:0")
    real = [real_B for _, real_B in loader.all_batches(rows, "supervised", None, data, batch_size=8)]
    assert np.concatenate(real).sum() == 50
    assert max(drawn(loader.batches(rows, "supervised", None, data, seed=3), rows, 30)) < 10


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{0}:x,{1}:1", "small.jsonl' must be a number of at least 0, got 'x'"),
        ("{0}:-1,{1}:1", "must be a number of at least 0, got '-1'"),
        ("{0}:nan,{1}:1", "must be a number of at least 0, got 'nan'"),
        ("{0}:,{1}:1", "must be a number of at least 0, got ''"),
        ("{0}:0,{1}:0", "the weights sum to 0"),
        ("{0}:1,{1}", r"give every source a weight \(PATH:0.7\), or none"),
        ("{0}:1,{0}:2", "names .*small.jsonl' twice"),
        ("{0},{0}", "names .*small.jsonl' twice"),
        ("{0},,{1}", "has an empty source between its commas"),
        ("{0},{1}.gone", "large.jsonl.gone' does not exist.*; did you mean .*large.jsonl'"),
        ("{0}:1,{2}:1", "prompts.jsonl has the weight 1, and none of its rows can be used here"),
    ],
)
def test_mistakes_in_sources_are_one_line(two, tmp_path, path, message):
    prompts = write(tmp_path / "prompts.jsonl", [{"question": "what ?"}])
    with pytest.raises(UserError, match=message) as caught:
        prepared(path.format(*two, prompts))
    assert "\n" not in str(caught.value)


def test_a_file_whose_name_has_commas_and_colons_is_one_source(tmp_path):
    odd = write(tmp_path / "a,b:0.5.jsonl", answers("what", 3))
    assert mixtures.parse(str(odd)) == (mixtures.Source(str(odd), None),)
    assert len(sources.load_examples(settings(odd))) == 3


def test_columns_have_the_names_that_the_settings_give(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "what ?", "reply": "a cat .", "question": 7, "shot": "x.png"}])
    data = settings(path, columns=("question=text", "response=reply", "ignore=shot"))
    (example,) = sources.load_examples(data)
    assert (example.question, example.responses, example.meta) == ("what ?", ("a cat .",), {})
    names, items = columns.rename(("a", "b"), [{"a": 1, "b": 2}], ("b=a",))
    assert names == ("b",) and list(items) == [{"b": 1}]


@pytest.mark.parametrize(
    ("mapped", "message"),
    [
        (("question",), "takes OURS=THEIRS, such as question=text, got 'question'"),
        (("question=",), "takes OURS=THEIRS"),
        (("question=txt",), "names the column 'txt', the file has text, question; did you mean 'text'"),
        (("question=text", "question=question"), "names 'question' twice"),
    ],
)
def test_mistakes_in_columns_are_one_line(tmp_path, mapped, message):
    path = write(tmp_path / "rows.jsonl", [{"text": "what ?", "question": "x"}])
    with pytest.raises(UserError, match=message):
        sources.load_examples(settings(path, columns=mapped))


def test_columns_and_sources_are_given_on_the_command_line_and_in_files(tmp_path):
    words = ["--workdir=w", "--config.data.columns.question=text", "--config.data.columns.response=the reply"]
    given, _ = flags.stage("sft", SFTConfig, words, "")
    assert given.data.columns == ("question=text", "response=the reply")
    file = tmp_path / "mine.py"
    file.write_text(
        "from srlhfv_jax.configs.sft import get_config as default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    with config.unlocked():\n"
        "        config.data.path = 'a.parquet:0.7,b.jsonl:0.3'\n"
        "        config.data.columns = ('question=text',)\n"
        "    return config\n"
    )
    given, _ = flags.stage("sft", SFTConfig, [f"--config={file}", "--workdir=w"], "")
    assert given.data.path == "a.parquet:0.7,b.jsonl:0.3" and given.data.columns == ("question=text",)
    with pytest.raises(UserError, match="unknown config key config.date"):
        flags.stage("sft", SFTConfig, ["--workdir=w", "--config.date.columns.question=text"], "")


def test_a_set_of_the_hub_is_fetched_once_at_its_revision(tmp_path, monkeypatch):
    import huggingface_hub

    write(tmp_path / "snap" / "train.jsonl", answers("what", 3))
    asked = []

    def snapshot(name, *, repo_type, revision):
        asked.append((name, repo_type, revision))
        return str(tmp_path / "snap")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(places, "FETCHED", {})
    monkeypatch.chdir(tmp_path)
    assert len(sources.load_examples(settings("owner/set", split="train", revision="v2"))) == 3
    assert len(sources.load_examples(settings("owner/set", split="train[:2]", revision="v2"))) == 2
    assert len(sources.load_examples(settings("owner/set@abc", split="train"))) == 3
    assert asked == [("owner/set", "dataset", "v2"), ("owner/set", "dataset", "abc")]


def test_without_a_network_a_hub_id_is_one_line_that_names_the_nearest_path(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("offline, and nothing in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows" / "train.jsonl", answers("what", 1))
    with pytest.raises(UserError, match="ownr/set is neither a path here nor a data set .*offline, and nothing.*go online"):
        sources.load_examples(settings("ownr/set"))
    with pytest.raises(UserError, match="data path 'rows/tran.jsonl' does not exist: .*; did you mean 'rows/train.jsonl'"):
        sources.load_examples(settings("rows/tran.jsonl"))


def test_a_bucket_is_copied_once_and_again_when_it_changed(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = fsspec.filesystem("memory")
    there.pipe("/bucket/set/train.jsonl", json.dumps({"question": "what ?", "image": "a.png"}).encode())
    there.pipe("/bucket/set/a.png", png(3))
    assert sources.load_examples(settings("memory://bucket/set"))[0].images == (png(3),)
    there.pipe("/bucket/set/train.jsonl", json.dumps({"question": "how do I use it ?"}).encode())
    assert sources.load_examples(settings("memory://bucket/set"))[0].question == "how do I use it ?"
    assert sources.load_examples(settings("memory://bucket/set/train.jsonl:1"))[0].images == ()
    with pytest.raises(UserError, match="memory://bucket/gone cannot be read"):
        sources.load_examples(settings("memory://bucket/gone"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://example.org/rows.jsonl", "is an address: download it"),
        ("gs://bucket/rows.jsonl", "needs gcsfs .*: pip install gcsfs, or copy the data here"),
        ("nope://bucket/rows.jsonl", "nope://bucket/rows.jsonl cannot be read"),
    ],
)
def test_an_address_that_cannot_be_opened_is_one_line(path, message):
    with pytest.raises(UserError, match=message) as caught:
        sources.load_examples(settings(path))
    assert "\n" not in str(caught.value)


def test_pictures_behind_addresses_are_downloaded_only_when_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.png").write_bytes(png(5))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *options):
            super().__init__(*options, directory=str(tmp_path / "web"))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        path = write(tmp_path / "rows.jsonl", [{"question": "q", "image": f"{root}/{name}.png"} for name in ("a", "gone")])
        with pytest.raises(UserError, match="image_not_here 2 .*set data.fetch=true"):
            sources.load_examples(settings(path))
        examples = sources.load_examples(settings(path, fetch=True))
        server.shutdown()
    assert examples.drops == {"image_not_here": 1} and examples[0].images == (png(5),)  # from the cache now


def test_rows_in_memory_are_as_those_of_a_file(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    cells = [Image.fromarray(picture), picture, (tmp_path / "a.png").read_bytes(), tmp_path / "a.png", "a.png"]
    rows = [{"question": "what ?", "image": cell, "responses": np.array(["a", "b"]), "chosen": np.int64(1)} for cell in cells]
    data = settings(image_dir=str(tmp_path))
    examples = sources.in_memory(rows, data)
    assert len(examples) == 5 and examples.layout == "plain"
    from srlhfv_jax.data import images

    for example in examples:
        assert np.array_equal(np.asarray(images.decode(example.images[0])), picture)
        assert example.responses == ("a", "b") and example.chosen == 1
    turned = sources.in_memory([{"messages": [{"role": "user", "content": [{"type": "image", "image": cells[0]}]}]}], data)
    assert turned.drops == {} and len(turned[0].images) == 1
    assert len(sources.in_memory([dual_row()] * 2, data)) == 2


@pytest.mark.parametrize("rows", ["text", {"question": ["a"]}, 3, [1], [{1: "a"}], iter([])])
def test_what_is_no_sequence_of_rows_is_one_line(rows):
    with pytest.raises(UserError, match="must be a (sequence of rows|dict of columns)"):
        sources.in_memory(rows, settings())


def test_old_settings_mean_what_they_meant():
    from srlhfv_jax.config import stored, to_dict

    given, _ = flags.stage("sft", SFTConfig, ["--workdir=w", "--config.data.decode_first=true"], "")
    old = to_dict(given)
    for name in stored.LATER:
        del old["data"][name]
    assert stored.read(json.loads(json.dumps(old)), "config.json") == given
    from srlhfv_jax.checkpoint import provenance

    for decode_first in (True, False):  # the rows say whether it changed them
        resumed = dataclasses.replace(given, data=dataclasses.replace(given.data, decode_first=decode_first))
        provenance.check_same({"settings": old}, to_dict(resumed))
    changed = dataclasses.replace(given, data=dataclasses.replace(given.data, columns=("question=text",)))
    with pytest.raises(UserError, match="config.data.columns was"):
        provenance.check_same({"settings": old}, to_dict(changed))
