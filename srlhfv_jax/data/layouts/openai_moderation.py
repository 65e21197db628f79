"""The test set of OpenAI's moderation model (arXiv 2208.03274): prompts with up to eight flags; one that is not there is not known."""

from srlhfv_jax.data import cells, labels
from srlhfv_jax.data.layouts.layout import Layout, Reading
from srlhfv_jax.data.rows import Example, Row
from srlhfv_jax.data.taxonomies import OPENAI_MODERATION

FLAGS = dict(zip(("S", "H", "V", "HR", "SH", "S3", "H2", "V2"), OPENAI_MODERATION, strict=True))
READS = frozenset({"prompt", "image", "images", *FLAGS})


def read(row: Row, reading: Reading) -> Example:
    """A prompt: it is harmful if one of its flags is set, and harmless if all of them are known and none is."""
    flags = {name: labels.flag(row, column) for column, name in FLAGS.items()}
    known = {name: flag for name, flag in flags.items() if flag is not None}
    harmful = True if any(known.values()) else False if len(known) == len(flags) else None
    meta = cells.meta(row, READS)
    return Example(
        cells.pictures(row, reading.image), cells.text(row, "prompt"), (), harmful=harmful, asked=tuple(known.items()), meta=meta
    )


LAYOUTS = (Layout("openai_moderation", ("prompt", *FLAGS), READS, read, marks=frozenset({"S3", "H2", "V2"})),)
