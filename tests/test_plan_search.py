"""`srlhfv plan --search`: what is compiled, in which order, and what an earlier compilation spares. The compiler is a stand-in."""

import dataclasses
import math

import jax
import pytest
import tiny_hf

from srlhfv_jax.cli import flags
from srlhfv_jax.config import GuardConfig, MeshConfig, PPOLagConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.published import published
from srlhfv_jax.models import vlm
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.parsing import parse
from srlhfv_jax.plan import memory, programs, search
from srlhfv_jax.plan.programs import Compiled, Plan
from srlhfv_jax.plan.supervised import state_bytes
from srlhfv_jax.plan.topology import DEVICES

CONFIG = dataclasses.replace(published("HuggingFaceTB/SmolVLM-256M-Instruct"), dtype="bfloat16")
DEVICE = DEVICES["v5e"]
REMAT_SAVES = {"none": 1.0, "dots": 0.5, "layer": 0.25}


def settings(kind=PPOLagConfig, batch: int = 64):
    file = {PPOLagConfig: "ppo_lag.py", SFTConfig: "sft.py", GuardConfig: "guard.py"}[kind]
    found = parse(kind, flags.load(file))
    return dataclasses.replace(found, data=dataclasses.replace(found.data, batch_size=batch))


def ordered(asked) -> list[search.Candidate]:
    return search.candidates(asked, CONFIG, jax.devices(), DEVICE)


def compiler(monkeypatch, *, generate: float = 0.0, update: float = 0.0, score: float = 0.1) -> list:
    """Each function takes so much of the memory when it is not in parts. Returns a list of what was compiled."""
    compiled = []

    def of(settings, config, mesh, limit) -> Plan:
        compiled.append(settings)
        parts = settings.rollout.microbatches if isinstance(settings, PPOLagConfig) else 1
        shares = {
            "generate": generate / parts,
            "score": score,
            "update": update / settings.microbatches * REMAT_SAVES[settings.model.remat],
        }
        return Plan({}, [Compiled(name, 0.0, int(at * limit), 0, 0, 0, at <= 1, None) for name, at in shares.items()])

    monkeypatch.setattr(search.planning, "of", of)
    return compiled


def tried(asked, count: int = 1000) -> list[search.Tried]:
    """With an estimate for those that fit, as a real program gives."""
    found = search.search(ordered(asked), lambda _: CONFIG, jax.devices(), DEVICE, count)
    return [one._replace(numbers=one.numbers | {"estimate_s_per_prompt": one.candidate.seconds}) for one in found]


def test_candidates_differ_and_go_from_cheap_to_dear():
    found = ordered(settings())
    assert len({one.flags for one in found}) == len(found) > 50
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    for one in found:
        assert math.prod(one.mesh) == len(jax.devices()) and CONFIG.text.heads % one.mesh[2] == 0
        shards = one.mesh[0] * one.mesh[1]
        assert 32 % (one.settings.microbatches * shards) == 0  # of 64 prompts in two minibatches
        assert 64 % (one.settings.rollout.microbatches * shards) == 0


def test_parts_are_made_until_there_is_room(monkeypatch):
    """A rollout that needs 3.5 times the memory fits in four parts, and leaves a tenth free there as well; likewise an update."""
    compiled = compiler(monkeypatch, generate=3.5, update=1.7)
    found = tried(settings())
    chosen = search.best(found).candidate.settings
    assert chosen.rollout.microbatches == 4
    assert 1.7 / chosen.microbatches * REMAT_SAVES[chosen.model.remat] <= 0.9
    for index, one in enumerate(compiled):
        for before in compiled[:index]:
            if before.mesh == one.mesh:
                more = one.rollout.microbatches > before.rollout.microbatches or before.rollout.microbatches >= 4
                assert more or one.microbatches > before.microbatches or one.model.remat != before.model.remat


def test_what_fits_hardly_is_tried_in_more_parts(monkeypatch):
    compiler(monkeypatch, generate=0.95)
    chosen = search.best(tried(settings()))
    assert chosen.candidate.settings.rollout.microbatches == 2 and chosen.numbers["hbm_free_fraction"] > 0.5


def test_what_no_setting_mends_is_compiled_once_for_each_mesh(monkeypatch):
    compiled = compiler(monkeypatch, score=1.1)
    found = tried(settings())
    assert len(compiled) == len({one.mesh for one in compiled}) == len({one.mesh for one in ordered(settings())}) > 1
    assert not search.best(found).numbers["fits"]
    assert "score needs 1.69 GB more than there are" in search.describe(found[0])


def test_a_supervised_stage_has_no_rollout(monkeypatch):
    compiler(monkeypatch, update=3.0)
    found = tried(settings(SFTConfig))
    assert search.best(found).numbers["fits"] and all("rollout" not in one.candidate.flags for one in found)
    assert len(tried(settings(SFTConfig), count=2)) == 2


def test_a_stage_whose_heads_have_a_rate_of_their_own_is_searched_too():
    guard = settings(GuardConfig)
    assert guard.optimizer.head_learning_rate > 0 and state_bytes(guard, CONFIG, jax.devices()) > (0, 0)


def test_rows_that_nothing_divides_and_trees_that_fit_nowhere_are_refused():
    with pytest.raises(UserError, match="change config.data.batch_size"):
        ordered(settings(batch=2 * 7))
    with pytest.raises(UserError, match="nothing was compiled: trees, cache and activations need at least"):
        search.candidates(settings(), CONFIG, jax.devices(), DEVICE._replace(limit_gib=0.25))


def test_a_guard_that_watches_is_in_memory_beside_everything(tmp_path):
    tiny_hf.save(tmp_path / "guard", tiny_hf.llama_config())
    known = dataclasses.replace(
        settings(SFTConfig), log=dataclasses.replace(settings(SFTConfig).log, guard=str(tmp_path / "guard"))
    )
    config = memory.shape(known.log.guard, known.model)
    bytes_each = {"bfloat16": 2, "float32": 4}[known.model.dtype]
    size = bytes_each * sum(
        math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(lambda: vlm.init(config, jax.random.key(0))))
    )
    step = programs.Compiled("update", 0.5, 1000, 600, 400, 50, True, None)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    for room, fits in ((0, True), (-1, False)):
        with jax.set_mesh(mesh):
            plan = memory.with_watching_guard(programs.Plan({"trained": 600}, [step]), known, mesh, 1050 + size + room)
        assert plan.state == {"trained": 600, "log.guard": size}
        assert plan.compiled == [step._replace(beside=50 + size, fits=fits)]
