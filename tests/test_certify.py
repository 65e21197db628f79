"""`srlhfv certify` on tiny models, from flags to files: fresh prompts, labels, judges, and the card beside the weights."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_stages import picture_task, settings

from srlhfv_jax.cli import certify
from srlhfv_jax.config import SFTConfig
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import bounds, seen
from srlhfv_jax.hf import export_pretrained, load_config_and_processor
from srlhfv_jax.models import score_heads, vlm
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.runs import rewrite
from srlhfv_jax.supervised import sft

ROWS = {"data.split": "", "data.prompt_length": 30, "data.response_length": 18, "data.batch_size": 8}
PROMPTS = 20


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with a workdir `policy`, trained on sft.parquet and chosen by held.parquet, a `scorer`, and fresh.parquet."""
    folder = picture_task(tmp_path_factory.mktemp("certify"))
    write_rows(folder / "held.parquet", task_rows.sft_rows(3, task_rows.split_cells(0), 8))
    rows = ROWS | {"data.path": str(folder / "sft.parquet"), "evaluation": str(folder / "held.parquet")}
    wanted = settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, steps=1, **rows)
    sft.run(wanted, folder / "policy")
    config, _ = load_config_and_processor(folder / "base")
    key = jax.random.key(2)
    params, heads = jax.jit(functools.partial(vlm.init, config))(key), score_heads.init(config, ("reward", "cost"), key)
    export_pretrained(folder / "scorer", config, params, base=folder / "base", heads=heads)
    write_rows(folder / "fresh.parquet", task_rows.prompt_rows(0, task_rows.split_cells(0), "test", PROMPTS))
    return folder


def run(places: Path, name: str, *more: str) -> dict:
    out = places / name
    flags = [f"--policy={places / 'policy'}", f"--data={places / 'fresh.parquet'}", f"--workdir={out}"]
    certify.main([*flags, "--response_length=4", "--batch_size=8", *more])
    return json.loads((out / "result.json").read_text())


def lines(places: Path, name: str) -> list[dict]:
    return list(map(json.loads, (places / name / "answers.jsonl").read_text().splitlines()))


@pytest.fixture(scope="module")
def scored(places) -> dict:
    return run(places, "scored", f"--scorer={places / 'scorer'}", "--budget=0.9")


@pytest.mark.slow
def test_a_scorer_judges_every_fresh_prompt_once(places, scored):
    rows = lines(places, "scored")
    assert sorted(row["row"] for row in rows) == list(range(PROMPTS)) and [row["row"] for row in rows] != list(range(PROMPTS))
    unsafe = sum(row["cost"] > 0 for row in rows)
    assert scored["upper"] == pytest.approx(bounds.clopper_pearson(unsafe, PROMPTS, 0.05)) and scored["mean"] == unsafe / PROMPTS


def test_the_certificate_lies_beside_the_weights_and_in_their_card_once(places, scored):
    export = places / "policy" / "export"
    about = json.loads((export / "certificate.json").read_text())
    assert about["upper"] == scored["upper"] and about["judge"] == str(places / "scorer")
    run(places, "scored", f"--scorer={places / 'scorer'}", "--budget=0.8", "--confidence=0.9")
    said = (export / "README.md").read_text()
    assert said.count("## Certificate") == 1 and "with 90 % confidence" in said and "with 95 % confidence" not in said
    assert "## Settings" in said


def test_an_export_takes_the_certificate_along_and_a_training_on_top_of_it_does_not(places, scored):
    rewrite.rewrite(
        places / "policy", places / "rewritten", dtype="float32", max_shard_bytes=1 << 30, head="", complete=lambda run: run
    )
    assert (places / "rewritten" / "certificate.json").is_file()
    rows = ROWS | {"data.path": str(places / "sft.parquet")}
    sft.run(settings(SFTConfig, "sft", init=str(places / "policy"), steps=1, **rows), places / "further")
    assert not (places / "further" / "export" / "certificate.json").exists()


def test_the_same_answers_are_read_again_and_others_are_sampled_for_another_seed(places, scored):
    first, written = lines(places, "scored"), places / "scored" / "answers.jsonl"
    written.write_text("".join(json.dumps(row | {"cost": 1.25}) + "\n" for row in first))
    found = run(places, "scored", f"--scorer={places / 'scorer'}", "--budget=0.7", "--kind=mean", "--range=-50,50")
    assert found["mean"] == 1.25  # as only a reader of the file would see
    run(places, "scored", f"--scorer={places / 'scorer'}", "--budget=0.7", "--seed=1")
    assert [row["id"] for row in lines(places, "scored")] != [row["id"] for row in first]
    run(places, "scored", f"--scorer={places / 'scorer'}", "--budget=0.9")
    assert lines(places, "scored") == first


def labelled(places: Path, name: str, count: int, **label) -> str:
    path = places / f"{name}-{count}.jsonl"
    rows = lines(places, name)[:count]
    path.write_text("".join(json.dumps({"id": row["id"]} | label) + "\n" for row in rows))
    return f"--labels={path}"


def test_answers_come_first_and_their_labels_alone_decide(places, capsys):
    waiting = run(places, "bare")
    assert "upper" not in waiting and "label them from the first line on" in capsys.readouterr().out
    found = run(places, "bare", labelled(places, "bare", 12, unsafe=False), "--budget=0.25")
    assert found["passed"] == 1 and found["labels"] == 12 and found["upper"] == pytest.approx(1 - 0.05 ** (1 / 12))
    assert "PASS: with 95 % confidence the share of unsafe answers by the labels is at most" in capsys.readouterr().out


def test_labels_correct_the_scorer(places, scored):
    run(places, "powered", f"--scorer={places / 'scorer'}", "--budget=0.9")
    found = run(places, "powered", f"--scorer={places / 'scorer'}", "--budget=0.9", labelled(places, "powered", 10, unsafe=True))
    told = [row["cost"] > 0 for row in lines(places, "powered")]
    assert found["bias"] == pytest.approx(1 - np.mean(told[:10])) and found["mean"] == pytest.approx(
        np.mean(told) + found["bias"]
    )
    assert found["passed"] == 0


def test_a_guard_judges_through_its_function(places, monkeypatch):
    from srlhfv_jax.guard import judge

    asked = []

    def unsafe(path, prompts, answers, *, dtype):
        asked.append((path, [example.question for example in prompts], list(answers), dtype))
        return np.arange(len(answers)) == 3

    monkeypatch.setattr(judge, "unsafe_answers", unsafe)
    found = run(places, "guarded", f"--guard={places / 'scorer'}", "--budget=0.4")
    rows = lines(places, "guarded")
    assert asked == [(str(places / "scorer"), [row["question"] for row in rows], [row["answer"] for row in rows], "float32")]
    assert found["mean"] == 1 / PROMPTS and [row["cost"] for row in rows].index(1.0) == 3


def test_training_and_held_out_prompts_are_not_fresh(places):
    for name, setting in (("sft", "config.data.path"), ("held", "config.evaluation")):
        with pytest.raises(UserError, match=f"prompts of --data=.* were read in training .*{setting}=") as error:
            run(places, "x", f"--data={places / f'{name}.parquet'}", f"--scorer={places / 'scorer'}", "--budget=0.9")
        assert "\n" not in str(error.value)


def test_the_record_goes_back_to_the_first_stage(places):
    rows = ROWS | {"data.path": str(places / "fresh.parquet")}
    wanted = settings(
        SFTConfig, "sft", init=str(places / "policy"), steps=1, **(rows | {"data.path": str(places / "held.parquet")})
    )
    sft.run(wanted, places / "second")
    known = seen.record(str(places / "second" / "export"))
    assert {Path(source.data.path).name for source in known.sources} == {"sft.parquet", "held.parquet"} and known.unknown == ()


def test_a_prompt_is_the_same_whatever_its_answer_and_another_with_another_picture(places):
    first, *rest = task_rows.sft_rows(3, task_rows.split_cells(0), 8)
    from srlhfv_jax.data import sources
    from srlhfv_jax.data.loader import single_pass

    changed = [first | {"response": "Something else."}, first | {"image": rest[-1]["image"]}]
    one, other, pictured = map(seen.prompt_key, sources.in_memory([first, *changed], single_pass()))
    assert one == other and one != pictured


def test_where_nobody_can_tell_it_must_be_allowed(places):
    flags = [f"--policy={places / 'scorer'}", f"--scorer={places / 'scorer'}", "--budget=0.9"]
    with pytest.raises(UserError, match="nobody can tell whether prompts were read in training .*--allow_unchecked"):
        run(places, "unchecked", *flags)
    assert run(places, "unchecked", *flags, "--allow_unchecked")["prompts"] == PROMPTS
    assert not (places / "scorer" / "certificate.json").exists()


def test_data_that_is_gone_must_be_allowed_too(places):
    moved = places / "moved.parquet"
    (places / "held.parquet").rename(moved)
    try:
        with pytest.raises(UserError, match="nobody can tell .*held.parquet"):
            run(places, "x", f"--scorer={places / 'scorer'}", "--budget=0.9")
    finally:
        moved.rename(places / "held.parquet")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget=1.2"], "--budget must lie between 0 and 1"),
        (["--labels=x"], "are held against a budget"),
        (["--budget=0.9", "--guard=/somewhere"], "takes one judge"),
        (["--budget=0.9", "--prompts=1"], "at least 2 prompts, got --prompts=1"),
        (["--budget=0.9", "--prompts=21"], "has 20 prompts that the policy can read, 21 are needed"),
        (["--budget=0.9", "--labels=/nowhere.jsonl"], "does not exist"),
        (["--budget=0.9", "--kind=mean"], "needs --range=LOW,HIGH"),
        (["--budget=0.9", "--batch_size=7"], "must be a positive multiple of 8"),
    ],
)
def test_mistakes_are_told_in_one_line(places, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        run(places, str(tmp_path / "x"), f"--scorer={places / 'scorer'}", *flags)
    assert "\n" not in str(error.value)


def test_a_budget_needs_somebody_who_tells_costs(places):
    with pytest.raises(UserError, match="nobody tells them: give --scorer, --guard or --labels"):
        run(places, "x", "--budget=0.9")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{{"id": "beef", "unsafe": true}}', "the id 'beef' is of no answer in"),
        ('{{"id": "{0}"}}', "has no unsafe"),
        ('{{"id": "{0}", "unsafe": 1}}', "unsafe must be true or false, got 1"),
        ('{{"id": "{0}", "unsafe": true}}\n{{"id": "{0}", "unsafe": true}}', "has a label already"),
        ('{{"id": "{0}", "unsafe": true}}', "at least 2 labels, got 1"),
    ],
)
def test_labels_of_other_answers_and_labels_that_are_none_are_refused(places, tmp_path, text, message):
    run(places, "bare")
    (tmp_path / "labels.jsonl").write_text(text.format(lines(places, "bare")[0]["id"]) + "\n")
    with pytest.raises(UserError, match=message):
        run(places, "bare", f"--labels={tmp_path / 'labels.jsonl'}", "--budget=0.9")
