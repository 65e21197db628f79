"""Batches: shuffled every epoch, sharded over processes, prepared ahead in threads, resumed exactly.

`fit` does every check before step 0 and keeps the token ids; `batches` walks through shuffled epochs for training, `all_batches`
once in order for evaluation. The order of rows depends on the seed and the number of rows only: each process takes the rows of
every global batch that its devices hold (parallel/hosts.py: `own_rows`), so runs with different numbers of processes see the same
global batches. A batch may straddle two epochs; no row is left out.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from srlhfv_jax.batches import GuardBatch, PairBatch, PreferenceBatch, PromptBatch, SupervisedBatch
from srlhfv_jax.config import DataConfig, choose
from srlhfv_jax.data import classes, collate, images, pictures, uses
from srlhfv_jax.data.chat import Codec, codec
from srlhfv_jax.data.collate import Frame
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.guard_rows import UNKNOWN, Labels
from srlhfv_jax.data.mixtures import Share
from srlhfv_jax.data.picture_cache import PictureCache
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.sources import Dropped, describe_failure
from srlhfv_jax.data.targets import Rule
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.errors import LONGEST_LINE, UserError, short

Batch = SupervisedBatch | PairBatch | PreferenceBatch | PromptBatch | GuardBatch

KINDS = ("supervised", "pairs", "preference", "prompts", "guard")
HELPFUL = Choice("helpful", "none", flags=False)
UNLIMITED = 1 << 20  # tokens: longer than any row


def single_pass(
    path: str = "",
    *,
    split: str = "",
    image_dir: str = "",
    allow_dir: str = "",
    prompt_length: int = 0,
    response_length: int = 0,
    batch_size: int = 1,
    workers: int = 1,
    max_pixels: int = 0,
    revision: str = "",
    columns: tuple[str, ...] = (),
    label_means: str = "desirable",
    chosen_means: str = "helpful",
    fetch: bool = False,
    system_prompt: str = "",
) -> DataConfig:
    """Settings of rows that are read once and in order, with room for pictures of one size."""
    return DataConfig(
        path=path,
        split=split,
        image_dir=image_dir,
        allow_dir=allow_dir,
        prompt_length=prompt_length,
        response_length=response_length,
        batch_size=batch_size,
        workers=workers,
        max_pixels=max_pixels,
        picture_buckets=1,
        revision=revision,
        columns=columns,
        label_means=label_means,
        chosen_means=chosen_means,
        fetch=fetch,
        decode_first=True,
        system_prompt=system_prompt,
        chat_template="",
        train_on="last",
        mix="",
    )


class Prepared(NamedTuple):
    """Rows that fit the model and the lengths, as token ids, and what was left out."""

    kind: str
    sign: str
    examples: Sequence[Example]  # pictures are fetched from here
    rows: tuple[Encoded, ...]
    dropped: tuple[Dropped, ...]
    drops: Counter
    codec: Codec
    frame: Frame
    room: collate.Room | None  # for pictures; None: no row has one, and batches carry none
    pictures: PictureCache
    labels: Sequence[tuple[Labels, Labels]] = ()  # of guard rows: those of every example's question and answer
    categories: Sequence[str] = ()  # of guard rows: the taxonomy
    terms: Sequence[collate.Terms] = ()  # of preferences: those of each of `rows`
    shares: tuple[Share, ...] = ()  # rows, which are neighbours, and weight of each source or class, where these have weights


def fit(
    kind: str,
    examples: Sequence[Example],
    processor: Any,
    data: DataConfig,
    *,
    sign: str = "label",
    choice: Choice = HELPFUL,
    labels: Sequence[tuple[Labels, Labels]] = (),
    categories: Sequence[str] = (),
    literal: bool = False,
    targets: Rule | None = None,
) -> Prepared:
    """Encode every row and check it for this use (one of KINDS).

    Args:
        choice: of kind "preference": who wins.
        labels, categories: of kind "guard": what is known of each example (nothing where not given), and the taxonomy.
        literal: answers are read and not learned from (`tokens.response_ids`); always of kind "guard".
        targets: of kind "supervised": what rows teach; None: their answers.

    Raises:
        UserError: no row is left, or the asked signs are labelled nowhere.
    """
    choose(kind, "kind", *KINDS)
    choose(sign, "sign", "label", "graded")
    described = codec(processor, data.max_pixels, data.system_prompt)
    rows, dropped = [], []
    for row in uses.encode(kind, sign, choice, described, examples, data, literal or kind == "guard", targets):
        (dropped if isinstance(row, Dropped) else rows).append(row)
    drops = Counter(drop.reason for drop in dropped)
    if not rows:
        said = describe_failure(drops, dropped)
        raise UserError(
            short(f"{short(data.path)}: none of the {len(examples)} examples can be used as {kind} ({said})", LONGEST_LINE)
        )
    if kind == "pairs" and sign == "graded" and not any(any(collate.signs(row.example, sign)) for row in rows):
        raise UserError(f"{data.path} has no graded safety ratings (harmless_rate, severity_level or severity): use sign='label'")
    rows, others, shares = classes.divided(data.mix, examples, rows)
    dropped, drops = dropped + others, drops + Counter(drop.reason for drop in others)
    frame = Frame(data.prompt_length, data.response_length, described.pad_id)
    room = collate.room(described.reader, rows, data.picture_buckets)
    return Prepared(
        kind,
        sign,
        examples,
        tuple(rows),
        tuple(dropped),
        drops,
        described,
        frame,
        room,
        PictureCache(),
        labels or [(UNKNOWN, UNKNOWN)] * len(examples),
        categories,
        shares=shares,
    )


class Batches:
    """The batches of one process, shuffled anew every epoch. `get_state` is a small JSON-able dict."""

    def __init__(self, prepared: Prepared, iterator: grain.DatasetIterator):
        self.prepared = prepared
        self._iterator = iterator
        self._digest = digest(prepared)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Number of the next batch, to be stored in a checkpoint."""
        return {**self._iterator.get_state(), "rows": len(self.prepared.rows), "digest": self._digest}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called: the next batches equal those of a run that was never interrupted."""
        state = dict(state)
        before, now = state.pop("rows"), len(self.prepared.rows)
        if before != now:
            raise UserError(f"the data has {now} usable rows and the run to be resumed had {before}: give it the same data again")
        if state.pop("digest", self._digest) != self._digest:  # checkpoints of before had none
            raise UserError(
                f"the data has {now} usable rows, as the run to be resumed had, but other ones (text, pictures, labels or their "
                "order): give it the same data again, or use another --workdir"
            )
        self._iterator.set_state(state)


def digest(prepared: Prepared) -> str:
    """Digest of all that training reads of the rows, in their order."""
    sha = hashlib.sha256()
    for row in prepared.rows:
        told = row.example._replace(images=(), question="", responses=(), meta={})
        later = {"desirable": None, "asked": (), "history": ()}  # not there before
        kept = tuple(value for name, value in zip(told._fields, told) if name not in later or value != later[name])
        sha.update(content(row) + repr((kept, prepared.labels[row.row])).replace(", known=None", "").encode())
    if prepared.shares:
        sha.update(repr(prepared.shares).encode())
    return sha.hexdigest()


def merges_system(prepared: Prepared) -> bool:
    """Whether the system text of some row had to go into its first user turn."""
    if not prepared.codec.merges_system:
        return False
    return bool(prepared.codec.system) or any(
        row.example.history[:1] and row.example.history[0].role == "system" for row in prepared.rows
    )


def content(row: Encoded) -> bytes:
    """A digest of a row's prompt, pictures and responses, and of labels that are not these."""
    taught = () if row.target is None or row.target.labels is None else row.target[1:]
    parts = [np.ascontiguousarray(part, np.int64).tobytes() for part in (row.prompt, *row.responses, *taught)]
    return hashlib.sha256(repr((parts, row.digests)).encode()).digest()


class MultiStream:
    """Several streams as one with one position: a batch of each, in order; None of a stream that is None."""

    def __init__(self, **streams: Batches | None):
        self._streams = streams

    def __next__(self) -> tuple[Batch | None, ...]:
        return tuple(None if stream is None else next(stream) for stream in self._streams.values())

    def get_state(self) -> dict[str, Any]:
        return {name: stream.get_state() for name, stream in self._streams.items() if stream is not None}

    def set_state(self, state: dict[str, Any]) -> None:
        for name, stream in self._streams.items():
            if stream is not None:
                stream.set_state(state[name])


def batches(
    examples: Sequence[Example] | Prepared,
    kind: str,
    processor: Any,
    data: DataConfig,
    *,
    seed: int,
    rows_here: np.ndarray | None = None,
    epochs: int | None = None,
    sign: str = "label",
) -> Batches:
    """Shuffled batches of `data.batch_size` rows over all processes; this process gets its own rows of each.

    Args:
        examples: rows, or what `fit` made of them (so that drops are known and shown before the first batch).
        kind: "supervised", "pairs" or "prompts".
        processor: not read where `fit` was called before; None will do then.
        seed: of the order of rows.
        rows_here: which rows of every batch this process gets, ascending; None: all.
        epochs: passes over the rows, None = endless. Only at the very end are rows left out that do not fill a batch.
        sign: of pairs: "label" or "graded".

    Raises:
        UserError: the batch size is not positive, or no row can be used.
    """
    prepared = _prepared(examples, kind, processor, data, sign)
    if data.batch_size < 1:
        raise UserError(f"data.batch_size must be at least 1, got {data.batch_size}")
    assemble = _Assemble(prepared, rows_here)
    made = _order(prepared, seed, epochs).batch(data.batch_size, drop_remainder=True).map(assemble)
    options = grain.ReadOptions(num_threads=data.workers, prefetch_buffer_size=2 * data.workers)
    return Batches(prepared, iter(made.to_iter_dataset(options)))


def _order(prepared: Prepared, seed: int, epochs: int | None) -> grain.MapDataset:
    """Numbers of rows, shuffled anew every epoch; with weights drawn from sources each of which has epochs of its own."""
    if not prepared.shares:
        return grain.MapDataset.range(len(prepared.rows)).seed(seed).shuffle().repeat(epochs)
    ends = np.cumsum([share.rows for share in prepared.shares]).tolist()
    drawn = [
        (grain.MapDataset.range(end - share.rows, end).seed(seed + number).shuffle().repeat(None), share.weight)
        for number, (share, end) in enumerate(zip(prepared.shares, ends))
        if share.weight
    ]
    mixed = grain.MapDataset.mix(*map(list, zip(*drawn)))
    return mixed if epochs is None else mixed[: epochs * len(prepared.rows)]


def all_batches(
    examples: Sequence[Example] | Prepared,
    kind: str,
    processor: Any,
    data: DataConfig,
    *,
    batch_size: int,
    rows_here: np.ndarray | None = None,
    sign: str = "label",
    chooses: Callable[[Sequence[int]], bool] = bool,
) -> Iterator[tuple[Batch, Bool[np.ndarray, "B"]]]:
    """Every row once, in order: (this process's rows of a batch, which rows of the whole batch are real).

    The last batch is filled up with copies of the last row that take no part in any loss: their response masks, weights and
    signs are zero, and the second value is false for them.

    Args:
        chooses: told the numbers of a batch's rows: whether it is to be made at all.
    """
    prepared = _prepared(examples, kind, processor, data, sign)
    assemble = _Assemble(prepared, rows_here)
    count = len(prepared.rows)
    for start in range(0, count, batch_size):
        if not chooses(range(start, min(start + batch_size, count))):
            continue
        numbers = np.arange(start, start + batch_size)
        real_B = numbers < count
        yield (
            _mask_filler_rows(assemble(np.minimum(numbers, count - 1)), real_B if rows_here is None else real_B[rows_here]),
            real_B,
        )


class _Assemble:
    """Row numbers of a global batch -> this process's rows of it; None: all."""

    def __init__(self, prepared: Prepared, rows_here: np.ndarray | None):
        self._prepared, self._rows_here = prepared, rows_here
        self._relabels = any(row.target is not None and row.target.labels is not None for row in prepared.rows)

    def __call__(self, numbers: np.ndarray) -> Batch:
        prepared = self._prepared
        every_row = [prepared.rows[number] for number in numbers]
        here = range(len(numbers)) if self._rows_here is None else self._rows_here
        rows, images = [every_row[place] for place in here], None
        if prepared.room is not None:
            size = collate.fitting(prepared.room, every_row)  # the same on every process
            images = collate.stack_images(rows, self._pictures(rows), prepared.room, size)
        if prepared.kind == "supervised":
            return collate.supervised(rows, images, prepared.frame, relabels=self._relabels)
        if prepared.kind == "pairs":
            return collate.pairs(rows, images, prepared.frame, sign=prepared.sign)
        if prepared.kind == "preference":
            terms = [prepared.terms[numbers[place]] for place in here] if prepared.terms else [collate.NO_TERMS] * len(rows)
            return collate.preference(rows, images, prepared.frame, terms)
        if prepared.kind == "guard":
            labels = [prepared.labels[row.row] for row in rows]
            return collate.guard(rows, images, prepared.frame, labels=labels, categories=prepared.categories)
        return collate.prompts(rows, images, prepared.frame)

    def _pictures(self, rows: Sequence[Encoded]) -> list[list[Float[np.ndarray, "N C"]]]:
        """Pictures of each row."""
        cache = self._prepared.pictures
        places = {digest: (row, place) for row in rows for place, digest in enumerate(row.digests)}
        known = cache.get(places)
        missing = [digest for digest in places if digest not in known]
        opened = (self._open(*places[digest]) for digest in missing)
        new = dict(zip(missing, pictures.cut(self._prepared.codec.reader, opened), strict=True))
        cache.keep(new)
        known |= new
        return [[known[digest] for digest in row.digests] for row in rows]

    def _open(self, row: Encoded, place: int) -> Image.Image:
        example = self._prepared.examples[row.row]
        try:
            return images.decode(example.images[place])
        except Unusable as unusable:
            raise UserError(
                f"an image of row {row.row} ({example.question[:60]!r}) cannot be used: {unusable}. Unless its file changed, set "
                "data.decode_first=true, which drops such rows before step 0, and start again in another --workdir"
            ) from unusable


def _prepared(examples: Sequence[Example] | Prepared, kind: str, processor: Any, data: DataConfig, sign: str) -> Prepared:
    if not isinstance(examples, Prepared):
        return fit(kind, examples, processor, data, sign=sign)
    if examples.kind != kind:
        raise ValueError(f"rows prepared as {examples.kind} cannot be batched as {kind}")
    return examples


def _mask_filler_rows(batch: Batch, real_B: Bool[np.ndarray, "B"]) -> Batch:
    """Take the filler rows out of every loss."""
    if isinstance(batch, SupervisedBatch):
        learned_BR = None if batch.loss_mask_BR is None else batch.loss_mask_BR & real_B[:, None]
        return batch._replace(response_mask_BR=batch.response_mask_BR & real_B[:, None], loss_mask_BR=learned_BR)
    if isinstance(batch, PairBatch):
        return batch._replace(
            helpful_weight_B=batch.helpful_weight_B * real_B,
            safety_weight_B=batch.safety_weight_B * real_B,
            sign_BS=batch.sign_BS * real_B[:, None],
        )
    if isinstance(batch, PreferenceBatch):
        return batch._replace(weight_B=batch.weight_B * real_B, response_mask_BSR=batch.response_mask_BSR & real_B[:, None, None])
    if isinstance(batch, GuardBatch):  # its response mask says where to read: it stays
        return batch._replace(
            exceeds_known_BQJ=batch.exceeds_known_BQJ & real_B[:, None, None],
            category_known_BQA=batch.category_known_BQA & real_B[:, None, None],
        )
    return batch
