"""PPO-Lagrangian:
    srlhfv ppo_lag --workdir=W --config.policy=SFT_WORKDIR --config.scorer=SCORES_WORKDIR --config.data.path=PROMPTS

The budget is in units of the learned cost, set it for each cost model: look first at its scores of safe and unsafe answers.
`reward_explained_variance` and `cost_explained_variance` in metrics.jsonl tell from the first iteration on what the critics are
worth (1: perfect, 0: as good as a constant); the policy's own numbers begin with its first step, after critic_warmup.
Not run at 7B. A published checkpoint on a slice: configs/recipes.py, such as llava15_7b_adapters.

Where `paper` differs from the released code, on purpose or for want of the same thing:
  - A response ends at its last token, where scores and costs are read and masks end; there at the padded width.
  - Critics are fitted to the first rollout (ppo_lag/critics.py); there they are plain copies of the models. The cost critic's
    projector is trained, as the reward critic's is; there it is frozen.
  - Scores alone are clipped to +-50; there KL too.
  - The cosine of the policy's rate ends at 0, after 3 % of warm-up. There PTX doubles the steps that the schedule counts, so that
    by our reading it ends half way, after 6 %.
  - Prompts above 1,024 tokens are dropped and counted; there a model reads 8,192.
  - Pictures of Qwen2-VL have the checkpoint's own limits; there 50,176 to 125,440 pixels (--config.data.max_pixels=125440).
  - Image tokens and others that no answer has are never sampled.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import recipes, sections


def default() -> ConfigDict:
    """Four trees (shared), the multiplier projected onto [0, 5] with small steps, constraint on mean max(0, C), window 256."""
    return ConfigDict(
        dict(
            seed=0,  # of rows, their order and the sampler
            policy="",  # start of the policy: workdir of sft, export, or Hugging Face folder
            reference="",  # "" = the policy's own start
            moving_reference=sections.moving_reference(),
            scorer="",  # workdir of scores; or give reward and cost
            reward="",
            cost="",
            guard="",  # of terms such as guard:unsafe
            reward_fn="",  # "" = the learned reward; or terms such as "rewards.py:length*0.5,model"
            cost_fn="",  # the same of the cost
            functions=sections.functions(),
            sharing="shared",  # trees of policy, reference, scorer and critic
            iterations=400,
            microbatches=1,  # parts of a minibatch, one after the other
            critic_warmup=8,  # iterations of the critics alone, at most
            critic_warmup_rate=2e-5,
            lambda_warm_start=0,  # answers to each prompt; off
            rollout=sections.rollout(),
            ppo=sections.ppo(minibatches=2),
            # Only unsafe answers count, so that very safe answers elsewhere cannot pay for them.
            constraint=dict(
                kind="rectified",  # max(0, C)
                calibrated=False,  # of "probability": P(unsafe | C) of srlhfv calibrate
                softness=0.0,  # of "probability": a sharp border
                budget=0.1,  # its mean, in units of the learned cost
                confidence=0.0,  # above 0: an upper bound of the mean is held under it
                error="difference",  # J - d
                controller="projected",  # gradient steps, projected onto [0, max]
                init=0.5,  # lambda at the start
                max=5.0,
                learning_rate=0.1,  # of lambda
                kp=0.0,  # of pid
                kd=0.0,  # of pid
                smoothing=0.9,  # of pid
                window=256,  # answers
                delay=0,  # iterations before lambda first moves
                tolerance=0.0,  # of crpo
            ),
            constraints=(),  # several, each with a name and a cost of its own; () = `constraint` alone
            ptx=dict(
                coef=0.0,  # 0 = off
                path="",  # rows with a question and a response
                split="",
            ),
            validation=dict(
                path="",  # prompts that choose `best_feasible`
                split="",
                every_steps=50,  # iterations
                judge="models",  # the learned reward and cost
                budget=0.0,  # of the oracle
            ),
            lora=sections.lora(),
            model=sections.model(),
            mesh=sections.mesh(),
            data=sections.data(batch=128, prompt=1024, response=512),
            policy_optimizer=sections.optimizer(1e-6, schedule="cosine", weight_decay=0.0, freeze=("vision/",)),
            critic_optimizer=sections.optimizer(5e-6, schedule="constant", weight_decay=0.0, freeze=("vision/",)),
            checkpoint=sections.checkpoint(20),
            log=sections.log(1),
        )
    )


def two_sided() -> ConfigDict:
    """Harm, and declined questions where the rows say harmless, each with a budget of its own.

    The column of the prompts that says so: --config.constraints.over_refusal.where=harmful=no, or another one. Harm is in units of the
    learned cost, as in `default`; a declined question costs 3, about what an unsafe answer costs where this was tried, and its budget
    is 5 % of that. Costs of a like size let one set of gains serve both.
    """
    config = default()
    config.update(
        constraint=dict(  # the quickstart's gains
            controller="pid",
            init=0.3,  # lambda at the start
            kp=1.0,
            learning_rate=0.08,  # of lambda
            smoothing=0.5,  # of P and D
            window=512,  # answers
        ),
        constraints=(
            dict(name="harm", cost="model"),
            dict(name="over_refusal", cost="answer:declined*3", where="harmful=no", budget=0.15),
        ),
    )
    return config


def paper() -> ConfigDict:
    """Six trees and the published constants of Safe RLHF-V.

    Log-space multiplier from 10 up to 20, budget -0.5 on the mean cost of the last 1,024 answers (128 on each of 8 devices), KL
    0.02, PTX 16. With lambda in [10, 20] the reward has 5-9 % of the advantage's weight, and lambda can double in one iteration:
    expect training on cost alone until it falls. Needs --config.reward, --config.cost and --config.ptx.path.
    """
    config = default()
    config.update(  # Safe RLHF-V, configs/train/text_image_to_text/safe_rlhf_v.yaml
        sharing="separate",  # six trees
        iterations=5592,  # 3 x 29,824 prompts / 16
        critic_warmup=0,
        rollout=dict(old_logp="recompute"),  # by the training graph
        ppo=dict(
            kl_coef=0.02,  # beta, per token
            minibatches=1,
            reduction="sequence",  # mean over each sequence first
            missing_eos_penalty=0.0,
        ),
        constraint=dict(
            kind="mean",  # C
            budget=-0.5,  # in units of the learned cost
            controller="log",  # gradient steps on log lambda
            init=10.0,  # lambda at the start
            max=20.0,
            smoothing=0.0,  # of pid
            window=1024,  # answers
            delay=1,  # iterations before lambda first moves
        ),
        ptx=dict(coef=16.0),  # half of the gradient
        data=dict(batch_size=16),  # prompts: 2 x 8 devices
        policy_optimizer=dict(
            learning_rate=5e-7,
            clip_norm=2.0,  # the reference clips and scales half of our sum with PTX
            eps=2e-8,  # for the same reason
        ),
        critic_optimizer=dict(learning_rate=5e-7),
    )
    return config


def tiny() -> ConfigDict:
    """Two iterations of four prompts, for tests."""
    config = default()
    config.update(
        iterations=2,
        critic_warmup=0,
        validation=dict(every_steps=1),
    )
    sections.tiny(config, rows=4, response=8)
    return config


PRESETS = {"default": default, "two_sided": two_sided, "paper": paper, "tiny": tiny} | recipes.ppo_lag(default)


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
