"""The shape of a vision-language model, as frozen dataclasses of plain numbers. `hf/config.py` reads and writes config.json."""

from dataclasses import dataclass, fields, replace


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
    # M-RoPE (Wang et al., arXiv 2409.12191): how many frequencies turn with time, row and column; () = one position for all
    sections: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextConfig:
    """A decoder of the Llama kind: Llama, Mistral, Qwen2, Gemma 3."""

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
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output
    mlp_bias: bool = False
    max_positions: int = 4096
    window: int = 0  # how many tokens back the local layers see, the token itself among them
    local_layers: tuple[int, ...] = ()  # layers that see a window only
    local_rope: RopeConfig | None = None  # theirs; None: as all others
    sees_whole_images: bool = False  # the placeholders of one image see each other, before and after
    norm_offset: float = 0.0  # RMS norms scale by this + their weight
    sandwich: bool = False  # norms after attention and MLP as well as before
    qk_norm: bool = False  # an RMS norm on every query and key
    query_scale: float | None = None  # of the scores; None: head_dim^-0.5
    embed_scale: float = 1.0


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer: CLIP's, read before its last layer, or that of Qwen2-VL and 2.5-VL, which takes pictures of any size."""

    image_size: int  # side of a tile in pixels; 0: the tower takes pictures of any size, whole
    patch: int
    width: int
    mlp: int
    layers: int
    heads: int
    norm_eps: float
    activation: str
    channels: int = 3
    frames: int = 1  # pictures a patch spans; Qwen2-VL, made for films, sees each picture twice
    kind: str = "clip"  # "clip" | "siglip" | "qwen2" | "qwen2_5", see models/vision.py
    feature_layer: int = -2  # index into the hidden states, the embedding being 0; -2 = the last layer but one
    keep_class_token: bool = False
    merge: int = 1  # side of the squares of patches that become one feature
    window: int = 0  # side, in patches, of the squares that a patch sees; 0: the whole picture
    full_layers: tuple[int, ...] = ()  # layers that see the whole picture in spite of windows

    @property
    def used_layers(self) -> int:
        """Layers that run: what lies behind the feature layer is kept for the export only."""
        return self.feature_layer if self.feature_layer >= 0 else self.layers + 1 + self.feature_layer

    @property
    def features(self) -> int:
        """Features of one tile."""
        return self.tile_patches // self.merge**2 + int(self.keep_class_token)

    @property
    def tile_patches(self) -> int:
        return (self.image_size // self.patch) ** 2

    @property
    def patch_values(self) -> int:
        """C: numbers in a flattened patch."""
        return self.channels * self.frames * self.patch**2


@dataclass(frozen=True)
class VLMConfig:
    """A decoder with, or (vision=None) without, eyes."""

    family: str  # `model_type` of config.json
    text: TextConfig
    vision: VisionConfig | None
    image_token: int | None  # the placeholder id in the text
    connector: str = "mlp"  # "mlp" | "linear" | "pool", see models/projector.py
    projector_activation: str = "gelu"
    projector_bias: bool = True
    pinpoints: tuple[tuple[int, int], ...] = ()  # LLaVA-NeXT: the (height, width) that a picture may be cut into tiles at
    activation: tuple[int, ...] = ()  # the tokens that end every prompt, where adapters begin to act; (): they act everywhere
    scan_unroll: int = 1  # layers per step of the layer scan; 0 = all of them
    remat: str = "none"  # "none" | "dots" | "layer": what the backward pass computes again, see models/stack.py
    attention: str = "auto"  # "auto" | "xla" | "splash" | "cudnn" | "interpret", see models/kernels.py
    logp_chunk: int = 0  # response positions whose logits exist at a time; 0: all, see losses/logprob.py
    dtype: str = "float32"  # of activations; softmax, norms and log-probs are float32 always


HOW_RUN = ("activation", "scan_unroll", "remat", "attention", "logp_chunk", "dtype")


def architecture(config: VLMConfig) -> VLMConfig:
    """The architecture alone, as a checkpoint's config.json has it: without how it is run here."""
    return replace(config, **{one.name: one.default for one in fields(config) if one.name in HOW_RUN})
