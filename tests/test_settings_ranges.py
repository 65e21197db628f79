"""Every numeric setting has a range, and a value outside is one line before anything is loaded or allocated."""

import dataclasses
import typing

import pytest

from srlhfv_jax import config
from srlhfv_jax.cli import flags, main
from srlhfv_jax.config.ranges import Pattern, Range
from srlhfv_jax.errors import UserError
from srlhfv_jax.parsing import parse

KINDS = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]
STAGES = {"sft": config.SFTConfig, "scores": config.ScoresConfig, "guard": config.GuardConfig, "ppo_lag": config.PPOLagConfig}
STAGES |= {"benchmark": config.EvaluateConfig, "quickstart": config.QuickstartConfig}


def checks(hint) -> list:
    """Of a setting, or of each of a tuple's."""
    if typing.get_origin(hint) is tuple:
        return checks(typing.get_args(hint)[0])
    return list(typing.get_args(hint)[1:]) if typing.get_origin(hint) is typing.Annotated else []


def of(hint) -> type:
    """The type of a setting, or of each of a tuple's."""
    if typing.get_origin(hint) in (tuple, typing.Annotated):
        return of(typing.get_args(hint)[0])
    return hint


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range_and_every_pattern_is_checked(kind):
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if of(hint) in (int, float):
            assert [check for check in checks(hint) if isinstance(check, Range)], f"{kind.__name__}.{name} has no range"
        if name in ("freeze", "targets") and of(hint) is str:
            assert [check for check in checks(hint) if isinstance(check, Pattern)]


def with_value(stage: str, name: str, value):
    loaded = flags.load(f"{stage}.py")
    with loaded.unlocked():
        loaded.update_from_flattened_dict({name: value})
    return loaded


BAD = [
    *(("ppo_lag", f"ppo.{name}", -1.0) for name in ("clip_ratio", "kl_coef", "gae_lambda", "gamma", "clip_value", "clip_score")),
    *(("ppo_lag", name, -1) for name in ("iterations", "critic_warmup", "constraint.delay", "validation.every_steps")),
    *(("ppo_lag", name, 0) for name in ("ppo.minibatches", "ppo.epochs", "microbatches", "constraint.window")),
    *(("ppo_lag", name, float("nan")) for name in ("ptx.coef", "ppo.clip_ratio", "constraint.budget", "rollout.temperature")),
    *(("ppo_lag", name, float("inf")) for name in ("constraint.max", "ppo.kl_coef", "validation.budget")),
    *(("sft", "seed", value) for value in (-1, 10**20, 2**31)),
    *(("sft", name, 10**12) for name in ("data.batch_size", "data.prompt_length", "data.response_length", "steps")),
    *(("sft", name, 0) for name in ("data.batch_size", "log.every_steps", "checkpoint.keep", "data.picture_buckets")),
    *(("sft", f"optimizer.{name}", float("nan")) for name in ("warmup_fraction", "learning_rate", "b1", "clip_norm")),
    *(("sft", "optimizer.b2", 1.0), ("sft", "optimizer.eps", 0.0), ("sft", "optimizer.warmup_fraction", 1.5)),
    *(("sft", name, -1) for name in ("data.workers", "data.max_pixels", "lora.rank", "model.logp_chunk")),
    *(("sft", "optimizer.freeze", ("vision/", pattern)) for pattern in ("[", "(", "*", "a" + "(" * 200)),
    *(("sft", "optimizer.part_rates", (text,)) for text in ("x/", "=0.1", "x/=fast", "x/=2", "(=0.1", "x/=nan", "")),
    *(("ppo_lag", f"ppo.{name}", -1.0) for name in ("dual_clip", "importance_cap", "kl_target", "target_kl", "entropy_coef")),
    *(("ppo_lag", "moving_reference.decay", value) for value in (1.0, -0.1)),
    *(("ppo_lag", "ppo.group_size", value) for value in (0, -1, 10**4)),
    *(("sft", "lora.targets", (pattern,)) for pattern in ("(?P<", "[z-a]")),
    *(("scores", "sign_weight", -0.5), ("guard", "pairs.batch_size", 0), ("guard", "false_positive_rate", 1.5)),
    *(("quickstart", "task.flip", 1.5), ("quickstart", "sweep", (0.5, -1.0)), ("quickstart", "ppo.ppo.gamma", 2.0)),
    *(("benchmark", "endpoint.workers", 0), ("benchmark", "endpoint.timeout_s", -1.0), ("benchmark", "samples", 0)),
]


@pytest.mark.parametrize(("stage", "name", "value"), BAD, ids=lambda value: str(value)[:30])
def test_a_value_outside_its_range_is_one_short_line(stage, name, value):
    with pytest.raises(UserError) as error:
        parse(STAGES[stage], with_value(stage, name, value))
    said = str(error.value)
    assert said.startswith(f"config.{name}") and " must be " in said and "\n" not in said and len(said) < 400


def test_a_batch_of_more_tokens_than_can_be_held_is_refused_before_it_is_made():
    loaded = with_value("sft", "data.batch_size", 2**16)
    with loaded.unlocked():
        loaded.data.prompt_length = 2**20
    with pytest.raises(UserError, match="a batch of 65536 rows of 1048576"):
        parse(config.SFTConfig, loaded)


@pytest.mark.parametrize(
    "argument",
    [
        f"--config={'a' * 5000}",
        f"--config={'a' * 5000}/b.py:{'c' * 5000}",
        f"--config=sft.py:{'a' * 5000}",
        "--config=a\0b",
        f"--config.steps={'1' * 5000}",
        f"--config.steps={'x' * 5000}",
        f"--config.log.tensorboard={'1' * 5000}",
        f"--config.evaluation=a --config.evaluation_every=1 --config.keep_best={'à' * 5000}",
        f"--config.optimizer.learning_rate={'1' * 5000}x",
        f"--config.{'s' * 5000}=1",
        f"--{'s' * 5000}=1",
        f"--config.seed.{'s' * 5000}=1",
        "s" * 5000,
    ],
    ids=lambda text: text[:24],
)
def test_long_arguments_are_shortened_in_one_line(argument, capsys, tmp_path):
    stage = "guard" if "keep_best" in argument else "sft"  # which has the most words to choose from
    assert main.main([stage, f"--workdir={tmp_path / 'w'}", *argument.split(" ")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("srlhfv: error: ") and said.count("\n") == 1 and len(said) < 600
