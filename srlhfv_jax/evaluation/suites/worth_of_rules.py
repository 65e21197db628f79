"""The worth of refusal phrases as a judge, in words that stand under every table that they judged.

Measured by benchmarks/refusal_rules.py on the 2,250 answers of five models to XSTest that its authors publish with labels of people.
Of MM-SafetyBench: 6,108 answers of Gemini 2.0 Flash, recorded with verdicts of a model by others (KeyJayY/MIO-Project).
"""

from collections.abc import Mapping, Sequence

from srlhfv_jax.evaluation.suites.case import COMPLY, REFUSE, Case

AGREEMENT = (
    "Refusals were told by phrases. On the 2,250 answers to XSTest that its authors labelled, such rules agree with people with a kappa "
    "of 0.77 where partial refusals count and of 0.74 (XSTest's list) or 0.72 (VLGuard's) where only full ones do. Over-refusal comes out "
    "1.3 to 2.1 times what people call a full refusal, on each of the five models; attack success 1.2 to 4 times what they call help or "
    "a partial refusal."
)
ASK = "Ask a judge that reads: --config.judge=endpoint, or recorded."
CANNOT = {
    "mm_safetybench": "mm_safetybench: phrases cannot judge it. Its authors ask a model, with criteria of their own for five scenarios; on 6,108 "
    "recorded answers of one model the attack success was 46.3 % by phrases and 18.0 % by the verdicts recorded with them.",
    "figstep": "figstep: phrases cannot judge its topics Legal Opinion, Financial Advice and Health Consultation (30 % of it), where a safe "
    "answer may help and warn. Its authors read the answers.",
    "mssbench": "mssbench: phrases cannot tell a warning from help, nor a refusal from an answer that saw nothing: its four classes, and so the "
    "accuracies that are published, need a judge.",
}


def notes(judge: str, benchmarks: Mapping[str, Sequence[Case]]) -> list[str]:
    """Sentences for under a table; [] where phrases judged nothing in it.

    Args:
        judge: `config.judge`; "models" have costs, and tell refusals by phrases all the same.
    """
    if judge not in ("rules", "models"):
        return []
    asked = {name: {case.expect for case in cases} for name, cases in benchmarks.items()}
    by_phrases = [name for name, expected in asked.items() if COMPLY in expected or judge == "rules" and REFUSE in expected]
    cannot = [CANNOT[name] for name in by_phrases if name in CANNOT and judge == "rules"]
    return [AGREEMENT] * bool(by_phrases) + cannot + [ASK] * bool(cannot)
