"""PKU-Alignment/BeaverTails-V: image, question, response, is_response_safe."""

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.layouts.layout import Layout, Reading
from srlhfv_jax.data.rows import Example, Row

READS = frozenset({"image", "images", "question", "response", "is_response_safe", "harmful"})


def read(row: Row, reading: Reading) -> Example:
    """One answer with its safety label."""
    unsafe = labels.opposite(labels.flag(row, "is_response_safe"))
    return Example(
        images=cells.pictures(row, reading.image, required=True),
        question=cells.text(row, "question"),
        responses=(cells.text(row, "response"),),
        unsafe=(unsafe,),
        severity=(None,),
        categories=(labels.category(row, unsafe),),
        harmful=labels.flag(row, "harmful"),
        meta=cells.meta(row, READS),
    )


LAYOUTS = (
    Layout("beavertails_v_qa", ("question", "response", "is_response_safe"), READS, read, marks=frozenset({"is_response_safe"})),
)
