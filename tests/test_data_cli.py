"""`srlhfv data`: what is in a data set, in words and in result.json; mistakes in one line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_data import dual_row, png, processor

from srlhfv_jax.cli import data
from srlhfv_jax.cli.main import main
from srlhfv_jax.data.drops import REASONS


@pytest.fixture
def table(tmp_path):
    ties = dual_row(
        image={"bytes": png(3), "path": None}, safer_response_id="tie", response_2_harmless_rate=0, response_2="no no no no ."
    )
    rows = [dual_row(), dual_row(more_helpful_response_id="2"), ties, dual_row(image=None), dual_row(question="")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_inspect_shows_drops_and_writes_the_numbers(table, tmp_path, capsys):
    assert main(["data", "inspect", f"--path={table}", f"--workdir={tmp_path / 'w'}", "--samples=1"]) == 0
    shown = capsys.readouterr().out
    assert "missing_image: the image cell is empty" in shown and "row 3: the image cell is empty" in shown
    assert (
        "response 0 'use a knife .' (more helpful, unsafe, violence_and_physical_harm)" in shown
        and "response 1 'no .' (safer, safe)" in shown
    )
    numbers = json.loads((tmp_path / "w" / "result.json").read_text())
    expected = {
        "layout": "beavertails_v",
        "rows": 5,
        "usable": 3,
        "dropped": 2,
        "drops.missing_image": 1,
        "drops.empty_question": 1,
        "with_image": 3,
        "distinct_images": 2,
        "with_2_responses": 3,
        "unsafe_rate": 0.5,
        "graded_zero_rate": 1 / 6,
        "helpful_strict": 3,
        "safety_strict": 2,
        "safety_ties": 1,
        "disagree_rate": 0.5,
    }
    assert expected.items() <= numbers.items()


def test_inspect_says_how_rows_were_read_and_which_columns_are_not_used(tmp_path, capsys):
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "<image>what ?"}]
    turns += [
        {"role": "assistant", "content": "a cat ."},
        {"role": "user", "content": "and ?"},
        {"role": "assistant", "content": "no ."},
    ]
    (tmp_path / "a.png").write_bytes(png(3, (40, 26)))
    rows = [{"messages": turns, "images": ["a.png"], "label": flag, "origin": "x", "img_id": "7"} for flag in (True, False)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--path={tmp_path / 'rows.jsonl'}", "--label_means=unsafe", f"--workdir={tmp_path / 'w'}"]
    assert main(["data", "inspect", *flags]) == 0
    out, err = capsys.readouterr()
    for line in (
        "read as messages: 2 of 2 rows",
        "not used, or only carried along: origin, img_id",
        "row 0: 1 images of 40 x 26 pixels",
        "  system     'be brief'",
        "  user       '<image>what ?'",
        "  assistant  'a cat .'",
        "  question   'and ?'",
        "response 0 'no .' (unsafe)",
        "response 0 'no .' (safe)",
    ):
        assert line in out, line
    assert "without the columns img_id" in err
    numbers = json.loads((tmp_path / "w" / "result.json").read_text())
    assert (numbers["labelled.guard"], numbers["labelled.reward"], numbers["unused_columns"]) == (2, 0, "origin, img_id")
    assert main(["data", "inspect", *flags[:1], "--columns=question=origin,ignore=messages,ignore=img_id,ignore=label"]) == 0
    assert "read as plain: 2 of 2 rows" in capsys.readouterr().out


def test_inspect_with_a_model_counts_tokens_and_what_would_be_dropped(table, tmp_path, capsys, monkeypatch):
    from srlhfv_jax.hf import load

    monkeypatch.setattr(load, "load_config_and_processor", lambda path: (None, processor()))
    flags = [
        f"--path={table}",
        f"--workdir={tmp_path / 'w'}",
        "--model=M",
        "--kind=pairs",
        "--prompt_length=20",
        "--response_length=5",
    ]
    assert main(["data", "inspect", *flags]) == 0
    assert f"response_too_long: {REASONS['response_too_long']}" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "w" / "result.json").read_text())
    assert (numbers["prompt_tokens.max"], numbers["response_tokens.max"], numbers["image_tokens.max"]) == (20, 6, 9)
    assert (numbers["fit"], numbers["fit_drops.response_too_long"]) == (2, 1)


def test_inspect_counts_the_pairs_that_a_method_leaves_out(tmp_path, capsys, monkeypatch):
    from srlhfv_jax.hf import load

    monkeypatch.setattr(load, "load_config_and_processor", lambda path: (None, processor()))
    labels = [(0, (False, True)), (1, (False, True)), (1, (True, True)), ("tie", (False, False))]
    rows = [
        {
            "question": f"what {number} ?",
            "responses": ["so", "not so"],
            "chosen": chosen,
            "unsafe": unsafe,
        }
        for number, (chosen, unsafe) in enumerate(labels)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--path={tmp_path / 'pairs.jsonl'}", f"--workdir={tmp_path / 'w'}", "--model=M", "--kind=preference"]
    assert main(["data", "inspect", *flags, "--transform=safedpo"]) == 0
    assert f"both_unsafe: {REASONS['both_unsafe']}" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "w" / "result.json").read_text())
    assert (numbers["fit"], numbers["fit_drops.both_unsafe"], numbers["fit_drops.helpful_tie"]) == (2, 1, 1)


def test_prepare_writes_what_inspect_reads(table, tmp_path, capsys):
    assert main(["data", "prepare", f"--source={table}", f"--target={tmp_path / 't'}", f"--workdir={tmp_path / 'w'}"]) == 0
    numbers = json.loads((tmp_path / "w" / "result.json").read_text())
    assert numbers["split.train"] == 3 and numbers["drops.missing_image"] == 1
    assert main(["data", "inspect", f"--path={numbers['path']}", "--split=train"]) == 0
    assert "beavertails_v" in capsys.readouterr().out


def test_prepare_writes_the_embedded_task(tmp_path, capsys):
    flags = ["--name=look_before_you_answer/prompts", f"--target={tmp_path}", "--count=4", "--seed=3"]
    assert main(["data", "prepare", *flags]) == 0
    assert "split.unseen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inspct"], "takes prepare or inspect, got 'inspct'; did you mean 'inspect'?"),
        (["inspect"], "--path is needed"),
        (["inspect", "--path=nowhere"], "data path 'nowhere' does not exist"),
        (["inspect", "--path=nowhere", "--sampls=2"], "has no flag --sampls; did you mean 'samples'?"),
        (["prepare"], "--target is needed"),
        (["prepare", "--target=t", "--source=nowhere"], "--source=nowhere does not exist"),
        (
            ["prepare", "--target=t", "--name=look_before_you_answer/pair"],
            "must be one of 'naming', 'sft', 'prompts', 'pairs', got 'pair'",
        ),
    ],
)
def test_mistakes_end_in_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("srlhfv: error: ") and message in error and error.count("\n") == 1


def test_an_unknown_data_set_is_answered_with_the_nearest(table, tmp_path, capsys):
    assert main(["data", "prepare", f"--source={table}", f"--target={tmp_path}", "--name=beavertail"]) == 2
    assert "there is no data set 'beavertail'; did you mean 'beavertails'?" in capsys.readouterr().err


def test_help_names_both_uses(capsys):
    data.main(["--help"])
    assert "data inspect" in (shown := capsys.readouterr().out) and "data prepare" in shown
