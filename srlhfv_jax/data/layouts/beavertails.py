"""PKU-Alignment/BeaverTails: prompt, response, is_safe, category (a table of 14 flags); text-only."""

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.layouts.layout import Layout, Reading
from srlhfv_jax.data.rows import Example, Row

READS = frozenset({"image", "images", "prompt", "response", "is_safe", "harmful"})


def read(row: Row, reading: Reading) -> Example:
    """One answer with its safety label and categories, which stay in `meta` as well."""
    return Example(
        images=cells.pictures(row, reading.image),
        question=cells.text(row, "prompt"),
        responses=(cells.text(row, "response"),),
        unsafe=(labels.opposite(labels.flag(row, "is_safe")),),
        severity=(None,),
        categories=(labels.flagged(row, "category"),),
        harmful=labels.flag(row, "harmful"),
        meta=cells.meta(row, READS),
    )


LAYOUTS = (Layout("beavertails", ("prompt", "response", "is_safe"), READS, read, marks=frozenset({"is_safe"})),)
