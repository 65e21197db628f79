"""Shares of classes of rows: who is drawn how often, the same after a stop and on several processes, and what is refused."""

import shutil
from collections import Counter

import numpy as np
import pytest
from tiny_data import processor, settings
from tiny_stages import write_rows

from srlhfv_jax.data import classes, loader, sources
from srlhfv_jax.errors import UserError
from srlhfv_jax.runs import inputs

WORDS = "a cat dog knife no yes what is this how do I use it".split()


@pytest.fixture
def path(tmp_path):
    """12 harmful questions, 40 harmless ones, 4 of which nobody says."""
    flags = [True] * 12 + [False] * 40 + [None] * 4
    rows = [
        {"question": f"{WORDS[number % 13]} {WORDS[number // 13]} ?", "response": "yes .", "harmful": flag, "level": number % 4}
        for number, flag in enumerate(flags)
    ]
    write_rows(tmp_path / "rows.parquet", rows)
    return tmp_path / "rows.parquet"


def prepared(path, **changes):
    data = settings(path, batch_size=5, workers=1, **changes)
    return loader.fit("supervised", sources.load_examples(data), processor(), data), data


def drawn(stream: loader.Batches, rows: loader.Prepared, count: int) -> list[int]:
    """The examples of so many batches, found by their prompts."""
    prompts = {row.prompt.tobytes(): row.row for row in rows.rows}
    width, taken = rows.frame.prompt_length, []
    for batch in (next(stream) for _ in range(count)):
        taken += [prompts[ids[:width][mask[:width]].tobytes()] for ids, mask in zip(batch.tokens_BT, batch.mask_BT)]
    return taken


MIX = "harmful:yes=0.25, harmful:no=0.75"


def test_a_class_is_drawn_with_its_share_and_rows_of_no_class_are_counted(path):
    rows, data = prepared(path, mix=MIX)
    assert rows.drops["not_in_mix"] == 4 and len(rows.rows) == 52
    taken = drawn(loader.batches(rows, "supervised", None, data, seed=3), rows, 64)
    harmful = Counter(number for number in taken if number < 12)
    assert abs(sum(harmful.values()) / 320 - 0.25) < 0.01 and set(harmful.values()) <= {6, 7}
    assert set(Counter(number for number in taken if number >= 12).values()) == {6}
    assert max(taken) < 52


def test_a_run_that_was_stopped_goes_on_with_the_same_rows_and_processes_share_them(path):
    rows, data = prepared(path, mix=MIX)
    stream = loader.batches(rows, "supervised", None, data, seed=3)
    first = drawn(stream, rows, 4)
    state, rest = stream.get_state(), drawn(stream, rows, 9)
    again = loader.batches(prepared(path, mix=MIX)[0], "supervised", None, data, seed=3)
    again.set_state(state)
    assert drawn(again, rows, 9) == rest
    parts = [loader.batches(rows, "supervised", None, data, seed=3, rows_here=np.array(own)) for own in ([0, 3], [1, 2, 4])]
    one, two = (drawn(part, rows, 4) for part in parts)
    assert [
        row for step in range(4) for row in (one[2 * step], *two[3 * step : 3 * step + 2], one[2 * step + 1], two[3 * step + 2])
    ] == first
    other = loader.batches(prepared(path, mix="harmful:yes=0.5,harmful:no=0.5")[0], "supervised", None, data, seed=3)
    with pytest.raises(UserError, match="but other ones"):
        other.set_state(state)


def test_without_a_mix_rows_are_as_they_were_and_rows_that_evaluate_have_none(path):
    plain, data = prepared(path)
    assert plain.shares == () and [row.row for row in plain.rows] == list(range(56))
    assert inputs.elsewhere(settings(path, mix=MIX), "other", "").mix == ""


def test_values_are_texts_flags_and_numbers():
    assert [classes.name(cell) for cell in (True, "False", " a b ", 2.0, 3, None, "")] == ["yes", "no", "a b", "2", "3", "", ""]
    assert classes.parse("kind:a:b=0.5,kind:true=0.5") == ("kind", {"a:b": 0.5, "yes": 0.5})


def test_numbers_are_classes_too_and_a_share_of_zero_leaves_a_class_out(path):
    rows, _ = prepared(path, mix="level:0=0.125,level:2=0.875,level:3=0")
    assert [share.rows for share in rows.shares] == [14, 14] and rows.drops["not_in_mix"] == 28


@pytest.mark.parametrize(
    "mix, said",
    [
        ("harmful", "data.mix has the item 'harmful': expected COLUMN:VALUE=SHARE"),
        ("harmful:yes=x", "its share must be a number from 0 to 1"),
        ("harmful:yes=1.5,harmful:no=-0.5", "its share must be a number from 0 to 1"),
        ("harmful:yes=0.5,harmful:no=0.25", "the shares sum to 0.75, expected 1"),
        ("harmful:yes=0.5,level:1=0.5", "several columns, harmful, level"),
        ("harmful:yes=0.5,harmful:true=0.5", "names the value 'yes' twice"),
        ("danger:yes=1", "names the column 'danger', which the rows do not have: they have question, response"),
        ("level:0=0.5,level:9=0.5", "gives level:9 a share, and no usable row is of that class: their level is 0, 1, 2, 3"),
    ],
)
def test_what_is_no_mix_is_refused_in_one_line(path, mix, said):
    with pytest.raises(UserError) as error:
        prepared(path, mix=mix)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_shares_of_classes_and_weights_of_sources_are_one_too_many(path):
    other = shutil.copy(path, path.with_name("other.parquet"))
    with pytest.raises(UserError, match="give one of them"):
        prepared(f"{path}:0.5,{other}:0.5", mix=MIX)
    rows, _ = prepared(f"{path},{other}", mix=MIX)  # several sources are one set
    assert [share.rows for share in rows.shares] == [24, 80]
