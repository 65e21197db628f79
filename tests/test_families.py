"""Every family computes what `transformers` computes, from the same files and the same pictures, and goes back unchanged.

A row with a picture, one without and one with two pictures among its words, all of different shapes, left-padded to one length,
read from disk to logits by the code that the stages run.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
import tiny_pairs
import torch
import transformers
from tiny_families import VARIANTS, R, batch, logits_of, theirs

from srlhfv_jax.batches import SupervisedBatch
from srlhfv_jax.hf import export_pretrained, load_pretrained, names
from srlhfv_jax.hf.leaves import leaf as leaf_at, stored_shape
from srlhfv_jax.hf.published import CONFIGS, published
from srlhfv_jax.models import projector, score_heads as heads, sequences, vlm
from srlhfv_jax.rollout.generate import Vocabulary, generate
from srlhfv_jax.rollout.sampling import Sampling


@pytest.fixture(scope="module", params=VARIANTS)
def family(request, tmp_path_factory):
    """(transformers config, its torch model, the checkpoint as we read it, prompts, the folder)"""
    folder = tmp_path_factory.mktemp("family")
    model = tiny_hf.save(folder, VARIANTS[request.param])
    pretrained = load_pretrained(folder)
    if request.param == "qwen2":  # transformers reads every tokenizer beside this model as Qwen2's own
        pretrained = pretrained._replace(processor=tiny_hf.processor("qwen2"))
    return VARIANTS[request.param], model, pretrained, batch(pretrained), folder


def test_logits_are_equal(family):
    config, model, pretrained, prompts, _ = family

    ours = logits_of(pretrained.config, prompts)
    positions = {} if prompts.positions_BP.ndim == 3 else {"position_ids": torch.tensor(prompts.positions_BP)}
    with torch.no_grad():
        expected = model(**theirs(config, pretrained, prompts), **positions).logits.numpy()
    assert np.std(expected[prompts.mask_BP]) > 0.5
    np.testing.assert_allclose(np.asarray(ours(pretrained.params))[prompts.mask_BP], expected[prompts.mask_BP], atol=1e-4)


@pytest.mark.parametrize("family", [name for name in VARIANTS if "vision_config" in VARIANTS[name].to_dict()], indirect=True)
def test_image_features_are_equal(family):
    config, model, pretrained, prompts, _ = family
    is_image = prompts.tokens_BP == tiny_hf.IMAGE_TOKEN

    @jax.jit
    def ours(params):
        features = vlm.encode_images(pretrained.config, params, prompts.images)
        zeros = np.zeros((*is_image.shape, pretrained.config.text.width), np.float32)
        return projector.project(pretrained.config, params["projector"], features, zeros, is_image)

    inputs = theirs(config, pretrained, prompts)
    wanted = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    with torch.no_grad():
        found = model.get_image_features(**{name: inputs[name] for name in wanted if name in inputs}).pooler_output
    expected = np.concatenate([one.numpy().reshape(-1, pretrained.config.text.width) for one in found])
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(np.asarray(ours(pretrained.params))[is_image], expected, atol=1e-4)


def test_greedy_generation_is_equal_token_for_token(family):
    config, model, pretrained, prompts, _ = family
    endless = Vocabulary(pad=0, eos=(tiny_hf.VOCAB,), never=())
    run = jax.jit(
        lambda params, prompts: generate(
            pretrained.config,
            params,
            prompts,
            jax.random.key(0),
            response_length=R,
            vocabulary=endless,
            sampling=Sampling(temperature=0.0),
        )
    )
    ours = run(pretrained.params, prompts).tokens_BT[:, -R:]
    options = dict(do_sample=False, min_new_tokens=R, max_new_tokens=R, eos_token_id=None)
    expected = model.generate(**theirs(config, pretrained, prompts), **options).numpy()[:, -R:]
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("family", [name for name in VARIANTS if name.startswith("qwen2_")], indirect=True)
def test_positions_are_equal(family):
    config, model, pretrained, prompts, _ = family
    inputs = theirs(config, pretrained, prompts)
    wanted = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    expected = model.model.get_rope_index(**{name: inputs[name] for name in wanted})[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(prompts.positions_BP[prompts.mask_BP], expected[prompts.mask_BP])


def test_an_export_is_the_same_checkpoint(family, tmp_path):
    _, model, pretrained, _, folder = family
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=folder, max_shard_bytes=2e4)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    kind = transformers.AutoModelForImageTextToText if pretrained.config.vision else transformers.AutoModelForCausalLM
    again, report = kind.from_pretrained(out, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    reloaded = load_pretrained(out)
    assert reloaded.config == pretrained.config
    jax.tree.map(np.testing.assert_array_equal, reloaded.params, pretrained.params)


def test_two_answers_in_one_sequence_score_as_in_two(family):
    """Whatever the family makes of positions, pictures and windows."""
    _, _, pretrained, prompts, _ = family
    batch = tiny_pairs.pairs(prompts, [[5, 3]] * len(prompts.row_B), 5, words=(40, tiny_hf.VOCAB), seed=5)
    sides = [SupervisedBatch(*(x[:, side] for x in batch[:4]), prompts.images) for side in (0, 1)]
    tree = {"backbone": pretrained.params, "heads": heads.init(pretrained.config, ("reward",), jax.random.key(3))}

    @jax.jit
    def both_ways(tree, batch, sides):
        features = sequences.encode(pretrained.config, tree, batch.images)
        apart = [sequences.end_scores(pretrained.config, tree, one, features)["reward"] for one in sides]
        return sequences.pair_scores(pretrained.config, tree, batch, features)["reward"], jnp.stack(apart, axis=1)

    ours, apart = both_ways(tree, batch, sides)
    assert np.std(apart) > 0.3
    np.testing.assert_allclose(ours, apart, atol=1e-4)


def test_exported_heads_give_the_same_scores_in_torch(family, tmp_path):
    config, _, pretrained, prompts, folder = family
    score_heads = heads.init(pretrained.config, ("reward", "cost"), jax.random.key(3))
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=folder, heads=score_heads)
    spec = importlib.util.spec_from_file_location("exported_scores", out / "score_heads.py")
    loader_of_export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader_of_export)
    model, exported = loader_of_export.load(str(out))
    theirs_by_name = loader_of_export.scores(model, exported, **theirs(config, pretrained, prompts))

    @jax.jit
    def ours(params):
        features = None if prompts.images is None else vlm.encode_images(pretrained.config, params, prompts.images)
        hidden = vlm.apply(pretrained.config, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features)[0]
        return heads.scores(score_heads, hidden[:, -1:])

    for name, score_B1 in ours(pretrained.params).items():
        np.testing.assert_allclose(score_B1[:, 0], theirs_by_name[name].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_a_published_size_has_its_leaf(name):
    """On torch's meta device, which stores nothing: names and shapes on both sides, with nothing left over."""
    config = published(name)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.for_model(**CONFIGS[name]))
    found = {names.published(config, key): tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: shape for key, shape in found.items() if not names.ignored(config, key)}
    shapes = jax.eval_shape(lambda: vlm.init(config, jax.random.key(0)))
    table = names.table(config)
    expected = {}
    for leaf in table:
        stored = stored_shape(config, leaf, leaf_at(shapes, leaf.path).shape)
        expected |= {key: stored for key in leaf.names}
    assert found == expected
    assert len(table) == len(jax.tree.leaves(shapes))
