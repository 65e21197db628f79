"""The stages from Python: `import srlhfv_jax as sv`."""

import inspect
import subprocess
import sys

import pytest
import tiny_hf
from PIL import Image

import srlhfv_jax as sv
from srlhfv_jax.api import rows as given_rows, stages
from srlhfv_jax.data import sources
from srlhfv_jax.data.loader import single_pass
from srlhfv_jax.errors import UserError

ROWS = [{"prompt": f"w{7 + row} w{9 + row}", "level": f"l{row % 3}"} for row in range(6)]
SMALL = {"data.batch_size": 4, "data.response_length": 5, "mesh.fsdp": 1, "model.scan_unroll": 1}


def test_importing_the_package_starts_no_jax():
    code = "import sys, srlhfv_jax as sv; sv.config('ppo_lag:tiny'); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_stage_is_called_as_its_room_is_and_stays_a_module():
    import srlhfv_jax.ppo_lag.run as module

    assert module.run and callable(sv.ppo_lag) and callable(sv.guard) and sv.guard.Guard
    assert "reward" in inspect.signature(type(sv.ppo_lag).__call__).parameters
    with pytest.raises(AttributeError, match="no attribute 'dpo'"):
        sv.dpo  # noqa: B018


def test_a_config_has_the_values_that_were_given():
    assert sv.config("ppo_lag:tiny", {"constraint.budget": 0.25}).constraint.budget == 0.25
    assert sv.config("ppo_lag").constraint.budget == sv.config("ppo_lag:default").constraint.budget == 0.1


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("ppo_lag:huge", {}, "this config knows the arguments default"),
        ("ppo", {}, "there is no config file ppo.py"),
        ("ppo_lag:tiny", {"constraint.bugdet": 0.1}, "unknown config key config.constraint.bugdet; did you mean 'budget'?"),
        ("ppo_lag:tiny", {"constraint": 0.1}, "config.constraint is a section"),
        ("ppo_lag:tiny", {"constraint.budget": "low"}, "Could not override field 'budget'"),
    ],
)
def test_a_wrong_config_is_one_line(name, overrides, message):
    with pytest.raises(UserError) as refused:
        sv.config(name, overrides)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_functions_and_weights_become_terms():
    given = {"reward": {}, "cost": {}}

    def words(samples): ...

    assert stages._terms([words, ("model", 0.5), ("a.py:f", 2)], "cost", given) == "words,model*0.5,a.py:f*2"
    assert stages._terms("", "reward", given) == "" and given == {"reward": {}, "cost": {"words": words}}


def test_pictures_in_memory_come_back_from_the_workdir(tmp_path):
    picture = Image.new("RGB", (3, 2), (10, 200, 30))
    path = given_rows.path_of([{"question": "q", "image": picture, "level": 1}], tmp_path / "rows" / "data.jsonl")
    (example,) = sources.load_examples(single_pass(path))
    (back,) = sources.in_memory([{"question": "q", "image": picture, "level": 1}], single_pass())
    assert example == back and example.meta == {"level": "1"}


@pytest.mark.slow
def test_ppo_lag_with_functions_of_ones_own_in_a_few_lines(tmp_path):
    tiny_hf.save(tmp_path / "llama", tiny_hf.llama_config())

    def brevity(samples):
        return [-abs(len(sample.answer.split()) - 3.25) for sample in samples]

    def words(samples):
        return [sum(word in sample.answer for word in ("w6", "w8")) - 0.5 for sample in samples]

    how = dict(policy=tmp_path / "llama", prompts=ROWS, preset="tiny", iterations=1)
    result = sv.ppo_lag(
        **how, reward=brevity, cost=[(words, 0.5)], workdir=tmp_path / "own", overrides=SMALL | {"constraint.budget": 0.25}
    )
    assert result.numbers["cost"] == pytest.approx(0.5 * result.numbers["cost.words"]) and result.numbers["budget"] == 0.25
    assert result.path == tmp_path / "own" / "export" and (result.path / "config.json").is_file()
    assert result.metrics()[0]["reward.brevity"] == result.numbers["reward.brevity"]
    answers = result.sample(ROWS[:2], temperature=0.0)
    assert len(answers) == 2 and answers == result.sample(ROWS[:2], temperature=0.0)

    how |= {"overrides": SMALL}
    with pytest.raises(UserError, match="held_out.jsonl"):
        sv.ppo_lag(**how, reward=brevity, cost=words, validation=tmp_path / "held_out.jsonl", workdir=tmp_path / "none")
    with pytest.raises(UserError, match="nothing says what the cost is"):
        sv.ppo_lag(**how, reward=brevity, workdir=tmp_path / "none")
    with pytest.raises(UserError, match="config.lora.alpha would be ignored"):
        sv.ppo_lag(**how | {"overrides": SMALL | {"lora.alpha": 3.0}}, reward=brevity, cost=words, workdir=tmp_path / "none")
    with pytest.raises(UserError, match="must be a sequence of rows"):
        sv.ppo_lag(**how | {"prompts": {"prompt": "w7"}}, reward=brevity, cost=words, workdir=tmp_path / "none")
