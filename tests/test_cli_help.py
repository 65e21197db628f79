"""`srlhfv --help`, `STAGE --help`, `--version` and `env`: what they say is generated from records, presets and comments."""

import dataclasses
import json
import subprocess
import sys

import pytest

from srlhfv_jax import config
from srlhfv_jax.cli import commands, config_files, flags, main
from srlhfv_jax.config.base import value_at
from srlhfv_jax.config.comments import comments
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.stage import GUARD
from srlhfv_jax.parsing import flattened
from srlhfv_jax.ppo_lag.stage import PPO_LAG
from srlhfv_jax.supervised.stages import COST, REWARD, SCORES, SFT

STAGES = {stage.name: stage for stage in (SFT, SCORES, REWARD, COST, GUARD, PPO_LAG)}
SETTINGS = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]


def help_of(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main.main(list(argv))
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_comment_and_every_section_a_sentence(kind):
    said = comments(kind)
    sections = {field.name for field in dataclasses.fields(kind) if dataclasses.is_dataclass(field.type)}
    assert sorted(name for name in said.keys() - sections if not said[name]) == [] and kind.__doc__


def test_comments_stand_above_a_field_or_at_its_end():
    @dataclasses.dataclass(frozen=True)
    class Some:
        """Something."""

        # above,
        # in two lines
        first: int
        second: str  # at the end
        third: str = field_of(  # of a call
            3
        )

        def method(self):  # of no field
            first = 3  # nor this
            return first

    assert comments(Some) == {"first": "above, in two lines", "second": "at the end", "third": "of a call"}


def field_of(value):
    return value


@pytest.mark.parametrize("name", STAGES)
def test_help_of_a_stage_lists_what_is_needed_presets_an_example_and_every_setting(name, capsys):
    said, stage = help_of(capsys, name, "--help"), STAGES[name]
    assert stage.text.splitlines()[0] in said and f"  srlhfv {name} {stage.example}\n" in said
    assert all(f"\n  --config.{path} " in said for path in stage.needed) and "\n  --workdir " in said
    found = config_files.presets(f"{name}.py")
    assert {"default", "tiny", "llava15_7b_adapters"} <= found.keys()
    for preset, first in found.items():
        assert f"\n  {name}.py:{preset} " in said and len(first) > 10
    for key, value in flattened(flags.load(f"{name}.py")).items():
        assert f"\n  --config.{key}=" in said
        if isinstance(value, (int, float)):
            assert f"\n  --config.{key}={value}" in said
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("name", STAGES)
def test_the_example_of_a_stage_gives_all_that_is_needed(name):
    stage = STAGES[name]
    settings, workdir = flags.stage(name, stage.settings, stage.example.split(), "")
    assert all(value_at(settings, path) for path in stage.needed) and str(workdir).startswith("W/")
    stage.check(settings)


def test_help_of_one_section_and_of_a_preset(capsys):
    said = help_of(capsys, "ppo_lag", "--config=ppo_lag.py:paper", "--help=constraint")
    assert said.startswith("constraint: E[C] <= budget") and "\n  --config.constraint.max=20.0 " in said and "ppo.kl" not in said
    assert "one of 'token', 'sequence'" in help_of(capsys, "ppo_lag", "--help=ppo")
    assert main.main(["ppo_lag", "--help=constrain"]) == 2
    assert "did you mean 'constraint'?" in capsys.readouterr().err


def test_help_of_the_pipeline_points_to_its_stages(capsys):
    said = help_of(capsys, "quickstart", "--help")
    assert "ppo_lag: all settings of srlhfv ppo_lag" in said and "--config.task.patch=12 " in said
    assert "quickstart.py:short" in said and "--sweep" in said


@pytest.mark.parametrize(("stage", "heads"), [(REWARD, ("cost",)), (COST, ("reward", "cost"))])
def test_a_model_of_its_own_has_one_head(stage, heads):
    settings = flags.stage(stage.name, stage.settings, ["--workdir=w"], "")[0]
    stage.check(settings)
    with pytest.raises(UserError, match=f"srlhfv {stage.name} trains one head: expected config.heads = "):
        stage.check(dataclasses.replace(settings, heads=heads))


def test_every_command_can_be_loaded_and_has_a_summary():
    for name, command in commands.COMMANDS.items():
        assert callable(command.main) and command.summary, name


def test_the_version_is_that_of_the_package(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == "srlhfv 0.1.0\n"


def test_env_says_versions_devices_mesh_and_variables():
    code = "import sys; from srlhfv_jax.cli.main import main; sys.exit(main(['env']))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    keys = {line.split()[0] for line in said}
    assert {"python", "jax", "commit", "system", "processors", "devices", "mesh", "variable"} <= keys
    with pytest.raises(ValueError):
        json.loads("\n".join(said))


def test_help_of_the_stages_without_a_guard_needs_no_jax():
    code = "import sys; from srlhfv_jax.cli.main import main\ntry: main(['ppo_lag', '--help'])\nexcept SystemExit: sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_plan_speaks_of_itself_though_its_config_is_that_of_ppo_lag(capsys):
    assert help_of(capsys, "plan", "--help").startswith("usage: srlhfv plan")
    assert main.main(["plan", "--topolgy=v5e:2x2"]) == 2
    assert "srlhfv plan has no flag --topolgy" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key, hint",
    [("learning_rate", "config.optimizer.learning_rate"), ("data.rank", "config.lora.rank"), ("stepz", "'steps'")],
)
def test_a_key_in_the_wrong_section_is_told_where_it_is(key, hint, capsys):
    assert main.main(["sft", "--workdir=w", f"--config.{key}=1"]) == 2
    assert f"unknown config key config.{key}; did you mean {hint}?" in capsys.readouterr().err
