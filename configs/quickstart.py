"""The whole pipeline on the embedded task, on a CPU: `srlhfv quickstart --workdir=W --seed=0`.

Two cores, no network, no GPU. `get_config("short")` is the same run cut to a minute: every stage, one round, a smaller model and
far too few steps to learn; the tests run it. `get_config("adapters")` trains everything after SFT (scores, both PPO runs and the
guard) as adapters over the SFT model, and `get_config("activated")` as adapters that act on answers alone.
"""

from ml_collections import ConfigDict
from srlhfv_jax.configs import sections

PROMPT, RESPONSE = 29, 18  # the longest question with its picture, and the longest answer with its end


def get_config(arg: str = "default") -> ConfigDict:
    """`default`, `short`, `adapters` or `activated`."""
    short = sections.choose(arg, "default", "short", "adapters", "activated") == "short"
    config = ConfigDict(
        dict(
            seed=0,
            rounds=1,
            sweep=(0.25, 0.5, 1.0, 2.0),
            task=dict(
                image_size=48,
                patch=12,
                vision_layers=1 if short else 3,
                vision_width=32 if short else 128,
                text_layers=1 if short else 4,
                text_width=32 if short else 128,
                heads=4,
                naming_rows=512 if short else 12288,
                sft_rows=512 if short else 24576,
                prompts=256 if short else 8192,
                validation_prompts=64 if short else 384,
                test_prompts=64 if short else 768,
                unseen_prompts=64 if short else 256,
                pair_prompts=128 if short else 9216,
                heldout_pair_prompts=64 if short else 1024,
                responses_per_prompt=2,
                pair_temperature=1.0,
                mix=(0.42, 0.38, 0.10, 0.10),
                name_pairs=32 if short else 2304,
                topic_pairs=32 if short else 768,
                harm_at_budget=0.15,
                over_refusal_at_budget=0.10,
                preference_beta=3.0,
                flip=0.05,
                guard_rows=256 if short else 8192,
                guard_heldout_rows=64 if short else 768,
            ),
            naming=_sft(4, 64, 1.5e-3) if short else _sft(230, 64, 1.5e-3, prompt=23, response=6),
            sft=_sft(4 if short else 360, 64, 1.5e-3),
            scores=dict(
                seed=0,
                init="",
                heads=("reward", "cost"),
                sign="label",
                sign_weight=1.0,
                score_l2=1e-3,
                steps=4 if short else 560,
                microbatches=1,
                evaluation="",
                evaluation_split="",
                lora=_lora(),
                model=_model(),
                mesh=_mesh(),
                data=_data(32 if short else 64, response=RESPONSE + 1),  # an answer that was cut is given its end here
                optimizer=_optimizer(8e-4, algorithm=_supervised_algorithm(short), weight_decay=0.2, freeze=("vision/",)),
                checkpoint=_checkpoint(short),
                log=_log(short),
            ),
            refit_steps=4 if short else 120,
            ppo=_ppo_lag(short, iterations=8 if short else 20, controller="none"),
            ppo_lag=_ppo_lag(short, iterations=8 if short else 240, controller="pid"),
            guard=_guard(short),
            guard_rounds=5,
        )
    )
    return _with_adapters(config, arg == "activated") if arg in ("adapters", "activated") else config


def _with_adapters(config: ConfigDict, activated: bool) -> ConfigDict:
    for stage in (config.scores, config.guard, config.ppo, config.ppo_lag):
        stage.lora.update(rank=16, alpha=32.0, activated=activated)
    for stage in (config.scores, config.guard):
        stage.optimizer.update(algorithm="adamw", learning_rate=2e-3, weight_decay=0.0)
    for stage in (config.ppo, config.ppo_lag):
        stage.sharing = "adapters"
        stage.policy_optimizer.learning_rate = stage.critic_optimizer.learning_rate = 2e-3
    return config


def _model() -> dict:
    return dict(dtype="float32", param_dtype="float32", remat="none", scan_unroll=0, attention="auto", logp_chunk=0)


def _lora() -> dict:
    """Off: a model of this size is trained whole."""
    return dict(rank=0, alpha=1.0, targets=("text/layers/.*_proj",), int8=False, activated=False)


def _mesh() -> dict:
    return dict(data=-1, fsdp=1, tensor=1)


def _data(batch: int, prompt: int = PROMPT, response: int = RESPONSE) -> dict:
    return dict(
        path="",
        split="",
        image_dir="",
        allow_dir="",
        max_pixels=0,
        picture_buckets=1,
        prompt_length=prompt,
        response_length=response,
        batch_size=batch,
        workers=1,
    )


def _optimizer(
    rate: float,
    *,
    algorithm: str = "muon",
    weight_decay: float = 0.01,
    schedule: str = "cosine",
    freeze: tuple[str, ...] = (),
) -> dict:
    return dict(
        algorithm=algorithm,
        learning_rate=rate,
        head_learning_rate=0.0,
        schedule=schedule,
        warmup_fraction=0.05,
        weight_decay=weight_decay,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        clip_norm=1.0,
        freeze=freeze,
    )


def _supervised_algorithm(short: bool) -> str:
    """AdamW needs several times the steps to learn the names, but its steps compile faster, and "short" learns nothing anyway."""
    return "adamw" if short else "muon"


def _checkpoint(short: bool) -> dict:
    return dict(every_steps=2 if short else 50, keep=2)


def _log(short: bool) -> dict:
    return dict(every_steps=1 if short else 10, tensorboard=False)


def _sft(steps: int, batch: int, rate: float, prompt: int = PROMPT, response: int = RESPONSE) -> dict:
    short = steps < 10
    return dict(
        seed=0,
        init="",
        init_random=False,
        steps=steps,
        microbatches=1,
        lora=_lora(),
        model=_model(),
        mesh=_mesh(),
        data=_data(32 if short else batch, prompt, response),
        optimizer=_optimizer(rate, algorithm=_supervised_algorithm(short)),
        checkpoint=_checkpoint(short),
        log=_log(short),
    )


def _guard(short: bool) -> dict:
    return dict(
        seed=0,
        init="",
        taxonomy="embedded",
        parts=("input", "output"),
        category_weight=1.0,
        balance=True,
        false_positive_rate=0.03,  # on the rows that set the threshold; the target on others is 0.05
        thresholds="one",
        steps=4 if short else 300,
        microbatches=1,
        calibration="",
        calibration_split="",
        evaluation="",
        evaluation_split="",
        pairs=dict(
            path="",
            split="",
            batch_size=64,
            coef=1.0,
            sign="label",
            sign_weight=1.0,
            score_l2=1e-3,
            evaluation="",
            evaluation_split="",
        ),
        lora=_lora(),
        model=_model(),
        mesh=_mesh(),
        data=_data(32 if short else 64, response=RESPONSE + 1),  # a question and an answer in each row
        optimizer=_optimizer(8e-4, algorithm=_supervised_algorithm(short), weight_decay=0.05, freeze=("vision/",)),
        checkpoint=_checkpoint(short),
        log=_log(short),
    )


def _ppo_lag(short: bool, iterations: int, controller: str) -> dict:
    return dict(
        seed=0,
        policy="",
        reference="",
        scorer="",
        reward="",
        cost="",
        sharing="shared",
        iterations=iterations,
        microbatches=1,
        critic_warmup=0,  # the critics start as the scorer, fitted to the first rollout
        critic_warmup_rate=7e-4,
        rollout=sections.rollout(),
        ppo=dict(
            kl_coef=0.1,
            gamma=1.0,
            gae_lambda=0.95,
            clip_ratio=0.2,
            clip_value=5.0,
            clip_score=50.0,
            epochs=1,
            minibatches=1,
            reduction="token",
            whiten="none",
            scale_scores="none",
            missing_eos_penalty=1.0,
        ),
        constraint=dict(
            kind="rectified",
            budget=0.03,
            controller=controller,
            init=0.3,
            max=5.0,
            learning_rate=0.08,
            kp=1.0,
            kd=0.0,
            smoothing=0.5,
            window=256,
            delay=0,
        ),
        ptx=dict(coef=0.0, path="", split=""),
        validation=dict(path="", split="", every_steps=2 if short else 15, judge="oracle", budget=0.0),
        lora=_lora(),
        model=_model(),
        mesh=_mesh(),
        data=_data(32 if short else 128),
        policy_optimizer=_optimizer(1e-3, schedule="linear", freeze=("vision/",)),
        critic_optimizer=_optimizer(7e-4, schedule="constant", freeze=("vision/",)),
        checkpoint=_checkpoint(short),
        log=_log(short),
    )
