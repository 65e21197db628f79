"""The PyTorch side of benchmarks/preference.py: one DPO step as it is usually written.

    python benchmarks/torch_dpo.py --size=small [--stored]          (needs the `test` extra; prints one JSON line last)

Winner and loser are two sequences of one batch, logits are made at every position, and the reference stands in memory beside the
policy and reads both; with `--stored` its numbers are given, and it is not there. AdamW, the vision tower frozen. Weights are random
and every answer has full length: only time and memory are compared.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from sizes import RESPONSE, SIZES
from torch.nn.functional import logsigmoid
from torch_ppo_lag import descend, llava, response_logp
from transformers import LlavaForConditionalGeneration

BETA = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--iterations", type=int, default=3, help="timed ones, after one to warm up")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--stored", action="store_true", help="the reference's numbers are given")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, args.dtype))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    size = SIZES[args.size]
    policy = LlavaForConditionalGeneration(llava(size)).eval()
    policy.model.vision_tower.requires_grad_(False)
    reference = None if args.stored else LlavaForConditionalGeneration(llava(size)).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-6)
    pixels = torch.randn(size.batch, 3, size.image, size.image).repeat_interleave(2, 0)
    tokens = torch.randint(3, size.vocab - 1, (2 * size.batch, size.length))
    tokens[:, : size.prompt] = tokens[::2, : size.prompt].repeat_interleave(2, 0)
    tokens[:, : size.features] = size.vocab - 1
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pixels}
    stored = torch.randn(2 * size.batch)

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    seconds = []
    for _ in range(args.iterations + 1):
        start = now()
        ref_logp = stored
        if reference is not None:
            with torch.no_grad():
                ref_logp = response_logp(reference, inputs).sum(-1)
        ratio = response_logp(policy, inputs).sum(-1) - ref_logp
        descend(optimizer, -logsigmoid(BETA * (ratio[::2] - ratio[1::2])).mean())
        seconds.append(now() - start)
    median = statistics.median(seconds[1:])
    result = {
        "framework": "torch",
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "dtype": args.dtype,
        "size": args.size,
        "stored": args.stored,
        "pairs": size.batch,
        "prompt": size.prompt,
        "response": RESPONSE,
        "step_s": round(median, 3),
        "pairs_per_s": round(size.batch / median, 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        **({"peak_device_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if device == "cuda" else {}),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
