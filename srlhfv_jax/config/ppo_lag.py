"""Settings of `srlhfv ppo_lag`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from srlhfv_jax.config import constraints, terms
from srlhfv_jax.config.base import CheckpointConfig, DataConfig, LogConfig, LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from srlhfv_jax.config.constraints import ConstraintConfig
from srlhfv_jax.config.ranges import Count, CountOrOff, Number, OneOf, Parts, Positive, Range, Seed, Share, Tokens, Weight
from srlhfv_jax.config.unread import Unread, of_units

HEADS = ("reward", "cost")  # of learned scorers


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling and scoring of answers, and the place of idle trees."""

    temperature: Positive  # of the policy, when answers are sampled and in every ratio
    old_logp: Annotated[str, OneOf("behaviour", "recompute")]  # from the sampler, or with the training graph
    # of the policy's weights, "gathered": whole over fsdp, cast once; "training": as they are (rollout/layout.py)
    layout: Annotated[str, OneOf("gathered", "training")]
    # to the host's memory, "none"; "optimizer": its states, but for the update; "idle": also trees nothing reads
    offload: Annotated[str, OneOf("none", "optimizer", "idle")]
    microbatches: Parts  # parts of the prompts that are answered one after the other: the cache of one at a time, the same tokens
    slots: CountOrOff  # answers decoded at a time: where one ends, the next prompt is answered; 0: all of a part until its longest ends
    score_microbatches: Parts  # parts of the answers that are scored one after the other


@dataclass(frozen=True)
class PPOConfig:
    """Constants of the update (Schulman et al., arXiv 1707.06347; Safe RLHF, arXiv 2310.12773)."""

    # "gae": two critics; "group" (GRPO) and "rloo": each answer against the others to its prompt, no critics (losses/groups.py)
    advantage: Annotated[str, OneOf("gae", "group", "rloo")]
    group_size: Annotated[int, Range(1, 2**10)]  # answers to one prompt; data.batch_size counts answers. 1 under "gae"
    # of "group", "std": each stream is divided by its standard deviation in the group; "none": it is not (Dr. GRPO)
    group_scale: Annotated[str, OneOf("std", "none")]
    resample: CountOrOff  # times that groups of equal scores are answered anew, at most (DAPO's dynamic sampling); 0 = never
    kl_coef: Weight  # beta
    kl_target: Weight  # nats per answer that beta, from kl_coef on, is adapted to after each rollout; 0 = beta stays
    kl_horizon: Positive  # answers in which beta changes by at most 20 %
    kl_in: Annotated[str, OneOf("reward", "loss")]  # of each token, k1, before advantages; or k3 beside the policy's loss
    gamma: Share  # discount
    gae_lambda: Share  # of generalised advantage estimation
    clip_ratio: Positive  # of the probability ratio, on both sides of 1
    clip_ratio_high: Weight  # above 1, where it is another one than below (DAPO); 0 = clip_ratio
    dual_clip: Weight  # where the advantage is negative, a token's loss is at most so many times its size; 0 = off
    objective: Annotated[str, OneOf("ratio", "log")]  # what is clipped: the probability ratio, or its logarithm (CPGD)
    importance_cap: Weight  # truncated importance weights of sampler against trainer, at most this; 0 = off
    entropy_coef: Weight  # of a bonus for the entropy of each token
    target_kl: Weight  # gradient steps of an iteration end after one whose approx_kl is above; nats per token, 0 = off
    clip_value: Positive  # of a critic's value, around that of the rollout
    clip_score: Positive  # the end score is clipped to +-clip_score, never the KL
    epochs: Annotated[int, Range(1, 1000)]  # passes over one rollout
    minibatches: Parts  # per epoch
    # "token": mean over all tokens; "sequence": mean over each sequence first (the reference)
    # "fixed": sums divided by R, so that no token weighs less because its answer is long (Dr. GRPO)
    reduction: Annotated[str, OneOf("token", "sequence", "fixed")]
    # "scale": divide each stream's advantages by its standard deviation, no shift; "reward_mean": and centre those of the reward
    whiten: Annotated[str, OneOf("none", "scale", "reward_mean")]
    # "std": divide each score stream by its standard deviation in the rollout; zero stays zero
    scale_scores: Annotated[str, OneOf("none", "std")]
    missing_eos_penalty: Weight  # subtracted from the reward of a response cut at R
    overlong: Tokens  # so many last tokens of R cost ever more reward; 0 = none
    overlong_penalty: Weight  # at R

    @property
    def has_critics(self) -> bool:
        return self.advantage == "gae"


@dataclass(frozen=True)
class ReferenceConfig:
    """A reference that follows the policy, from its own start."""

    every: CountOrOff  # iterations after which the policy becomes the reference; 0 = never
    decay: Annotated[float, Range(0, 0.9999999)]  # of a moving average of the policy, one step an iteration; 0 = none

    @property
    def moves(self) -> bool:
        return self.every > 0 or self.decay > 0


@dataclass(frozen=True)
class PTXConfig:
    """Supervised loss beside PPO's (the reference: coefficient 16, half of the gradient)."""

    coef: Weight  # 0 = off; no rows are read then
    path: str  # rows with a question and a response
    split: str  # as data.split


@dataclass(frozen=True)
class ValidationConfig:
    """The prompts on which `best_feasible` is chosen. Test prompts choose nothing."""

    path: str  # "" = off
    split: str  # as data.split
    every_steps: Count  # iterations between two validations
    judge: Annotated[str, OneOf("models", "oracle")]  # "models": learned reward and cost; "oracle": the embedded task's
    budget: Number  # on the oracle's mean cost; the models judge by `constraint`


@dataclass(frozen=True)
class FunctionsConfig:
    """Calls of the functions of reward_fn and cost_fn, on the host, between rollout and update."""

    rows: Annotated[int, Range(1, 2**16)]  # samples of a call, at most
    workers: Annotated[int, Range(1, 1024)]  # calls under way at once, in threads of each process
    timeout_s: Positive  # seconds for one call
    attempts: Annotated[int, Range(1, 1000)]  # calls for a row, the first included, before the run stops
    backoff_s: Weight  # before the second attempt; doubled before each later one
    reward_cache: bool  # scores are kept by content in WORKDIR/reward_cache.jsonl: no sample is scored twice


@dataclass(frozen=True)
class PPOLagConfig:
    """`srlhfv ppo_lag`."""

    stage: ClassVar[str] = "ppo_lag"
    seed: Seed  # of rows, their order and the sampler
    policy: str  # start and reference
    reference: str  # "" = the policy's own start; a later round may keep the first SFT policy; "none": there is none, beta is 0
    moving_reference: ReferenceConfig
    scorer: str  # reward and cost heads on one backbone ("" when reward and cost are given)
    reward: str  # separate reward model ("" when scorer is given)
    cost: str  # separate cost model ("" when scorer is given)
    guard: str  # workdir or export of a guard whose heads are terms of a cost, as guard:unsafe or guard:CATEGORY
    # terms of the reward, a mix of verifiers: "FILE.py:NAME*0.5,model,model:cost*-0.1"; "" = the learned head alone (config/terms.py)
    reward_fn: str
    cost_fn: str  # terms of the cost; above 0 means unsafe
    functions: FunctionsConfig
    # "shared": trees of policy, reference, scorer and critic; "adapters" over one frozen backbone; "separate": six trees
    sharing: Annotated[str, OneOf("shared", "adapters", "separate")]
    iterations: CountOrOff  # of rollout, scores, multiplier and update
    microbatches: Parts  # gradient accumulation inside a minibatch
    critic_warmup: CountOrOff  # at most so many iterations train the critics alone, while their explained variance rises
    critic_warmup_rate: Share  # learning rate of the critics in these, constant
    lambda_warm_start: CountOrOff  # answers to each prompt of the first batch, by which multipliers start; 0 = at constraint.init
    rollout: RolloutConfig
    ppo: PPOConfig
    constraint: ConstraintConfig
    # several, each with a name and a cost of its own (config/constraints.py); () = `constraint` alone
    constraints: tuple[dict, ...]
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

    @property
    def start(self) -> str:
        """The checkpoint that training starts from."""
        return self.policy

    @property
    def keeps_reference(self) -> bool:
        """Whether a reference is loaded: it neither moves with the policy nor is left out."""
        return self.reference != "none" and not self.moving_reference.moves

    @property
    def prompts(self) -> int:
        """Prompts of an iteration."""
        return self.data.batch_size // self.ppo.group_size

    @property
    def costs(self) -> dict[str, constraints.Constraint]:
        """Key -> constraint: "cost" of the first or only one, of others their name.

        Raises:
            UserError: as `constraints.read`.
        """
        return constraints.read(self.constraints, self.constraint, self.cost_fn)

    @property
    def scores(self) -> tuple[str, ...]:
        """Scores of every answer: the reward, then the cost of each constraint."""
        return ("reward", *self.costs)

    @property
    def terms(self) -> dict[str, tuple[terms.Term, ...]]:
        """Score -> its terms.

        Raises:
            UserError: as `terms.parse`.
        """
        reward = terms.parse(self.reward_fn, "config.reward_fn", HEADS[1:])
        return {"reward": reward} | {key: one.terms for key, one in self.costs.items()}

    def setting_of(self, score: str) -> str:
        """The setting that lists a score's terms, for messages."""
        return "config.reward_fn" if score == "reward" else self.costs[score].place

    @property
    def learned(self) -> dict[str, dict[str, float]]:
        """Score -> the weight of each learned head in it, by its role: "reward", "cost", "guard_CATEGORY"; {} where functions alone make it."""
        return {
            score: {terms.role(score, term): term.weight for term in some if term.is_learned}
            for score, some in self.terms.items()
        }

    @property
    def guarded(self) -> tuple[str, ...]:
        """Heads of the guard that are read: "unsafe", or categories."""
        names = (term.name for some in self.terms.values() for term in some if term.file == terms.GUARD)
        return tuple(dict.fromkeys(names))

    @property
    def heads(self) -> tuple[str, ...]:
        """Learned heads that are read: that of the reward, that of the cost."""
        read = {role for roles in self.learned.values() for role in roles}
        return tuple(name for name in HEADS if name in read)

    @property
    def by_functions(self) -> tuple[str, ...]:
        """Scores that functions have a part in, or that are of some rows alone."""
        some = {key for key, one in self.costs.items() if one.where}
        return tuple(name for name, parts in self.terms.items() if name in some or not all(term.is_learned for term in parts))

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        heads = self.heads
        if self.sharing == "adapters":
            yield Unread("model.param_dtype", "under adapters the backbone has config.model.dtype")
            yield from of_units("policy_optimizer", "an adapter moves every unit of its kernel")
        yield from of_units("critic_optimizer", "the units are those of the policy")
        if self.sharing != "adapters" or not self.lora.rank:
            why = "an adapter is made with config.sharing='adapters' and config.lora.rank above 0 alone"
            yield from (Unread(f"lora.{name}", why) for name in ("alpha", "targets"))
        for name in HEADS:
            if name not in heads:
                setting = "config.constraints" if name == "cost" and self.constraints else f"config.{name}_fn"
                yield Unread(name, f"{setting} has no term 'model'", "")
            elif self.sharing != "separate":
                yield Unread(name, f"config.scorer scores with config.sharing={self.sharing!r}", "")
        if not heads:
            yield Unread("scorer", "neither config.reward_fn nor config.cost_fn has the term 'model'", "")
        elif self.sharing == "separate" and all((self.reward if name == "reward" else self.cost) for name in heads):
            yield Unread("scorer", f"{' and '.join(f'config.{name}' for name in heads)} score", "")
        if not self.guarded:
            yield Unread("guard", "no term of a reward or a cost is of a guard", "")
        if not self.by_functions:
            yield Unread("functions", "there is no config.reward_fn and no config.cost_fn")
        if self.log.samples_every == 0:
            yield Unread("log.samples", "config.log.samples_every is 0")
            yield Unread("log.guard", "config.log.samples_every is 0", "")
        yield from self._unread_of_advantages()
        if self.critic_warmup == 0:
            yield Unread("critic_warmup_rate", "config.critic_warmup is 0")
        if self.ptx.coef == 0:
            yield Unread("ptx.path", "config.ptx.coef is 0", "")
            yield Unread("ptx.split", "config.ptx.coef is 0")
            yield Unread("data.train_on", "it is about the rows of config.ptx, and config.ptx.coef is 0", "last")
        if not self.validation.path:
            why = "there is no config.validation.path"
            yield from (Unread(f"validation.{name}", why) for name in ("split", "every_steps", "judge", "budget"))
        elif self.validation.judge == "models":
            yield Unread("validation.budget", "config.constraint says what the models judge feasible")
        if self.constraints:
            yield Unread("cost_fn", "config.constraints says what costs", "")
        else:
            why = f"config.constraint.controller is {self.constraint.controller!r}"
            yield from (Unread(f"constraint.{name}", why) for name in constraints.unread(self.constraint))

    def _unread_of_advantages(self) -> Iterator[Unread]:
        why = f"config.ppo.advantage is {self.ppo.advantage!r}"
        if self.ppo.has_critics:
            yield Unread("ppo.group_size", f"{why}, which has one answer to a prompt", 1)
            yield Unread("ppo.resample", why, 0)
        else:
            names = ("critic_optimizer", "critic_warmup", "critic_warmup_rate", "ppo.gamma", "ppo.gae_lambda", "ppo.clip_value")
            yield from (Unread(name, f"{why}, and there are no critics") for name in names)
        if self.ppo.advantage != "group":
            yield Unread("ppo.group_scale", why)
        if self.ppo.epochs * self.ppo.minibatches == 1:
            yield Unread("ppo.target_kl", "an iteration has one gradient step", 0.0)
        if self.rollout.old_logp != "recompute":
            why = "config.rollout.old_logp is not 'recompute': ratios are to the sampler itself"
            yield Unread("ppo.importance_cap", why, 0.0)
        if self.ppo.kl_target == 0:
            yield Unread("ppo.kl_horizon", "config.ppo.kl_target is 0")
        if self.reference == "none":
            yield Unread("ppo.kl_coef", "config.reference is 'none'", 0.0)
            yield Unread("ppo.kl_target", "config.reference is 'none'", 0.0)
        if self.ppo.overlong == 0:
            yield Unread("ppo.overlong_penalty", "config.ppo.overlong is 0")
