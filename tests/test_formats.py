"""`benchmarks/formats.py` writes every layout, and each row is read as what was written; labels reach the heads that learn from them."""

import importlib.util
import json
from pathlib import Path

import pytest

from srlhfv_jax.data import layouts, loader, sources, summary

FILE = Path(__file__).parents[1] / "benchmarks" / "formats.py"
SPEC = importlib.util.spec_from_file_location("formats", FILE)
formats = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(formats)
LABELLED = {
    "sft": None,
    "scores": ("labelled.reward", "labelled.cost"),
    "guard": ("labelled.guard",),
    "openai": ("labelled.guard",),
}


def test_every_layout_is_written():
    assert {name.split(" ")[0] for name in formats.LAYOUTS} == {layout.name for layout in layouts.LAYOUTS}


@pytest.mark.parametrize("name", formats.LAYOUTS)
def test_rows_of_every_layout_are_read_as_they_are_meant(tmp_path, name):
    written, content = formats.LAYOUTS[name], formats.talks(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(written.row(talk)) + "\n" for talk in content))
    options = dict(one.split("=") for one in written.options)
    examples = sources.load_examples(loader.single_pass(str(rows), **options))
    assert examples.layout == name.split(" ")[0] and len(examples) == formats.ROWS
    assert all(formats.as_meant(example, talk, written.says, tmp_path) for example, talk in zip(examples, content))
    assert not formats.as_meant(examples[0], content[1], written.says, tmp_path)
    numbers = summary.summarise(examples)
    for stage in written.stages:
        assert all(numbers[key] for key in LABELLED[stage] or ()), stage
