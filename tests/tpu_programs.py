"""A small PPO-Lagrangian run on eight chips that are not here, compiled as `srlhfv plan` compiles it. A process of its own: the
compiler for TPUs reads the environment once.

python tests/tpu_programs.py      one line of JSON about each function
"""

import collections
import dataclasses
import json
import re

import jax
import tiny_vlm
from tiny_stages import settings

from srlhfv_jax.config import MeshConfig, PPOLagConfig
from srlhfv_jax.models import vlm
from srlhfv_jax.models.config import VisionConfig
from srlhfv_jax.parallel import rules
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.plan import hlo, memory, programs as compiler, topology
from srlhfv_jax.plan.count import KINDS

# One head, as wide as the kernel for attention wants it.
TEXT = dataclasses.replace(tiny_vlm.CONFIG.text, width=128, mlp=128, heads=1, kv_heads=1, head_dim=128)
VISION = VisionConfig(image_size=12, patch=4, width=40, mlp=48, layers=2, heads=2, norm_eps=1e-5, activation="quick_gelu")
CONFIG = dataclasses.replace(tiny_vlm.CONFIG, text=TEXT, vision=VISION)
ROWS = 256  # the pictures' features of a minibatch are larger than any parameter


def precisions(text: str) -> dict[str, int]:
    """How exactly float32 numbers are multiplied, and how often. Running sums of whole numbers are products to this compiler too."""
    products = [line for line in text.splitlines() if re.search(r" = f32\[.* (convolution|dot)\(", line)]
    found = (re.search(r"operand_precision=\{(\w+,\w+)\}", line) for line in products)
    return collections.Counter("default" if one is None else one[1] for one in found)


def moved(text: str) -> list[str]:
    """What goes from chip to chip and is larger than any parameter: rows of pictures."""
    parameters = jax.tree.leaves(jax.eval_shape(lambda: vlm.init(CONFIG, jax.random.key(0))))
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in parameters)
    assert largest < 4 * ROWS // 2 * VISION.features * VISION.width
    instructions = [one for computation in hlo.parse(text)[0].values() for one in computation.values()]
    collectives = [one for one in instructions if one.kind.removesuffix("-start") in KINDS]
    return [f"{one.kind} {array.dims}" for one in collectives for array in one.arrays if array.size > largest]


def places(tree) -> dict[str, str]:
    return {path: str(leaf.sharding.spec) for path, leaf in rules.leaves(tree)}


def main() -> None:
    programs, texts = [], []

    def keep(name, function, beside, limit, loop, *arguments):
        found = original(name, function, beside, limit, loop, *arguments)
        programs.append((name, arguments, found[1]))
        return found

    original, read = compiler.compile_function, compiler._text
    compiler.compile_function, compiler._text = keep, lambda *program: texts.append(read(*program)) or texts[-1]
    mesh = make_mesh(MeshConfig(1, 8, 1), topology.devices("v5e:2x4"))
    rows = {"data.batch_size": ROWS, "ppo.minibatches": 2, "rollout.layout": "training"}
    memory.of(settings(PPOLagConfig, "ppo_lag", **rows), CONFIG, mesh, topology.limit_bytes("v5e:2x4"))
    for (name, arguments, outputs), text in zip(programs, texts, strict=True):
        steady = name != "update" or all(places(old) == places(new) for old, new in zip(arguments[:2], outputs[:2], strict=True))
        print(json.dumps({"name": name, "precision": precisions(text), "moved": moved(text), "steady": steady}))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
