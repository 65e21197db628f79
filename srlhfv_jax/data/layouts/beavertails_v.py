"""saferlhf-v/BeaverTails-V: image, question, response_1/2, two preferences (ids "1"/"2"), safe flags "yes"/"no", harmless_rate -3..3."""

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.layouts.layout import Layout, Reading
from srlhfv_jax.data.rows import Example, Row

READS = frozenset({"image", "images", "question", "more_helpful_response_id", "safer_response_id", "harmful"}) | {
    f"{a}response_{k}{b}" for k in (1, 2) for a, b in (("", ""), ("is_", "_safe"), ("", "_harmless_rate"))
}


def read(row: Row, reading: Reading) -> Example:
    """A pair with both preferences."""
    chosen, helpful_tie = labels.choice(row, "more_helpful_response_id", first=1)
    safer, safety_tie = labels.choice(row, "safer_response_id", first=1)
    rates = [labels.number(row, f"response_{k}_harmless_rate") for k in (1, 2)]
    unsafe = (labels.opposite(labels.flag(row, "is_response_1_safe")), labels.opposite(labels.flag(row, "is_response_2_safe")))
    return Example(
        images=cells.pictures(row, reading.image, required=True),
        question=cells.text(row, "question"),
        responses=(cells.text(row, "response_1"), cells.text(row, "response_2")),
        chosen=chosen,
        safer=safer,
        helpful_tie=helpful_tie,
        safety_tie=safety_tie,
        unsafe=unsafe,
        severity=tuple(None if rate is None else 0.0 - rate for rate in rates),
        categories=tuple(labels.category(row, flag) for flag in unsafe),
        harmful=labels.flag(row, "harmful"),
        meta=cells.meta(row, READS),
    )


LAYOUTS = (Layout("beavertails_v", ("question", "response_1", "response_2"), READS, read, marks=frozenset({"response_2"})),)
