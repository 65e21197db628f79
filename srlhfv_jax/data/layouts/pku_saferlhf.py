"""PKU-Alignment/PKU-SafeRLHF: prompt, response_0/1, two preferences (ids 0/1), safe flags, severity levels 0..3."""

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.layouts.layout import Layout, Reading
from srlhfv_jax.data.rows import Example, Row

READS = frozenset({"image", "images", "prompt", "better_response_id", "safer_response_id", "harmful"}) | {
    f"{a}response_{k}{b}" for k in (0, 1) for a, b in (("", ""), ("is_", "_safe"), ("", "_severity_level"))
}


def read(row: Row, reading: Reading) -> Example:
    """A pair with both preferences; the flags of its harm categories stay in `meta` as well."""
    chosen, helpful_tie = labels.choice(row, "better_response_id", first=0)
    safer, safety_tie = labels.choice(row, "safer_response_id", first=0)
    unsafe = (labels.opposite(labels.flag(row, "is_response_0_safe")), labels.opposite(labels.flag(row, "is_response_1_safe")))
    levels = [labels.number(row, f"response_{k}_severity_level") for k in (0, 1)]
    return Example(
        images=cells.pictures(row, reading.image),
        question=cells.text(row, "prompt"),
        responses=(cells.text(row, "response_0"), cells.text(row, "response_1")),
        chosen=chosen,
        safer=safer,
        helpful_tie=helpful_tie,
        safety_tie=safety_tie,
        unsafe=unsafe,
        # Level 0 is "safe": as a graded cost it must be negative, or a safe response would get no sign gradient at all.
        severity=tuple(None if level is None else (level if level > 0 else -1.0) for level in levels),
        categories=tuple(labels.flagged(row, f"response_{k}_harm_category") for k in (0, 1)),
        harmful=labels.flag(row, "harmful"),
        meta=cells.meta(row, READS),
    )


LAYOUTS = (Layout("pku_saferlhf", ("prompt", "response_0", "response_1"), READS, read, marks=frozenset({"response_0"})),)
