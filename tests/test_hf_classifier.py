"""Exports with one head load as transformers' sequence classifiers, with the scores that we compute."""

import json

import jax
import numpy as np
import pytest
import tiny_hf
import torch
import transformers
from safetensors.numpy import load_file
from tiny_families import VARIANTS, batch, theirs
from tokenizers import Tokenizer, models, pre_tokenizers

from srlhfv_jax.hf import export_pretrained, load_pretrained
from srlhfv_jax.hf.classifier import CLASSES
from srlhfv_jax.models import score_heads, vlm

FAMILIES = [name for name, config in VARIANTS.items() if config.model_type in CLASSES]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    tiny_hf.save(folder, VARIANTS[request.param])
    pretrained = load_pretrained(folder)
    if request.param == "qwen2":  # transformers reads every tokenizer beside this model as Qwen2's own
        pretrained = pretrained._replace(processor=tiny_hf.processor("qwen2"))
    return VARIANTS[request.param], pretrained, batch(pretrained), folder


def one_head(config, name: str = "cost") -> dict:
    return score_heads.init(config, (name,), jax.random.key(3))


def ours(pretrained, heads, prompts) -> np.ndarray:
    """Scores at the last token of left-padded rows."""

    @jax.jit
    def compute(params):
        features = None if prompts.images is None else vlm.encode_images(pretrained.config, params, prompts.images)
        hidden = vlm.apply(pretrained.config, params, prompts.tokens_BP, prompts.positions_BP, prompts.mask_BP, features)[0]
        return score_heads.scores(heads, hidden[:, -1:])

    ((_, score_B1),) = compute(pretrained.params).items()
    return np.asarray(score_B1[:, 0])


def on_the_right(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same rows, padded on the other side."""
    mask = inputs["attention_mask"].bool()
    order = torch.argsort((~mask).int(), dim=1, stable=True)
    rows = {name for name, value in inputs.items() if value.shape == mask.shape}
    return {name: value.gather(1, order) if name in rows else value for name, value in inputs.items()}


def test_scores_are_equal_padded_on_either_side(family, tmp_path):
    config, pretrained, prompts, folder = family
    heads = one_head(pretrained.config)
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=folder, heads=heads)
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert type(model).__name__ == CLASSES[config.model_type] and not report["missing_keys"]
    assert model.config.num_labels == 1 and model.config.id2label == {0: "cost"}
    expected = ours(pretrained, heads, prompts)
    assert np.std(expected) > 0.1 and not prompts.mask_BP.all()
    inputs = {name: value for name, value in theirs(config, pretrained, prompts).items() if name != "position_ids"}
    for padded in (inputs, on_the_right(inputs)):
        with torch.no_grad():
            logits = model.eval()(**padded).logits[:, 0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_folder_stays_what_it_was(family, tmp_path):
    _, pretrained, _, folder = family
    heads = one_head(pretrained.config, "reward")
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=folder, heads=heads, max_shard_bytes=4e4)
    again = load_pretrained(out)
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
    jax.tree.map(np.testing.assert_array_equal, again.heads, heads)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)  # of several files
    np.testing.assert_array_equal(model.score.weight.detach().numpy()[0], heads["reward"]["kernel"])
    back = export_pretrained(tmp_path / "back", again.config, again.params, base=out)
    assert "score.weight" not in load_file(back / "model.safetensors")
    described, before = (json.loads((place / "config.json").read_text()) for place in (back, folder))
    assert described["architectures"] == before["architectures"] and "id2label" not in described


def llama(folder, **tokens) -> tuple:
    """A checkpoint whose tokenizer has these special tokens."""
    tiny_hf.save(folder, tiny_hf.llama_config(pad_token_id=None, eos_token_id=2))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(tiny_hf.WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **tokens).save_pretrained(folder)
    return load_pretrained(folder)


@pytest.mark.parametrize(
    ("tokens", "chosen"),
    [({}, "<unk>"), ({"pad_token": "</s>"}, "<unk>"), ({"extra_special_tokens": ["<pad>"]}, "<pad>")],
)
def test_a_padding_that_ends_answers_is_replaced(tokens, chosen, tmp_path):
    """The class skips every padding token from the right: it would read the score before the end."""
    pretrained = llama(tmp_path / "base", eos_token="</s>", unk_token="<unk>", bos_token="<s>", **tokens)
    heads = one_head(pretrained.config)
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=tmp_path / "base", heads=heads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert tokenizer.pad_token == chosen and model.config.pad_token_id == tokenizer.pad_token_id
    texts = ["w5 w6 w7 </s>", "w9 w8 w7 w6 w5 w11 </s>"]
    alone = []
    for text in texts:
        ids = np.array([tokenizer(text)["input_ids"]], np.int32)
        positions, mask = np.arange(ids.shape[1])[None], np.ones(ids.shape, bool)
        hidden = vlm.apply(pretrained.config, pretrained.params, ids, positions, mask, None)[0]
        alone.append(float(score_heads.scores(heads, hidden)["cost"][0, -1]))
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits[:, 0]
    np.testing.assert_allclose(together.numpy(), alone, atol=1e-5)


def test_where_no_token_can_be_padding_the_classifier_is_left_out_and_that_is_said(tmp_path, capsys):
    pretrained = llama(tmp_path / "base", eos_token="</s>")
    heads = one_head(pretrained.config)
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=tmp_path / "base", heads=heads)
    assert "no LlamaForSequenceClassification is written: the tokenizer pads with the end" in capsys.readouterr().err
    assert "score.weight" not in load_file(out / "model.safetensors") and load_pretrained(out).heads


@pytest.mark.parametrize("config", [tiny_hf.llava_config(), tiny_hf.llama_config()], ids=["no class", "two heads"])
def test_there_is_no_classifier_of_two_heads_or_without_a_class(config, tmp_path):
    tiny_hf.save(tmp_path / "base", config)
    pretrained = load_pretrained(tmp_path / "base")
    names = ("cost",) if config.model_type == "llava" else ("cost", "reward")
    heads = score_heads.init(pretrained.config, names, jax.random.key(3))
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=tmp_path / "base", heads=heads)
    assert "score.weight" not in load_file(out / "model.safetensors")
    assert "id2label" not in json.loads((out / "config.json").read_text())


def test_the_head_of_somebody_elses_classifier_is_not_lost_without_a_word(tmp_path):
    """Only beside score_heads.safetensors, which has the same head, is the tensor left unread."""
    pretrained = llama(tmp_path / "base", eos_token="</s>", unk_token="<unk>")
    heads = one_head(pretrained.config)
    out = export_pretrained(tmp_path / "out", pretrained.config, pretrained.params, base=tmp_path / "base", heads=heads)
    (out / "score_heads.safetensors").unlink()
    with pytest.raises(ValueError, match="1 unmapped: score.weight"):
        load_pretrained(out)
