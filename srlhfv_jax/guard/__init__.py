"""Beaver-Guard-V: judges a question before it is answered and an answer before it is shown.

The paper (arXiv 2503.17682) describes what its guard does, not how it is made: heads, losses and thresholds are our own design.

    train        `srlhfv guard`: severity and category heads, thresholds, export
    held_out     thresholds and numbers of rows that nothing is learned from
    scoring      batch -> logits -> probabilities -> verdicts
    measure      numbers on labelled rows, and the threshold for a false-positive rate
    judge        `Guard`: a trained guard in use
    verdict      plain records: GuardVerdict, Round, Guarded
    regenerate   `guarded_generate`: filter, and sample again
    effect       safety by round, and over-refusal, of guarded answers
    checks       a guard as functions for any thread, with reasons why a text cannot be read
    generate     `srlhfv generate`
    moderate     `srlhfv moderate`
    watch        verdicts on the answers that a run of another stage samples as it goes on
    stage        what the command has to know of it
    curves       what a report draws of its training
    service/     `srlhfv serve`: the guard over HTTP
"""

from srlhfv_jax.data.rows import Prompt, Turn
from srlhfv_jax.guard.judge import Guard
from srlhfv_jax.guard.regenerate import guarded_generate
from srlhfv_jax.guard.verdict import Guarded, GuardVerdict, Round

__all__ = ["Guard", "GuardVerdict", "Guarded", "Prompt", "Round", "Turn", "guarded_generate"]
