"""Config files and their parsing: every file is complete, every mistake is named."""

import dataclasses
from pathlib import Path

import pytest
import reads
from ml_collections import ConfigDict

import srlhfv_jax
from srlhfv_jax import config
from srlhfv_jax.checkpoint import provenance
from srlhfv_jax.cli import flags
from srlhfv_jax.config import stored
from srlhfv_jax.data import taxonomies
from srlhfv_jax.errors import UserError
from srlhfv_jax.parsing import parse

KINDS = {
    "sft": config.SFTConfig,
    "scores": config.ScoresConfig,
    "reward": config.ScoresConfig,
    "cost": config.ScoresConfig,
    "ppo_lag": config.PPOLagConfig,
    "benchmark": config.EvaluateConfig,
}


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner


def outer(**changes) -> ConfigDict:
    return ConfigDict({"steps": 3, "inner": {"rate": 0.25, "names": ("a",)}} | changes)


def test_a_config_becomes_frozen_dataclasses():
    parsed = parse(Outer, outer(inner={"rate": 2, "names": []}))
    assert parsed == Outer(3, Inner(2.0, ())) and isinstance(parsed.inner.rate, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed.steps = 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 3}, "unknown config key config.step; did you mean 'steps'?"),
        ({"inner": {"rate": 0.1, "names": (), "rat": 1}}, "unknown config key config.inner.rat; did you mean 'rate'?"),
        ({"inner": {"rate": 0.1}}, "config key config.inner.names is missing"),
        ({"inner": 3}, "config.inner must be a section of settings, got 3"),
        ({"steps": 3.5}, "config.steps must be int, got 3.5 (float)"),
        ({"steps": True}, "config.steps must be int, got True (bool)"),
        ({"inner": {"rate": "fast", "names": ()}}, "config.inner.rate must be float, got 'fast' (str)"),
        ({"inner": {"rate": 0.1, "names": ("a", 2)}}, "config.inner.names[1] must be str, got 2 (int)"),
        ({"inner": {"rate": 0.1, "names": "a"}}, "config.inner.names must be a tuple of str, got 'a'"),
    ],
)
def test_every_mistake_in_a_config_is_named(changes, message):
    with pytest.raises(UserError) as error:
        parse(Outer, outer(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("arg", ["", ":default", ":paper", ":tiny"])
def test_every_config_file_is_complete_and_right_in_every_variant(name, arg):
    loaded = flags.load(f"configs/{name}.py{arg}")
    assert config.to_dict(parse(KINDS[name], loaded)) == loaded.to_dict()


@pytest.mark.parametrize("arg", ["", ":default", ":pku_saferlhf", ":beavertails", ":tiny"])
def test_the_guards_config_is_complete_in_every_variant(arg):
    loaded = flags.load(f"configs/guard.py{arg}")
    parsed = parse(config.GuardConfig, loaded)
    assert config.to_dict(parsed) == loaded.to_dict() and taxonomies.categories(parsed.taxonomy)


@pytest.mark.parametrize("arg", ["", ":default", ":short", ":adapters", ":activated"])
def test_the_quickstart_config_is_complete(arg):
    loaded = flags.load(f"quickstart.py{arg}")
    assert config.to_dict(parse(config.QuickstartConfig, loaded)) == loaded.to_dict()


def test_the_paper_preset_has_the_published_constants():
    """Safe RLHF-V, configs/train/text_image_to_text/safe_rlhf_v.yaml and cm.yaml."""
    paper = parse(config.PPOLagConfig, flags.load("ppo_lag.py:paper"))
    c = paper.constraint
    assert (c.controller, c.kind, c.budget, c.init, c.max) == ("log", "mean", -0.5, 10, 20)
    assert (c.learning_rate, c.window, c.delay) == (0.1, 128 * 8, 1)
    p = paper.ppo
    assert (p.kl_coef, p.clip_ratio, p.clip_score, p.clip_value, p.gamma, p.gae_lambda) == (0.02, 0.2, 50.0, 5.0, 1.0, 0.95)
    assert (p.reduction, p.whiten, paper.ptx.coef, paper.sharing) == ("sequence", "none", 16.0, "separate")
    assert paper.policy_optimizer.learning_rate == paper.critic_optimizer.learning_rate == 5e-7
    assert (paper.policy_optimizer.schedule, paper.critic_optimizer.schedule) == ("cosine", "constant")
    assert paper.rollout.old_logp == "recompute" and paper.policy_optimizer.clip_norm == 2 * paper.critic_optimizer.clip_norm
    cost = parse(config.ScoresConfig, flags.load("cost.py:paper"))
    assert (cost.sign, cost.sign_weight, cost.score_l2, cost.optimizer.learning_rate) == ("graded", 1.0, 1e-3, 3e-5)


def test_every_setting_is_read_by_someone():
    """A key that nobody reads would be a switch connected to nothing."""
    package = Path(srlhfv_jax.__file__).parent
    read = reads.Reads(sorted(package.rglob("*.py")), package / "config").found
    for kind in filter(dataclasses.is_dataclass, vars(config).values()):
        unread = [field.name for field in dataclasses.fields(kind) if (kind.__name__, field.name) not in read]
        assert not unread, f"{kind.__name__}: nobody reads {', '.join(unread)}, or only to refuse a value"


def test_a_read_is_told_by_the_type_of_what_it_is_read_from_and_refusing_is_none(tmp_path):
    (tmp_path / "module.py").write_text("""
class LoraConfig:
    rank: int
    alpha: float
    int8: bool

class Shape:
    alpha: float

class Run:
    lora: LoraConfig | None

    def __init__(self, lora: LoraConfig):
        self.kept = lora

    def size(self):
        return self.kept.rank

def scale(shape: Shape, runs: list[Run]):
    if runs[0].lora.int8:
        raise ValueError(f"{runs[0].lora.int8} is refused")
    return shape.alpha

def check_scale(lora: LoraConfig):
    return lora.alpha
""")
    read = reads.Reads([tmp_path / "module.py"], tmp_path / "elsewhere").found
    assert {field for kind, field in read if kind == "LoraConfig"} == {"rank"}
    assert ("Shape", "alpha") in read


def test_allowed_values_are_named():
    assert config.choose("b", "config.x", "a", "b") == "b"
    with pytest.raises(UserError, match="config.x must be one of 'a', 'b', got 'c'"):
        config.choose("c", "config.x", "a", "b")


@pytest.mark.parametrize("name", ["sft", "scores", "guard", "ppo_lag"])
def test_settings_in_a_workdir_are_told_by_their_keys(name):
    written = flags.load(f"{name}.py").to_dict()
    settings = stored.read(written, "config.json")
    assert settings.stage == name and config.to_dict(settings) == written
    with pytest.raises(UserError, match=f"config key config.{min(written)} is missing"):
        stored.read({key: value for key, value in written.items() if key != min(written)}, "config.json")


def test_settings_of_an_older_version_are_read_and_resume():
    now = flags.load("ppo_lag.py").to_dict()
    older = now | {"rollout": now["rollout"] | {"top_k": 0, "top_p": 1.0}}
    assert config.to_dict(stored.read(older, "config.json")) == now
    provenance.check_same({"settings": older}, now)
    with pytest.raises(UserError, match="config.rollout.temperature was 0.5"):
        provenance.check_same({"settings": older | {"rollout": older["rollout"] | {"temperature": 0.5}}}, now)


def test_a_quickstart_of_an_older_version_resumes():
    now = flags.load("quickstart.py").to_dict()
    provenance.check_same({"settings": now | {"task": now["task"] | {"image_size": 48}}}, now)


def test_settings_of_no_stage_are_refused():
    with pytest.raises(UserError, match="W/config.json has the settings of no stage that trains"):
        stored.read(flags.load("evaluate.py").to_dict(), "W/config.json")
