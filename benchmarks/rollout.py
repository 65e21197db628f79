"""Tokens a second of a rollout whose answers have real lengths: the plain loop, slots that refill, and `transformers` beside them.

    python benchmarks/rollout.py --size=small --prompts=128 --slots=32          (needs the `test` extra for the PyTorch sides)

The same decoder with random weights on all sides, prompts of text, float32; every answer ends where benchmarks/workload.py says
(`--workload=full`: all at the longest length). The plain loop and PyTorch's `generate` run until the longest answer ends;
`generate_batch` is PyTorch's continuous batching. Each side runs in a process of its own, in turn, so often as `--rounds` says; the
medians are the last line.
"""

import argparse
import dataclasses
import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import workload
from sizes import SIZES

SIDES = ("plain", "slots", "torch", "torch_batch")


def ours(args: argparse.Namespace, prompts_BP: np.ndarray, lengths_B: np.ndarray) -> tuple[Callable[[], None], dict]:
    """One rollout of ours, and what is known of it."""
    import jax
    import jax.numpy as jnp
    import ppo_lag_iteration

    from srlhfv_jax.batches import PromptBatch
    from srlhfv_jax.models import vlm
    from srlhfv_jax.parallel import host_cpu
    from srlhfv_jax.rollout.generate import Vocabulary, generate
    from srlhfv_jax.rollout.refill import occupancy, refill

    host_cpu.prepare()
    config = dataclasses.replace(ppo_lag_iteration.model_config(SIZES[args.size]), vision=None, image_token=None)
    B, P = prompts_BP.shape
    prompts = PromptBatch(jnp.asarray(prompts_BP), jnp.tile(jnp.arange(P), (B, 1)), jnp.ones((B, P), bool), None, jnp.arange(B))
    sampler = functools.partial(refill, slots=args.slots) if args.side == "slots" else generate
    vocabulary = Vocabulary(pad=0, eos=(2,), never=(0, 1))
    run = jax.jit(functools.partial(sampler, config, response_length=args.response, vocabulary=vocabulary))
    params = vlm.init(config, jax.random.key(0))
    program = run.lower(params, prompts, jax.random.key(1), length_B=jnp.asarray(lengths_B)).compile()

    def once() -> None:
        rollout = jax.block_until_ready(program(params, prompts, jax.random.key(1), length_B=jnp.asarray(lengths_B)))
        if not np.array_equal(np.asarray(rollout.response_mask_BR).sum(1), lengths_B):
            raise RuntimeError("not the work that was meant: answers of other lengths")
        if args.side == "slots":
            known["occupancy"] = round(float(occupancy(rollout, args.slots)), 3)

    memory = program.memory_analysis()
    known = {"temporaries_gb": round(memory.temp_size_in_bytes / 1e9, 3)}
    return once, known


def theirs(args: argparse.Namespace, prompts_BP: np.ndarray, lengths_B: np.ndarray) -> tuple[Callable[[], None], dict]:
    """The same by `transformers`."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

    size = SIZES[args.size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab, hidden_size=size.width, intermediate_size=size.mlp, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, max_position_embeddings=4096, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    sampled = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)

    @torch.no_grad()
    def plain() -> None:
        longest = int(lengths_B.max())
        tokens = model.generate(
            torch.tensor(prompts_BP), attention_mask=torch.ones(prompts_BP.shape, dtype=torch.long), eos_token_id=None,
            max_new_tokens=longest, min_new_tokens=longest, **sampled,
        )  # fmt: skip
        if tokens.shape[1] != prompts_BP.shape[1] + longest:
            raise RuntimeError("not the work that was meant")

    def batched() -> None:
        how = GenerationConfig(eos_token_id=-1, pad_token_id=0, max_new_tokens=args.response, **sampled)
        with model.continuous_batching_context_manager(
            generation_config=how, continuous_batching_config=ContinuousBatchingConfig(), block=True, timeout=60
        ) as manager:
            for row, (prompt, length) in enumerate(zip(prompts_BP.tolist(), lengths_B.tolist())):
                manager.add_request(input_ids=prompt, request_id=str(row), max_new_tokens=length)
            done = 0
            while done < len(lengths_B):
                result = manager.get_result(timeout=600)
                if result is not None and result.is_finished():
                    if len(result.generated_tokens) != lengths_B[int(result.request_id)]:
                        raise RuntimeError("not the work that was meant")
                    done += 1

    return (plain if args.side == "torch" else batched), {}


def side(args: argparse.Namespace) -> dict:
    rng = np.random.default_rng(0)
    prompts_BP = rng.integers(3, SIZES[args.size].vocab, (args.prompts, args.prompt), dtype=np.int32)
    lengths_B = workload.lengths(args.prompts, args.response)
    if args.workload == "full":
        lengths_B = np.full_like(lengths_B, args.response)
    once, known = (theirs if args.side.startswith("torch") else ours)(args, prompts_BP, lengths_B)
    once()  # warm up
    seconds = []
    for _ in range(args.iterations):
        begun = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds)
    return {
        "side": args.side,
        "tokens": int(lengths_B.sum()),
        "seconds": round(median, 3),
        "tokens_per_s": round(int(lengths_B.sum()) / median, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        **known,
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--size", choices=SIZES, default="small")
    flags.add_argument("--prompts", type=int, default=128)
    flags.add_argument("--slots", type=int, default=32)
    flags.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    flags.add_argument("--response", type=int, default=128, help="tokens of the longest answer")
    flags.add_argument("--workload", choices=("real", "full"), default="real")
    flags.add_argument("--sides", default=",".join(SIDES))
    flags.add_argument("--side", choices=SIDES, help="this one alone, in this process")
    flags.add_argument("--iterations", type=int, default=2, help="timed ones, after one to warm up")
    flags.add_argument("--rounds", type=int, default=1)
    args = flags.parse_args()
    if args.side:
        print(json.dumps(side(args)), flush=True)
        return
    lines: dict[str, list[dict]] = {}
    for _ in range(args.rounds):
        for name in args.sides.split(","):
            output = subprocess.run([sys.executable, *sys.argv, f"--side={name}"], stdout=subprocess.PIPE, text=True, check=True)
            line = json.loads(output.stdout.splitlines()[-1])
            print(json.dumps(line), flush=True)
            lines.setdefault(name, []).append(line)
    rates = {name: statistics.median(line["tokens_per_s"] for line in some) for name, some in lines.items()}
    print(json.dumps({"size": args.size, "workload": args.workload, "tokens_per_s": rates}), flush=True)


if __name__ == "__main__":
    main()
