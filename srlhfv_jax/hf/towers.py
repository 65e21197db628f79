"""Vision towers on square tiles: CLIP, which the LLaVAs have, and SigLIP, which SmolVLM, Idefics3 and Gemma 3 have."""

from typing import Any

from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.leaves import FLATTENED, SAME, TRANSPOSED, Leaf, norm, of_layers, rows_of_norms, single
from srlhfv_jax.models.config import VisionConfig
from srlhfv_jax.models.layers import ACTIVATIONS

ROWS = (
    *rows_of_norms(("layer_norm1", "layer_norm1"), ("layer_norm2", "layer_norm2")),
    *((f"{n}/kernel", f"self_attn.{n}.weight", SAME) for n in ("q_proj", "k_proj", "v_proj")),
    *((f"{n}/bias", f"self_attn.{n}.bias", SAME) for n in ("q_proj", "k_proj", "v_proj", "out_proj")),
    ("out_proj/kernel", "self_attn.out_proj.weight", TRANSPOSED),
    ("fc1/kernel", "mlp.fc1.weight", SAME),
    ("fc1/bias", "mlp.fc1.bias", SAME),
    ("fc2/kernel", "mlp.fc2.weight", TRANSPOSED),
    ("fc2/bias", "mlp.fc2.bias", SAME),
)


def read(c: dict[str, Any], kind: str, origin: str, *, feature_layer: int, merge: int = 1, full: bool = False) -> VisionConfig:
    """The tower of a vision_config whose silent keys were filled in.

    Args:
        kind: "clip" or "siglip"; the other arguments as in VisionConfig, `full` being `keep_class_token`.
    """
    tower = VisionConfig(
        image_size=c["image_size"],
        patch=c["patch_size"],
        width=c["hidden_size"],
        mlp=c["intermediate_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        norm_eps=c["layer_norm_eps"],
        activation=choose(c["hidden_act"], f"{origin}: vision_config.hidden_act", *ACTIVATIONS),
        channels=c["num_channels"],
        kind=kind,
        feature_layer=feature_layer,
        keep_class_token=full,
        merge=merge,
    )
    side = tower.image_size // tower.patch
    if not side or side % merge:
        raise UserError(
            f"{origin}: image_size {tower.image_size} does not hold squares of {merge} patches of {tower.patch} pixels"
        )
    return sound(tower, origin)


def sound(c: VisionConfig, origin: str) -> VisionConfig:
    """The tower, if its heads share its width evenly.

    Raises:
        UserError: they do not.
    """
    if c.width % c.heads:
        raise UserError(f"{origin}: the vision tower's width {c.width} is not a multiple of its {c.heads} heads")
    return c


def table(c: VisionConfig, prefix: str) -> list[Leaf]:
    """Every leaf of the tower whose tensors begin with `prefix`."""
    embeddings, layers = prefix + "embeddings.", prefix + "encoder.layers.{}."
    both = [
        single("vision/embeddings/patch_embedding/kernel", embeddings + "patch_embedding.weight", FLATTENED),
        single("vision/embeddings/position_embedding", embeddings + "position_embedding.weight"),
        *of_layers(("vision", "layers"), layers, range(c.used_layers), ROWS),
    ]
    if c.kind == "siglip":
        bias = single("vision/embeddings/patch_embedding/bias", embeddings + "patch_embedding.bias")
        return [*both, bias, *norm("vision/post_layernorm", prefix + "post_layernorm")]
    return [
        *both,
        single("vision/embeddings/class_embedding", embeddings + "class_embedding"),
        *norm("vision/embeddings/pre_layernorm", prefix + "pre_layrnorm"),  # the spelling of CLIP's checkpoints
        *of_layers(("vision", "unused", "layers"), layers, range(c.used_layers, c.layers), ROWS),
        *norm("vision/unused/post_layernorm", prefix + "post_layernorm"),
    ]
