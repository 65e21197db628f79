"""The whole pipeline on the embedded task, on a CPU: `srlhfv quickstart --workdir=W --seed=0`.

Two cores, no network, no GPU. All numbers were chosen on this task.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import sections

PROMPT, RESPONSE = 29, 18  # tokens: the longest question with its picture, and the longest answer with its end


def default() -> ConfigDict:
    """Every stage and one round."""
    return ConfigDict(
        dict(
            seed=0,  # of everything; --seed
            rounds=1,  # of sample, annotate, refit, fine-tune; --rounds
            sweep=(0.25, 0.5, 1.0, 2.0),  # fixed multipliers, trained beside with --sweep
            task=_task(),
            naming=_sft(steps=230, prompt=23, response=6),
            sft=_sft(steps=360),
            scores=dict(
                seed=0,  # set by the pipeline, as all seeds and paths here
                init="",
                heads=("reward", "cost"),
                sign="label",  # +-1 from the safety label
                sign_weight=1.0,
                score_l2=1e-3,
                steps=560,
                microbatches=1,
                **sections.held_out(),
                data=_data(batch=64, response=RESPONSE + 1),  # an answer that was cut is given its end here
                optimizer=_optimizer(8e-4, weight_decay=0.2, freeze=("vision/",)),
                **_shared(),
            ),
            refit_steps=120,  # of the scores, in later rounds
            ppo=_ppo_lag(iterations=20, controller="none"),
            ppo_lag=_ppo_lag(iterations=240, controller="pid"),
            guard=_guard(),
            guard_rounds=5,  # of regeneration
        )
    )


def short() -> ConfigDict:
    """The same run cut to a minute, a smaller model and far too few steps to learn; the tests run it."""
    config = default()
    config.update(
        task=dict(
            vision_layers=1,
            vision_width=32,
            text_layers=1,
            text_width=32,
            naming_rows=512,
            sft_rows=512,
            prompts=256,
            validation_prompts=64,
            test_prompts=64,
            unseen_prompts=64,
            pair_prompts=128,
            heldout_pair_prompts=64,
            name_pairs=32,
            topic_pairs=32,
            guard_rows=256,
            guard_heldout_rows=64,
        ),
        naming=dict(steps=4, data=dict(prompt_length=PROMPT, response_length=RESPONSE)),
        sft=dict(steps=4),
        scores=dict(steps=4),
        refit_steps=4,
        ppo=dict(iterations=8, validation=dict(every_steps=2)),
        ppo_lag=dict(iterations=8, validation=dict(every_steps=2)),
        guard=dict(steps=4),
    )
    # AdamW needs several times the steps to learn the names, but its steps compile faster, and nothing is learned here anyway.
    for stage in (config.naming, config.sft, config.scores, config.guard):
        stage.optimizer.algorithm = "adamw"
    for stage in (config.naming, config.sft, config.scores, config.guard, config.ppo, config.ppo_lag):
        stage.update(data=dict(batch_size=32), checkpoint=dict(every_steps=2), log=dict(every_steps=1))
    return config


def adapters() -> ConfigDict:
    """Everything after SFT (scores, both PPO runs and the guard) trained as adapters over the SFT model."""
    config = default()
    for stage in (config.scores, config.guard, config.ppo, config.ppo_lag):
        stage.lora.update(rank=16, alpha=32.0)
    for stage in (config.scores, config.guard):
        stage.optimizer.update(algorithm="adamw", learning_rate=2e-3, weight_decay=0.0)
    for stage in (config.ppo, config.ppo_lag):
        stage.sharing = "adapters"
        stage.policy_optimizer.learning_rate = stage.critic_optimizer.learning_rate = 2e-3
    return config


def activated() -> ConfigDict:
    """The same with adapters that act on answers alone."""
    config = adapters()
    for stage in (config.scores, config.guard, config.ppo, config.ppo_lag):
        stage.lora.activated = True
    return config


PRESETS = {"default": default, "short": short, "adapters": adapters, "activated": activated}


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)


def _task() -> dict:
    return dict(
        patch=12,  # pixels
        vision_layers=3,
        vision_width=128,
        text_layers=4,
        text_width=128,
        heads=4,  # of attention
        naming_rows=12288,
        sft_rows=24576,
        prompts=8192,  # of PPO
        validation_prompts=384,
        test_prompts=768,
        unseen_prompts=256,  # of concepts that no stage has seen
        pair_prompts=9216,
        heldout_pair_prompts=1024,
        responses_per_prompt=2,
        pair_temperature=1.0,
        mix=(0.42, 0.38, 0.10, 0.10),  # harmful, contextual harmless, neutral about a hazard, neutral harmless
        name_pairs=2304,  # constructed
        topic_pairs=768,  # constructed
        harm_at_budget=0.15,  # share of harmful prompts, at which the oracle's budget is set
        over_refusal_at_budget=0.10,  # share of harmless prompts
        preference_beta=3.0,  # Bradley-Terry inverse temperature of the annotators
        flip=0.05,  # share of labels turned over
        guard_rows=8192,
        guard_heldout_rows=768,
    )


def _shared() -> dict:
    return dict(
        lora=sections.lora() | dict(alpha=1.0),  # off: a model of this size is trained whole
        model=sections.small_model(),
        mesh=dict(data=-1, fsdp=1, tensor=1),  # all devices side by side
        checkpoint=sections.checkpoint(50),
        log=sections.log(10) | dict(tensorboard=False),
    )


def _data(*, batch: int, prompt: int = PROMPT, response: int = RESPONSE) -> dict:
    return sections.data(batch=batch, prompt=prompt, response=response) | dict(split="", workers=1)


def _optimizer(rate: float, *, weight_decay: float = 0.01, schedule: str = "cosine", freeze: tuple[str, ...] = ()) -> dict:
    return sections.optimizer(rate, schedule=schedule, weight_decay=weight_decay, freeze=freeze) | dict(
        algorithm="muon",
        warmup_fraction=0.05,  # of all steps
    )


def _sft(*, steps: int, prompt: int = PROMPT, response: int = RESPONSE) -> dict:
    return dict(
        seed=0,
        init="",
        init_random=False,
        steps=steps,
        microbatches=1,
        targets=sections.targets(),
        **sections.held_out(),
        data=_data(batch=64, prompt=prompt, response=response),
        optimizer=_optimizer(1.5e-3),
        **_shared(),
    )


def _guard() -> dict:
    return dict(
        seed=0,
        init="",
        taxonomy="embedded",
        parts=("input", "output"),  # questions and answers
        category_weight=1.0,
        balance=True,  # rare classes weigh more while training
        false_positive_rate=0.03,  # on the rows that set the threshold; the target on others is 0.05
        thresholds="one",  # for both parts, by all rows
        # Long, under a strong decay: what is learned of one thing then carries over to questions that it was never asked.
        steps=600,
        microbatches=1,
        calibration="",
        calibration_split="",
        **sections.held_out(),
        pairs=dict(
            path="",  # no score heads beside it
            split="",
            batch_size=64,
            coef=1.0,
            sign="label",
            sign_weight=1.0,
            score_l2=1e-3,
            evaluation="",
            evaluation_split="",
        ),
        data=_data(batch=64, response=RESPONSE + 1),  # a question and an answer in each row
        optimizer=_optimizer(8e-4, weight_decay=0.5, freeze=("vision/",)),
        **_shared(),
    )


def _ppo_lag(*, iterations: int, controller: str) -> dict:
    return dict(
        seed=0,
        policy="",
        reference="",
        moving_reference=sections.moving_reference(),
        scorer="",
        guard="",
        reward="",
        cost="",
        reward_fn="",  # "" = the learned reward
        cost_fn="",
        functions=sections.functions(),
        sharing="shared",  # trees of policy, reference, scorer and critic
        iterations=iterations,
        microbatches=1,
        critic_warmup=0,  # the critics start as the scorer, fitted to the first rollout
        critic_warmup_rate=7e-4,
        lambda_warm_start=0,  # off
        rollout=sections.rollout(),
        ppo=sections.ppo(minibatches=1),
        constraint=dict(
            kind="rectified",  # max(0, C)
            calibrated=False,  # of "probability": P(unsafe | C) of srlhfv calibrate
            softness=0.0,  # of "probability": a sharp border
            budget=0.03,  # its mean, in units of the learned cost
            confidence=0.0,  # above 0: an upper bound of the mean is held under it
            error="difference",  # J - d
            controller=controller,
            init=0.3,  # lambda at the start
            max=5.0,
            learning_rate=0.08,  # Ki
            kp=1.0,
            kd=0.0,
            smoothing=0.5,  # of the P and D terms
            window=256,  # answers
            delay=0,  # iterations before lambda first moves
            tolerance=0.0,  # of crpo
        ),
        constraints=(),  # `constraint` alone
        ptx=dict(coef=0.0, path="", split=""),  # off
        validation=dict(
            path="",  # set by the pipeline, as its budget
            split="",
            every_steps=15,  # iterations
            judge="oracle",
            budget=0.0,
        ),
        data=_data(batch=128),
        policy_optimizer=_optimizer(1e-3, schedule="linear", freeze=("vision/",)),
        critic_optimizer=_optimizer(7e-4, schedule="constant", freeze=("vision/",)),
        **_shared(),
    )
