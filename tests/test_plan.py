"""`srlhfv plan`: the real compiler for TPUs, on shapes alone. No TPU, no weights."""

import dataclasses
import json
import subprocess

import pytest
import tiny_hf
from commands import ENVIRONMENT, SRLHFV

from srlhfv_jax.cli import flags
from srlhfv_jax.cli.main import main
from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.published import published
from srlhfv_jax.parsing import parse
from srlhfv_jax.plan import topology

# A process of its own: the compiler for TPUs reads the environment once.
WITHOUT_FLAGS = {name: value for name, value in ENVIRONMENT.items() if name != "XLA_FLAGS"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A LLaVA of 21 million parameters whose kernels divide by four, and the number of those in its decoder."""
    folder = tmp_path_factory.mktemp("small")
    sizes = dict(hidden_size=1024, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=4)
    model = tiny_hf.save(folder, tiny_hf.llava_config(**sizes))
    layers = model.model.language_model.layers.parameters()
    return folder, model.num_parameters(), sum(kernel.numel() for kernel in layers if kernel.ndim == 2)


def plan(*arguments: str, config: str = "configs/ppo_lag.py") -> subprocess.CompletedProcess:
    command = [*SRLHFV, "plan", f"--config={config}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=WITHOUT_FLAGS)


@pytest.mark.slow
def test_adapters_over_one_backbone_fit_on_four_chips(small, tmp_path):
    folder, parameters, _ = small
    asked = ("--topology=v5e:2x2", f"--workdir={tmp_path}", f"--config.policy={folder}", "--config.sharing=adapters")
    lengths = ("--config.data.prompt_length=192", "--config.data.response_length=64", "--config.data.batch_size=8")
    done = plan(*asked, *lengths, "--config.lora.rank=8")
    assert done.returncode == 0, done.stderr
    assert "fits: yes" in done.stdout
    four = json.loads((tmp_path / "result.json").read_text())
    whole = 2 * parameters / 1e9  # in bfloat16
    assert whole / 4 < four["state_gb.base"] < whole / 3  # what divides is split over four chips
    assert four["state_gb.policy.optimizer"] == pytest.approx(2 * four["state_gb.policy"], rel=0.01)
    assert four["fits"] and 0 < four["hbm_free_fraction"] < 1
    assert four["hbm_limit_gb"] == pytest.approx(15.75 * 2**30 / 1e9)


@pytest.mark.slow
def test_what_does_not_fit_is_said():
    done = plan(
        "--topology=v5e:1x1",
        "--config.init=Qwen/Qwen2-VL-2B-Instruct",
        "--config.data.max_pixels=200704",
        "--config.data.prompt_length=512",
        "--config.data.batch_size=4",
        config="configs/sft.py",
    )
    assert done.returncode == 0, done.stderr
    assert "DOES NOT FIT" in done.stdout and "fits: no" in done.stdout


@pytest.mark.slow
def test_a_guard_with_score_heads_is_planned_over_eight_bits_of_which_half_the_bytes_are_left(small, tmp_path):
    """Questions with an answer, and pairs beside them."""
    folder, parameters, in_decoder = small
    asked = ("--topology=v5e:1x1", f"--workdir={tmp_path}", f"--config.init={folder}", "--config.data.prompt_length=192")
    asked += ("--config.data.response_length=64", "--config.data.batch_size=2", "--config.lora.rank=4", "--config.lora.int8=True")
    done = plan(*asked, "--config.pairs.path=pairs.parquet", "--config.pairs.batch_size=2", config="configs/guard.py")
    assert done.returncode == 0, done.stderr
    assert "update" in done.stdout and "optimizer" in done.stdout and "fits: yes" in done.stdout
    base = json.loads((tmp_path / "result.json").read_text())["state_gb.base"]
    assert base == pytest.approx((2 * parameters - in_decoder) / 1e9, rel=0.01)


@pytest.mark.slow
def test_score_heads_are_planned_from_pairs_of_a_folders_model(tmp_path):
    tiny_hf.save(tmp_path, tiny_hf.llama_config())
    done = plan("--topology=v5e:1x1", f"--config.init={tmp_path}", config="configs/scores.py:tiny")
    assert done.returncode == 0, done.stderr
    assert "update" in done.stdout and "optimizer" in done.stdout and "fits: yes" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=v9:2x2", "--config.policy=llava-hf/llava-1.5-7b-hf"), "--topology must be one of v4:AxB"),
        (("--topology=v5e:2x2",), "config.policy is empty: whose shape should be planned?"),
        (("--config.policy=llava-hf/llava-1.5-7b-hf",), "--topology is needed"),
        (
            ("--topology=v5e:2x2", "--config.policy=llava-hf/llava-1.5-7b-hf", "--config.lora.alpha=8.0"),
            "config.lora.alpha would be ignored",
        ),
        (
            ("--topology=v5e:2x2", "--config.policy=HuggingFaceTB/SmolVLM-256M-Instruct", "--config.data.prompt_length=512"),
            "has no room for the 1088 features of 17 tiles",
        ),
    ],
)
def test_a_wrong_question_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["plan", "--config=configs/ppo_lag.py", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_slice_that_the_compiler_does_not_know_is_one_line_and_exit_code_2():
    done = plan("--topology=v5e:3x7", "--config.policy=llava-hf/llava-1.5-7b-hf")
    assert done.returncode == 2 and "the compiler knows no slice v5e:3x7" in done.stderr, done.stderr


def test_an_unknown_slice_is_refused_before_the_compiler_is_asked():
    with pytest.raises(UserError, match="got 'tpu'"):
        topology.devices("tpu")


def test_without_its_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'srlhfv-jax\[plan\]'"):
        topology.devices("v5e:2x4")


def test_state_of_shared_roles_is_what_the_rules_of_thumb_say():
    """Bytes a parameter: trained 4 + 8 of Adam, frozen 2; two of each."""
    import jax

    from srlhfv_jax.parallel.mesh import make_mesh
    from srlhfv_jax.plan import shapes as plan_shapes

    settings = parse(PPOLagConfig, flags.load("ppo_lag.py"))
    mesh = make_mesh(dataclasses.replace(settings.mesh, fsdp=1))
    config = published("HuggingFaceTB/SmolVLM-256M-Instruct")
    models = plan_shapes.models(settings, dataclasses.replace(config, dtype="bfloat16"), mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(models.trained["policy"]))
    state = plan_shapes.size(models.trained) + plan_shapes.size(models.frozen)
    assert state / parameters == pytest.approx(4 + 4 + 2 + 2, rel=0.001)
