"""SmolLM2-135M, a model that people made and use: read, equal to `transformers`, and trained as the text part of a LLaVA.

Needs the package index, for one wheel of 93 MB (`smollm2.py`).
"""

import json

import jax
import numpy as np
import pytest
import smollm2
import torch
import transformers
from tiny_stages import settings

from srlhfv_jax.batches import PromptBatch
from srlhfv_jax.config import PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.data import chat, tokens
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.models import vlm
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.rollout.generate import Vocabulary, generate
from srlhfv_jax.rollout.sampling import Sampling
from srlhfv_jax.supervised import scores, sft

pytestmark = pytest.mark.slow  # a pretrained model of 135 M parameters

QUESTIONS = ("What is the capital of France?", "Name three fruits, and say of each where it grows.")
IMAGE, PATCH = 48, 12
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM2 as a Hugging Face folder."""
    downloaded = tmp_path_factory.mktemp("gguf")
    out = tmp_path_factory.mktemp("smollm2")
    return smollm2.convert(smollm2.download(downloaded), out)


@pytest.fixture(scope="module")
def asked(folder):
    """(the checkpoint as we read it, its torch model, two chats padded on the left)"""
    pretrained, torch_model = load_pretrained(folder), transformers.AutoModelForCausalLM.from_pretrained(folder)
    codec = chat.codec(pretrained.processor)
    rows = [tokens.prompt_ids(codec, question, ()) for question in QUESTIONS]
    P = max(map(len, rows))
    mask_BP = np.array([[False] * (P - len(row)) + [True] * len(row) for row in rows])
    tokens_BP = np.full((2, P), codec.pad_id, np.int32)
    tokens_BP[mask_BP] = np.concatenate(rows)
    positions_BP = np.maximum(np.cumsum(mask_BP, axis=1) - 1, 0).astype(np.int32)
    return pretrained, torch_model, PromptBatch(tokens_BP, positions_BP, mask_BP, None, np.arange(2, dtype=np.int32))


def test_logits_of_real_weights_are_equal(asked):
    pretrained, torch_model, batch = asked

    @jax.jit
    def ours(params):
        hidden, _ = vlm.apply(pretrained.config, params, batch.tokens_BP, batch.positions_BP, batch.mask_BP)
        return vlm.logits(pretrained.config, params, hidden)

    inputs = {"input_ids": torch.tensor(batch.tokens_BP).long(), "attention_mask": torch.tensor(batch.mask_BP).long()}
    with torch.no_grad():
        expected = torch_model(**inputs, position_ids=torch.tensor(batch.positions_BP).long()).logits.numpy()
    assert np.std(expected[batch.mask_BP]) > 1
    np.testing.assert_allclose(np.asarray(ours(pretrained.params))[batch.mask_BP], expected[batch.mask_BP], atol=1e-3)


def test_64_greedy_tokens_of_real_weights_are_equal_and_know_the_capital_of_france(asked):
    pretrained, torch_model, batch = asked
    endless = Vocabulary(pad=0, eos=(pretrained.config.text.vocab,), never=())
    options = dict(response_length=64, vocabulary=endless, sampling=Sampling(temperature=0.0))
    ours = jax.jit(lambda params: generate(pretrained.config, params, batch, jax.random.key(0), **options))(pretrained.params)
    inputs = {"input_ids": torch.tensor(batch.tokens_BP).long(), "attention_mask": torch.tensor(batch.mask_BP).long()}
    options = dict(do_sample=False, min_new_tokens=64, max_new_tokens=64, eos_token_id=None)
    expected = torch_model.generate(**inputs, **options)[:, -64:].numpy()
    np.testing.assert_array_equal(ours.tokens_BT[:, -64:], expected)
    assert "Paris" in pretrained.processor.decode(expected[0])


@pytest.fixture(scope="module")
def llava(folder, tmp_path_factory):
    """A LLaVA of SmolLM2 and a small random CLIP, and rows of the embedded task in plain English."""
    out = tmp_path_factory.mktemp("llava")
    text = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text.resize_token_embeddings(len(tokenizer) + 63, mean_resizing=False)
    tower = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=IMAGE, patch_size=PATCH
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    whole = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config=text.config, vision_config=tower, image_token_id=image_token, tie_word_embeddings=True
        )
    )
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.save_pretrained(out / "base")
    square = dict(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(**square),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(out / "base")
    cells = task_rows.split_cells(0)
    write_rows(out / "answers.parquet", task_rows.sft_rows(0, cells, 48))
    write_rows(out / "pairs.parquet", task_rows.probe_rows(0, cells, "train", 16, task_rows.Noise()))
    return out


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_real_weights_learn_as_the_text_part_of_a_llava(llava, tmp_path):
    from peft import PeftModel

    shape = {"data.split": "", "data.prompt_length": 48, "data.response_length": 24, "data.batch_size": 4}
    shape |= {"checkpoint.every_steps": 100}
    answers, pairs = {"data.path": str(llava / "answers.parquet")}, {"data.path": str(llava / "pairs.parquet")}
    rate = {"optimizer.learning_rate": 4e-4, "optimizer.warmup_fraction": 0.0}
    tuned = settings(SFTConfig, "sft", init=str(llava / "base"), steps=6, **shape, **rate, **answers)
    sft.run(tuned, tmp_path / "sft")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-2:]) < 0.6 * losses[0]

    shape |= {"data.batch_size": 2, "lora.rank": 4}
    scored = settings(ScoresConfig, "scores", init=str(tmp_path / "sft"), steps=1, **shape, **pairs)
    assert np.isfinite(scores.run(scored, tmp_path / "scores")["loss"])
    start = {"policy": str(tmp_path / "sft"), "scorer": str(tmp_path / "scores"), "sharing": "adapters", "iterations": 1}
    done = ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **start, **shape, **answers), tmp_path / "ppo_lag")
    assert done["grad_norm"] > 0 and np.isfinite(done["kl"]) and done["length"] > 1
    tuned = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "sft" / "export")
    before = tuned.model.language_model.layers[0].mlp.up_proj.weight.detach().numpy().copy()
    PeftModel.from_pretrained(tuned, tmp_path / "ppo_lag" / "export").merge_and_unload()
    after = tuned.model.language_model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert np.any(before != after) and np.allclose(before, after, atol=0.05)
