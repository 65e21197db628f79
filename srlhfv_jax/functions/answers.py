"""Terms about the answer itself, which need no file: `answer:length`, `answer:declined`, `answer:format`."""

from collections.abc import Callable

from srlhfv_jax.evaluation import rules
from srlhfv_jax.functions.sample import Sample

PLACE = "answer"  # where a file would be named


def length(samples: list[Sample]) -> list[float]:
    """Tokens of each answer, its end among them."""
    return [float(sample.tokens) for sample in samples]


def declined(samples: list[Sample]) -> list[float]:
    """1 where the answer begins like a refusal (XSTest's string match, arXiv 2308.01263), else 0."""
    return [float(rules.xstest_refusal(sample.answer)) for sample in samples]


def well_formed(samples: list[Sample]) -> list[float]:
    """1 where the answer is reasoning in think tags, then an answer (`rules.is_reasoned`), else 0: a verifier of the format."""
    return [float(rules.is_reasoned(sample.answer)) for sample in samples]


FUNCTIONS: dict[str, Callable[[list[Sample]], list[float]]] = {
    "length": length,
    "declined": declined,
    "format": well_formed,
}
