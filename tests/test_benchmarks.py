"""The benchmarks run, do the work that they claim, and compare what they say they compare. No times are judged here."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from commands import ENVIRONMENT

from srlhfv_jax.parallel.mesh import make_mesh

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.parametrize(
    ("sharing", "more"),
    [
        ("shared", ()),
        ("adapters", ()),
        ("adapters", ("--activated", "--microbatches=2")),
        ("separate", ("--advantage=rloo", "--group_size=2")),
    ],
)
@pytest.mark.slow
def test_an_iteration_is_timed_and_its_line_is_complete(sharing, more):
    # A process of its own has its own peak memory.
    command = [sys.executable, FOLDER / "ppo_lag_iteration.py", "--size=test", f"--sharing={sharing}", "--iterations=1", *more]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    seconds = ("generate_s", "score_s", "update_s", "total_s", "cpu_s", "compile_s")
    rates = ("samples_per_s", "peak_rss_gb", "forward_equivalents", "matmul_gflops")
    for name in (*seconds, *rates, "params", "gflops"):
        assert line[name] >= 0, name
    assert (line["framework"], line["size"], line["sharing"]) == ("jax", "test", sharing)
    assert (line["activated"], line["microbatches"]) == ((True, 2) if "--activated" in more else (False, 1))
    assert (line["batch"], line["prompts"]) == ((2, 1) if "--group_size=2" in more else (2, 2))


@pytest.mark.slow
def test_the_prompts_of_groups_take_the_operations_of_as_many_fewer_prompts(scripts, monkeypatch):
    import ppo_lag_iteration as whole
    import sizes

    def operations(*more: str) -> float:
        monkeypatch.setattr(sys, "argv", ["ppo_lag_iteration.py", "--size=test", *more])
        args = whole.arguments("")
        iteration, state, prompts = whole.prepare(shape, args)
        return whole.prompt_gflop(iteration, state, prompts, shape)

    shape = dataclasses.replace(sizes.SIZES["test"], batch=4, prompt=39)
    monkeypatch.setitem(sizes.SIZES, "test", shape)
    monkeypatch.setattr(whole, "make_mesh", lambda settings: make_mesh(settings, jax.devices()[:1]))
    monkeypatch.setattr(jax, "set_mesh", lambda mesh: None)  # the tests after this one have theirs
    one_each, pairs, all_of_one = (
        operations(),
        operations("--advantage=group", "--group_size=2"),
        operations("--advantage=rloo", "--group_size=4"),
    )
    assert pairs == pytest.approx(one_each / 2, rel=0.2) and all_of_one == pytest.approx(one_each / 4, rel=0.2)
    by_hand = sizes.vision(shape, shape.vision_layers - 1) + sizes.projector(shape) + sizes.decoder(shape, 39, 39, read=1)
    assert one_each == pytest.approx(by_hand / 1e9, rel=0.3)


@pytest.mark.slow
def test_the_update_alone_is_the_update_of_an_iteration(scripts, tmp_path):
    command = [sys.executable, FOLDER / "update.py", "--size=test", "--iterations=1", "--remat=dots"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["update_s"] > 0 and line["update_gflops"] >= 0
    assert (line["remat"], line["scan_unroll"], line["kernels_ms"]) == ("dots", 0, {})


@pytest.mark.slow
def test_pairs_are_timed_in_both_ways():
    command = [sys.executable, FOLDER / "pairs.py", "--size=test", "--iterations=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["together_s"] > 0 and line["apart_s"] > 0 and line["speedup"] > 0 and "sharing" not in line


@pytest.mark.slow
@pytest.mark.parametrize("script", ["preference.py", "torch_dpo.py"])
def test_a_step_on_pairs_is_timed(script):
    environment = ENVIRONMENT
    if script == "torch_dpo.py":  # which needs what other scripts must do without
        pytest.importorskip("torch")
        environment = dict(os.environ)
    command = [sys.executable, FOLDER / script, "--size=test", "--iterations=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["step_s"] > 0 and line["pairs"] == 2 and line["peak_rss_gb"] > 0


@pytest.mark.slow
def test_the_second_start_of_a_stage_reads_the_programs_that_the_first_one_wrote():
    command = [sys.executable, FOLDER / "starts.py", "--times=1", "--stages=sft"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    cold, warm, ratios = map(json.loads, done.stdout.splitlines())
    assert [(line["stage"], line["cache"]) for line in (cold, warm)] == [("sft", "cold"), ("sft", "warm")]
    assert 0 < cold["programs"] == warm["programs"] and 0 < cold["first_step_s"] < cold["total_s"]
    assert ratios["warm_over_cold"].keys() == {"sft.first_step", "sft.total", "sft.cpu"}


def test_kernels_are_added_up_by_kind(scripts, tmp_path):
    import update

    def event(name, start, duration, pid=7, tid=3):
        return {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": duration, "name": name}

    events = [
        {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "thread_name", "pid": 7, "tid": 3, "args": {"name": "Stream #20"}},
        event("cudnn_sdpa_flash_gemm", 1000, 1500),
        event("nvjet_sm90", 2750, 2000),
        event("loop_fusion", 4000, 1250),  # beside the product for a while
        event("host", 0, 9000, pid=8),
    ]
    with gzip.open(tmp_path / "a.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert update.kernels_ms(tmp_path) == {"attention": 1.5, "products": 2.0, "rest": 1.2, "gaps": 0.2}


def test_a_forward_pass_is_the_arithmetic_of_its_matrices(scripts):
    import sizes

    # test: 2 rows of 7 + 64 positions, one layer of width 32 (mlp 48), 64 words; a tower of 2 layers of width 16 on 4 patches.
    decoder = 2 * 71 * (2 * (4 * 32 * 32 + 3 * 32 * 48) + 4 * 71 * 32)
    tower = 2 * (2 * (2 * 5 * 12 * 16 * 16 + 4 * 5 * 5 * 16) + 2 * 4 * 3 * 14 * 14 * 16)
    projector = 2 * 2 * 4 * (16 * 32 + 32 * 32)
    logits = 2 * 2 * 71 * 32 * 64
    assert sizes.one_pass(sizes.SIZES["test"]) == decoder + tower + projector + logits


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_sharing_a_backbone_is_less_work_and_both_are_less_than_six_models(scripts, size):
    import sizes

    shape = sizes.SIZES[size]
    shared, separate = (sum(sizes.jax_iteration(shape, sharing, False).values()) for sharing in ("shared", "separate"))
    assert shared < separate < sum(sizes.torch_iteration(shape).values())


def test_ratios_are_theirs_over_ours_in_time_and_ours_over_theirs_in_memory(scripts):
    import compare

    def line(generate, score, update, memory):
        seconds = dict(generate_s=generate, score_s=score, update_s=update, total_s=generate + score + update)
        return seconds | {"peak_rss_gb": memory}

    found = compare.ratios(
        {"torch": line(1.5, 2.25, 3.75, 4.0), "separate": line(0.75, 1.5, 2.25, 3.0), "shared": line(0.75, 0.75, 1.5, 2.0)}
    )
    assert (found["separate.speedup"], found["shared.speedup"]) == (1.67, 2.5)
    assert (found["separate.memory_ratio"], found["shared.memory_ratio"]) == (0.75, 0.5)
    assert found["shared.score_speedup"] == 3.0


def test_groups_stand_beside_the_same_trees_with_critics_and_rounds_give_their_medians(scripts):
    import compare

    def line(seconds, memory, prompts):
        phases = dict(generate_s=seconds, score_s=seconds, update_s=seconds, total_s=3 * seconds)
        return phases | dict(cpu_s=7 * seconds, peak_rss_gb=memory, prompt_gflop=prompts)

    rounds = [
        compare.ratios({"torch": line(4.0, 8.0, 0), "shared": line(2.0, 4.0, 1.5), "group": line(1.5 * load, 3.0, 0.1875)})
        for load in (1.0, 1.2, 2.0)
    ]
    found = compare.medians(rounds)
    assert found["group.time_of_critics"] == found["group.update_of_critics"] == pytest.approx(0.9)
    assert (found["group.memory_of_critics"], found["group.prompt_gflop_of_critics"]) == (0.75, 0.125)
    assert found["group.speedup"] == pytest.approx(2.22) and "shared.time_of_critics" not in found
    alone = compare.ratios({"shared": line(2.0, 4.0, 1.5), "rloo": line(1.5, 3.0, 0.1875)})
    assert alone["rloo.cpu_of_critics"] == 0.75 and "rloo.speedup" not in alone


def test_tables_of_the_quickstart_have_every_policy_and_say_by_how_many_runs_a_target_is_met(scripts):
    import quickstart_tables

    from srlhfv_jax.report import targets

    keys = {key for target in targets.TARGETS for key in target.keys}
    columns = [column for column, _, _ in quickstart_tables.COLUMNS]
    names = [name for name, _ in quickstart_tables.POLICIES]
    keys |= {f"{name}.{column}" for name in names for column in columns}
    good = dict.fromkeys(keys, 0.75) | {"guard.f1": 0.925, "seed": 0}
    runs = [good, good | {"guard.f1": 0.875, "seed": 1}]
    table = list(quickstart_tables.policies(runs))
    assert len(table) == 2 + len(names) and "| 0.75, 0.75 |" in table[-1]
    goals = list(quickstart_tables.goals(runs))
    timed = [target for target in targets.TARGETS if target.text.endswith("seconds")]
    assert len(timed) == 2 and len(goals) == 2 + len(targets.TARGETS) - len(timed)
    assert next(line for line in goals if "guard: F1" in line).endswith("| 0.925 | 0.875 | met by 1 of 2 |")
    assert next(line for line in goals if "severity" in line).endswith("| 0.750 | 0.750 | met |")
    assert next(line for line in goals if "evasion" in line).endswith("| 0.750 | 0.750 | missed |")


def test_tables_of_the_quickstart_are_written_where_they_belong_and_drawn(scripts, tmp_path, monkeypatch):
    import quickstart_tables as tables

    from srlhfv_jax.report import targets

    keys = {key for target in targets.TARGETS for key in target.keys} | {key for key, _, _ in tables.OTHERS}
    keys |= {f"{name}.{column}" for name, _ in tables.POLICIES for column, _, _ in tables.COLUMNS}
    for seed in (0, 1):
        (tmp_path / f"W{seed}").mkdir()
        (tmp_path / f"W{seed}" / "result.json").write_text(json.dumps(dict.fromkeys(keys, 0.25 + seed / 2) | {"seed": seed}))
    for name in ("README", "RESULTS"):
        file = tmp_path / f"{name}.md"
        file.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
        monkeypatch.setattr(tables, name, file)
    monkeypatch.setattr(tables, "PICTURE", tmp_path / "images" / "picture.svg")
    monkeypatch.setattr(sys, "argv", ["quickstart_tables.py", str(tmp_path / "W0"), str(tmp_path / "W1"), "--write"])
    tables.main()
    for name, row in (
        ("README", "| supervised | 0.25 | 0.25 | 0.25 | 0.25 |"),
        ("RESULTS", "| lambda at the end | 0.25 | 0.75 |"),
    ):
        text = (tmp_path / f"{name}.md").read_text()
        assert row in text and "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert tables.points((tmp_path / "RESULTS.md").read_text())["PPO-Lagrangian + guard"] == ([0.25, 0.75], [0.25, 0.75])
    assert "PPO-Lagrangian" in (tmp_path / "images" / "picture.svg").read_text()


def test_certificates_of_known_pools_are_wrong_no_more_often_than_they_say(scripts, tmp_path):
    answers = [{"row": row, "answers": {"a": {"unsafe": row % 10 == 0}, "b": {"unsafe": False}}} for row in range(50)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    command = [sys.executable, FOLDER / "certificate.py", tmp_path / "answers.jsonl", "--repetitions=40", "--prompts=100"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = list(map(json.loads, done.stdout.splitlines()))
    assert [line["pool"] for line in lines][-1] == "recorded, a" and lines[-1]["mean"] == 0.1
    for line in lines:
        bounds = [value for value in line.values() if isinstance(value, dict)]
        assert len(bounds) >= 5 and all(bound["wrong"] <= 0.15 and bound["width"] > 0 for bound in bounds)
