"""The curves of PPO-Lagrangian in a report. The multiplier, the windowed cost and the budget have a section of their own there."""

from srlhfv_jax.runs.curves import Curve, Curves

PPO_LAG = Curves(
    kind="ppo_lag",
    marks=frozenset({"lambda", "kl"}),
    unit="iteration",
    curves=(
        Curve(("reward",), "Reward", "Mean score of the learned reward model on sampled answers."),
        Curve(("cost",), "Cost", "Mean score of the learned cost model; above 0 means unsafe."),
        Curve(
            ("reward.p10", "reward.p50", "reward.p90"),
            "Rewards of answers",
            "One in ten is below, half, nine in ten.",
            folded=True,
        ),
        Curve(("cost.p10", "cost.p50", "cost.p90"), "Costs of answers", "The same; above 0 means unsafe.", folded=True),
        Curve(("harm_rate_model",), "Answers the cost model calls unsafe", "Share of sampled answers with cost above 0."),
        Curve(("kl",), "KL to the reference", "In nats per answer; runaway growth is a sign of reward hacking."),
        Curve(("length",), "Answer length", "Mean tokens of a sampled answer."),
        Curve(("ended",), "Answers that end by themselves", "Share that is not cut at the longest length allowed."),
        Curve(
            ("occupancy",),
            "Slots in use",
            "Share of rollout.slots with an answer that goes on, over the steps of the loop.",
            folded=True,
        ),
        Curve(("entropy",), "Entropy", "Of the next-token distribution; once gone, a smaller multiplier does not bring it back."),
        Curve(("advantage_correlation",), "Conflict of the advantages", "Correlation of reward and cost; nearer to 1 is harder."),
        Curve(
            ("equal_groups", "reward_equal_groups", "cost_equal_groups"),
            "Groups of equal answers",
            "Share of prompts whose answers are all worth the same: in both scores, in reward, in cost; they teach nothing.",
        ),
        Curve(
            ("reward_explained_variance", "cost_explained_variance"),
            "Explained variance of the critics",
            "1 is perfect, 0 no better than a constant.",
            folded=True,
        ),
        Curve(("approx_kl",), "KL of one update", "In nats per token, between the policy before and after.", folded=True),
        Curve(("clip_fraction",), "Clipped tokens", "Share of tokens whose probability ratio was clipped.", folded=True),
        Curve(
            ("ratio_row_max",),
            "Largest probability ratio",
            "Of each answer, the mean over answers; far above 1 on the first pass, sampler and trainer disagree.",
            folded=True,
        ),
        Curve(("ratio",), "Probability ratio", "Mean over tokens; 1 at the first gradient step of an iteration.", folded=True),
        Curve(("log_ratio_abs",), "Size of the log ratio", "Mean |log ratio| over tokens and gradient steps.", folded=True),
        Curve(
            ("mismatch",),
            "Sampler against trainer",
            "Mean |log ratio| before the first update: rounding errors, or a bug.",
            folded=True,
        ),
        Curve(
            ("sampler_gap",),
            "Sampler against trainer, corrected",
            "Mean |log ratio| that config.rollout.old_logp=recompute takes out.",
            folded=True,
        ),
        Curve(
            ("resampled",),
            "Groups answered anew",
            "Of each prompt: with answers that are all worth the same (config.ppo.resample).",
            folded=True,
        ),
        Curve(("kl_loss",), "KL as a loss", "In nats per token, never negative, before kl_coef (config.ppo.kl_in).", folded=True),
        Curve(("policy_loss",), "Policy loss", folded=True),
        Curve(
            ("lambda.p", "lambda.i", "lambda.d"), "Terms of the multiplier", "Their sum, projected, is lambda (pid).", folded=True
        ),
        Curve(("kl_coef",), "Coefficient of the KL", "Where it follows config.ppo.kl_target.", folded=True),
        Curve(("penalty", "excess"), "Cost over budget", "What the penalty sees, and J - d (p3o).", folded=True),
        Curve(("steps_taken",), "Gradient steps taken", "Of an iteration, until config.ppo.target_kl ends them.", folded=True),
        Curve(
            ("dual_clip_fraction",),
            "Tokens at the second clip",
            "Share with a negative advantage and a ratio above it.",
            folded=True,
        ),
        Curve(
            ("importance", "importance_capped"),
            "Trainer against sampler",
            "Mean weight of a token, and the share at config.ppo.importance_cap.",
            folded=True,
        ),
        Curve(("ptx_loss",), "Supervised loss beside the policy's", "In nats per token (config.ptx).", folded=True),
        Curve(
            ("reward_critic_loss", "cost_critic_loss", "critic_loss"),
            "Critic losses",
            "Of each head, and their sum.",
            folded=True,
        ),
        Curve(
            ("reward_critic_clip_fraction", "cost_critic_clip_fraction"),
            "Clipped values",
            "Share of tokens at which the clipped value counts.",
            folded=True,
        ),
        Curve(
            ("policy_learning_rate", "critic_learning_rate", "reward_critic_learning_rate", "cost_critic_learning_rate"),
            "Learning rates",
            "Of the iteration's last gradient step.",
            folded=True,
        ),
        Curve(("grad_norm",), "Gradient norm of the policy", "Before it is clipped.", folded=True),
        Curve(
            ("critic_grad_norm", "reward_critic_grad_norm", "cost_critic_grad_norm"),
            "Gradient norm of the critics",
            "Before it is clipped; one line where both critics share a tree.",
            folded=True,
        ),
    ),
)
