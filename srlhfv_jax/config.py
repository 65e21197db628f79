"""Run settings: ml_collections files on the outside, frozen dataclasses inside.

A config file (configs/*.py) writes every field; `parsing.parse` turns its ConfigDict into one of the dataclasses below and refuses
unknown, missing and wrongly typed keys, naming the nearest key. The dataclasses have no defaults: the value that holds is in the
file.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from srlhfv_jax.errors import UserError


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes (data, fsdp, tensor); one of them may be -1: whatever devices are left."""

    data: int
    fsdp: int
    tensor: int


@dataclass(frozen=True)
class ModelConfig:
    """How a checkpoint is loaded and run."""

    dtype: str  # of activations: "float32" or "bfloat16"
    param_dtype: str  # of fully trained parameters; float32 masters unless memory forbids
    remat: str  # "none", "dots" or "layer": what the backward pass computes again (models/stack.py)
    scan_unroll: int  # layers per step of the layer scan; 0 = all of them
    attention: str  # "auto": the fused kernel of the platform; "xla", "splash" (TPU), "cudnn" (GPU): this one; models/kernels.py
    logp_chunk: int  # response positions whose logits exist at a time, computed again for gradients; 0: all at once


def inference(dtype: str) -> ModelConfig:
    """A model that is run and never trained: parameters in the dtype of activations, nothing computed again."""
    return ModelConfig(dtype=dtype, param_dtype=dtype, remat="none", scan_unroll=1, attention="auto", logp_chunk=0)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with a schedule. `freeze` lists regular expressions on parameter paths ("vision/", "projector/")."""

    algorithm: str  # "adamw"; or "muon" for the kernels of layers, scaled so that it takes AdamW's rates, and NAdamW for the rest
    learning_rate: float
    schedule: str  # "constant", "cosine" or "linear" (both to 0), after the warm-up
    warmup_fraction: float  # of all steps
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_norm: float  # global norm; 0 = no clipping
    freeze: tuple[str, ...]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters over a frozen backbone, instead of training it (models/lora.py)."""

    rank: int  # 0 = none: the backbone itself is trained
    alpha: float  # what the adapter adds counts alpha / rank times
    targets: tuple[str, ...]  # regular expressions on the paths of kernels of layers, such as "text/layers/.*_proj"
    int8: bool  # the frozen decoder under them in eight bits (models/quantize.py)
    activated: bool  # they act from the end of the prompt on: all before is the backbone's own, read once for all roles


@dataclass(frozen=True)
class DataConfig:
    """One source of rows and how they become batches."""

    path: str  # folder of a TFDS data set, a .jsonl or .parquet file, or a folder of parquet files
    split: str  # of a TFDS data set; for files "" or a slice such as "[:1000]"
    image_dir: str  # images named by relative paths are looked up here; "" = beside the file
    prompt_length: int  # P
    response_length: int  # R
    batch_size: int  # over all processes
    workers: int  # threads that decode and tokenise ahead
    max_pixels: (
        int  # of a picture after it was resized, where the family lets pictures differ in size; 0 = the checkpoint's own limit
    )
    picture_buckets: (
        int  # sizes that a batch's pictures are padded to: the largest, its half, its quarter, ...; each compiles once
    )


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int
    keep: int


@dataclass(frozen=True)
class LogConfig:
    every_steps: int
    tensorboard: bool


@dataclass(frozen=True)
class SFTConfig:
    """`srlhfv sft`."""

    seed: int
    init: str  # a Hugging Face folder, an export, or the workdir of an earlier stage
    init_random: bool  # keep only the shapes and the tokenizer of `init`, start from random weights
    steps: int
    microbatches: int  # gradient accumulation inside a step
    lora: LoraConfig
    model: ModelConfig
    mesh: MeshConfig
    data: DataConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class ScoresConfig:
    """`srlhfv scores`, `reward` and `cost`: score heads on one backbone from dual preferences."""

    seed: int
    init: str
    heads: tuple[str, ...]  # ("reward", "cost"), ("reward",) or ("cost",)
    sign: str  # "label": +-1 from the safety label; "graded": -harmless_rate
    sign_weight: float  # kappa of the sign terms
    score_l2: float  # rho
    steps: int
    microbatches: int
    evaluation: str  # path of held-out pairs, read with the settings of `data`; "" = none
    lora: LoraConfig
    model: ModelConfig
    mesh: MeshConfig
    data: DataConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class PairsConfig:
    """Reward and cost heads trained beside a guard, on its backbone."""

    path: str  # dual preferences, read with the settings of `data`; "" = no such heads
    batch_size: int  # pairs of a step
    coef: float  # of their loss beside the guard's
    sign: str  # as in ScoresConfig, like all that follows
    sign_weight: float
    score_l2: float
    evaluation: str


@dataclass(frozen=True)
class GuardConfig:
    """`srlhfv guard`: severity and harm categories of questions and of answers."""

    seed: int
    init: str
    taxonomy: str  # of data/taxonomies.py: what the rows are labelled with
    parts: tuple[str, ...]  # ("input", "output"): judge questions, answers, or both
    category_weight: float  # of the category loss beside the severity loss
    balance: bool  # rare classes weigh more while training; probabilities are those of the data again afterwards
    false_positive_rate: float  # at most this share of safe calibration rows is called unsafe
    thresholds: str  # "each" part by its own calibration rows, or "one" for all parts, by all rows: steadier where rows are few
    steps: int
    microbatches: int
    calibration: str  # path of held-out rows that set the thresholds, read with the settings of `data`; "" = 0.5
    evaluation: str  # path of other held-out rows; "" = none
    pairs: PairsConfig
    lora: LoraConfig
    model: ModelConfig
    mesh: MeshConfig
    data: DataConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class RolloutConfig:
    temperature: float
    top_k: int  # 0 = off; anything else than 0 makes rollouts off-policy and is refused by ppo_lag
    top_p: float  # 1 = off; as top_k
    old_logp: str  # "behaviour": from the sampler; "recompute": with the training graph
    layout: str  # of the policy's weights, "gathered": whole over fsdp, cast once; "training": as they are (rollout/layout.py)
    offload: str  # to the host's memory, "none"; "optimizer": its states, but for the update; "idle": also trees nothing reads
    microbatches: int  # parts of the prompts that are answered one after the other: the cache of one at a time, the same tokens
    score_microbatches: int  # parts of the answers that are scored one after the other


@dataclass(frozen=True)
class PPOConfig:
    """Constants of the update (Schulman et al., arXiv 1707.06347; Safe RLHF, arXiv 2310.12773)."""

    kl_coef: float  # beta
    gamma: float
    gae_lambda: float
    clip_ratio: float
    clip_value: float
    clip_score: float  # the end score is clipped to +-clip_score, never the KL
    epochs: int  # passes over one rollout
    minibatches: int  # per epoch
    reduction: str  # "token": mean over all tokens; "sequence": mean over each sequence first (the reference)
    whiten: str  # "none", or "scale": divide each stream's advantages by its standard deviation, no shift
    scale_scores: str  # "none", or "std": divide each score stream by its standard deviation in the rollout; zero stays zero
    missing_eos_penalty: float  # subtracted from the reward of a response cut at R


@dataclass(frozen=True)
class ConstraintConfig:
    """E[C] <= budget and the multiplier that enforces it."""

    kind: str  # "mean": C; "rectified": max(0, C); "probability": 1[C > 0]
    budget: float  # d, in units of `kind`
    controller: str  # "none" (plain PPO), "fixed" (reward shaping), "log", "projected", "pid"
    init: float  # lambda at the start
    max: float
    learning_rate: float  # of "log" and "projected"; Ki of "pid"
    kp: float  # pid
    kd: float  # pid
    smoothing: float  # pid: moving average of the P and D terms
    window: int  # episode costs averaged for the update
    delay: int  # iterations before the first update


@dataclass(frozen=True)
class PTXConfig:
    """Supervised loss beside PPO's (the reference: coefficient 16, half of the gradient)."""

    coef: float  # 0 = off; no rows are read then
    path: str


@dataclass(frozen=True)
class ValidationConfig:
    """The prompts on which `best_feasible` is chosen. Test prompts choose nothing."""

    path: str  # "" = off
    every_steps: int
    judge: str  # "models": learned reward and cost; "oracle": the embedded task's
    budget: float  # on the judge's mean cost


@dataclass(frozen=True)
class PPOLagConfig:
    """`srlhfv ppo_lag`."""

    seed: int
    policy: str  # start and reference
    reference: str  # "" = the policy's own start; a later round may keep the first SFT policy
    scorer: str  # reward and cost heads on one backbone ("" when reward and cost are given)
    reward: str  # separate reward model ("" when scorer is given)
    cost: str
    sharing: str  # "shared": policy, reference, scorer, critic; "separate": six trees
    iterations: int
    microbatches: int
    critic_warmup: int  # iterations that train the critics alone
    rollout: RolloutConfig
    ppo: PPOConfig
    constraint: ConstraintConfig
    ptx: PTXConfig
    validation: ValidationConfig
    lora: LoraConfig  # of a policy that starts without an adapter, where sharing is "adapters"
    model: ModelConfig
    mesh: MeshConfig
    data: DataConfig
    policy_optimizer: OptimizerConfig
    critic_optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    log: LogConfig


@dataclass(frozen=True)
class TaskConfig:
    """The embedded task "Look before you answer": pictures, prompts, and the noise of its annotators."""

    image_size: int
    patch: int
    vision_layers: int
    vision_width: int
    text_layers: int
    text_width: int
    heads: int
    naming_rows: int
    sft_rows: int
    prompts: int  # PPO prompts
    validation_prompts: int
    test_prompts: int
    unseen_prompts: int  # of concepts that no stage has seen
    pair_prompts: int  # prompts sampled for pairs, in each round
    heldout_pair_prompts: int
    responses_per_prompt: int  # drawn for each pair prompt; the pair is two different ones of them
    pair_temperature: float
    mix: tuple[float, ...]  # harmful, contextual harmless, neutral about a hazard, neutral harmless
    name_pairs: int  # constructed pairs that differ in the name alone, added in the first round
    topic_pairs: int  # constructed pairs of an answer to the question and one to another, added in the first round
    harm_at_budget: float  # the harm rate and the over-refusal at which the oracle budget is set
    over_refusal_at_budget: float
    preference_beta: float  # Bradley-Terry inverse temperature of the annotators
    flip: float  # share of labels turned over
    guard_rows: int
    guard_heldout_rows: int  # of those that set its thresholds, and of those it is measured by


@dataclass(frozen=True)
class QuickstartConfig:
    """`srlhfv quickstart`: the whole pipeline. The paths inside the stages are filled in by the pipeline."""

    seed: int
    rounds: int  # of sample -> annotate -> refit -> fine-tune
    sweep: tuple[float, ...]  # fixed multipliers trained beside, with --sweep
    task: TaskConfig
    naming: SFTConfig
    sft: SFTConfig
    scores: ScoresConfig  # of the first round
    refit_steps: int  # of the later ones: they start from the heads before
    ppo: PPOLagConfig
    ppo_lag: PPOLagConfig
    guard: GuardConfig
    guard_rounds: int  # of regeneration


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server that judges."""

    url: str  # up to and with the version, such as "https://api.openai.com/v1"; "" = none
    model: str
    key_variable: str  # environment variable that holds the key; "" = the server wants none
    temperature: float
    max_tokens: int  # of a reply
    workers: int  # calls under way at once
    requests_per_minute: float  # 0 = no limit
    timeout_s: float
    attempts: int  # calls for one judgement, the first included
    backoff_s: float  # before the second attempt; doubled before each later one


@dataclass(frozen=True)
class EvaluateConfig:
    """`srlhfv evaluate --config`: policies on published benchmarks."""

    seed: int
    root: str  # folder with one folder per benchmark, named as in `benchmarks`
    benchmarks: tuple[str, ...]
    limit: int  # first cases of each benchmark; 0 = all
    policies: str  # "name=path,name=path": checkpoints to sample, or .jsonl files of recorded answers; the first is the baseline
    samples: int  # answers to each case
    temperature: float  # of the answers; 0 = greedy
    reasoning: bool  # answers of reasoning models: judge what follows </think>, score the thoughts apart
    judge: str  # "rules", "models", "recorded" or "endpoint"
    pairwise: bool  # compare each policy with the baseline, in both orders
    scorer: str  # of judge "models": a checkpoint with the heads reward and cost
    recorded: str  # of judge "recorded": a .jsonl file of judgements
    endpoint: EndpointConfig
    model: ModelConfig
    mesh: MeshConfig
    data: DataConfig  # lengths and batch size; the paths are not read


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain nested dict of a settings dataclass, as written to WORKDIR/config.json."""
    return dataclasses.asdict(settings)


def choose(value: str, path: str, *allowed: str) -> str:
    """Check a string setting against its allowed values; returns it, or raises UserError naming them."""
    if value not in allowed:
        raise UserError(f"{path} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value
