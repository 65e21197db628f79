"""The mutants of benchmarks/mutants.py still find the lines that they break; running them takes a quarter of an hour."""

import sys
from pathlib import Path

import pytest

import srlhfv_jax

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import mutants  # noqa: E402


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_breaks_one_line_and_its_tests_exist(mutant):
    text = (Path(srlhfv_jax.__file__).parent / mutant.file).read_text()
    assert text.count(mutant.old) == 1 and mutant.old != mutant.new
    assert (ROOT / "tests" / mutant.tests).exists()


def test_every_mutant_in_the_table_of_the_docs_was_killed():
    page = (ROOT / "docs" / "testing.md").read_text()
    table = page.partition(mutants.BEGIN)[2].partition(mutants.END)[0]
    assert [mutant.name for mutant in mutants.MUTANTS] == [line.split(" | ")[0].lstrip("| ") for line in table.splitlines()[3:]]
    assert "**none**" not in table
    for name in {word.partition("[")[0] for word in table.replace("`", " ").split() if word.startswith("test_")}:
        assert any(f"def {name}(" in file.read_text() for file in (ROOT / "tests").glob("test_*.py")), f"{name} is gone"
