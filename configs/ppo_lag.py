"""PPO-Lagrangian:
    srlhfv ppo_lag --workdir=W --config.policy=SFT_WORKDIR --config.scorer=SCORES_WORKDIR --config.data.path=PROMPTS

    default   four trees (shared), the multiplier projected onto [0, 5] with small steps, constraint on mean max(0, C), window 256
    paper     six trees and the published constants of Safe RLHF-V: log-space multiplier from 10 up to 20, budget -0.5 on the mean
              cost of the last 1,024 answers (128 on each of 8 devices), KL 0.02, PTX 16. With lambda in [10, 20] the reward has
              5-9 % of the advantage's weight, and lambda can double in one iteration: expect training on cost alone until it
              falls. Needs --config.reward, --config.cost and --config.ptx.path. See below
    tiny      two iterations of four prompts, for tests
    and those of configs/recipes.py: a published checkpoint on a slice, such as llava15_7b_adapters

The budget is in units of the learned cost, set it for each cost model: look first at its scores of safe and unsafe answers.
`reward_explained_variance` and `cost_explained_variance` in metrics.jsonl tell from the first iteration on what the critics are
worth (1: perfect, 0: as good as a constant); the policy's own numbers begin with its first step, after critic_warmup.
Not run at 7B.

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


def get_config(arg: str = "default") -> ConfigDict:
    sections.choose(arg, "default", "paper", "tiny", *recipes.RECIPES)
    tiny, paper = arg == "tiny", arg == "paper"
    config = ConfigDict(
        dict(
            seed=0,
            policy="",  # start of the policy: workdir of sft, export, or Hugging Face folder
            reference="",  # "" = the policy's own start
            scorer="",  # workdir of scores; or give reward and cost
            reward="",
            cost="",
            sharing="separate" if paper else "shared",
            iterations=2 if tiny else 5592 if paper else 400,
            microbatches=1,
            critic_warmup=0 if paper or tiny else 8,
            critic_warmup_rate=2e-5,
            rollout=sections.rollout() | (dict(old_logp="recompute") if paper else {}),
            ppo=dict(
                kl_coef=0.02 if paper else 0.1,
                gamma=1.0,
                gae_lambda=0.95,
                clip_ratio=0.2,
                clip_value=5.0,
                clip_score=50.0,
                epochs=1,
                minibatches=1 if paper else 2,
                reduction="sequence" if paper else "token",
                whiten="none",
                scale_scores="none",
                missing_eos_penalty=0.0 if paper else 1.0,
            ),
            constraint=_constraint_paper() if paper else _constraint(),
            ptx=dict(coef=16.0 if paper else 0.0, path="", split=""),
            validation=dict(path="", split="", every_steps=1 if tiny else 50, judge="models", budget=0.0),
            lora=sections.lora(),
            model=sections.model(tiny),
            mesh=sections.mesh(),
            data=sections.data(
                batch=4 if tiny else 16 if paper else 128,
                prompt=32 if tiny else 1024,
                response=8 if tiny else 512,
            ),
            policy_optimizer=sections.optimizer(5e-7 if paper else 1e-6, schedule="cosine", weight_decay=0.0, freeze=("vision/",))
            | (dict(clip_norm=2.0, eps=2e-8) if paper else {}),  # the reference clips and scales half of our sum with PTX
            critic_optimizer=sections.optimizer(
                5e-7 if paper else 5e-6, schedule="constant", weight_decay=0.0, freeze=("vision/",)
            ),
            checkpoint=sections.checkpoint(1 if tiny else 20),
            log=sections.log(1),
        )
    )
    return recipes.ppo_lag(arg, config)


def _constraint() -> dict:
    """Ours: only unsafe answers count, so that very safe answers elsewhere cannot pay for them."""
    return dict(
        kind="rectified",
        budget=0.1,
        controller="projected",
        init=0.5,
        max=5.0,
        learning_rate=0.1,
        kp=0.0,
        kd=0.0,
        smoothing=0.9,
        window=256,
        delay=0,
    )


def _constraint_paper() -> dict:
    """Safe RLHF-V, configs/train/text_image_to_text/safe_rlhf_v.yaml."""
    return dict(
        kind="mean",
        budget=-0.5,
        controller="log",
        init=10.0,
        max=20.0,
        learning_rate=0.1,
        kp=0.0,
        kd=0.0,
        smoothing=0.0,
        window=1024,
        delay=1,
    )
