"""Whatever state a JSON file is in, reading it ends in its value or in one short line."""

import io
from pathlib import Path

import pytest

from srlhfv_jax.errors import UserError, reason, shown
from srlhfv_jax.files import fits, json_lines, read_json, take

BROKEN = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "bytes that are no UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "nested without end": b"[" * 100_000,
    "a number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "half a surrogate": rb'{"a": "\ud800"}',
    "NUL": b"\0" * 64,
    "a list": b"[1, 2]",
    "a long text": b'"' + b"a" * 5000 + b'"',
    "null": b"null",
}


@pytest.mark.parametrize("state", BROKEN)
def test_a_broken_json_file_is_one_short_line_with_its_name(state, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(BROKEN[state])
    with pytest.raises(UserError) as caught:
        read_json(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said and len(said) < len(str(path)) + 320
    said.encode()


@pytest.mark.parametrize("name", ["missing.json", ".", "a" * 300, "a\0b", "half\ud800"])
def test_a_path_that_is_no_file_is_one_short_line(name, tmp_path):
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_json(tmp_path / name)
    str(caught.value).encode()


def test_a_mark_of_byte_order_is_no_fault(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path / "a.json") == {"a": "é"}


def test_true_is_no_number_and_nan_is_none():
    assert fits(3, int) and fits(3, float) and fits(2.5, float) and fits(None, int | None) and fits([[1]], list[list[int]])
    assert not any(fits(value, int) for value in (True, 3.0, "3", None))
    assert not any(fits(value, float) for value in (True, float("nan"), float("inf"), 10**400, "3"))
    assert fits({"a": 0.5}, dict[str, float]) and not fits({"a": "x"}, dict[str, float]) and not fits([1], dict)


def test_a_wrong_entry_is_named_with_what_is_expected():
    data = {"categories": "x" * 5000}
    with pytest.raises(UserError, match="^g: categories must be a list of which each is a text, got 'xxx") as caught:
        take(data, "categories", list[str], "g")
    assert len(str(caught.value)) < 330
    with pytest.raises(UserError, match="^g has no thresholds "):
        take(data, "thresholds", dict[str, float], "g")


def test_values_and_reasons_are_shown_in_one_short_line():
    deep = [1]
    for _ in range(10_000):
        deep = [deep]
    for value in ("a\nb" * 5000, deep, {"a": ["b" * 500] * 500}, 10**3000, b"\xff" * 500):
        assert "\n" not in shown(value) and len(shown(value)) < 190
    assert reason(KeyError()) == "KeyError" and len(reason(ValueError("x" * 5000))) < 210
    assert reason(OSError("one\ntwo")) == "one" and reason(ValueError("\ud800x")).encode()


def rows(content: bytes, kind: type, **options) -> list[tuple[int, dict]]:
    lines = io.BytesIO(content) if kind is bytes else io.StringIO(content.decode(errors="replace"))
    return list(json_lines(lines, Path("rows.jsonl"), **options))


@pytest.mark.parametrize("kind", [bytes, str])
def test_json_lines_are_the_objects_of_a_file_with_their_numbers(kind):
    content = '{"a": 1.5}\n\n  \r\n{"b": "x\u2028y"}\n{"c": null}'.encode()
    assert rows(content, kind) == [(1, {"a": 1.5}), (4, {"b": "x\u2028y"}), (5, {"c": None})]


def test_json_lines_may_begin_with_a_byte_order_mark():
    assert rows(b'\xef\xbb\xbf{"a": 1}\n', bytes) == [(1, {"a": 1})]


@pytest.mark.parametrize("kind", [bytes, str])
@pytest.mark.parametrize(
    "line", [b"{", b'{"a": "\xff', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"], ids=lambda line: line[:8]
)
def test_a_last_line_torn_by_a_kill_is_left_out_where_that_may_be(kind, line):
    """Any other line that is no JSON is named, with the advice."""
    whole = b'{"a": 1}\n'
    assert rows(whole + line, kind, torn_end=True) == [(1, {"a": 1})]
    for content, options in (
        (whole + line, {}),
        (whole + line + b"\n", {"torn_end": True}),
        (whole + line + b"\n{}", {"torn_end": True}),
    ):
        with pytest.raises(UserError, match=r"^rows.jsonl:2 is not JSON \(.*\): cut it$"):
            rows(content, kind, advice="cut it", **options)


def test_a_line_that_is_no_object_is_named_with_its_type():
    with pytest.raises(UserError, match="^rows.jsonl:1 is a JSON list: expected one object per line$"):
        rows(b"[1]", bytes, torn_end=True)
    with pytest.raises(UserError, match="^rows.jsonl:2 is a JSON int: expected one object per line; cut it$"):
        rows(b"\n1\n", bytes, advice="cut it")
