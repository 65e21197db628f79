"""Forward + backward and cached decoding of every family, ours beside PyTorch's, in one run; prints one JSON line for each.

    python benchmarks/families.py [--families=llava_next,gemma3] [--rows=4] [--rounds=5]          (needs the `test` extra)

Both sides have the same random weights, the same two pictures and prompts, float32, and no padding. `gradient_s`: the mean
log-probability of the text, differentiated by every parameter. `decode_s`: pictures, prompt and 32 greedy tokens from a cache.
Medians of rounds that alternate between the sides, after one that compiles. The largest difference of logits is printed with them.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from PIL import Image

from srlhfv_jax.batches import PromptBatch
from srlhfv_jax.data import collate, pictures
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.hf.config import read_config
from srlhfv_jax.hf.load import load_params
from srlhfv_jax.losses import logprob
from srlhfv_jax.models import vlm
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.rollout.generate import Vocabulary, generate
from srlhfv_jax.rollout.sampling import Sampling

VOCAB, IMAGE, PATCH, TILE, R, WORDS = 4096, 4095, 14, 112, 32, 48
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=2048,
    pad_token_id=0,
)
TOWER = dict(
    hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, image_size=TILE, patch_size=PATCH
)
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}
SIZES = ((200, 112), (112, 160))  # width and height of the pictures
SQUARE = dict(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE})
CUTTING = dict(patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]


def configs() -> dict[str, transformers.PretrainedConfig]:
    """A small model of each family."""
    clip = transformers.CLIPVisionConfig(**TOWER, projection_dim=128)
    llama = transformers.LlamaConfig(**TEXT)
    qwen = dict(depth=3, num_heads=4, patch_size=PATCH)
    tokens = dict(image_token_id=IMAGE, video_token_id=IMAGE - 1)
    text = TEXT | {"rope_parameters": MROPE}
    return {
        "llava": transformers.LlavaConfig(text_config=llama, vision_config=clip, image_token_index=IMAGE),
        "llava_next": transformers.LlavaNextConfig(
            text_config=llama, vision_config=clip, image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS
        ),
        "qwen2_vl": transformers.Qwen2VLConfig(
            text_config=text, vision_config=qwen | dict(embed_dim=128, mlp_ratio=4, hidden_size=256), **tokens
        ),
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig(
            text_config=text,
            vision_config=qwen
            | dict(hidden_size=128, intermediate_size=344, out_hidden_size=256, window_size=56, fullatt_block_indexes=[1]),
            **tokens,
        ),
        "smolvlm": transformers.SmolVLMConfig(
            text_config=TEXT | {"model_type": "llama"}, vision_config=TOWER, image_token_id=IMAGE, scale_factor=4
        ),
        "gemma3": transformers.Gemma3Config(
            text_config=TEXT | GEMMA,
            vision_config=TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False},
            image_token_index=IMAGE,
            mm_tokens_per_image=16,
        ),
    }


def reader(family: str) -> pictures.Reader:
    """How the family's own image processor reads pictures."""
    marks = {"boi_token": "<b>", "eoi_token": "<e>", "image_token": "<image>"}
    words = SimpleNamespace(special_tokens_map=marks)
    if family.startswith("llava"):
        next_one = family == "llava_next"
        images = transformers.LlavaNextImageProcessorPil(**SQUARE, image_grid_pinpoints=PINPOINTS)
        found = pictures.Reader(family, images, "<image>", "<image>", PATCH, TILE // PATCH, (TILE // PATCH) ** 2, 1, 3 * PATCH**2)
        if next_one:
            return found._replace(pinpoints=tuple(map(tuple, PINPOINTS)))
        return found._replace(image_processor=transformers.CLIPImageProcessorPil(**SQUARE))
    processors = {
        "smolvlm": lambda: transformers.SmolVLMImageProcessorPil(
            size={"longest_edge": 224}, max_image_size={"longest_edge": TILE}
        ),
        "gemma3": lambda: transformers.Gemma3ImageProcessorPil(size={"height": TILE, "width": TILE}),
    }
    images = processors.get(family, lambda: transformers.Qwen2VLImageProcessorPil(patch_size=PATCH))()
    merge = {"smolvlm": 4, "gemma3": 2}.get(family, 2)
    return pictures.reader(pictures.Bundle(words, images, "<image>", family, PATCH, merge))


def prompts(read: pictures.Reader, rows: int) -> tuple[PromptBatch, list[Image.Image]]:
    """One picture a row, all of one shape so that nothing is padded, and words after it."""
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(0, 256, (*SIZES[0][::-1], 3), dtype=np.uint8)) for _ in range(rows)]
    layout = pictures.layout(read, SIZES[0][::-1])
    encoded = []
    for row in range(rows):
        prompt = np.concatenate([[1], [IMAGE] * layout.placeholders, rng.integers(3, IMAGE - 8, WORDS)]).astype(np.int32)
        positions = np.arange(len(prompt), dtype=np.int32)
        if layout.grid is not None:
            positions = pictures.mrope(prompt == IMAGE, [layout], read.merge)
        encoded.append(Encoded(row, prompt, positions, (), Example((), "", ()), (b"",), (layout,)))
    frame = collate.Frame(len(encoded[0].prompt), 0, 0)
    patches = list(pictures.cut(read, shown))
    room = collate.room(read, encoded, buckets=1)
    images = collate.stack_images(encoded, [[one] for one in patches], room, room.sizes[0])
    return jax.tree.map(jnp.asarray, collate.prompts(encoded, images, frame)), shown


def torch_inputs(family: str, read: pictures.Reader, batch: PromptBatch, shown: list[Image.Image]) -> dict:
    """The same for PyTorch."""
    made = read.image_processor(images=[[image] for image in shown] if family == "smolvlm" else shown, return_tensors="pt")
    wanted = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    tokens = torch.tensor(np.asarray(batch.tokens_BP)).long()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs |= {name: made[name] for name in wanted if name in made}
    if family.startswith("qwen2"):
        inputs["mm_token_type_ids"] = (tokens == IMAGE).int()
    if family == "gemma3":
        inputs["token_type_ids"] = (tokens == IMAGE).int()
    return inputs


def ours(config, params, batch: PromptBatch):
    """(logits, gradient, decode), each a function of nothing that waits for its result."""
    endless = Vocabulary(pad=0, eos=(VOCAB,), never=())
    greedy = Sampling(temperature=0.0)

    def hidden(params, last=None):
        features = vlm.encode_images(config, params, batch.images)
        return vlm.apply(config, params, batch.tokens_BP, batch.positions_BP, batch.mask_BP, features, read=last)[0]

    def loss(params):
        logp, _ = logprob.chosen_logp(
            hidden(params, last=WORDS)[:, :-1],
            vlm.unembedding(config, params),
            batch.tokens_BP[:, 1 - WORDS :],
            temperature=1.0,
            never_V=jnp.zeros(VOCAB, bool),
        )
        return -jnp.mean(logp)

    def drawn(params, batch):
        return generate(
            config, params, batch, jax.random.key(0), response_length=R, vocabulary=endless, sampling=greedy
        ).tokens_BT

    logits, gradient, decode = jax.jit(lambda p: vlm.logits(config, p, hidden(p))), jax.jit(jax.grad(loss)), jax.jit(drawn)
    return tuple(
        lambda run=run: jax.block_until_ready(run())
        for run in (lambda: logits(params), lambda: gradient(params), lambda: decode(params, batch))
    )


def theirs(model, inputs: dict):
    """As `ours`."""
    labels = inputs["input_ids"][:, 1 - WORDS :]

    def gradient():
        model.zero_grad()
        found = torch.log_softmax(model(**inputs, logits_to_keep=WORDS).logits[:, :-1].float(), dim=-1)
        (-found.gather(2, labels[:, :, None]).mean()).backward()

    def decode():
        with torch.no_grad():
            return model.generate(**inputs, do_sample=False, min_new_tokens=R, max_new_tokens=R, eos_token_id=None)

    def logits():
        with torch.no_grad():
            return model(**inputs).logits

    return logits, gradient, decode


def compare(family: str, config: transformers.PretrainedConfig, rows: int, rounds: int) -> dict:
    """Both sides of one family."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shape = read_config(folder, scan_unroll=1 << 30)
        params = load_params(shape, Path(folder), "float32", None)
    read = reader(family)
    batch, shown = prompts(read, rows)
    sides = {"jax": ours(shape, params, batch), "torch": theirs(model, torch_inputs(family, read, batch, shown))}
    gap = np.abs(np.asarray(sides["jax"][0]()) - sides["torch"][0]().numpy()).max()
    line = {"family": family, "rows": rows, "positions": int(batch.tokens_BP.shape[1]), "logit_gap": float(gap)}
    for number, what in ((1, "gradient"), (2, "decode")):
        seconds = {side: [] for side in sides}
        for _ in range(rounds + 1):
            for side, calls in sides.items():
                began = time.perf_counter()
                calls[number]()
                seconds[side].append(time.perf_counter() - began)
        medians = {side: statistics.median(taken[1:]) for side, taken in seconds.items()}
        line |= {f"{what}_s.{side}": round(median, 4) for side, median in medians.items()}
        line[f"{what}_speedup"] = round(medians["torch"] / medians["jax"], 2)
    return line


def main() -> None:
    host_cpu.prepare()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(configs()))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for family in args.families.split(","):
        print(json.dumps(compare(family, configs()[family], args.rows, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
