"""What both sides of the comparison run: the shapes, and how much arithmetic an iteration on them is. Plain Python.

One pass = everything one forward pass of the PyTorch loop does: vision tower, projector, decoder and logits over batch x (prompt
+ response) positions. Counted are the products of matrices, two operations for each multiply-add, attention as the full rectangle
that both sides compute.
"""

from dataclasses import dataclass

PATCH, CHANNELS, RESPONSE = 14, 3, 64
PROMPT_SUFFIX = 5  # tokens of the prompt that activated adapters act on


@dataclass(frozen=True)
class Size:
    layers: int
    width: int
    mlp: int
    heads: int
    vocab: int
    vision_layers: int
    vision_width: int
    image: int
    batch: int
    prompt: int  # positions, image placeholders included

    @property
    def features(self) -> int:
        return (self.image // PATCH) ** 2

    @property
    def vision_heads(self) -> int:
        return max(2, self.vision_width // 64)

    @property
    def length(self) -> int:
        return self.prompt + RESPONSE


SIZES = {
    "test": Size(1, 32, 48, 2, 64, 2, 16, 28, batch=2, prompt=7),  # runs the code; its times mean nothing
    "tiny": Size(4, 256, 688, 4, 4096, 2, 128, 56, batch=16, prompt=48),
    "small": Size(6, 384, 1024, 6, 8192, 4, 192, 112, batch=16, prompt=96),
    "medium": Size(12, 768, 2048, 12, 32064, 8, 384, 224, batch=4, prompt=288),
    # TinyLlama's decoder, LLaVA-1.5's tower; for a GPU
    "1b": Size(22, 2048, 5632, 32, 32064, 24, 1024, 336, batch=16, prompt=640),
}


def vision(size: Size, layers: int) -> float:
    """The tower over the batch's images. Read is the layer before the last: we stop there, PyTorch runs them all."""
    E, tokens = size.vision_width, size.features + 1
    layer = 2 * tokens * (4 * E * E + 8 * E * E) + 4 * tokens * tokens * E
    return size.batch * (layers * layer + 2 * size.features * CHANNELS * PATCH**2 * E)


def projector(size: Size) -> float:
    return 2 * size.batch * size.features * (size.vision_width + size.width) * size.width


def decoder(size: Size, positions: int, attended: float, read: int | None = None) -> float:
    """`positions` positions of every row, each attending to `attended` ones; of the last layer, if given, `read` only: there the
    others need keys and values alone."""
    keys_values = 2 * size.width**2
    rest = 2 * size.width**2 + 3 * size.width * size.mlp
    layer = 2 * (keys_values + rest) + 4 * attended * size.width
    saved = 0 if read is None else (positions - read) * (2 * rest + 4 * attended * size.width)
    return size.batch * (positions * size.layers * layer - saved)


def logits(size: Size, positions: int) -> float:
    return 2 * size.batch * positions * size.width * size.vocab


def one_pass(size: Size) -> float:
    tower = vision(size, size.vision_layers)
    return tower + projector(size) + decoder(size, size.length, size.length) + logits(size, size.length)


def jax_iteration(size: Size, sharing: str, activated: bool, group_size: int = 1) -> dict[str, float]:
    """Operations of our iteration by phase. A gradient costs two more passes, over a frozen backbone one, and none through the
    frozen tower. Values are computed in the update alone, and what an adapter adds is not counted. Activated adapters leave the
    prompt to the backbone, which reads it once in each phase for all of them. Groups of several answers have no critics, and the
    sampler reads their prompt once; scoring and update read it for each answer."""
    scorers = 2 if sharing == "separate" else 1
    trained = 1 if group_size > 1 else 1 + scorers  # the policy, and as many trees that criticise
    gradient = 2 if sharing == "adapters" else 3
    answers = logits(size, RESPONSE)
    tower = vision(size, size.vision_layers - 1)
    if activated:
        alone = size.prompt - PROMPT_SUFFIX
        prefix = projector(size) + decoder(size, alone, alone, read=0)
        inside = decoder(size, PROMPT_SUFFIX + RESPONSE, size.length, read=RESPONSE + 1)
        return {
            "generate": (tower + prefix + decoder(size, PROMPT_SUFFIX, size.length)) / group_size
            + decoder(size, RESPONSE - 1, size.length)
            + answers,
            "score": prefix + 2 * inside + answers,
            "update": prefix + gradient * (trained * inside + answers),
        }
    inside = projector(size) + decoder(size, size.length, size.length, read=RESPONSE + 1)
    prefill = tower + projector(size) + decoder(size, size.prompt, size.prompt, read=1)
    return {
        "generate": prefill / group_size + decoder(size, RESPONSE - 1, size.length) + answers,
        "score": (1 + scorers) * inside + answers,
        "update": gradient * (trained * inside + answers),
    }


def torch_iteration(size: Size) -> dict[str, float]:
    """Operations of the loop in `torch_ppo_lag.py` by phase: six models, each with a tower of its own."""
    tower, inside = vision(size, size.vision_layers), projector(size) + decoder(size, size.length, size.length)
    everywhere = logits(size, size.length)
    prefill = tower + projector(size) + decoder(size, size.prompt, size.prompt)
    seen = size.prompt + RESPONSE / 2
    return {
        "generate": prefill + decoder(size, RESPONSE - 1, seen) + logits(size, RESPONSE),
        "score": 6 * (tower + inside) + 2 * everywhere,
        "update": 3 * tower + 9 * inside + 3 * everywhere,
    }


def rates(size: Size, work: dict[str, float], seconds: dict[str, float]) -> dict[str, float]:
    """`forward_equivalents` and the achieved `gflops`, of the iteration and of each phase."""
    total = sum(work.values())
    return {
        "forward_equivalents": round(total / one_pass(size), 2),
        "gflops": round(total / seconds["total"] / 1e9, 1),
        **{f"{phase}_gflops": round(amount / seconds[phase] / 1e9, 1) for phase, amount in work.items()},
    }
