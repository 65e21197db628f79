"""A setting that nothing reads in the mode that others choose is refused, not ignored."""

import functools

import pytest

from srlhfv_jax.cli import flags
from srlhfv_jax.config import EvaluateConfig, GuardConfig, PPOLagConfig, QuickstartConfig, ScoresConfig, SFTConfig, unread
from srlhfv_jax.configs import recipes
from srlhfv_jax.errors import UserError
from srlhfv_jax.parsing import parse
from srlhfv_jax.ppo_lag import check as ppo_lag_check

KINDS = {"ppo_lag": PPOLagConfig, "scores": ScoresConfig, "reward": ScoresConfig, "cost": ScoresConfig, "sft": SFTConfig}
KINDS |= {"guard": GuardConfig, "benchmark": EvaluateConfig, "quickstart": QuickstartConfig}


def given(command: str, *arguments: str):
    return flags.stage(command, KINDS[command], ["--workdir=w", *arguments], "")[0]


@pytest.mark.parametrize(
    "command, arguments, ignored",
    [
        ("ppo_lag", ["lora.alpha=8.0"], "lora.alpha"),
        ("ppo_lag", ["constraint.kp=0.5"], "constraint.kp"),
        ("ppo_lag", ["constraint.controller='log'", "constraint.smoothing=0.25"], "constraint.smoothing"),
        ("ppo_lag", ["constraint.controller='fixed'", "constraint.delay=3"], "constraint.delay"),
        ("ppo_lag", ["constraint.controller='none'", "constraint.init=1.5"], "constraint.init"),
        ("ppo_lag", ["validation.every_steps=7"], "validation.every_steps"),
        ("ppo_lag", ["validation.path='x'", "validation.budget=-0.75"], "validation.budget"),
        ("ppo_lag", ["critic_warmup=0", "critic_warmup_rate=0.25"], "critic_warmup_rate"),
        ("ppo_lag", ["sharing='adapters'", "model.param_dtype='bfloat16'"], "model.param_dtype"),
        ("sft", ["lora.targets=('q_proj',)"], "lora.targets"),
        ("scores", ["lora.rank=4", "model.param_dtype='bfloat16'"], "model.param_dtype"),
        ("reward", ["sign='graded'"], "sign"),
        ("guard", ["pairs.coef=0.5"], "pairs.coef"),
        ("guard", ["false_positive_rate=0.125"], "false_positive_rate"),
        ("benchmark", ["judge='rules'", "endpoint.model='m'"], "endpoint.model"),
        ("benchmark", ["data.chat_template='t.jinja'"], "data.chat_template"),
        ("scores", ["data.train_on='all'"], "data.train_on"),
        ("guard", ["data.train_on='all'"], "data.train_on"),
        ("ppo_lag", ["data.train_on='all'"], "data.train_on"),
        ("sft", ["evaluation_split='test'"], "evaluation_split"),
        ("sft", ["evaluation_every=5"], "evaluation_every"),
        ("scores", ["evaluation='x'", "keep_best=evaluation.loss"], "keep_best"),
        ("guard", ["evaluation='x'", "evaluation_every=5", "patience=2"], "patience"),
        ("guard", ["pairs.path='x'", "evaluation_every=5"], "evaluation_every"),
        ("quickstart", ["scores.evaluation_every=5"], "scores.evaluation_every"),
        ("quickstart", ["guard.evaluation='x'"], "guard.evaluation"),
        ("quickstart", ["sft.data.system_prompt='be kind'"], "sft.data.system_prompt"),
        ("quickstart", ["guard.data.chat_template='t.jinja'"], "guard.data.chat_template"),
        ("quickstart", ["ppo_lag.seed=3"], "ppo_lag.seed"),
        ("quickstart", ["guard.calibration='x'"], "guard.calibration"),
        ("quickstart", ["ppo.constraint.kp=0.25"], "ppo.constraint.kp"),
        ("quickstart", ["scores.model.logp_chunk=3"], "scores.model.logp_chunk"),
    ],
)
def test_a_setting_given_that_nothing_reads_is_refused(command, arguments, ignored):
    with pytest.raises(UserError, match=f"config.{ignored} would be ignored: "):
        given(command, *(f"--config.{argument.replace(chr(39), '')}" for argument in arguments))


@pytest.mark.parametrize(
    "command, arguments",
    [
        ("ppo_lag", ["lora.rank=0", "constraint.kp=0.0", "ptx.path="]),
        ("ppo_lag", ["constraint.controller=pid", "constraint.kp=0.5", "constraint.smoothing=0.25"]),
        ("ppo_lag", ["constraint.controller=fixed", "constraint.init=7.5", "constraint.max=8.0"]),
        ("ppo_lag", ["validation.path=x", "validation.judge=oracle", "validation.budget=-0.75"]),
        ("sft", ["data.train_on=all", "data.system_prompt=be kind", "data.chat_template=t.jinja"]),
        ("ppo_lag", ["ptx.coef=0.5", "ptx.path=x", "data.train_on=all"]),
        ("benchmark", ["data.system_prompt=be kind"]),
        ("guard", ["calibration=x", "false_positive_rate=0.125", "pairs.path=y", "pairs.coef=0.5"]),
        ("quickstart", ["guard.false_positive_rate=0.025", "ppo_lag.validation.every_steps=5", "scores.evaluation=x"]),
    ],
)
def test_what_is_read_may_be_given(command, arguments):
    """And is what the settings hold then: what is refused raises."""
    settings = given(command, *(f"--config.{argument}" for argument in arguments))
    for argument in arguments:
        name, _, value = argument.partition("=")
        assert str(functools.reduce(getattr, name.split("."), settings)) == value.strip("'"), name


@pytest.mark.parametrize(
    "command, changes, message",
    [
        ("ppo_lag", {"lora.rank": 16}, "config.lora.rank 16 is for config.sharing='adapters', got 'shared'"),
        (
            "ppo_lag",
            {"sharing": "separate", "lora.rank": 3},
            "config.lora.rank 3 is for config.sharing='adapters', got 'separate'",
        ),
        ("ppo_lag", {"reward": "r"}, "config.reward is 'r' and would be ignored"),
        ("ppo_lag", {"sharing": "separate", "reward": "r", "cost": "c"}, "config.scorer is 's' and would be ignored"),
        ("ppo_lag", {"ptx.path": "rows"}, "config.ptx.path is 'rows' and would be ignored: config.ptx.coef is 0"),
        (
            "ppo_lag",
            {"data.batch_size": 300},
            "config.constraint.window 256 is smaller than a rollout, config.data.batch_size 300",
        ),
        ("scores", {"model.logp_chunk": 64}, "config.model.logp_chunk is 64 and would be ignored: no logits"),
        ("guard", {"pairs.evaluation": "rows"}, "config.pairs.evaluation is 'rows' and would be ignored"),
        ("benchmark", {"judge": "rules", "scorer": "s"}, "config.scorer is 's' and would be ignored: config.judge is 'rules'"),
    ],
)
def test_a_setting_that_is_on_where_nothing_reads_it_is_refused_whoever_set_it(command, changes, message):
    config = flags.load(f"{command}.py")
    with config.unlocked():
        config.update_from_flattened_dict(({"policy": "p", "scorer": "s"} if command == "ppo_lag" else {}) | changes)
    check = ppo_lag_check.check if command == "ppo_lag" else unread.check
    with pytest.raises(UserError, match=message):
        check(parse(KINDS[command], config))


@pytest.mark.parametrize("command", ["ppo_lag", "scores", "reward", "cost", "sft", "guard"])
def test_recipes_set_nothing_that_their_stage_does_not_read(command):
    for name in ("default", "tiny", *recipes.RECIPES):
        unread.check(parse(KINDS[command], flags.load(f"{command}.py:{name}")))
