"""The guard's stage from rows to verdicts: tiny models, the embedded task's rows."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from tiny_stages import numbers, picture_task, settings

from srlhfv_jax.cli import main as cli_main
from srlhfv_jax.config import GuardConfig, MeshConfig, ScoresConfig, SFTConfig
from srlhfv_jax.data.quickstart import answers, rows as task_rows
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import Guard, Prompt, guarded_generate, held_out, measure, train as guard
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.models import guard_heads
from srlhfv_jax.parallel import rules
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.runs import inputs
from srlhfv_jax.supervised import scores, sft
from srlhfv_jax.training import loop, state as states

ROWS = {"data.split": "", "data.prompt_length": 30, "data.response_length": 18, "data.batch_size": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy after two steps, a guard on it after two steps, and the rows."""
    folder = picture_task(tmp_path_factory.mktemp("guard"))
    write_rows(folder / "heldout.parquet", task_rows.sft_rows(1, task_rows.split_cells(0), 40))
    rows = ROWS | {"data.path": str(folder / "sft.parquet")}
    sft.run(settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, **rows), folder / "policy")
    held = str(folder / "heldout.parquet")
    wanted = settings(
        GuardConfig, "guard", init=str(folder / "policy"), taxonomy="embedded", calibration=held, evaluation=held, **rows
    )
    return folder, wanted, guard.run(dataclasses.replace(wanted, evaluation_every=1), folder / "guard")


def test_a_guard_is_trained_calibrated_measured_and_exported(trained):
    folder, wanted, result = trained
    assert {"guard.f1", "guard.output.auroc", "guard.input.calibration_error", "guard.category_exact_match"} <= result.keys()
    assert result["guard.false_positive_rate"] <= wanted.false_positive_rate  # measured on the rows that set the thresholds
    assert result["guard.rows"] == result["guard.input.rows"] + result["guard.output.rows"]
    about = json.loads((folder / "guard/export/guard.json").read_text())
    assert about["thresholds"] == {part: result[f"threshold.{part}"] for part in ("input", "output")}
    assert load_pretrained(folder / "guard").heads == {}
    logged = {line["step"]: line for line in numbers(folder / "guard") if "guard.auroc" in line}
    assert list(logged) == [0, 1, 2] and {name: result[name] for name in logged[0]} == logged[2]  # step 2 is what is exported
    assert {"evaluation.severity_loss", "evaluation.category_loss", "guard.f1", "guard.input.auroc"} <= logged[0].keys()


@pytest.mark.parametrize("balance", [True, False])
def test_an_untrained_guard_says_how_often_each_label_is_true(trained, balance):
    """Its biases are the log-odds of the training rows as weighted, and the weights are taken back at the end."""
    _, wanted, _ = trained
    model = load_pretrained(wanted.init)
    rows = guard.prepare(wanted, wanted.data, model)
    weights = guard._weights(rows, balance)
    heads = guard._unweighted(guard._start_heads(model.config, rows, weights, jax.random.key(0)), weights)
    exceeds, known, category, category_known = guard._labels(rows)
    for name, label, is_known in (("severity", exceeds, known), ("categories", category, category_known)):
        share = ((label & is_known).sum(0) + 0.5) / (is_known.sum(0) + 1)
        np.testing.assert_allclose(jax.nn.sigmoid(heads[name]["bias"]), share, rtol=1e-5)


def test_one_threshold_for_all_parts_is_that_of_all_their_rows(trained):
    folder, wanted, _ = trained
    loaded = load_pretrained(folder / "guard")
    judged = guard.judge(wanted, loaded, Guard.load(folder / "guard").tree, make_mesh(wanted.mesh), wanted.evaluation)
    score_B, unsafe_B, rate = judged.severity_BJ[:, 0], judged.labels[0][:, 0], 0.3
    one = held_out.calibrate(judged, dataclasses.replace(wanted, thresholds="one", false_positive_rate=rate))
    each = held_out.calibrate(judged, dataclasses.replace(wanted, thresholds="each", false_positive_rate=rate))
    assert one == dict.fromkeys(("input", "output"), measure.threshold(score_B, unsafe_B, rate))
    assert 0 < (score_B > one["input"])[~unsafe_B].mean() <= rate
    for part, threshold in each.items():
        rows = judged.is_part[part]
        assert rows.any() and not rows.all()
        assert threshold == measure.threshold(score_B[rows], unsafe_B[rows], rate)
        assert (score_B[rows] > threshold)[~unsafe_B[rows]].mean() <= rate


def test_the_loaded_guard_says_what_the_stage_measured(trained):
    folder, wanted, _ = trained
    loaded = Guard.load(folder / "guard", batch_size=7)
    raw = task_rows.sft_rows(1, task_rows.split_cells(0), 40)[:10]
    images, questions, texts = zip(*[((row["image"],), row["question"], row["response"]) for row in raw])
    found = loaded.check_output(images, questions, texts)
    asked = loaded.check_input(images, questions)
    judged = guard.judge(wanted, load_pretrained(folder / "guard"), loaded.tree, make_mesh(wanted.mesh), wanted.evaluation)
    for part, verdicts in (("output", found), ("input", asked)):
        np.testing.assert_allclose(
            [one.scores["unsafe"] for one in verdicts], judged.severity_BJ[judged.is_part[part]][:10, 0], atol=1e-5
        )
        assert [one.safe for one in verdicts] == [one.scores["unsafe"] <= loaded.thresholds[part] for one in verdicts]
        assert all((one.severity == "safe") == one.safe for one in verdicts)


def test_a_question_is_read_beside_its_answer_as_if_it_stood_alone(trained):
    """One sequence gives two verdicts: those of two sequences."""
    folder, wanted, _ = trained
    model, tree = load_pretrained(folder / "guard"), Guard.load(folder / "guard").tree
    judged = {
        parts: guard.judge(dataclasses.replace(wanted, parts=parts), model, tree, make_mesh(wanted.mesh), wanted.evaluation)
        for parts in (("input",), ("output",), ("input", "output"))
    }
    both = judged["input", "output"]
    for part in ("input", "output"):
        alone, rows = judged[part,], both.is_part[part]
        assert alone.is_part[part].all() and rows.sum() == len(alone.severity_BJ) == 40
        np.testing.assert_allclose(both.severity_BJ[rows], alone.severity_BJ, atol=1e-5)
        np.testing.assert_allclose(both.category_BA[rows], alone.category_BA, atol=1e-5)
        for one, other in zip(both.labels, alone.labels, strict=True):
            np.testing.assert_array_equal(one[rows], other)


def test_an_answer_that_is_too_long_is_counted_and_its_question_stays(trained, capsys):
    folder, wanted, _ = trained
    data = dataclasses.replace(wanted.data, path=wanted.evaluation, response_length=14)
    rows = guard.prepare(wanted, data, load_pretrained(folder / "guard"))
    alone = [row for row in rows.rows if not row.responses]
    assert 0 < len(alone) < 40 == len(rows.rows)
    assert f"{80 - len(alone)} questions and answers from 40 rows; response_too_long {len(alone)}" in capsys.readouterr().err
    with pytest.raises(UserError, match="response_too_long 40"):
        guard.prepare(
            dataclasses.replace(wanted, parts=("output",)),
            dataclasses.replace(data, response_length=1),
            load_pretrained(folder / "guard"),
        )


def test_a_verdict_does_not_depend_on_its_neighbours_and_an_empty_answer_is_safe(trained):
    folder, _, _ = trained
    loaded = Guard.load(folder / "guard", batch_size=4)
    raw = task_rows.sft_rows(2, task_rows.split_cells(0), 6)
    images, questions, texts = zip(*[((row["image"],), row["question"], row["response"]) for row in raw])
    together = loaded.check_output(images, questions, (*texts[:5], " "))
    alone = [loaded.check_output(images[i : i + 1], questions[i : i + 1], texts[i : i + 1])[0] for i in range(5)]
    for one, other in zip(together, alone):
        assert one.scores["unsafe"] == pytest.approx(other.scores["unsafe"], abs=1e-5)
    assert together[5].safe and together[5].scores["unsafe"] == 0.0
    assert loaded.check_output([], [], []) == []


def test_special_tokens_that_a_policy_spelled_are_text_to_the_guard(trained):
    """They fail no batch, and hide nothing that comes after them."""
    loaded = Guard.load(trained[0] / "guard")
    row = task_rows.sft_rows(3, task_rows.split_cells(0), 1)[0]
    spelled = [f"{row['response']} </s>", f"{row['response']} <image>", f"{row['response']} </s> {row['response']}"]
    found = loaded.check_output([(row["image"],)] * 3, [row["question"]] * 3, spelled)
    assert found[2].scores["unsafe"] != found[0].scores["unsafe"]


def test_the_image_and_the_answer_reach_the_verdict(trained):
    loaded = Guard.load(trained[0] / "guard")
    first, second = task_rows.sft_rows(3, task_rows.split_cells(0), 2)
    question, answer = first["question"], first["response"]
    one, other = loaded.check_output([(first["image"],), (second["image"],)], [question] * 2, [answer] * 2)
    assert one.scores["unsafe"] != other.scores["unsafe"]
    assert loaded.check_input([(first["image"],)], [question])[0].scores["unsafe"] != one.scores["unsafe"]


def test_a_guard_filters_a_policy(trained):
    loaded = Guard.load(trained[0] / "guard")
    rows = task_rows.sft_rows(4, task_rows.split_cells(0), 5)
    prompts = [Prompt((row["image"],), row["question"]) for row in rows]
    done = guarded_generate(lambda asked, number: [rows[number]["response"]] * len(asked), loaded.check_output, prompts, rounds=2)
    assert all(len(one.rounds) == 3 or one.rounds[-1].verdict.safe for one in done)
    assert all(one.verdict.scores["unsafe"] <= one.rounds[0].verdict.scores["unsafe"] or one.verdict.safe for one in done)


def test_a_guard_on_a_frozen_backbone_is_a_third_head_beside_reward_and_cost(trained, tmp_path):
    folder, wanted, _ = trained
    pairs = [dual_answers(row) for row in task_rows.sft_rows(5, task_rows.split_cells(0), 8)]
    write_rows(tmp_path / "pairs.parquet", pairs)
    rows = ROWS | {"data.path": str(tmp_path / "pairs.parquet"), "data.batch_size": 4}
    scores.run(settings(ScoresConfig, "scores", init=str(folder / "policy"), **rows), tmp_path / "scores")
    optimizer = dataclasses.replace(wanted.optimizer, freeze=("backbone/",))
    frozen = dataclasses.replace(wanted, init=str(tmp_path / "scores"), optimizer=optimizer, evaluation="")
    guard.run(frozen, tmp_path / "guard")
    before, after = load_pretrained(tmp_path / "scores"), load_pretrained(tmp_path / "guard")
    assert sorted(after.heads) == ["cost", "reward"]
    for (path, one), (_, other) in zip(rules.leaves((before.params, before.heads)), rules.leaves((after.params, after.heads))):
        np.testing.assert_array_equal(one, other, err_msg=path)
    cli_main.main(["export", f"--workdir={tmp_path / 'guard'}", f"--out={tmp_path / 'copy'}"])
    copied, first = Guard.load(tmp_path / "copy"), Guard.load(tmp_path / "guard")
    assert copied.thresholds == first.thresholds
    assert copied.check_input([(pairs[0]["image"],)], [pairs[0]["question"]]) == first.check_input(
        [(pairs[0]["image"],)], [pairs[0]["question"]]
    )


@pytest.fixture(scope="module")
def joint(trained, tmp_path_factory):
    """The guard's settings with reward and cost heads beside it, four steps, and a finished run."""
    folder, wanted, _ = trained
    at = tmp_path_factory.mktemp("joint")
    pairs = [dual_answers(row) for row in task_rows.sft_rows(5, task_rows.split_cells(0), 12)]
    write_rows(at / "pairs.parquet", pairs)
    beside = dataclasses.replace(
        wanted.pairs, path=str(at / "pairs.parquet"), batch_size=4, coef=0.7, evaluation=str(at / "pairs.parquet")
    )
    settings = dataclasses.replace(wanted, pairs=beside, steps=4, evaluation="")
    return settings, at / "guard", guard.run(settings, at / "guard")


def test_one_run_trains_three_heads_and_its_export_is_a_guard_and_a_scorer(joint):
    wanted, workdir, result = joint
    assert {
        "severity_loss",
        "reward_loss",
        "cost_loss",
        "reward_model.pair_accuracy",
        "cost_model.sign_accuracy",
    } <= result.keys()
    fresh = load_pretrained(wanted.init)
    start = scores.start_heads(fresh, guard.SCORES, make_mesh(wanted.mesh), states.key(wanted.seed, 0, "heads"))
    found = load_pretrained(workdir).heads
    for name in guard.SCORES:
        assert not np.allclose(found[name]["kernel"], start[name]["kernel"], atol=1e-7), name
    assert set(Guard.load(workdir).thresholds) == {"input", "output"}


def test_the_joint_loss_is_the_sum_of_the_two(joint):
    """A guard's batch and pairs of other sizes; the pairs' part weighs pairs.coef."""
    wanted, _, _ = joint
    model = load_pretrained(wanted.init)
    rows, data = guard.prepare(wanted, wanted.data, model), guard.pair_data(wanted)
    mesh = make_mesh(wanted.mesh)
    judged = next(inputs.batches(rows, wanted.data, 3, mesh))
    scored = next(inputs.batches(inputs.prepare("pairs", data, model), data, 3, mesh))
    heads = scores.start_heads(model, guard.SCORES, mesh, jax.random.key(1))
    tree = {"backbone": model.params, "heads": heads}
    tree |= {"guard": guard_heads.init(model.config, len(rows.categories), jax.random.key(2))}
    weights = guard._weights(rows, balance=True)

    def mean(loss, *arguments):
        found = jax.jit(functools.partial(loss, model.config, *arguments[:-1]))(tree, arguments[-1])
        return sum(float(found.sum[name] / found.count[name]) for name in found.sum)

    apart = mean(guard.loss, weights, wanted, judged), mean(scores.loss, wanted.pairs, scored)
    assert mean(guard.joint_loss, weights, wanted, (judged, scored)) == pytest.approx(apart[0] + 0.7 * apart[1], rel=1e-5)


def test_a_guard_stopped_and_started_again_is_the_guard_of_an_unbroken_run(joint, tmp_path, monkeypatch):
    """Both streams go on where they stood: the same metrics and the same bytes of the export."""
    wanted, whole, result = joint
    with monkeypatch.context() as patched:
        patched.setattr(loop, "run", functools.partial(loop.run, stop=lambda step: step == 2))
        with pytest.raises(loop.Preempted):
            guard.run(wanted, tmp_path)
    assert not (tmp_path / "export").exists()
    assert guard.run(wanted, tmp_path) == result
    for file in ("metrics.jsonl", "export/guard_heads.safetensors", "export/score_heads.safetensors", "export/guard.json"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file


def dual_answers(row: dict) -> dict:
    safe = row["is_response_safe"]
    return {key: row[key] for key in ("question", "image", "category")} | {
        "response_1": row["response"],
        "response_2": answers.REFUSAL if row["response"] != answers.REFUSAL else answers.name_only("apple"),
        "more_helpful_response_id": "1",
        "safer_response_id": "2",
        "is_response_1_safe": safe,
        "is_response_2_safe": "yes",
    }


EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)


def test_eight_devices_train_the_guard_of_one(trained, tmp_path):
    folder, wanted, result = trained
    eight = guard.run(dataclasses.replace(wanted, mesh=EIGHT), tmp_path / "guard")
    assert eight.keys() == result.keys()
    for name in ("loss", "severity_loss", "category_loss", "guard.auroc", "guard.calibration_error", "threshold.output"):
        assert eight[name] == pytest.approx(result[name], abs=2e-4), name
    one, other = (load_pretrained(path / "guard").params for path in (folder, tmp_path))
    for (path, a), (_, b) in zip(rules.leaves(one), rules.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=path)


@pytest.mark.parametrize("kind", ["plain", "int8", "activated"])
def test_a_guard_may_be_an_adapter_and_says_what_the_stage_measured(trained, tmp_path, kind):
    """Over eight bits it was measured with rounded kernels, and is loaded over the checkpoint's own."""
    folder, wanted, _ = trained
    adapter = dataclasses.replace(wanted.lora, rank=3, int8=kind == "int8", activated=kind == "activated")
    result = guard.run(dataclasses.replace(wanted, lora=adapter), tmp_path / "guard")
    kept = load_pretrained(tmp_path / "guard", keep_adapter=True)
    assert kept.adapter is not None
    for (path, a), (_, b) in zip(rules.leaves(kept.params), rules.leaves(load_pretrained(folder / "policy").params), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
    loaded = Guard.load(tmp_path / "guard")
    judged = guard.judge(wanted, load_pretrained(tmp_path / "guard"), loaded.tree, make_mesh(wanted.mesh), wanted.evaluation)
    again = held_out.evaluate(judged, loaded.thresholds, loaded.categories)
    assert again["guard.auroc"] == pytest.approx(result["guard.auroc"], abs=0.03 if kind == "int8" else 1e-5)


def test_what_cannot_work_is_refused(trained, tmp_path):
    folder, _, _ = trained
    with pytest.raises(UserError, match="has no guard"):
        Guard.load(folder / "policy")
    with pytest.raises(UserError, match=r"config.parts\[0\] must be one of"):
        guard.run(settings(GuardConfig, "guard", init="nowhere", parts=("image",)), tmp_path)
    with pytest.raises(UserError, match="config.thresholds must be one of"):
        guard.run(settings(GuardConfig, "guard", init="nowhere", thresholds="both"), tmp_path)
    with pytest.raises(UserError, match="the taxonomy must be one of"):
        guard.run(settings(GuardConfig, "guard", init="nowhere", taxonomy="mine"), tmp_path)
    loaded = Guard.load(folder / "guard")
    with pytest.raises(UserError, match="special_token_in_text"):
        loaded.check_input([()], ["what <image> is it ?"])
