"""Adapters: a fresh one changes nothing, one that is off is the backbone, merged equals overlaid, and PEFT reads what we write."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_families as families
import tiny_hf
import torch
import transformers
from tiny_families import logits_of
from tiny_stages import adapter_stages, picture_task, rows, settings

from srlhfv_jax.cli.main import main
from srlhfv_jax.config import LoraConfig, PPOLagConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import export_pretrained, load_pretrained, peft
from srlhfv_jax.models import lora
from srlhfv_jax.parallel import rules
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.supervised import sft

LORA = LoraConfig(rank=3, alpha=4.5, targets=("text/layers/.*_proj",), int8=False, activated=False)
EVERYWHERE = dataclasses.replace(LORA, targets=("text/layers/.*_proj", "vision/layers/"))
KINDS = ("llava", "qwen2_5_vl", "smolvlm", "gemma3", "mistral with a window")


def moved(adapter, seed: int = 1):
    """An adapter that adds something: B is not zero any more."""

    def move(path, leaf):
        return jax.random.normal(jax.random.key(seed + leaf.size), leaf.shape) * 0.3 if "lora_b" in str(path) else leaf

    return jax.tree.map_with_path(move, adapter)


@pytest.fixture(scope="module", params=KINDS)
def family(request, tmp_path_factory):
    """(config of transformers, torch model, checkpoint as we read it, prompts, folder)"""
    folder = tmp_path_factory.mktemp("family")
    model = tiny_hf.save(folder, families.VARIANTS[request.param])
    pretrained = load_pretrained(folder)
    return families.VARIANTS[request.param], model, pretrained, families.batch(pretrained), folder


def test_fresh_changes_nothing_and_merged_equals_overlaid(family):
    _, _, pretrained, prompts, _ = family
    logits = logits_of(pretrained.config, prompts)
    settings = EVERYWHERE if pretrained.config.vision else LORA
    fresh = lora.init(settings, pretrained.params, jax.random.key(0))
    before = logits(pretrained.params)
    np.testing.assert_array_equal(logits(lora.overlay(pretrained.params, fresh)), before)
    np.testing.assert_array_equal(logits(lora.overlay(pretrained.params, {})), before)
    over = logits(lora.overlay(pretrained.params, moved(fresh)))
    assert np.abs(over - before).max() > 0.5
    np.testing.assert_allclose(logits(lora.merged(pretrained.params, moved(fresh))), over, atol=2e-4)


def test_an_overlay_copies_nothing():
    params = {"text": {"layers": {"q_proj": {"kernel": jnp.ones((2, 4, 3))}}}}
    adapter = lora.init(LORA, params, jax.random.key(0))
    over = lora.overlay(params, adapter)
    assert over["text"]["layers"]["q_proj"]["kernel"] is params["text"]["layers"]["q_proj"]["kernel"]
    assert over["text"]["layers"]["q_proj"]["lora_a"] is adapter["text"]["layers"]["q_proj"]["lora_a"]


@pytest.mark.parametrize(
    "adapter",
    [
        {"text": {"layers": {"elsewhere": {"lora_a": jnp.ones(1)}}}},
        {"text": {"norm": {"lora_a": jnp.ones(1)}}},
        {"lora_a": jnp.ones(1)},
    ],
)
def test_an_adapter_that_the_model_would_never_read_is_an_error(adapter):
    with pytest.raises(ValueError, match="does not fit over"):
        lora.overlay({"text": {"layers": {"q_proj": {"kernel": jnp.ones((2, 4, 3))}}, "norm": {"scale": jnp.ones(3)}}}, adapter)


def test_wrong_settings_are_named():
    params = {"text": {"layers": {"q_proj": {"kernel": jnp.ones((2, 4, 3))}}}}
    with pytest.raises(UserError, match="'text/.*qproj' matches no kernel of a layer: there are text/layers/q_proj"):
        lora.init(dataclasses.replace(LORA, targets=("text/.*qproj",)), params, jax.random.key(0))
    with pytest.raises(UserError, match="at least 1"):
        lora.init(dataclasses.replace(LORA, rank=0), params, jax.random.key(0))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_peft_gives_the_same_logits_and_the_way_back_is_the_identity(family, tmp_path):
    from peft import PeftModel

    config, _, pretrained, prompts, folder = family
    adapter = moved(lora.init(LORA, pretrained.params, jax.random.key(0)))
    out = export_pretrained(tmp_path / "out", pretrained.config, None, base=folder, adapter=adapter)
    assert not list(out.glob("model*.safetensors"))
    assert not (out / "config.json").exists()
    kind = transformers.AutoModelForImageTextToText if pretrained.config.vision else transformers.AutoModelForCausalLM
    theirs = PeftModel.from_pretrained(kind.from_pretrained(folder), out).eval()
    positions = {} if prompts.positions_BP.ndim == 3 else {"position_ids": torch.tensor(prompts.positions_BP)}
    with torch.no_grad():
        expected = theirs(**families.theirs(config, pretrained, prompts), **positions).logits.numpy()
    ours = logits_of(pretrained.config, prompts)(lora.overlay(pretrained.params, adapter))
    np.testing.assert_allclose(np.asarray(ours)[prompts.mask_BP], expected[prompts.mask_BP], atol=1e-4)

    kept = load_pretrained(out, keep_adapter=True)
    jax.tree.map(np.testing.assert_array_equal, kept.adapter, adapter)
    jax.tree.map(np.testing.assert_array_equal, kept.params, pretrained.params)
    assert load_pretrained(out).adapter is None
    alone = kind.from_pretrained(out).eval()  # the backbone and the adapter over it, as `transformers` finds them
    with torch.no_grad():
        again = alone(**families.theirs(config, pretrained, prompts), **positions).logits.numpy()
    np.testing.assert_allclose(again, expected, atol=1e-5)
    whole = lora.merged(pretrained.params, adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), load_pretrained(out).params, whole)


def test_adapters_that_are_not_plain_or_do_not_fit_are_refused(tmp_path):
    tiny_hf.save(tmp_path / "base", tiny_hf.llama_config())
    base = load_pretrained(tmp_path / "base")
    adapter = lora.init(LORA, base.params, jax.random.key(0))
    out = export_pretrained(tmp_path / "out", base.config, None, base=tmp_path / "base", adapter=adapter)
    described = json.loads((out / peft.CONFIG).read_text())
    wrong = (
        ({"use_dora": True}, "use_dora is True"),
        ({"base_model_name_or_path": ""}, "does not say"),
        ({"r": None}, "r must be a whole number, got None"),
    )
    for changed, message in wrong:
        (out / peft.CONFIG).write_text(json.dumps(described | changed))
        with pytest.raises(UserError, match=message):
            load_pretrained(out)
    (out / peft.CONFIG).write_text(json.dumps(described))
    from safetensors.numpy import load_file, save_file

    tensors = load_file(out / peft.WEIGHTS)
    name = next(name for name in tensors if "layers.1.self_attn.q_proj.lora_A" in name)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, out / peft.WEIGHTS)
    with pytest.raises(UserError, match="lacks .*layers.1.self_attn.q_proj.lora_A, which adapter_config.json names"):
        load_pretrained(out)
    save_file(tensors | {"base_model.model.elsewhere.lora_A.weight": tensors[name]}, out / peft.WEIGHTS)
    with pytest.raises(UserError, match="fit no kernel of the decoder: elsewhere"):
        load_pretrained(out)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return picture_task(tmp_path_factory.mktemp("picture"))


@pytest.fixture(scope="module")
def stages(picture, tmp_path_factory):
    """Workdirs of sft and scores with adapters over one random LLaVA."""
    return adapter_stages(picture, tmp_path_factory.mktemp("stages"), {"lora.rank": 4, "lora.alpha": 8.0} | rows(picture))


EIGHT = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "data.batch_size": 8}


INT8 = EIGHT | {"lora.int8": True, "model.dtype": "bfloat16"}


@pytest.mark.parametrize(
    "changes", [{}, EIGHT, {"model.dtype": "bfloat16"}, INT8], ids=["one", "eight", "bfloat16", "int8 on eight"]
)
@pytest.mark.slow
def test_all_roles_are_adapters_over_one_backbone(stages, picture, tmp_path, changes):
    asked = dict(policy=str(stages / "sft"), scorer=str(stages / "scores"), sharing="adapters") | rows(picture)
    done = ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **(asked | changes)), tmp_path / "ppo_lag")
    assert done["grad_norm"] > 0 and done["critic_grad_norm"] > 0 and np.isfinite(done["lambda.final"])
    whole, policy = load_pretrained(stages / "whole"), load_pretrained(tmp_path / "ppo_lag", keep_adapter=True)
    jax.tree.map(np.testing.assert_array_equal, policy.params, whole.params)
    before = load_pretrained(stages / "sft", keep_adapter=True).adapter
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), policy.adapter, before)
    assert all(flag == (not path.endswith("lora_scale")) for path, flag in rules.leaves(changed))


def test_a_supervised_stage_trains_an_adapter_over_eight_bits_and_exports_it_over_the_checkpoint(stages, picture, tmp_path):
    start = {"init": str(stages / "whole"), "lora.rank": 4, "lora.alpha": 8.0} | rows(picture)
    eight = sft.run(settings(SFTConfig, "sft", **start, **{"lora.int8": True}), tmp_path / "sft")["loss"]
    plain = sft.run(settings(SFTConfig, "sft", **start), tmp_path / "plain")["loss"]
    assert eight != plain and eight == pytest.approx(plain, rel=0.01)  # rounded kernels were read
    kept = load_pretrained(tmp_path / "sft", keep_adapter=True)
    jax.tree.map(np.testing.assert_array_equal, kept.params, load_pretrained(stages / "whole").params)


def test_eight_bits_of_what_is_trained_are_refused(stages, picture, tmp_path):
    with pytest.raises(UserError, match="a backbone that stands still: set config.lora.rank above 0 too"):
        whole = {"init": str(stages / "whole"), "lora.int8": True} | rows(picture)
        sft.run(settings(SFTConfig, "sft", **whole), tmp_path / "sft")
    asked = dict(policy=str(stages / "sft"), scorer=str(stages / "scores")) | rows(picture)
    with pytest.raises(UserError, match="the backbone under sharing=adapters"):
        ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **asked, **{"lora.int8": True}), tmp_path / "ppo_lag")


def test_roles_on_another_backbone_and_other_ranks_are_refused(stages, picture, tmp_path):
    plain = settings(SFTConfig, "sft", init=str(stages / "whole"), **rows(picture))
    sft.run(plain, tmp_path / "plain")
    asked = dict(scorer=str(stages / "scores"), sharing="adapters") | rows(picture)
    with pytest.raises(UserError, match="all roles are adapters over one backbone"):
        ppo_lag.run(settings(PPOLagConfig, "ppo_lag", policy=str(tmp_path / "plain"), **asked), tmp_path / "ppo_lag")
    with pytest.raises(UserError, match="has an adapter of rank 4: set config.lora.rank=4"):
        other = {"lora.rank": 2} | rows(picture)
        sft.run(settings(SFTConfig, "sft", init=str(stages / "sft"), **other), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.alpha": 16.0}, "has an adapter of alpha 8: set config.lora.alpha to it, got 16"),
        ({"lora.targets": ("text/layers/.*q_proj",)}, "over text/layers/.*, and config.lora.targets say otherwise"),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "ppo_lag"])
def test_another_alpha_or_other_targets_than_those_of_the_adapter_are_refused(stages, picture, tmp_path, stage, changes, message):
    """It keeps its own: what was asked for would be ignored."""
    given = {"lora.rank": 4, "lora.alpha": 8.0} | changes | rows(picture)
    with pytest.raises(UserError, match=message):
        if stage == "sft":
            sft.run(settings(SFTConfig, "sft", init=str(stages / "sft"), **given), tmp_path / "other")
        else:
            roles = dict(policy=str(stages / "sft"), scorer=str(stages / "scores"), sharing="adapters")
            ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **roles, **given), tmp_path / "other")


def test_targets_that_could_not_be_exported_are_refused_before_training(stages, picture, tmp_path):
    seeing = {"lora.rank": 2, "lora.targets": ("text/layers/.*_proj", "vision/layers/.*_proj")} | rows(picture)
    with pytest.raises(UserError, match="reach outside the decoder"):
        sft.run(settings(SFTConfig, "sft", init=str(stages / "whole"), **seeing), tmp_path / "sft")


def test_an_adapter_over_weights_that_are_not_kept_is_refused(picture, tmp_path):
    asked = {"lora.rank": 2, "init": str(picture / "base"), "init_random": True} | rows(picture)
    with pytest.raises(UserError, match="an adapter over weights that nobody has"):
        sft.run(settings(SFTConfig, "sft", **asked), tmp_path / "sft")


def test_an_adapter_is_merged_by_the_export_command(stages, tmp_path):
    assert main(["export", f"--workdir={stages / 'sft'}", f"--out={tmp_path / 'merged'}"]) == 0
    kept = load_pretrained(stages / "sft", keep_adapter=True)
    expected = lora.merged(kept.params, kept.adapter)["text"]["layers"]["mlp"]["down_proj"]["kernel"][1]
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    found = model.model.language_model.layers[1].mlp.down_proj.weight.detach().numpy()
    np.testing.assert_allclose(found.T, expected, atol=1e-7)
    assert not (tmp_path / "merged" / peft.CONFIG).exists()


def test_adapters_carry_the_optimizer_of_themselves_alone(stages):
    """What is checkpointed: adapters and their moments, a small part of the backbone."""
    from srlhfv_jax.training import optimizer

    model = load_pretrained(stages / "sft", keep_adapter=True)
    tree = {"adapter": model.adapter}
    config = settings(SFTConfig, "sft", **{"lora.rank": 4}).optimizer
    opt_state = jax.eval_shape(optimizer.make(config, tree, 2).init, tree)
    trained = sum(leaf.size for path, leaf in rules.leaves(tree) if not path.endswith("lora_scale"))
    assert sum(leaf.size for leaf in jax.tree.leaves(opt_state) if leaf.ndim) == 2 * trained


def test_an_adapter_without_its_weights_is_named(stages, tmp_path):
    shutil.copytree(stages / "sft" / "export", tmp_path / "half")
    (tmp_path / "half" / peft.WEIGHTS).unlink()
    with pytest.raises(UserError, match="and no adapter_model.safetensors: copy the missing file"):
        load_pretrained(tmp_path / "half")
