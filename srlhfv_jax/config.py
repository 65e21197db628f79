"""Run settings: ml_collections files on the outside, frozen dataclasses inside.

A config file (configs/*.py) writes every field; `parsing.parse` turns its ConfigDict into one of the dataclasses below and refuses
unknown, missing and wrongly typed keys, naming the nearest key, and values out of the range in a field's type. The dataclasses
have no defaults: the value that holds is in the file.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from srlhfv_jax.errors import UserError, public, shown
from srlhfv_jax.ranges import Axis, Count, CountOrOff, Dtype, Number, OneOf, Parts, Positive, Range, Regex, Rows, Seed, Share
from srlhfv_jax.ranges import Tokens, Weight, Width

TOKENS = 2**28  # of a batch: 1 GB of ids


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes (data, fsdp, tensor); one of them may be -1: whatever devices are left."""

    data: Axis
    fsdp: Axis
    tensor: Axis


@dataclass(frozen=True)
class ModelConfig:
    """How a checkpoint is loaded and run."""

    dtype: Dtype  # of activations; float32 is multiplied as such on every platform
    param_dtype: Dtype  # of fully trained parameters; float32 masters unless memory forbids
    remat: Annotated[str, OneOf("none", "dots", "layer")]  # what the backward pass computes again (models/stack.py)
    scan_unroll: CountOrOff  # layers per step of the layer scan; 0 = all of them
    attention: str  # "auto": the fused kernel of the platform; "xla", "splash" (TPU), "cudnn" (GPU): this one; models/kernels.py
    logp_chunk: Tokens  # response positions whose logits exist at a time, computed again for gradients; 0: all at once


def inference(dtype: str) -> ModelConfig:
    """A model that is run and never trained: parameters in the dtype of activations, nothing computed again."""
    return ModelConfig(dtype=dtype, param_dtype=dtype, remat="none", scan_unroll=1, attention="auto", logp_chunk=0)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with a schedule. `freeze` lists regular expressions on parameter paths ("vision/", "projector/")."""

    algorithm: Annotated[
        str, OneOf("adamw", "muon")
    ]  # "muon": for the kernels of layers, scaled so that it takes AdamW's rates, and NAdamW for the rest
    learning_rate: Share
    head_learning_rate: Share  # of score heads and of a guard's; 0 = learning_rate
    schedule: Annotated[str, OneOf("constant", "cosine", "linear")]  # (the last two to 0), after the warm-up
    warmup_fraction: Share  # of all steps
    weight_decay: Weight
    b1: Annotated[float, Range(0, 0.999999)]
    b2: Annotated[float, Range(0, 0.9999999)]
    eps: Annotated[float, Range(0, 1, above=True)]
    clip_norm: Weight  # global norm; 0 = no clipping
    freeze: tuple[Regex, ...]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters over a frozen backbone, instead of training it (models/lora.py)."""

    rank: Annotated[int, Range(0, 2**14)]  # 0 = none: the backbone itself is trained
    alpha: Positive  # what the adapter adds counts alpha / rank times
    targets: tuple[Regex, ...]  # regular expressions on the paths of kernels of layers, such as "text/layers/.*_proj"
    int8: bool  # the frozen decoder under them in eight bits (models/quantize.py)
    activated: bool  # they act from the end of the prompt on: all before is the backbone's own, read once for all roles


@dataclass(frozen=True)
class DataConfig:
    """One source of rows and how they become batches."""

    path: str  # folder of a TFDS data set, a .jsonl or .parquet file, or a folder of parquet files
    split: str  # of a TFDS data set or a folder of files, with or without a slice such as "train[:1000]"; one file needs none
    image_dir: str  # images named by relative paths are looked up here; "" = beside the file
    allow_dir: str  # a second folder that links of images may lead to, and absolute paths name; "" = none
    prompt_length: Tokens  # P
    response_length: Annotated[int, Range(1, 2**20)]  # R
    batch_size: Rows  # over all processes
    workers: Annotated[int, Range(0, 1024)]  # threads that decode and tokenise ahead
    max_pixels: CountOrOff  # of a picture after it was resized, where its family lets sizes differ; 0 = the checkpoint's limit
    picture_buckets: Annotated[int, Range(1, 16)]  # sizes that a batch's pictures are padded to: the largest, its half, ...

    def __post_init__(self) -> None:
        if self.batch_size * (self.prompt_length + self.response_length) > TOKENS:
            raise UserError(
                f"config.data: a batch of {self.batch_size} rows of {self.prompt_length} + {self.response_length} tokens is above "
                f"{TOKENS} tokens: lower batch_size, prompt_length or response_length"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: CountOrOff  # 0 = the last step alone
    keep: Count  # the newest so many


@dataclass(frozen=True)
class LogConfig:
    every_steps: Count
    tensorboard: bool


@dataclass(frozen=True)
class SFTConfig:
    """`srlhfv sft`."""

    seed: Seed
    init: str  # a Hugging Face folder, an export, or the workdir of an earlier stage
    init_random: bool  # keep only the shapes and the tokenizer of `init`, start from random weights
    steps: CountOrOff
    microbatches: Parts  # gradient accumulation inside a step
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

    seed: Seed
    init: str
    heads: tuple[str, ...]  # ("reward", "cost"), ("reward",) or ("cost",)
    sign: str  # "label": +-1 from the safety label; "graded": -harmless_rate
    sign_weight: Weight  # kappa of the sign terms
    score_l2: Weight  # rho
    steps: CountOrOff
    microbatches: Parts
    evaluation: str  # path of held-out pairs, read with the settings of `data` but for its split; "" = none
    evaluation_split: str  # as data.split
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

    path: str  # dual preferences, read with the settings of `data` but for its split; "" = no such heads
    split: str  # as data.split, like that of the evaluation
    batch_size: Rows  # pairs of a step
    coef: Weight  # of their loss beside the guard's
    sign: str  # as in ScoresConfig, like all that follows
    sign_weight: Weight
    score_l2: Weight
    evaluation: str
    evaluation_split: str


@dataclass(frozen=True)
class GuardConfig:
    """`srlhfv guard`: severity and harm categories of questions and of answers."""

    seed: Seed
    init: str
    taxonomy: str  # of data/taxonomies.py: what the rows are labelled with
    parts: tuple[str, ...]  # ("input", "output"): judge questions, answers, or both
    category_weight: Weight  # of the category loss beside the severity loss
    balance: bool  # rare classes weigh more while training; probabilities are those of the data again afterwards
    false_positive_rate: Annotated[float, Range(0, 0.999999)]  # at most this share of safe calibration rows is called unsafe
    thresholds: str  # "each" part by its own calibration rows, or "one" for all parts, by all rows: steadier where rows are few
    steps: CountOrOff
    microbatches: Parts
    calibration: (
        str  # path of held-out rows that set the thresholds, read with the settings of `data` but for its split; "" = 0.5
    )
    calibration_split: str  # as data.split
    evaluation: str  # path of other held-out rows; "" = none
    evaluation_split: str
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
    temperature: Positive
    top_k: CountOrOff  # 0 = off; anything else than 0 makes rollouts off-policy and is refused by ppo_lag
    top_p: Share  # 1 = off; as top_k
    old_logp: Annotated[
        str, OneOf("behaviour", "recompute")
    ]  # "behaviour": from the sampler; "recompute": with the training graph
    layout: str  # of the policy's weights, "gathered": whole over fsdp, cast once; "training": as they are (rollout/layout.py)
    offload: str  # to the host's memory, "none"; "optimizer": its states, but for the update; "idle": also trees nothing reads
    microbatches: Parts  # parts of the prompts that are answered one after the other: the cache of one at a time, the same tokens
    score_microbatches: Parts  # parts of the answers that are scored one after the other


@dataclass(frozen=True)
class PPOConfig:
    """Constants of the update (Schulman et al., arXiv 1707.06347; Safe RLHF, arXiv 2310.12773)."""

    kl_coef: Weight  # beta
    gamma: Share
    gae_lambda: Share
    clip_ratio: Positive
    clip_value: Positive
    clip_score: Positive  # the end score is clipped to +-clip_score, never the KL
    epochs: Annotated[int, Range(1, 1000)]  # passes over one rollout
    minibatches: Parts  # per epoch
    reduction: str  # "token": mean over all tokens; "sequence": mean over each sequence first (the reference)
    whiten: str  # "none", or "scale": divide each stream's advantages by its standard deviation, no shift
    scale_scores: str  # "none", or "std": divide each score stream by its standard deviation in the rollout; zero stays zero
    missing_eos_penalty: Weight  # subtracted from the reward of a response cut at R


@dataclass(frozen=True)
class ConstraintConfig:
    """E[C] <= budget and the multiplier that enforces it."""

    kind: str  # "mean": C; "rectified": max(0, C); "probability": 1[C > 0]
    budget: Number  # d, in units of `kind`
    controller: str  # "none" (plain PPO), "fixed" (reward shaping), "log", "projected", "pid"
    init: Weight  # lambda at the start
    max: Weight
    learning_rate: Weight  # of "log" and "projected"; Ki of "pid"
    kp: Weight  # pid
    kd: Weight  # pid
    smoothing: Share  # pid: moving average of the P and D terms
    window: Annotated[int, Range(1, 10**7)]  # episode costs averaged for the update
    delay: CountOrOff  # iterations before the first update


@dataclass(frozen=True)
class PTXConfig:
    """Supervised loss beside PPO's (the reference: coefficient 16, half of the gradient)."""

    coef: Weight  # 0 = off; no rows are read then
    path: str
    split: str  # as data.split


@dataclass(frozen=True)
class ValidationConfig:
    """The prompts on which `best_feasible` is chosen. Test prompts choose nothing."""

    path: str  # "" = off
    split: str  # as data.split
    every_steps: Count
    judge: Annotated[str, OneOf("models", "oracle")]  # "models": learned reward and cost; "oracle": the embedded task's
    budget: Number  # on the oracle's mean cost; the models judge by `constraint`


@dataclass(frozen=True)
class PPOLagConfig:
    """`srlhfv ppo_lag`."""

    seed: Seed
    policy: str  # start and reference
    reference: str  # "" = the policy's own start; a later round may keep the first SFT policy
    scorer: str  # reward and cost heads on one backbone ("" when reward and cost are given)
    reward: str  # separate reward model ("" when scorer is given)
    cost: str
    sharing: str  # "shared": policy, reference, scorer, critic; "separate": six trees
    iterations: CountOrOff
    microbatches: Parts
    critic_warmup: CountOrOff  # at most so many iterations train the critics alone, while their explained variance rises
    critic_warmup_rate: Share  # learning rate of the critics in these, constant
    rollout: RolloutConfig
    ppo: PPOConfig
    constraint: ConstraintConfig
    ptx: PTXConfig
    validation: ValidationConfig
    lora: LoraConfig  # of a policy that starts without an adapter, where sharing is "adapters"; rank 0: as the policy has it
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

    image_size: Annotated[int, Range(8, 4096)]
    patch: Annotated[int, Range(1, 4096)]
    vision_layers: Width
    vision_width: Width
    text_layers: Width
    text_width: Width
    heads: Width
    naming_rows: Count
    sft_rows: Count
    prompts: Count  # PPO prompts
    validation_prompts: Count
    test_prompts: Count
    unseen_prompts: Count  # of concepts that no stage has seen
    pair_prompts: Count  # prompts sampled for pairs, in each round
    heldout_pair_prompts: Count
    responses_per_prompt: Annotated[int, Range(2, 1000)]  # drawn for each pair prompt; the pair is two different ones of them
    pair_temperature: Positive
    mix: tuple[Share, ...]  # harmful, contextual harmless, neutral about a hazard, neutral harmless
    name_pairs: CountOrOff  # constructed pairs that differ in the name alone, added in the first round
    topic_pairs: CountOrOff  # constructed pairs of an answer to the question and one to another, added in the first round
    harm_at_budget: Share  # the harm rate and the over-refusal at which the oracle budget is set
    over_refusal_at_budget: Share
    preference_beta: Weight  # Bradley-Terry inverse temperature of the annotators
    flip: Share  # share of labels turned over
    guard_rows: Count
    guard_heldout_rows: Count  # of those that set its thresholds, and of those it is measured by


@dataclass(frozen=True)
class QuickstartConfig:
    """`srlhfv quickstart`: the whole pipeline. The paths inside the stages are filled in by the pipeline."""

    seed: Seed
    rounds: Annotated[int, Range(1, 100)]  # of sample -> annotate -> refit -> fine-tune
    sweep: tuple[Weight, ...]  # fixed multipliers trained beside, with --sweep
    task: TaskConfig
    naming: SFTConfig
    sft: SFTConfig
    scores: ScoresConfig  # of the first round
    refit_steps: CountOrOff  # of the later ones: they start from the heads before
    ppo: PPOLagConfig
    ppo_lag: PPOLagConfig
    guard: GuardConfig
    guard_rounds: Annotated[int, Range(0, 100)]  # of regeneration


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server that judges."""

    url: str  # up to and with the version, such as "https://api.openai.com/v1"; "" = none
    model: str
    key_variable: str  # environment variable that holds the key; "" = the server wants none
    temperature: Weight
    max_tokens: Count  # of a reply
    workers: Annotated[int, Range(1, 1024)]  # calls under way at once
    requests_per_minute: Weight  # 0 = no limit
    timeout_s: Positive
    attempts: Annotated[int, Range(1, 1000)]  # calls for one judgement, the first included
    backoff_s: Weight  # before the second attempt; doubled before each later one


@dataclass(frozen=True)
class EvaluateConfig:
    """`srlhfv evaluate --config`: policies on published benchmarks."""

    seed: Seed
    root: str  # folder with one folder per benchmark, named as in `benchmarks`
    benchmarks: tuple[str, ...]
    limit: CountOrOff  # cases of each benchmark, drawn by `seed` over its subsets and categories; 0 = all
    policies: str  # "name=path,name=path": checkpoints to sample, or .jsonl files of recorded answers; the first is the baseline
    samples: Annotated[int, Range(1, 10**4)]  # answers to each case
    temperature: Weight  # of the answers; 0 = greedy
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
    """Plain nested dict of a settings dataclass, as written to WORKDIR/config.json: without the secrets of addresses."""

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: public(value) if isinstance(value, str) else value for name, value in pairs}

    return dataclasses.asdict(settings, dict_factory=kept)


def choose(value: str, path: str, *allowed: str) -> str:
    """Check a string setting against its allowed values; returns it, or raises UserError naming them."""
    if value not in allowed:
        raise UserError(f"{path} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")
    return value
