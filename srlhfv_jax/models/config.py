"""The shape of a vision-language model, as frozen dataclasses of plain numbers. `hf/config.py` reads and writes config.json."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding (Su et al., arXiv 2104.09864) and the scaling variants of Llama checkpoints."""

    theta: float
    kind: str = "default"  # "default" | "linear" | "dynamic" | "yarn" | "llama3"; as `rope_type` in config.json
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_max_positions: int = 8192  # llama3, yarn, dynamic
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None = the formula of the paper


@dataclass(frozen=True)
class TextConfig:
    """A Llama decoder."""

    vocab: int
    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    tied_head: bool
    activation: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    max_positions: int = 4096


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower, read at `feature_layer` with the class token dropped."""

    image_size: int
    patch: int
    width: int
    mlp: int
    layers: int
    heads: int
    norm_eps: float
    activation: str  # "quick_gelu" | "gelu"
    channels: int = 3
    feature_layer: int = -2  # index into the hidden states, the embedding being 0; -2 = the last layer but one
    keep_class_token: bool = False

    @property
    def used_layers(self) -> int:
        """Layers that run: what lies behind the feature layer is kept for the export only."""
        return self.feature_layer if self.feature_layer >= 0 else self.layers + 1 + self.feature_layer

    @property
    def features(self) -> int:
        """N: the features (= placeholder tokens) of one image."""
        return (self.image_size // self.patch) ** 2 + int(self.keep_class_token)


@dataclass(frozen=True)
class VLMConfig:
    """A decoder with, or (vision=None) without, eyes."""

    family: str  # `model_type` of config.json: "llava" or "llama"
    text: TextConfig
    vision: VisionConfig | None
    image_token: int | None  # the placeholder id in the text
    projector_activation: str = "gelu"
    projector_bias: bool = True
    scan_unroll: int = 1  # layers per step of the layer scan; 0 = all of them
    remat: str = "none"  # "none" | "dots" | "layer": what the backward pass computes again, see models/stack.py
    dtype: str = "float32"  # of activations; softmax, norms and log-probs are float32 always
