"""Time one whole PPO-Lagrangian iteration: rollout, scoring with the multiplier's step, update of the policy and both critics.

    python benchmarks/ppo_lag_iteration.py --size=small --sharing=shared          (prints one JSON line last)
    python benchmarks/ppo_lag_iteration.py --size=small --advantage=group --group_size=8          (or rloo; no critics)

It drives the three jitted calls of `ppo_lag.iteration.Iteration` on random weights and random prompts: the code that `srlhfv
ppo_lag` runs, without its loader, self-test, logging and checkpoints. Every response has full length: the end-of-sequence token
is among those never sampled. The vision towers of all roles are equal, as they are when all stages started from one model and
froze it. `--sharing=adapters --activated`: adapters that act on answers alone. `--microbatches`: rollout, scoring and gradients each
in so many parts. `--advantage`: as many answers as with critics, in groups to fewer prompts. `--dtype=bfloat16` computes in it and holds frozen trees in it; what is trained keeps float32 masters.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sizes
from ml_collections import ConfigDict
from sizes import CHANNELS, PATCH, RESPONSE, SIZES, Size

from srlhfv_jax.batches import Images, PromptBatch
from srlhfv_jax.config import LoraConfig, PPOLagConfig
from srlhfv_jax.configs import ppo_lag as config_file
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.models import lora, score_heads, vlm
from srlhfv_jax.models.config import RopeConfig, TextConfig, VisionConfig, VLMConfig
from srlhfv_jax.models.trees import BASE
from srlhfv_jax.parallel import host_cpu, hosts, rules
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.parsing import parse
from srlhfv_jax.ppo_lag import roles
from srlhfv_jax.ppo_lag.iteration import Call, Iteration, drive
from srlhfv_jax.ppo_lag.load import Models
from srlhfv_jax.ppo_lag.roles import trained_trees
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.training import state as states

PAD, EOS = 0, 2
WARM_UP = 3  # iterations that are not timed: compiling, and memory grows to what a step needs
PHASES = ("generate", "score", "update")
LORA = LoraConfig(rank=16, alpha=32.0, targets=("text/layers/.*_proj",), int8=False, activated=False)


def model_config(size: Size) -> VLMConfig:
    text = TextConfig(
        vocab=size.vocab,
        width=size.width,
        mlp=size.mlp,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.heads,
        head_dim=size.width // size.heads,
        norm_eps=1e-6,
        rope=RopeConfig(theta=10000.0),
        tied_head=False,
    )
    vision = VisionConfig(
        image_size=size.image,
        patch=PATCH,
        width=size.vision_width,
        mlp=4 * size.vision_width,
        layers=size.vision_layers,
        heads=size.vision_heads,
        norm_eps=1e-5,
        activation="quick_gelu",
    )
    return VLMConfig(family="llava", text=text, vision=vision, image_token=size.vocab - 1, scan_unroll=0)


def run_settings(size: Size, args: argparse.Namespace) -> PPOLagConfig:
    """The stage's own default settings, one gradient step on the whole batch, and the benchmark's shapes."""
    settings: ConfigDict = config_file.get_config()
    settings.sharing, settings.microbatches = args.sharing, args.microbatches
    settings.rollout.update(microbatches=args.microbatches, score_microbatches=args.microbatches)
    settings.ppo.update(epochs=1, minibatches=1, advantage=args.advantage, group_size=args.group_size)
    settings.data.update(prompt_length=size.prompt, response_length=RESPONSE, batch_size=size.batch)
    return parse(PPOLagConfig, settings)


def random_models(config: VLMConfig, settings: PPOLagConfig, mesh) -> Models:
    """A backbone for every tree that the way of sharing asks for, all with one vision tower, and the heads that live on it."""
    places = roles.of_settings(settings)
    names = list(dict.fromkeys(place.tree for place in places.values()))
    if settings.sharing == "adapters":
        return _random_adapters(config, places, names, mesh)
    create = jax.jit(_random_tree, static_argnums=(0, 1))
    trees = {}
    for number, name in enumerate(names):
        own_heads = tuple(place.head for place in places.values() if place.tree == name and place.head is not None)
        trees[name] = rules.place(create(config, own_heads, jax.random.key(0), jax.random.key(number)), mesh)
    trained = {name: trees.pop(name) for name in trained_trees(places)}
    loaded = Pretrained(config, params={}, heads={}, processor=None, path=Path())
    return Models(loaded, places, trained, frozen=_cast(config, trees), own_towers=frozenset())


def _cast(config: VLMConfig, trees: dict) -> dict:
    """Backbones of frozen trees in the dtype of activations."""
    return {
        name: tree | {"backbone": jax.tree.map(lambda x: x.astype(config.dtype), tree["backbone"])}
        for name, tree in trees.items()
    }


def _random_adapters(config: VLMConfig, places: dict[str, roles.Place], names: list[str], mesh) -> Models:
    """One backbone; an adapter for every tree but the reference, which is the backbone itself."""
    base = rules.place(jax.jit(_random_tree, static_argnums=(0, 1))(config, (), jax.random.key(0), jax.random.key(0)), mesh)
    base = _cast(config, {BASE: base})[BASE]
    trees = {}
    for number, name in enumerate(names):
        own_heads = tuple(place.head for place in places.values() if place.tree == name and place.head is not None)
        key = jax.random.key(number)
        adapter = {} if name == places["reference"].tree else lora.init(LORA, base["backbone"], key)
        tree = {"adapter": adapter} | ({"heads": score_heads.init(config, own_heads, key)} if own_heads else {})
        trees[name] = rules.place(tree, mesh)
    trained = {name: trees.pop(name) for name in trained_trees(places)}
    loaded = Pretrained(config, params={}, heads={}, processor=None, path=Path())
    return Models(loaded, places, trained, frozen=trees | {BASE: base}, own_towers=frozenset())


def _random_tree(config: VLMConfig, head_names: tuple[str, ...], tower_key, key) -> dict:
    tree = {"backbone": vlm.init(config, key) | {"vision": vlm.init(config, tower_key)["vision"]}}
    return tree | {"heads": score_heads.init(config, head_names, key)} if head_names else tree


def random_prompts(size: Size, count: int) -> PromptBatch:
    rng = np.random.default_rng(0)
    tokens_BP = rng.integers(3, size.vocab - 1, (count, size.prompt), dtype=np.int32)
    tokens_BP[:, : size.features] = size.vocab - 1
    positions_P = np.arange(size.prompt, dtype=np.int32)
    return PromptBatch(
        tokens_BP=tokens_BP,
        positions_BP=np.tile(positions_P, (count, 1)),
        mask_BP=np.ones((count, size.prompt), bool),
        images=Images(rng.normal(size=(count, size.features, CHANNELS * PATCH**2)).astype(np.float32), None, None, None),
        row_B=np.arange(count, dtype=np.int32),
    )


def iterate(
    iteration: Iteration, state: states.TrainState, prompts: PromptBatch, number: int
) -> tuple[states.TrainState, dict, list[float]]:
    """The calls of one iteration, waiting after each. Returns state, metrics, and the seconds of each of PHASES."""
    seconds = dict.fromkeys(PHASES, 0.0)

    def timed(call: Call) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(call.function(*call.arguments))
        seconds["generate" if call.name == "reshard" else call.name] += time.perf_counter() - start
        return result

    state, metrics = drive(iteration.calls(state, prompts, None, iteration.keys(number)), timed)
    return state, metrics, list(seconds.values())


def matmul_gflops(dtype: str, repeats: int = 5) -> float:
    """What a plain product of two large matrices reaches on this machine: the best of a few."""
    width = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (width, width), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * width**3 / min(seconds) / 1e9


def prepare(size: Size, args: argparse.Namespace) -> tuple[Iteration, states.TrainState, PromptBatch]:
    """The iteration on random models, its first state and its prompts, on all devices."""
    settings = run_settings(size, args)
    mesh = make_mesh(settings.mesh)
    jax.set_mesh(mesh)
    models = random_models(args.config, settings, mesh)
    vocabulary = Vocabulary(pad=PAD, eos=(EOS,), never=(PAD, EOS, size.vocab - 1))
    iteration = Iteration(settings, models, mesh, vocabulary, early_exit=False)
    return iteration, iteration.initial_state(), hosts.global_batch(random_prompts(size, settings.prompts), mesh)


def prompt_gflop(iteration: Iteration, state: states.TrainState, prompts: PromptBatch, size: Size) -> float:
    """Operations of reading the prompts, their pictures with them: what the compiler counts of the whole rollout, where a loop's body
    counts once, without one token of every answer."""
    weights = iteration.rollout_weights(state.params["policy"])
    program = iteration.generate.lower(weights, prompts, iteration.keys(0).rollout).compile()
    return (program.cost_analysis()["flops"] - sizes.decoder(size, 1, size.length) - 2 * sizes.logits(size, 1)) / 1e9


def parameters(iteration: Iteration) -> int:
    """Of the policy, its backbone included."""
    models = iteration.models
    return sum(leaf.size for leaf in jax.tree.leaves(models.backbone(models.trained["policy"])))


def measure(size: Size, args: argparse.Namespace) -> dict[str, Any]:
    iteration, state, prompts = prepare(size, args)
    params = parameters(iteration)
    hosts.say(f"{args.sharing}: {params / 1e6:.2f} M parameters in the policy; compiling ...")

    seconds, cpu = [], []
    for number in range(WARM_UP + args.iterations):
        begun = time.process_time()
        state, metrics, phases = iterate(iteration, state, prompts, number)
        cpu.append(time.process_time() - begun)
        seconds.append([*phases, sum(phases)])
        hosts.say(f"iteration {number}: " + ", ".join(f"{name} {s:.3f} s" for name, s in zip((*PHASES, "total"), seconds[-1])))
    if float(metrics["length"]) != RESPONSE or not np.isfinite(float(metrics["grad_norm"])):
        raise RuntimeError(
            f"not the work that was meant: responses of {metrics['length']} tokens, gradient {metrics['grad_norm']}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    on_device = jax.devices()[0].memory_stats()
    median = dict(zip((*PHASES, "total"), (statistics.median(column) for column in zip(*seconds[WARM_UP:]))))
    return {
        "batch": size.batch,
        "prompts": len(prompts.tokens_BP),
        "prompt": size.prompt,
        "response": RESPONSE,
        "params": params,
        **{f"{name}_s": round(value, 3) for name, value in median.items()},
        "cpu_s": round(statistics.median(cpu[WARM_UP:]), 3),
        "samples_per_s": round(size.batch / median["total"], 3),
        "peak_rss_gb": round(peak, 2),
        **({"peak_device_gb": round(on_device["peak_bytes_in_use"] / 1e9, 2)} if on_device else {}),
        "compile_s": round(seconds[0][-1] - median["total"], 1),
        "prompt_gflop": round(prompt_gflop(iteration, state, prompts, size), 4),
        **sizes.rates(size, sizes.jax_iteration(size, args.sharing, args.activated, args.group_size), median),
        "matmul_gflops": round(matmul_gflops(args.config.dtype), 1),
    }


def arguments(what: str, *, roles: bool = True) -> argparse.Namespace:
    """The flags, and `config`: the model they describe.

    Args:
        roles: there are several, and --sharing says how they share.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--size", choices=SIZES, default="small")
    if roles:
        parser.add_argument("--sharing", choices=("shared", "separate", "adapters"), default="shared")
        parser.add_argument("--activated", action="store_true", help="adapters that act from the end of the prompt on")
        parser.add_argument(
            "--advantage", choices=("gae", "group", "rloo"), default="gae", help="of critics, or in groups without any"
        )
        parser.add_argument("--group_size", type=int, default=1, help="answers to a prompt")
        parser.add_argument("--microbatches", type=int, default=1, help="parts of rollout, scoring and gradient, each")
    parser.add_argument("--iterations", type=int, default=3, help=f"timed ones, after {WARM_UP} that warm up")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=("none", "dots", "layer"), default="none", help="what gradients compute again")
    parser.add_argument("--scan_unroll", type=int, help="layers in a step of the layer scan; 0: all of them, as below 16 layers")
    args = parser.parse_args()
    if args.scan_unroll is None:
        args.scan_unroll = 0 if SIZES[args.size].layers < 16 else 1
    how = dict(dtype=args.dtype, remat=args.remat, scan_unroll=args.scan_unroll)
    args.config = dataclasses.replace(model_config(SIZES[args.size]), **how)
    args.about = {"framework": "jax", "device": jax.devices()[0].device_kind, "size": args.size}
    if roles:
        if args.activated and args.sharing != "adapters":
            parser.error(f"--activated is for --sharing=adapters, got {args.sharing}")
        if (args.group_size > 1) == (args.advantage == "gae") or SIZES[args.size].batch % args.group_size:
            parser.error(
                f"--group_size must be 1 with --advantage=gae and else at least 2, a divisor of the {SIZES[args.size].batch} answers: got "
                f"--advantage={args.advantage} --group_size={args.group_size}"
            )
        args.about |= {"advantage": args.advantage, "group_size": args.group_size}
        args.about |= {"sharing": args.sharing, "activated": args.activated, "microbatches": args.microbatches}
        # Which tokens they are is only read where prompts come from rows.
        args.config = dataclasses.replace(args.config, activation=tuple(range(sizes.PROMPT_SUFFIX)) if args.activated else ())
    args.about |= how
    return args


def main() -> None:
    host_cpu.prepare()
    args = arguments(__doc__.splitlines()[0])
    result = measure(SIZES[args.size], args)
    print(json.dumps(args.about | result), flush=True)


if __name__ == "__main__":
    main()
