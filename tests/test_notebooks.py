"""colab/: every notebook is valid and thin, was stored without outputs, and runs from the first cell to the last."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from commands import on_path
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NAMES = ("quickstart", "your_data", "ppo_lag", "guard")
BOOKS = {name: nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4) for name in NAMES}
LONGEST = 16  # lines of a cell
LOGIC = re.compile(r"^\s*(?:def|class|while|try|async)\b|\blambda\b", re.MULTILINE)
OWN = re.compile(r"^def (?:nearness|forbidden)\(samples\):$", re.MULTILINE)  # a reward and a cost: what that section is about
CODE_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING = "SHORT = False"

every_book = pytest.mark.parametrize("name", NAMES)


def code(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in BOOKS[name].cells if cell.cell_type == "code"]


def test_there_are_no_others():
    assert {file.stem for file in (ROOT / "colab").glob("*.ipynb")} == set(NAMES)


@every_book
def test_it_is_valid_and_stored_without_outputs(name):
    nbformat.validate(json.loads((ROOT / "colab" / f"{name}.ipynb").read_text()))
    assert not any(cell.outputs or cell.execution_count for cell in code(name))


@every_book
def test_it_opens_with_what_it_shows_how_long_it_takes_and_what_is_untested(name):
    opening = BOOKS[name].cells[0]
    assert opening.cell_type == "markdown" and opening.source.startswith("# ")
    assert all(part in opening.source for part in ("**What it shows.**", "**How long.**", "has not been run in Colab"))


@every_book
def test_the_first_cell_installs_and_the_second_one_has_the_setting(name):
    install, parameters = code(name)[:2]
    assert "%pip install" in install.source and 'find_spec("srlhfv_jax") is None' in install.source
    assert parameters.source.count(SETTING) == 1 and not any(SETTING in cell.source for cell in code(name)[2:])


@every_book
def test_cells_are_short_and_have_no_logic_of_their_own(name):
    for cell in code(name):
        assert len(cell.source.splitlines()) <= LONGEST, cell.source
        assert not LOGIC.search(OWN.sub("", cell.source)), cell.source


def test_commands_that_are_shown_and_not_run_are_those_of_the_page_from_zero():
    texts = [cell.source for name in NAMES for cell in BOOKS[name].cells if cell.cell_type == "markdown"]
    lines = [line for text in texts for block in CODE_BLOCK.findall(text) for line in block.splitlines()]
    page = (ROOT / "docs" / "from_zero.md").read_text().splitlines()
    assert any("--config.lora.int8=True" in line for line in lines)
    assert [line for line in lines if line not in page] == []


@pytest.fixture
def finished(tmp_path):
    """Runs a notebook with its short settings in an empty folder; gives its code cells with their outputs."""

    def run(name: str) -> list[nbformat.NotebookNode]:
        book = nbformat.from_dict(BOOKS[name])
        for cell in book.cells:
            cell.source = cell.source.replace(SETTING, "SHORT = True")
        programs, folder = tmp_path / "bin", tmp_path / "content"
        programs.mkdir()
        folder.mkdir()
        environment = on_path(programs) | {"IPYTHONDIR": str(tmp_path / "ipython")}
        client = NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
        done = [cell for cell in client.execute(env=environment).cells if cell.cell_type == "code"]
        assert done[0].outputs == [], "the package is here: nothing is installed"
        return done

    return run


def shown(cells: list[nbformat.NotebookNode], kind: str) -> list[str]:
    """What cells display in one MIME type, in order."""
    outputs = [output for cell in cells for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def printed(cells: list[nbformat.NotebookNode]) -> str:
    return "".join(output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout")


@pytest.mark.slow
def test_quickstart_shows_its_report(finished, tmp_path):
    cells = finished("quickstart")
    (page,) = shown(cells, "text/html")
    assert page.startswith("<iframe srcdoc=") and "data:image/png;base64," in page and "Multiplier and constraint" in page
    assert "'ppo_lag.harm_rate'" in shown(cells, "text/plain")[-1]
    assert (tmp_path / "content" / "runs" / "quickstart_short" / "result.json").is_file()


@pytest.mark.slow
def test_your_data_drops_the_lost_picture_and_answers_beside_the_others(finished):
    cells = finished("your_data")
    text = printed(cells)
    assert re.search(r"usable +72\b", text) and "missing_image" in text
    assert "'cost_model.sign_accuracy'" in "".join(shown(cells, "text/plain"))
    assert len(shown(cells, "image/png")) == 8 and text.count("can my baby have it ? ->") == 4


@pytest.mark.slow
def test_ppo_lag_draws_the_multiplier_and_the_cost_of_both_runs(finished):
    cells = finished("ppo_lag")
    curves, page = shown(cells, "text/html")
    assert curves.count("<figure>") == 4 and "Multiplier λ" in curves and "Windowed cost against the budget" in curves
    assert "ppo from" in curves and "ppo_lag from" in curves
    assert "'lambda'" in "".join(shown(cells, "text/plain")) and page.startswith("<iframe srcdoc=")
    assert re.search(r"^said in \d\.\d+ of the answers at first, and in \d\.\d+ at last$", printed(cells), re.MULTILINE)


@pytest.mark.slow
def test_guard_moderates_regenerates_and_is_measured(finished):
    cells = finished("guard")
    text = printed(cells)
    verdicts = [json.loads(line) for line in text.splitlines() if line.startswith('{"safe"')]
    assert len(verdicts) == 3 and all(verdict["severity"] and verdict["scores"] for verdict in verdicts)
    (table,) = shown(cells, "text/html")
    assert "What the guard knows" in table and "questions" in table and len(shown(cells, "image/png")) == 1
    assert re.search(r"^\d+ prompts, \d+ answered again$", text, re.MULTILINE) and "with it" in text
