"""Sections that several config files share, and the choice of a preset: plain functions of what differs, every value in sight."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from srlhfv_jax.errors import UserError, shown

Presets = Mapping[str, Callable[[], ConfigDict]]  # name -> the whole config


def choose(name: str, presets: Presets) -> ConfigDict:
    """The config of a preset.

    Raises:
        UserError: no preset is called so.
    """
    if name not in presets:
        raise UserError(f"this config knows the arguments {', '.join(presets)}, got {shown(name)}")
    return presets[name]()


def model() -> dict:
    """bfloat16 activations over float32 masters: an Adam step of 1e-6 changes only 2 % of bfloat16 weights."""
    return dict(
        dtype="bfloat16",  # of activations
        param_dtype="float32",  # of trained parameters
        remat="layer",  # a layer's activations are computed again in the backward pass
        scan_unroll=1,  # layers per step of the layer scan
        attention="auto",  # the platform's fused kernel
        logp_chunk=0,  # positions whose logits exist at a time; 0 = all
    )


def small_model() -> dict:
    """A model that fits anywhere, whole layers at hand: for tests and the quickstart."""
    return model() | dict(
        dtype="float32",  # of activations
        remat="none",  # nothing is computed again
        scan_unroll=0,  # all layers in one step
    )


def lora() -> dict:
    """Off. A rank (16, say) trains an adapter over the frozen decoder instead of the model."""
    return dict(
        rank=0,  # 0 = no adapter
        alpha=32.0,  # what an adapter adds counts alpha / rank times
        targets=("text/layers/.*_proj",),  # kernels, by path
        int8=False,  # the backbone under it in eight bits
        activated=False,  # it acts on answers alone
    )


def mesh() -> dict:
    """Everything over fsdp: parameters and optimizer states are split, rows too."""
    return dict(
        data=1,  # devices along each axis
        fsdp=-1,  # -1 = all that are left
        tensor=1,
    )


def ppo(minibatches: int) -> dict:
    """Two critics, the clip on both sides, KL in the token rewards."""
    return dict(
        advantage="gae",  # by critics; or "group", "rloo"
        group_size=1,  # answers to a prompt
        group_scale="std",  # of "group"
        resample=0,  # times
        kl_coef=0.1,  # beta, per token
        kl_target=0.0,  # beta stays
        kl_horizon=10_000.0,  # answers
        kl_in="reward",  # and cost
        gamma=1.0,  # discount
        gae_lambda=0.95,
        clip_ratio=0.2,  # of probabilities, +-
        clip_ratio_high=0.0,  # as below 1
        dual_clip=0.0,  # off
        objective="ratio",  # of probabilities
        importance_cap=0.0,  # no weights
        entropy_coef=0.0,
        target_kl=0.0,  # all gradient steps
        clip_value=5.0,  # of critics, +-
        clip_score=50.0,  # of the end score, +-
        epochs=1,  # passes over one rollout
        minibatches=minibatches,  # of each
        reduction="token",  # mean over all tokens
        whiten="none",
        scale_scores="none",
        missing_eos_penalty=1.0,  # off the reward of an answer that was cut
        overlong=0,  # tokens
        overlong_penalty=1.0,
    )


def moving_reference() -> dict:
    """It stays where it is."""
    return dict(
        every=0,  # iterations
        decay=0.0,  # of a moving average
    )


def rollout() -> dict:
    """Sampled from the distribution that ratios are computed with; all rows at once."""
    return dict(
        temperature=1.0,  # of the policy, in rollouts and ratios alike
        old_logp="behaviour",  # log-probabilities come from the sampler
        layout="gathered",  # weights whole over fsdp while answers are sampled
        offload="none",  # nothing rests in the host's memory
        microbatches=1,  # parts of the prompts, answered one after the other
        slots=0,  # as many as there are answers
        score_microbatches=1,  # parts of the answers, scored one after the other
    )


def functions() -> dict:
    """Calls of functions as rewards and costs."""
    return dict(
        rows=16,  # samples of a call
        workers=8,  # calls under way at once
        timeout_s=60.0,  # of a call
        attempts=3,
        backoff_s=1.0,  # before the second attempt; doubled before each later one
        reward_cache=True,  # scores are kept in WORKDIR/reward_cache.jsonl
    )


def data(*, batch: int, prompt: int, response: int) -> dict:
    """One source of rows; lengths in tokens, longer rows are dropped and counted."""
    return dict(
        path="",  # --config.data.path=...
        split="train",  # of a TFDS data set or a folder of files
        image_dir="",  # "" = beside the file
        revision="",  # of a data set of the hub; "" = its newest one
        columns=(),  # "question=text": our name of a column and the file's
        label_means="desirable",  # a `label` that is true
        chosen_means="helpful",  # a `chosen` answer beside a rejected one
        fetch=False,  # pictures behind http addresses
        decode_first=False,  # all pictures, before step 0
        allow_dir="",  # a second folder that links may lead to; "" = none
        max_pixels=0,  # of a picture; 0 = the checkpoint's own limit
        picture_buckets=1,  # sizes that pictures are padded to
        prompt_length=prompt,
        response_length=response,
        batch_size=batch,  # rows, over all processes
        workers=4,  # threads that decode and tokenise ahead
        system_prompt="",  # of rows without a system turn; "" = none
        chat_template="",  # file; "" = the checkpoint's own
        train_on="last",  # of supervised conversations: the last answer
        mix="",  # rows come as often as they are there
    )


def optimizer(rate: float, *, schedule: str, weight_decay: float, freeze: tuple[str, ...], heads: float = 0.0) -> dict:
    """AdamW with 3 % of warm-up; `freeze` are regular expressions on parameter paths."""
    return dict(
        algorithm="adamw",
        learning_rate=rate,
        head_learning_rate=heads,  # 0 = learning_rate
        schedule=schedule,
        warmup_fraction=0.03,  # of all steps
        weight_decay=weight_decay,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        clip_norm=1.0,  # global norm of the gradient
        freeze=freeze,
        part_rates=(),
        frozen_units="",  # none
        only_units="",  # all
    )


def held_out() -> dict:
    """Rows that nothing is learned from: none; the last step is exported."""
    return dict(
        evaluation="",  # their path
        evaluation_split="",
        evaluation_every=0,  # steps; 0 = at the end alone
        keep_best="",  # metric of the step that is exported; "" = the last step
        patience=0,  # evaluations without a better one; 0 = to the last step
    )


def targets() -> dict:
    """The answers of rows are learned; nothing else is on."""
    return dict(
        kind="plain",
        share=0.0,  # of rows without harm
        refusals=(),  # sentences
        prefix=False,  # rows of "derta"
        rto=False,
        refusal="",  # a word of one token
        positions=1.0,  # of an unsafe answer
        template="",  # with {question} and {answer}
    )


def checkpoint(every: int) -> dict:
    """Checkpoints that a run resumes from."""
    return dict(
        every_steps=every,
        keep=2,  # the newest
    )


def log(every: int) -> dict:
    """Lines of metrics.jsonl, and who shows them."""
    return dict(
        every_steps=every,
        tensorboard=True,  # event files beside them
        trackers=(),  # "wandb", "trackio"
        project="srlhfv",  # of these
        samples_every=0,  # steps of sft or iterations of ppo_lag between two answers to the same prompts; 0 = none
        samples=8,  # such prompts
        guard="",  # workdir or export of a guard, whose verdict stands beside each such answer
    )


def supervised(*, batch: int, weight_decay: float, heads: float = 0.0) -> dict:
    """The sections of a stage that starts from `init`: a cosine from 2e-5, the tower frozen, a checkpoint every 100 steps."""
    return dict(
        lora=lora(),
        model=model(),
        mesh=mesh(),
        data=data(batch=batch, prompt=1024, response=512),  # tokens
        optimizer=optimizer(2e-5, schedule="cosine", weight_decay=weight_decay, freeze=("vision/",), heads=heads),
        checkpoint=checkpoint(100),  # steps
        log=log(10),  # steps
    )


def tiny(config: ConfigDict, *, rows: int, response: int) -> None:
    """What `tiny` changes of a stage for tests: a small model in float32, a checkpoint and a log line at each step."""
    config.update(
        model=small_model(),
        data=dict(
            batch_size=rows,
            prompt_length=32,  # tokens
            response_length=response,  # tokens
        ),
        checkpoint=dict(every_steps=1),
        log=dict(every_steps=1),
    )
