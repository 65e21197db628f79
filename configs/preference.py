"""Policies from pairs: srlhfv preference --config=configs/preference.py:NAME --workdir=W/NAME --config.init=W/sft --config.data.path=PAIRS

One reading of the pairs by the reference, then training without it: its numbers are kept in WORKDIR/reference, or in
--config.reference_cache, which several methods may share. Published constants are in `paper_NAME` where ours differ. The winner's own
log-ratio (`winner_log_ratio`) is the number to watch: these losses fix the difference of two answers, and both may fall.
docs/preference.md says which method needs what. None of these was run at 7B.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import recipes, sections


def dpo_helpful() -> ConfigDict:
    """DPO on which answer is more helpful (arXiv 2305.18290): knows nothing of harm."""
    return ConfigDict(
        dict(
            seed=0,  # of rows and their order, and of adapters
            init="",  # the SFT policy: its workdir, its export, or a Hugging Face folder
            axis="helpful",  # the more helpful answer wins
            transform="none",  # pairs whose winner is unsafe are kept
            loss="logistic",  # of beta h
            reference="",  # config.init
            reference_cache="",  # WORKDIR/reference
            mean=False,  # log-probabilities are sums over answers
            beta=0.1,
            flip=0.0,  # labels are right
            offset=0.0,
            unsafe_offset=0.0,
            target=dict(safe_winner=0.0, safe_loser=0.0, constant=0.5),  # of loss "square": 1 / (2 beta), IPO's
            margin=dict(
                path="",  # no second objective
                reference="",
                weight=0.5,
            ),
            blind="",  # no answers without the picture
            replay=dict(
                path="",  # no pairs beside
                split="",
            ),
            scores=dict(
                scorer="",  # of axis "scores"
                helpful="",
                harmless="",
                multiplier=1.0,
            ),
            sft_coef=0.0,
            keep_coef=1.0,  # of loss "unlearn"
            forget_coef=0.1,
            forget_cap=5.0,  # nats per token
            undesirable_weight=0.0,  # of loss "kto": number of safe answers / of unsafe ones
            tokens=dict(
                scorer="",  # all tokens count
                head="reward",
                baseline=0.0,
            ),
            steps=932,  # 29,824 pairs of BeaverTails-V / 32
            microbatches=1,  # parts of a batch, one after the other
            **sections.held_out(),
            **sections.supervised(batch=32, weight_decay=0.0),
        )
    )


def _changed(**changes) -> ConfigDict:
    config = dpo_helpful()
    config.update(changes)
    return config


def dpo_harmless() -> ConfigDict:
    """DPO on which answer is safer: pairs of equal harm are left out."""
    return _changed(axis="safer")


def dpo_safe_better() -> ConfigDict:
    """DPO on the more helpful answer, of pairs where that one is safe."""
    return _changed(transform="safe_winner")


def ipo() -> ConfigDict:
    """IPO (arXiv 2310.12036): h is fitted to 1 / (2 beta), however sure a preference is."""
    return _changed(loss="square")


def simpo() -> ConfigDict:
    """SimPO (arXiv 2405.14734): log-likelihoods per token, no reference; offset gamma = 0.5 beta."""
    return _changed(mean=True, reference="none", beta=2.0, offset=1.0)


def safedpo() -> ConfigDict:
    """SafeDPO (arXiv 2505.20065): an unsafe answer never wins, and loses by more. Needs both safety labels. Published: harmless share
    96.9 % against 45.5 % before, over-refusal on XSTest 12.4 % against 3.2 %."""
    return _changed(transform="safedpo", unsafe_offset=2.0)


def paper_safedpo() -> ConfigDict:
    """The published offset: 10, which is 100 nats at beta 0.1."""
    return _changed(transform="safedpo", unsafe_offset=10.0)


def bfpo() -> ConfigDict:
    """BFPO (arXiv 2408.15313): h is fitted to a target made of both preferences. Needs both safety labels; beta is its tau. Published
    with as many pairs of harmless questions in every step (--config.replay.path)."""
    return _changed(loss="square", target=dict(safe_winner=1.5, safe_loser=0.5, constant=-0.5))


def paper_bfpo() -> ConfigDict:
    """The published tau of 0.01: a safe answer is pushed 100 nats from an unsafe one."""
    config = bfpo()
    config.beta = 0.01
    return config


def bpo() -> ConfigDict:
    """Blind preference optimization: the safer answer wins, also against one that was given without the picture (--config.blind).

    srlhfv generate --policy=W/sft --data=PAIRS --picture=blank --out=W/blind.jsonl
    """
    return _changed(axis="safer", blind="needed")  # refused until it is given


def modpo() -> ConfigDict:
    """MODPO (arXiv 2310.03708): the more helpful answer wins, less the margin of a policy that was trained to be harmless
    (--config.margin.path, its own reference --config.margin.reference)."""
    config = dpo_helpful()
    config.margin.path = "needed"  # refused until it is given
    return config


def kto() -> ConfigDict:
    """KTO (arXiv 2402.01306): a safe answer is worth more, an unsafe one less, than what the policy gained on answers to other prompts;
    the answers of a pair are not compared. Needs a safety label of one of them. An unsafe answer weighs n_safe / n_unsafe, as in SACPO
    (arXiv 2404.11049); elsewhere it has 1 (--config.undesirable_weight=1). beta 0.1 and the weight of 1 of safe answers are as
    published. SACPO-KTO is this from a helpful policy (--config.init=W/helpful)."""
    return _changed(axis="each", loss="kto")


def equilibrate() -> ConfigDict:
    """Equilibrate RLHF: DPO on the more helpful answer, of whose tokens those count that a scorer finds better than a baseline, and of
    the other's those that it finds worse; harmful prompts in a small share. Needs --config.tokens.scorer (a workdir of srlhfv scores), and
    a column with the class of each prompt: --config.data.mix=harmful:yes=0.1,harmful:no=0.9. Baseline 0 and beta 0.1 are as published.
    Published for Llama-3-8B-Instruct, from 14,000 pairs: safety .538 before, .902 after, helpfulness .673 and .679."""
    return dpo_helpful()


def sacpo() -> ConfigDict:
    """SACPO's second step (arXiv 2404.11049): from the helpful policy of the first, which is init and reference, towards the safer answer
    with beta / lambda.

    srlhfv preference --config=configs/preference.py:dpo_helpful --workdir=W/helpful --config.init=W/sft --config.data.path=PAIRS
    srlhfv preference --config=configs/preference.py:sacpo --workdir=W/sacpo --config.init=W/helpful --config.data.path=PAIRS
    """
    return _changed(axis="safer", beta=0.05)


def mocan() -> ConfigDict:
    """MoCAN (arXiv 2405.19544): a scorer's reward - lambda cost says who wins, and how surely. --config.scores.scorer, and lambda as
    --config.scores.multiplier (`srlhfv dual` finds that of a budget)."""
    return _changed(axis="scores")


def pecan() -> ConfigDict:
    """PeCAN (arXiv 2405.19544): the same by the log-ratios of a helpful and a harmless policy (--config.scores.helpful, .harmless)."""
    return _changed(axis="scores")


def unlearn() -> ConfigDict:
    """The safer answer is learned and the other one forgotten, up to a cap (arXiv 2407.10264); no reference.

    With --config.keep_coef=0 the other answer is only forgotten (--config.forget_coef=1) or only learned (-1): the two policies of
    `srlhfv weights patch`.
    """
    return _changed(axis="safer", loss="unlearn", reference="none")


def tiny() -> ConfigDict:
    """Two steps of two pairs, for tests."""
    config = dpo_helpful()
    config.steps = 2
    sections.tiny(config, rows=2, response=16)
    return config


METHODS = {
    "dpo_helpful": dpo_helpful,
    "dpo_harmless": dpo_harmless,
    "dpo_safe_better": dpo_safe_better,
    "ipo": ipo,
    "simpo": simpo,
    "safedpo": safedpo,
    "bfpo": bfpo,
    "bpo": bpo,
    "modpo": modpo,
    "kto": kto,
    "equilibrate": equilibrate,
    "sacpo": sacpo,
    "mocan": mocan,
    "pecan": pecan,
    "unlearn": unlearn,
    "paper_safedpo": paper_safedpo,
    "paper_bfpo": paper_bfpo,
}
PRESETS = {"default": dpo_helpful, "tiny": tiny} | METHODS | recipes.supervised(dpo_helpful, sequences=2)


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
