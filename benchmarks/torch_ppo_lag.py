"""The PyTorch side of the comparison: one PPO-Lagrangian iteration as the public Safe RLHF-V recipe runs it.

    python benchmarks/torch_ppo_lag.py --size=small          (needs the `test` extra; prints one JSON line last)

Run it beside `benchmarks/ppo_lag_iteration.py` on the same machine: the same shapes, batch, prompt and response lengths,
and no PTX step on either side; on a GPU if there is one. `--dtype=bfloat16` holds everything in it, weights and moments too. Six whole models (policy, reference, reward, cost, two critics), Hugging Face
`generate`, one forward pass for every quantity that the recipe computes by itself, three AdamW optimisers, vision towers
frozen. Weights are random and every response has full length: only time is compared. Nothing is tuned and nothing is
added; this is what a user of that recipe gets.
"""

import argparse
import json
import resource
import statistics
import time

import sizes
import torch
from sizes import PATCH, RESPONSE, SIZES, Size
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

PAD = 0
KL_COEF, GAE_LAMBDA, CLIP_RATIO, CLIP_VALUE, MULTIPLIER = 0.02, 0.95, 0.2, 5.0, 1.0
ROLES = ("policy", "reference", "reward", "cost", "reward_critic", "cost_critic")
TRAINED = ("policy", "reward_critic", "cost_critic")
PHASES = ("generate", "score", "update")


class ScoreModel(nn.Module):
    """A vision-language model with one number per position instead of a vocabulary."""

    def __init__(self, config: LlavaConfig):
        super().__init__()
        self.backbone = LlavaForConditionalGeneration(config).model
        self.head = nn.Linear(config.text_config.hidden_size, 1, bias=False)

    def forward(self, **inputs) -> torch.Tensor:
        return self.head(self.backbone(**inputs, use_cache=False).last_hidden_state)[..., 0]


def llava(size: Size) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=size.vocab, hidden_size=size.width, intermediate_size=size.mlp, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, max_position_embeddings=4096, pad_token_id=PAD,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width, intermediate_size=4 * size.vision_width, num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads, image_size=size.image, patch_size=PATCH,
        projection_dim=size.vision_width,
    )  # fmt: skip
    return LlavaConfig(text_config=text, vision_config=vision, image_token_id=size.vocab - 1, image_seq_length=size.features)


def six_models(config: LlavaConfig) -> dict[str, nn.Module]:
    models = {}
    for role in ROLES:
        model = LlavaForConditionalGeneration(config) if role in ("policy", "reference") else ScoreModel(config)
        backbone = model.model if role in ("policy", "reference") else model.backbone
        model.requires_grad_(role in TRAINED)
        backbone.vision_tower.requires_grad_(False)
        models[role] = model.eval()  # no dropout anywhere
    return models


def response_logp(model: nn.Module, inputs: dict) -> torch.Tensor:
    """log pi of the response tokens, [batch, RESPONSE]; logits of the whole sequence, as the recipe computes them."""
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    logp = torch.log_softmax(logits.float(), dim=-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return logp[:, -RESPONSE:]


def response_values(model: nn.Module, inputs: dict) -> torch.Tensor:
    """The prediction before each response token, [batch, RESPONSE]."""
    return model(**inputs)[:, -RESPONSE - 1 : -1]


def gae(rewards: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, gamma = 1."""
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        running = rewards[:, t] + following - values[:, t] + GAE_LAMBDA * running
        advantages[:, t] = running
    return advantages, advantages + values


@torch.no_grad()
def rollout(models: dict[str, nn.Module], prompts: torch.Tensor, pixels: torch.Tensor) -> dict:
    tokens = models["policy"].generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), pixel_values=pixels, do_sample=True, temperature=1.0, top_k=0,
        top_p=1.0, suppress_tokens=[models["policy"].config.image_token_id], min_new_tokens=RESPONSE, max_new_tokens=RESPONSE,
    )  # fmt: skip
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pixels}


@torch.no_grad()
def score(models: dict[str, nn.Module], inputs: dict) -> dict[str, torch.Tensor]:
    """Six forward passes, then both streams of token rewards, advantages and returns."""
    old_logp, ref_logp = response_logp(models["policy"], inputs), response_logp(models["reference"], inputs)
    penalty = KL_COEF * (old_logp - ref_logp)
    experience = {"old_logp": old_logp}
    for stream, sign in (("reward", -1.0), ("cost", 1.0)):
        rewards = sign * penalty
        rewards[:, -1] += models[stream](**inputs)[:, -1]
        values = response_values(models[f"{stream}_critic"], inputs)
        advantages, returns = gae(rewards, values)
        experience |= {f"{stream}_adv": advantages, f"{stream}_value": values, f"{stream}_return": returns}
    return experience


def update(models: dict, optimizers: dict, inputs: dict, experience: dict[str, torch.Tensor]) -> None:
    """One gradient step on the policy and on each critic, one after the other."""
    advantages = (experience["reward_adv"] - MULTIPLIER * experience["cost_adv"]) / (1 + MULTIPLIER)
    ratio = torch.exp(response_logp(models["policy"], inputs) - experience["old_logp"])
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP_RATIO, 1 + CLIP_RATIO) * advantages)
    descend(optimizers["policy"], -surrogate.mean())
    for stream in ("reward", "cost"):
        old, returns = experience[f"{stream}_value"], experience[f"{stream}_return"]
        values = response_values(models[f"{stream}_critic"], inputs)
        clipped = old + (values - old).clamp(-CLIP_VALUE, CLIP_VALUE)
        error = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
        descend(optimizers[f"{stream}_critic"], 0.5 * error.mean())


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--iterations", type=int, default=3, help="timed ones, after one to warm up")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, args.dtype))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    size = SIZES[args.size]
    models = six_models(llava(size))
    optimizers = {role: torch.optim.AdamW([p for p in models[role].parameters() if p.requires_grad], lr=1e-6) for role in TRAINED}
    pixels = torch.randn(size.batch, 3, size.image, size.image)
    prompts = torch.randint(3, size.vocab - 1, (size.batch, size.prompt))
    prompts[:, : size.features] = size.vocab - 1

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    seconds = []
    for _ in range(args.iterations + 1):
        marks = [now()]
        inputs = rollout(models, prompts, pixels)
        marks.append(now())
        experience = score(models, inputs)
        marks.append(now())
        update(models, optimizers, inputs, experience)
        marks.append(now())
        seconds.append([after - before for before, after in zip(marks, marks[1:])] + [marks[-1] - marks[0]])
    median = dict(zip((*PHASES, "total"), (statistics.median(column) for column in zip(*seconds[1:]))))
    result = {
        "framework": "torch",
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "dtype": args.dtype,
        "size": args.size,
        "batch": size.batch,
        "prompt": size.prompt,
        "response": RESPONSE,
        "params": sum(p.numel() for p in models["policy"].parameters()),
        **{f"{name}_s": round(value, 3) for name, value in median.items()},
        "samples_per_s": round(size.batch / median["total"], 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        **({"peak_device_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if device == "cuda" else {}),
        **sizes.rates(size, sizes.torch_iteration(size), median),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
