"""Stages on tiny models, from rows on disk to exports: text-only Safe RLHF from end to end, meshes, separate roles, refusals."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_hf
from commands import COMPILER
from tiny_stages import picture_task, settings

from srlhfv_jax.config import PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.data.quickstart import processor as task_processor
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import same_prompts
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.parallel import rules
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.supervised import scores, sft


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A random Llama folder, and PKU-SafeRLHF rows without images."""
    folder = tmp_path_factory.mktemp("text")
    tiny_hf.save(folder / "llama", tiny_hf.llama_config())
    rng = np.random.default_rng(0)

    def words(count):
        return " ".join(f"w{i}" for i in rng.integers(5, tiny_hf.VOCAB, count))

    rows = []
    for i in range(24):
        safe = [bool(rng.random() < 0.5), bool(rng.random() < 0.5)]
        safer = int(safe[1]) if safe[0] != safe[1] else i % 2
        row = {
            "prompt": words(3),
            "response_0": words(2 + i % 3),
            "response_1": words(4),
            "better_response_id": i % 2,
            "safer_response_id": safer,
        }
        rows.append(
            row
            | {f"is_response_{k}_safe": safe[k] for k in (0, 1)}
            | {f"response_{k}_severity_level": 0 if safe[k] else 2 for k in (0, 1)}
        )
    (folder / "pku.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return picture_task(tmp_path_factory.mktemp("picture"))


@pytest.mark.slow
def test_text_only_safe_rlhf_runs_from_rows_to_a_constrained_policy(text, tmp_path):
    rows = {"data.path": str(text / "pku.jsonl"), "data.split": "", "data.response_length": 6}
    done = sft.run(settings(SFTConfig, "sft", init=str(text / "llama"), **rows), tmp_path / "sft")
    assert np.isfinite(done["loss"])
    held = {"evaluation": str(text / "pku.jsonl"), "evaluation_every": 1, "keep_best": "cost_model.pair_accuracy"}
    done = scores.run(
        settings(ScoresConfig, "scores", init=str(tmp_path / "sft"), **held, **rows),
        tmp_path / "scores",
    )
    log = {line["step"]: line for line in lines(tmp_path / "scores") if "evaluation.loss" in line}
    assert list(log) == [0, 1, 2] and {name: done[name] for name in log[0]} == log[done["best.step"]] | {"step": 2}
    best = max(log[1]["cost_model.pair_accuracy"], log[2]["cost_model.pair_accuracy"])
    assert done["cost_model.pair_accuracy"] == best and {"evaluation.reward_loss", "evaluation.cost_loss"} <= done.keys()
    assert 0 <= done["cost_model.sign_accuracy"] <= 1 and 0 <= done["reward_model.pair_accuracy"] <= 1
    heads = load_pretrained(tmp_path / "scores").heads
    assert sorted(heads) == ["cost", "reward"]
    constrained = settings(
        PPOLagConfig,
        "ppo_lag",
        policy=str(tmp_path / "sft"),
        scorer=str(tmp_path / "scores"),
        **rows,
        **{"validation.path": str(text / "pku.jsonl")},
    )
    done = ppo_lag.run(constrained, tmp_path / "ppo_lag")
    log = lines(tmp_path / "ppo_lag")
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-5) and log[0]["mismatch"] < 1e-5
    assert any("validation.cost" in line for line in log)
    assert done["lambda.final"] >= 0 and load_pretrained(tmp_path / "ppo_lag").config.vision is None
    watched = dataclasses.replace(constrained, log=dataclasses.replace(constrained.log, samples_every=1, samples=3))
    ppo_lag.run(watched, tmp_path / "watched")
    assert lines(tmp_path / "watched") == log  # answers to the same prompts change no number of the run
    asked = [json.loads(line) for line in (tmp_path / "watched" / same_prompts.FILE).read_text().splitlines()]
    assert [list(row["answers"]) for row in asked] == [["0", "1", "2"]] * 3
    assert {"reward", "cost", "length"} <= asked[0]["answers"]["2"].keys()


@pytest.mark.slow
def test_six_separate_trees_with_ptx_train_and_finish(text, tmp_path):
    rows = {"data.path": str(text / "pku.jsonl"), "data.split": "", "data.response_length": 6}
    scores.run(settings(ScoresConfig, "reward", init=str(text / "llama"), **rows), tmp_path / "reward")
    scores.run(settings(ScoresConfig, "cost", init=str(text / "llama"), sign="graded", **rows), tmp_path / "cost")
    separate = settings(
        PPOLagConfig,
        "ppo_lag",
        policy=str(text / "llama"),
        reward=str(tmp_path / "reward"),
        cost=str(tmp_path / "cost"),
        sharing="separate",
        **rows,
        **{"ptx.coef": 0.4, "ptx.path": str(text / "pku.jsonl"), "constraint.controller": "pid", "rollout.old_logp": "recompute"},
    )
    done = ppo_lag.run(separate, tmp_path / "ppo_lag")
    assert {"ptx_loss", "reward_critic_loss", "cost_critic_loss", "policy_loss"} <= done.keys()
    assert done["sampler_gap"] < 1e-4
    with pytest.raises(UserError, match="has no cost head"):
        ppo_lag.run(
            settings(PPOLagConfig, "ppo_lag", policy=str(text / "llama"), scorer=str(tmp_path / "reward"), **rows),
            tmp_path / "wrong",
        )


@pytest.mark.slow
def test_one_device_and_eight_write_the_same_numbers_and_a_run_may_go_on_on_another_mesh(picture, tmp_path):
    def run(name: str, mesh: tuple[int, int, int], every: int = 100) -> list[float]:
        wanted = settings(
            SFTConfig,
            "sft",
            init=str(picture / "base"),
            init_random=True,
            steps=4,
            **{"data.path": str(picture / "sft.parquet"), "data.split": "", "data.prompt_length": 26, "data.response_length": 18},
            **{
                "data.batch_size": 8,
                "checkpoint.every_steps": every,
                "mesh.data": mesh[0],
                "mesh.fsdp": mesh[1],
                "mesh.tensor": mesh[2],
            },
        )
        sft.run(wanted, tmp_path / name)
        return [line["loss"] for line in lines(tmp_path / name)]

    one = run("one", (1, 1, 1), every=2)
    np.testing.assert_allclose(run("eight", (2, 2, 2)), one, rtol=2e-5)
    (tmp_path / "moved" / "checkpoints").mkdir(parents=True)
    for part in ("2", "manifests/2.json"):  # as if killed after step 2
        source, target = tmp_path / "one" / "checkpoints" / part, tmp_path / "moved" / "checkpoints" / part
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
    text_before = (tmp_path / "one" / "metrics.jsonl").read_text()
    (tmp_path / "moved" / "metrics.jsonl").write_text(text_before)
    np.testing.assert_allclose(run("moved", (2, 4, 1)), one, rtol=2e-5)
    before, after = (load_pretrained(tmp_path / name).params for name in ("one", "moved"))
    for (path, a), (_, b) in zip(rules.leaves(before), rules.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=path)


@pytest.mark.slow
def test_two_processes_train_and_export_what_one_does(text, tmp_path):
    """Parameters are sharded over both processes; the export is whole, and written once."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    rows = {"init": str(text / "llama"), "data.path": str(text / "pku.jsonl"), "data.split": ""}
    rows |= {"data.response_length": 6, "data.batch_size": 4}
    mesh = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 1}
    options = [f"--config.{key}={value}" for key, value in (rows | mesh).items()]
    command = [sys.executable, "-m", "srlhfv_jax", "sft", "--config=configs/sft.py:tiny", *options, f"--workdir={tmp_path}/two"]
    shared = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": " ".join(("--xla_force_host_platform_device_count=2", *COMPILER)),
    }
    started = [
        subprocess.Popen(command, env=os.environ | shared | {"JAX_PROCESS_ID": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for said, code in [(process.communicate(timeout=300)[1], process.returncode) for process in started]:
        assert code == 0, said[-2000:]
    sft.run(settings(SFTConfig, "sft", **rows), tmp_path / "one")
    one, two = (load_pretrained(tmp_path / name).params for name in ("one", "two"))
    for (path, a), (_, b) in zip(rules.leaves(one), rules.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=path)
    assert "# sft of" in (tmp_path / "two" / "export" / "README.md").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rollout.temperature": 0.0}, "temperature must be above 0"),
        ({"data.batch_size": 5}, "multiple of config.ppo.minibatches"),
        ({"policy_optimizer.freeze": ()}, "freeze must hold 'vision/'"),
        ({"scorer": ""}, "config.scorer is empty"),
        ({"ppo.reduction": "mean"}, "config.ppo.reduction must be one of"),
        ({"rollout.offload": "disk"}, "config.rollout.offload must be one of"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_a_model_is_loaded(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **({"policy": "nowhere", "scorer": "nowhere"} | changes)), tmp_path)


def test_a_processor_with_another_number_of_placeholders_than_features_is_refused(picture, tmp_path):
    folder = tmp_path / "base"
    task_processor.write_base(folder, patch=16, vision_layers=1, vision_width=16, text_layers=1, text_width=16, heads=2)
    described = json.loads((folder / "processor_config.json").read_text())
    described["num_additional_image_tokens"] = 0
    (folder / "processor_config.json").write_text(json.dumps(described))
    rows = {"data.path": str(picture / "sft.parquet"), "data.split": "", "data.prompt_length": 40, "data.response_length": 18}
    with pytest.raises(UserError, match="features .* of a tile is 8 in its processor files and 9 in config.json"):
        sft.run(settings(SFTConfig, "sft", init=str(folder), init_random=True, **rows), tmp_path / "run")
