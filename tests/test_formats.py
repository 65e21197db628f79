"""`benchmarks/formats.py` writes every layout, and each row is read as what was written; labels reach the heads that learn from them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ENVIRONMENT

from srlhfv_jax.data import layouts, summary

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import format_rows  # noqa: E402
import formats  # noqa: E402

LABELLED = {
    "sft": (),
    "ppo_lag": (),
    "scores": ("labelled.reward", "labelled.cost"),
    "guard": ("labelled.guard",),
}


def read(folder, name):
    written, content = format_rows.LAYOUTS[name], format_rows.talks(folder)
    return written, content, formats.read(written, formats.written_rows(folder / "rows.jsonl", map(written.row, content)))


def test_every_layout_is_written():
    assert {name.split(" ")[0] for name in format_rows.LAYOUTS} == {layout.name for layout in layouts.LAYOUTS}


@pytest.mark.parametrize("name", format_rows.LAYOUTS)
def test_rows_of_every_layout_are_read_as_they_are_meant(tmp_path, name):
    written, content, examples = read(tmp_path, name)
    assert examples.layout == name.split(" ")[0] and len(examples) == format_rows.ROWS
    assert all(format_rows.as_meant(example, talk, written.says, tmp_path) for example, talk in zip(examples, content))
    assert not format_rows.as_meant(examples[0], content[1], written.says, tmp_path)
    numbers = summary.summarise(examples)
    for stage in written.stages:
        assert all(numbers[key] for key in LABELLED[formats.STAGES[stage][0]]), stage


@pytest.mark.parametrize("name", format_rows.LAYOUTS)
def test_every_layout_trains_all_that_its_answers_and_labels_allow(tmp_path, name):
    written, _, examples = read(tmp_path, name)
    numbers = summary.summarise(examples)
    allowed = {
        "sft": any(example.responses for example in examples),
        "scores": numbers["labelled.reward"] > 0 or numbers["labelled.cost"] > 0,
        "guard": numbers["labelled.guard"] > 0,
    }
    trained = {formats.STAGES[stage][0] for stage in written.stages}
    assert trained == {stage for stage, may in allowed.items() if may} or trained == {"ppo_lag"} and not any(allowed.values())


@pytest.mark.parametrize(
    "name, other", [("spa_vl", {"chosen": 1}), ("swift (label)", {"unsafe": (False,)}), ("unpaired", {"desirable": None})]
)
def test_a_label_that_is_read_otherwise_is_not_as_meant(tmp_path, name, other):
    written, content, examples = read(tmp_path, name)
    assert not format_rows.as_meant(examples[0]._replace(**other), content[0], written.says, tmp_path)


@pytest.mark.slow
def test_a_layout_learns_what_its_content_in_plain_rows_teaches():
    command = [sys.executable, FOLDER / "formats.py", "--only=swift (label),unpaired"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    unpaired, swift, total = map(json.loads, done.stdout.splitlines())
    assert (swift["sft"]["rows"], swift["guard"]["rows"], swift["as_plain"]) == (8, 8, True)
    assert (unpaired["sft"]["rows"], unpaired["as_plain"]) == (4, True) and "guard" not in unpaired
    assert total == {"layouts": 2, "as_meant": 2}
