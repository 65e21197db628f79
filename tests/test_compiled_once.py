"""One program for every function of a stage: compiled once, and what it gives lies where the table of `parallel/rules.py` says."""

import collections
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny_sharing as tiny
from commands import ENVIRONMENT
from tiny_stages import settings

from srlhfv_jax.config import ScoresConfig
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.parallel import host_cpu, rules
from srlhfv_jax.supervised import scores
from srlhfv_jax.training import loop

MESHES = [(1, 2, 1), (2, 2, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sharing")
    tiny.prepare(made)
    jax.set_mesh(None)  # that of its stages
    return made


@pytest.fixture
def compiled():
    """How often each function was compiled, by its name."""
    found: collections.Counter[str] = collections.Counter()

    def heard(event: str, seconds: float, *, fun_name: str = "", **_) -> None:
        found[fun_name] += event == host_cpu.COMPILED

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    jax.monitoring.unregister_event_duration_listener(heard)


def watched(monkeypatch, compiled) -> list[dict[str, str]]:
    """Of every step of the run that follows: which leaves of its state lie elsewhere than the rules say, and where."""
    steps = []

    def run(*, step_fn, state, **others):
        def step(state, batch):
            state, metrics = step_fn(state, batch)
            steps.append(elsewhere(state))
            return state, metrics

        assert not elsewhere(state)
        compiled.clear()
        return original(step_fn=step, state=state, **others)

    original = loop.run
    monkeypatch.setattr(loop, "run", run)
    return steps


def elsewhere(state) -> dict[str, str]:
    found = {}
    for path, leaf in rules.leaves(state):
        mesh = leaf.sharding.mesh
        table = path.startswith(("params", "opt_state"))
        place = dict(rules.leaves(rules.shardings({path: leaf}, mesh)))[path] if table else rules.replicated(mesh)
        if not leaf.sharding.is_equivalent_to(place, leaf.ndim):
            found[path] = f"{leaf.sharding.spec}, not {place.spec}"
    return found


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.slow
def test_ppo_lag_compiles_each_function_once_and_its_state_stays_in_its_place(folder, tmp_path, monkeypatch, compiled, mesh):
    steps = watched(monkeypatch, compiled)
    tiny.run(folder, tmp_path, "shared", *mesh, iterations=3)
    assert steps == [{}, {}, {}]
    assert [compiled[f"jit({name})"] for name in ("generate", "score_and_constrain", "update")] == [1, 1, 1], compiled


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.slow
def test_a_supervised_stage_compiles_its_update_once_and_its_state_stays_in_its_place(
    folder, tmp_path, monkeypatch, compiled, mesh
):
    steps = watched(monkeypatch, compiled)
    sizes = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True))
    changes = {"init": str(folder / "llama"), "steps": 3} | tiny.where(folder) | sizes
    scores.run(settings(ScoresConfig, "scores", **changes), tmp_path)
    assert steps == [{}, {}, {}]
    assert compiled["jit(update)"] == 1, compiled


def test_an_adapter_is_merged_where_its_backbone_lies(folder, eight_devices):
    params = load_pretrained(folder / "adapter", mesh=eight_devices).params
    assert not elsewhere({"params": params})


@pytest.fixture(scope="module")
def programs() -> dict[str, dict]:
    """What `tpu_programs.py` says of each function of a run on eight chips."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(Path(__file__).with_name("tpu_programs.py"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
def test_on_tpus_every_product_of_a_float32_model_is_one_of_float32(programs):
    assert programs.keys() == {"generate", "score", "update"}
    for one in programs.values():
        assert one["precision"].keys() == {"highest,highest"} and one["precision"]["highest,highest"] > 10


@pytest.mark.slow
def test_a_minibatch_moves_no_pictures_between_chips(programs):
    assert programs["update"]["moved"] == []


@pytest.mark.slow
def test_the_update_that_is_planned_takes_what_it_gives(programs):
    """So it is the one of every step."""
    assert programs["update"]["steady"]
