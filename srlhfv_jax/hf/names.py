"""Every parameter leaf beside its Hugging Face name, one table for both directions.

    our leaf                                    tensor in the file                          stored as
    text/layers/self_attn/q_proj/kernel         ...layers.{i}.self_attn.q_proj.weight       same (out, in), stacked over i
    text/layers/self_attn/o_proj/kernel         ...layers.{i}.self_attn.o_proj.weight       transposed to (in, out), stacked
    vision/embeddings/patch_embedding/kernel    ...patch_embedding.weight                   (out, C, y, x) flattened

Two historical layouts exist on disk: `language_model.model.layers...` with `vision_tower.vision_model...` (the published
LLaVA-1.5, and what we write) and the names of the modules in memory, `model.language_model.layers...`; `transformers` 5 writes
a mixture. `published` maps them all to the first. Another family is another table.
"""

import re
from typing import Any, NamedTuple

from srlhfv_jax.models.config import TextConfig, VisionConfig, VLMConfig

SAME, TRANSPOSED, FLATTENED = "same", "transposed", "flattened"

ROWS_OF_LLAMA_LAYER = (
    ("input_layernorm/scale", "input_layernorm.weight", SAME),
    ("self_attn/q_proj/kernel", "self_attn.q_proj.weight", SAME),
    ("self_attn/k_proj/kernel", "self_attn.k_proj.weight", SAME),
    ("self_attn/v_proj/kernel", "self_attn.v_proj.weight", SAME),
    ("self_attn/o_proj/kernel", "self_attn.o_proj.weight", TRANSPOSED),
    ("post_attention_layernorm/scale", "post_attention_layernorm.weight", SAME),
    ("mlp/gate_proj/kernel", "mlp.gate_proj.weight", SAME),
    ("mlp/up_proj/kernel", "mlp.up_proj.weight", SAME),
    ("mlp/down_proj/kernel", "mlp.down_proj.weight", TRANSPOSED),
)
ATTENTION_BIASES = tuple((f"self_attn/{n}/bias", f"self_attn.{n}.bias", SAME) for n in ("q_proj", "k_proj", "v_proj", "o_proj"))
MLP_BIASES = tuple((f"mlp/{n}/bias", f"mlp.{n}.bias", SAME) for n in ("gate_proj", "up_proj", "down_proj"))

ROWS_OF_CLIP_LAYER = (
    *(
        (f"{norm}/{ours}", f"{norm}.{theirs}", SAME)
        for norm in ("layer_norm1", "layer_norm2")
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    ),
    *((f"{n}/kernel", f"self_attn.{n}.weight", SAME) for n in ("q_proj", "k_proj", "v_proj")),
    *((f"{n}/bias", f"self_attn.{n}.bias", SAME) for n in ("q_proj", "k_proj", "v_proj", "out_proj")),
    ("out_proj/kernel", "self_attn.out_proj.weight", TRANSPOSED),
    ("fc1/kernel", "mlp.fc1.weight", SAME),
    ("fc1/bias", "mlp.fc1.bias", SAME),
    ("fc2/kernel", "mlp.fc2.weight", TRANSPOSED),
    ("fc2/bias", "mlp.fc2.bias", SAME),
)

NOT_WEIGHTS = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")  # buffers old versions saved


class Leaf(NamedTuple):
    """One of our leaves and the tensors that fill it."""

    path: tuple[str, ...]
    name: str  # a tensor's name, or with "{}" the template of one name per layer
    layers: range | None  # the layers stacked on axis 0
    stored: str  # SAME | TRANSPOSED | FLATTENED

    @property
    def names(self) -> list[str]:
        return [self.name] if self.layers is None else [self.name.format(i) for i in self.layers]


def table(config: VLMConfig) -> list[Leaf]:
    """Every leaf of a model's parameter tree, in the order of the forward pass."""
    if config.vision is None:
        return _text(config.text, "model.", "lm_head.weight")
    return [
        *_vision(config.vision, "vision_tower.vision_model."),
        *_projector(config.projector_bias, "multi_modal_projector."),
        *_text(config.text, "language_model.model.", "language_model.lm_head.weight"),
    ]


def published(config: VLMConfig, name: str) -> str:
    """A tensor's name in the layout of `table`, whichever of the historical layouts it came in."""
    if config.vision is None:
        return name
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^model\.(vision_tower|multi_modal_projector)\.", r"\1.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def ignored(config: VLMConfig, name: str) -> bool:
    """Tensors that are no parameters: buffers, and the second copy of a tied embedding."""
    return bool(NOT_WEIGHTS.search(name)) or (config.text.tied_head and name.endswith("lm_head.weight"))


def stored_shape(config: VLMConfig, leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of each tensor in the file, from the shape of our leaf."""
    own = shape if leaf.layers is None else shape[1:]
    if leaf.stored == TRANSPOSED:
        return own[::-1]
    if leaf.stored == FLATTENED:
        return (own[0], config.vision.channels, config.vision.patch, config.vision.patch)
    return own


def leaf(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    """tree[a][b][c] for the path (a, b, c)."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """tree[a][b][c] = value, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def compressed(found: list[str]) -> list[str]:
    """Lines that differ only in the layer number, as one: `layers.0-31.mlp.up_proj.weight`."""
    layers: dict[str, list[int]] = {}
    for line in found:
        number = re.search(r"(?<=layers\.)\d+", line)
        template = line if number is None else f"{line[: number.start()]}{{}}{line[number.end() :]}"
        layers.setdefault(template, []).extend([] if number is None else [int(number.group())])
    return [template.replace("{}", _ranges(sorted(numbers))) for template, numbers in layers.items()]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _text(c: TextConfig, prefix: str, head: str) -> list[Leaf]:
    rows = ROWS_OF_LLAMA_LAYER + ATTENTION_BIASES * c.attention_bias + MLP_BIASES * c.mlp_bias
    return [
        Leaf(("text", "embed", "embedding"), prefix + "embed_tokens.weight", None, SAME),
        *_layers(("text", "layers"), prefix + "layers.{}.", range(c.layers), rows),
        Leaf(("text", "norm", "scale"), prefix + "norm.weight", None, SAME),
        *([] if c.tied_head else [Leaf(("text", "head", "kernel"), head, None, SAME)]),
    ]


def _vision(c: VisionConfig, prefix: str) -> list[Leaf]:
    embeddings, unused = ("vision", "embeddings"), ("vision", "unused")
    layers = prefix + "encoder.layers.{}."

    def norm(path: tuple[str, ...], name: str) -> list[Leaf]:
        return [Leaf((*path, "scale"), name + ".weight", None, SAME), Leaf((*path, "bias"), name + ".bias", None, SAME)]

    return [
        Leaf((*embeddings, "class_embedding"), prefix + "embeddings.class_embedding", None, SAME),
        Leaf((*embeddings, "patch_embedding", "kernel"), prefix + "embeddings.patch_embedding.weight", None, FLATTENED),
        Leaf((*embeddings, "position_embedding"), prefix + "embeddings.position_embedding.weight", None, SAME),
        *norm((*embeddings, "pre_layernorm"), prefix + "pre_layrnorm"),  # the spelling of CLIP's checkpoints
        *_layers(("vision", "layers"), layers, range(c.used_layers), ROWS_OF_CLIP_LAYER),
        *_layers((*unused, "layers"), layers, range(c.used_layers, c.layers), ROWS_OF_CLIP_LAYER),
        *norm((*unused, "post_layernorm"), prefix + "post_layernorm"),
    ]


def _projector(bias: bool, prefix: str) -> list[Leaf]:
    rows = [(("linear_1", "kernel"), "linear_1.weight", SAME), (("linear_2", "kernel"), "linear_2.weight", TRANSPOSED)]
    if bias:
        rows += [((name, "bias"), f"{name}.bias", SAME) for name in ("linear_1", "linear_2")]
    return [Leaf(("projector", *path), prefix + name, None, stored) for path, name, stored in rows]


def _layers(path: tuple[str, ...], prefix: str, layers: range, rows) -> list[Leaf]:
    if not layers:
        return []
    return [Leaf((*path, *ours.split("/")), prefix + theirs, layers, stored) for ours, theirs, stored in rows]
