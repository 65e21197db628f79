"""Activated adapters: the prompt is the backbone's own and read once for all roles; PEFT gives the same numbers."""

import dataclasses
import functools
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
from test_lora import KINDS, LORA, moved
from tiny_stages import adapter_stages, numbers, picture_task, rows, same_numbers, settings
from tiny_vlm import CONFIG, VOCABULARY, backbone, prompts

from srlhfv_jax.batches import PairBatch, SupervisedBatch
from srlhfv_jax.cli.main import main
from srlhfv_jax.config import PPOLagConfig, SFTConfig
from srlhfv_jax.data import chat, tokens
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import export_pretrained, load_pretrained, peft
from srlhfv_jax.models import lora, score_heads, sequences, vlm
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.rollout.generate import generate
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.supervised import sft

PROMPT_SUFFIX = (7, 9)
ACTIVATED = dataclasses.replace(CONFIG, activation=PROMPT_SUFFIX)  # layers are scanned
R = 8


def adapted(seed: int = 1):
    """A backbone with an adapter that adds something, and heads."""
    params = backbone()
    over = lora.overlay(params, moved(lora.init(LORA, params, jax.random.key(0)), seed))
    return {"backbone": over, "heads": score_heads.init(CONFIG, ("reward", "cost"), jax.random.key(5))}


prefix_of, pair_scores, end_scores = (
    jax.jit(function, static_argnums=0) for function in (sequences.prefix, sequences.pair_scores, sequences.end_scores)
)


def closed(**how):
    """Prompts that end with the tokens at which adapters begin to act."""
    batch = prompts(rows=12, **how)
    tokens_BP = np.array(batch.tokens_BP)
    tokens_BP[:, -2:] = PROMPT_SUFFIX
    return batch._replace(tokens_BP=tokens_BP)


@functools.partial(jax.jit, static_argnums=0)
def sample(config, params, batch):
    how = dict(response_length=R, vocabulary=VOCABULARY, sampling=Sampling(1.0))
    return generate(config, params, batch, jax.random.key(3), **how)


@functools.partial(jax.jit, static_argnums=0)
def logp(config, tree, rollout, context):
    never_V = VOCABULARY.never_V(config.text.vocab)
    return sequences.response_logp(config, tree, rollout, context, never_V=never_V)[0]


@pytest.mark.parametrize("scan_unroll", [0, 1])
def test_sampler_and_training_graph_agree_and_a_shared_prefix_changes_nothing(scan_unroll):
    config, tree = dataclasses.replace(ACTIVATED, scan_unroll=scan_unroll), adapted()
    rollout = sample(config, tree["backbone"], closed())
    assert np.asarray(rollout.response_mask_BR).sum() > 20
    prefix = prefix_of(config, {"backbone": backbone()}, rollout, rollout.features)
    for context in (rollout.features, prefix):
        np.testing.assert_allclose(logp(config, tree, rollout, context), rollout.logp_BR, atol=1e-4)
    everywhere = logp(dataclasses.replace(config, activation=()), tree, rollout, rollout.features)
    assert np.abs(np.asarray(everywhere - rollout.logp_BR)).max() > 0.05  # an adapter on the prompt is another model


def test_a_fresh_activated_adapter_and_none_are_the_backbone():
    params, plain = backbone(), dataclasses.replace(ACTIVATED, activation=())
    rollout = sample(plain, params, closed())
    fresh = lora.overlay(params, lora.init(LORA, params, jax.random.key(0)))
    expected = logp(plain, {"backbone": params}, rollout, rollout.features)
    for over in (fresh, params):
        np.testing.assert_allclose(logp(ACTIVATED, {"backbone": over}, rollout, rollout.features), expected, atol=1e-5)


def test_pad_columns_change_nothing():
    tree = adapted()
    plain, padded = (sample(ACTIVATED, tree["backbone"], closed(pad=pad)) for pad in (0, 5))
    np.testing.assert_array_equal(plain.tokens_BT[:, -R:], padded.tokens_BT[:, -R:])
    np.testing.assert_allclose(plain.logp_BR, padded.logp_BR, atol=1e-5)


def test_scores_of_pairs_are_those_of_each_answer():
    tree, asked = adapted(), closed()
    sides = [sample(ACTIVATED, params, asked) for params in (tree["backbone"], adapted(2)["backbone"])]
    assert np.any(sides[0].tokens_BT != sides[1].tokens_BT)
    stacked = (jnp.stack(both, axis=1) for both in zip(*(side[:4] for side in sides)))
    pairs = PairBatch(*stacked, asked.images, *(None,) * 5)
    features = sides[0].features
    together = pair_scores(ACTIVATED, tree, pairs, features)
    for name in ("reward", "cost"):
        apart = [end_scores(ACTIVATED, tree, side, features)[name] for side in sides]
        np.testing.assert_allclose(together[name], jnp.stack(apart, axis=1), atol=1e-5)


def test_an_answer_is_all_that_reaches_the_gradient():
    """The gradient by the adapter is that of the answer's own tokens: what the prompt's keys and values are is a constant."""
    tree, base = adapted(), backbone()
    adapter = moved(lora.init(LORA, base, jax.random.key(0)))
    rollout = sample(ACTIVATED, tree["backbone"], closed())
    prefix = prefix_of(ACTIVATED, {"backbone": base}, rollout, rollout.features)

    def total(adapter, context):
        return jnp.sum(logp(ACTIVATED, {"backbone": lora.overlay(base, adapter)}, rollout, context))

    within, given = (jax.grad(total)(adapter, context) for context in (rollout.features, prefix))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), within, given)
    norm = float(jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(given))))
    ahead, behind = (
        float(total(jax.tree.map(lambda leaf, g: leaf + step / norm * g, adapter, given), prefix)) for step in (0.01, -0.01)
    )
    assert (ahead - behind) / 0.02 == pytest.approx(norm, rel=0.01)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("kind", KINDS)
def test_peft_gives_the_same_logits_and_the_way_back_is_the_identity(kind, tmp_path):
    from peft import PeftModel

    family, folder = families.VARIANTS[kind], tmp_path / "base"
    tiny_hf.save(folder, family)
    pretrained = load_pretrained(folder)
    adapter = moved(lora.init(LORA, pretrained.params, jax.random.key(0)))
    config = dataclasses.replace(pretrained.config, activation=PROMPT_SUFFIX)
    out = export_pretrained(tmp_path / "out", config, None, base=folder, adapter=adapter)
    whole = continued(families.batch(pretrained), (*PROMPT_SUFFIX, 11, 12, 13))
    auto = transformers.AutoModelForImageTextToText if config.vision else transformers.AutoModelForCausalLM
    theirs = PeftModel.from_pretrained(auto.from_pretrained(folder), out).eval()
    positions = {} if whole.positions_BP.ndim == 3 else {"position_ids": torch.tensor(whole.positions_BP)}
    with torch.no_grad():
        logits = theirs(**families.theirs(family, pretrained, whole), **positions).logits[:, -4:-1]
    expected = torch.log_softmax(logits, -1).gather(2, torch.tensor(whole.tokens_BP[:, -3:, None]).long())[..., 0]

    rows = SupervisedBatch(*whole[:3], np.ones((3, 3), bool), None)
    kept = load_pretrained(out, keep_adapter=True)
    assert kept.config == config
    jax.tree.map(np.testing.assert_array_equal, kept.adapter, adapter)
    laid_over = load_pretrained(out)
    assert laid_over.adapter is None and laid_over.config == config
    tree = {"backbone": laid_over.params}
    features = None if whole.images is None else vlm.encode_images(config, laid_over.params, whole.images)
    found, _ = jax.jit(functools.partial(sequences.response_logp, config))(tree, rows, features)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def continued(batch, tokens):
    """Prompts with more tokens behind them, the same in all rows."""
    count, (B, _, *axes) = len(tokens), batch.positions_BP.shape
    largest_B = batch.positions_BP.reshape(B, -1).max(axis=1)
    after_BT = largest_B[:, None] + 1 + np.arange(count, dtype=np.int32)
    after_BT = np.broadcast_to(after_BT.reshape(B, count, *(1,) * len(axes)), (B, count, *axes))
    return batch._replace(
        tokens_BP=np.concatenate([batch.tokens_BP, np.tile(np.asarray(tokens, np.int32), (B, 1))], axis=1),
        positions_BP=np.concatenate([batch.positions_BP, after_BT], axis=1),
        mask_BP=np.pad(batch.mask_BP, ((0, 0), (0, count)), constant_values=True),
    )


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return picture_task(tmp_path_factory.mktemp("picture"))


@pytest.fixture(scope="module")
def stages(picture, tmp_path_factory):
    """Workdirs of sft and scores with activated adapters over one random LLaVA."""
    return adapter_stages(picture, tmp_path_factory.mktemp("stages"), start(picture))


def start(picture) -> dict:
    return {"lora.rank": 4, "lora.alpha": 8.0, "lora.activated": True} | rows(picture)


def asked_of(stages, picture) -> dict:
    return dict(policy=str(stages / "sft"), scorer=str(stages / "scores"), sharing="adapters") | rows(picture)


@pytest.mark.slow
def test_all_stages_on_one_device_and_on_eight_and_in_parts(stages, picture, tmp_path):
    """The self-test of the first rollout is within: |log ratio| of sampler and training graph, and KL to itself."""
    ways = {
        "one": {},
        "parts": {"microbatches": 2, "rollout.microbatches": 4, "rollout.score_microbatches": 2, "model.logp_chunk": 3},
        "eight": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
    }
    for name, changes in ways.items():
        asked = asked_of(stages, picture) | {"data.batch_size": 8} | changes
        done = ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **asked), tmp_path / name)
        assert done["grad_norm"] > 0 and done["critic_grad_norm"] > 0
        same_numbers(numbers(tmp_path / name), numbers(tmp_path / "one"), within=2e-4)
    policy = load_pretrained(tmp_path / "one", keep_adapter=True)
    closing = tokens.prompt_suffix(chat.codec(policy.processor))
    assert policy.config.activation == closing == peft.activation(tmp_path / "one" / "export")
    described = json.loads((tmp_path / "one" / "export" / peft.CONFIG).read_text())
    assert described["task_type"] == "CAUSAL_LM"


def test_what_an_activated_adapter_cannot_do_is_refused(stages, picture, tmp_path, capsys):
    with pytest.raises(UserError, match="acts from the end of the prompt on: set config.lora.activated=True"):
        other = start(picture) | {"lora.activated": False}
        sft.run(settings(SFTConfig, "sft", init=str(stages / "sft"), **other), tmp_path / "other")
    with pytest.raises(UserError, match="an activated adapter, which no weights can be merged with"):
        sft.run(settings(SFTConfig, "sft", init=str(stages / "sft"), **rows(picture)), tmp_path / "other")
    with pytest.raises(UserError, match="there are none: set config.lora.rank above 0"):
        other = start(picture) | {"lora.rank": 0}
        sft.run(settings(SFTConfig, "sft", init=str(stages / "whole"), **other), tmp_path / "other")
    with pytest.raises(UserError, match="is for config.sharing='adapters', got 'shared'"):
        other = asked_of(stages, picture) | {"sharing": "shared", "lora.activated": True}
        ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **other), tmp_path / "other")
    with pytest.raises(UserError, match="an activated adapter, which no weights can be merged with"):
        other = asked_of(stages, picture) | {"sharing": "shared"}
        ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **other), tmp_path / "other")
    with pytest.raises(UserError, match="train all with one config.lora.activated"):
        ppo_lag.run(
            settings(PPOLagConfig, "ppo_lag", **(asked_of(stages, picture) | {"policy": str(stages / "whole")})),
            tmp_path / "other",
        )
    assert main(["export", f"--workdir={stages / 'sft'}", f"--out={tmp_path / 'merged'}"]) == 2
    assert "is an activated adapter, which cannot be merged" in capsys.readouterr().err


def test_a_prompt_that_does_not_end_as_the_adapters_expect_is_refused(stages, picture, tmp_path):
    adapter = tmp_path / "sft"
    shutil.copytree(stages / "sft" / "export", adapter)
    described = json.loads((adapter / peft.CONFIG).read_text())
    (adapter / peft.CONFIG).write_text(json.dumps(described | {peft.ACTIVATION: [5, 6]}))
    with pytest.raises(UserError, match=r"are activated by \[5, 6\]"):
        sft.run(settings(SFTConfig, "sft", init=str(adapter), **start(picture)), tmp_path / "other")
    (adapter / peft.CONFIG).write_text(json.dumps(described | {peft.ACTIVATION: "words"}))
    with pytest.raises(
        UserError, match="alora_invocation_tokens must be a list of which each is a whole number or null, got 'words'"
    ):
        load_pretrained(adapter)


def test_the_generate_command_says_what_the_adapter_says(stages, picture, tmp_path, capsys):
    """On a text alone: as `generate` draws it with the overlaid tree, and not as the bare backbone does."""
    model = load_pretrained(stages / "sft")
    base = load_pretrained(stages / "sft", keep_adapter=True)
    strong = export_pretrained(tmp_path / "strong", base.config, None, base=stages / "sft", adapter=moved(base.adapter))
    assert model.config.activation
    flags = ["--temperature=0", "--response_length=6", "--prompt=what is this?"]
    said = []
    for folder in (strong, stages / "whole"):
        assert main(["generate", f"--policy={folder}", *flags]) == 0
        said.append(json.loads(capsys.readouterr().out.splitlines()[-1])["answer"])
    assert said[0] != said[1]
