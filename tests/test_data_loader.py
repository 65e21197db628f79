"""The order of rows is fixed by the seed; a resumed loader goes on as if never interrupted; processes share global batches."""

import json

import jax
import numpy as np
import pytest
import tiny_hf
from tiny_data import png, processor, settings, tokenizer

from srlhfv_jax.data import collate, loader, picture_cache, pictures, tokens, uses
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import rules


def examples(count: int = 11, *, images: bool = True) -> list[Example]:
    """Every third row has no image; the answers of pairs differ from row to row."""
    return [
        Example(
            images=(png(i * 20),) if images and i % 3 else (),
            question="what is this ?" if i % 2 else "how do I use it ?",
            responses=(" ".join(["a"] * (1 + i % 4)), "no ."),
            chosen=i % 2,
            safer=(i + 1) % 2,
            unsafe=(i % 2 == 0, i % 2 == 1),
            severity=(0.5 if i % 2 == 0 else -1.5, 2.5 if i % 2 else -0.5),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def made():
    return processor()


@pytest.fixture(scope="module")
def prompts(made):
    return loader.fit("prompts", examples(), made, settings())


def take(batches, count: int):
    return [next(batches) for _ in range(count)]


def assert_same(first, second) -> None:
    assert type(first) is type(second)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (name, a), b in zip(rules.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("kind", loader.KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_equals_uninterrupted(made, kind, workers):
    data = settings(workers=workers)
    prepared = loader.fit(kind, examples(), made, data)
    whole = loader.batches(prepared, kind, made, data, seed=3)
    before = take(whole, 4)  # 16 of 11 rows: into the second epoch
    state = json.loads(json.dumps(whole.get_state()))
    after = take(whole, 5)
    resumed = loader.batches(examples(), kind, made, data, seed=3)
    resumed.set_state(state)
    for a, b in zip(after, take(resumed, 5), strict=True):
        assert_same(a, b)
    whole.set_state({**state, "next_index": 0})
    for a, b in zip(before, take(whole, 4), strict=True):
        assert_same(a, b)


def test_threads_change_nothing(made, prompts):
    one, many = (take(loader.batches(prompts, "prompts", made, settings(workers=w), seed=1), 6) for w in (0, 4))
    for a, b in zip(one, many, strict=True):
        assert_same(a, b)


def test_every_epoch_is_another_permutation(made, prompts):
    order = np.concatenate(
        [batch.row_B for batch in take(loader.batches(prompts, "prompts", made, settings(batch_size=11), seed=5), 3)]
    )
    epochs = order.reshape(3, 11)
    assert (np.sort(epochs, axis=1) == np.arange(11)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_may_straddle_epochs_so_no_row_is_left_out(made, prompts):
    order = np.concatenate([batch.row_B for batch in take(loader.batches(prompts, "prompts", made, settings(), seed=5), 11)])
    assert (np.bincount(order, minlength=11) == 4).all()


def test_seeds_give_other_orders_and_equal_seeds_the_same(made, prompts):
    first, again, other = (next(loader.batches(prompts, "prompts", made, settings(batch_size=8), seed=s)) for s in (1, 1, 2))
    assert_same(first, again)
    assert first.row_B.tolist() != other.row_B.tolist()


def test_finite_epochs_end(made, prompts):
    batches = list(loader.batches(prompts, "prompts", made, settings(), seed=0, epochs=2))
    assert len(batches) == 22 // 4


def test_rows_index_the_examples_and_not_what_was_left_of_them(made):
    rows = examples()
    rows[0] = rows[0]._replace(question="what is this ? " * 9)
    rows[4] = rows[4]._replace(question="what <image> ?")
    prepared = loader.fit("prompts", rows, made, settings())
    batch = next(loader.batches(prepared, "prompts", made, settings(batch_size=9), seed=0))
    assert sorted(batch.row_B.tolist()) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    for ids, mask, row in zip(batch.tokens_BP, batch.mask_BP, batch.row_B, strict=True):
        asked = made.tokenizer.decode(ids[mask])
        assert rows[row].question in asked


@pytest.mark.parametrize("kind", loader.KINDS)
def test_rows_that_are_encoded_together_are_what_each_is_alone(made, kind, monkeypatch):
    """Ids, drops, their reasons and their order; texts that cannot be encoded are among them."""
    faults = [
        {},
        {"responses": ("no", "a \ud800 ."), "chosen": 0},
        {"question": "\U0010fffd ?"},
        {"question": "what <image> is <image> ?"},
        {"responses": ("yes",), "chosen": None, "safer": None, "desirable": False},
        {"chosen": None, "safer": None, "unsafe": (None, None), "severity": (None, None)},
        {"question": "what is this ? " * 9},
        {"responses": ("no </s> .", "yes")},
    ]
    rows = [row._replace(**faults[number % len(faults)]) for number, row in enumerate(examples(23))]
    together = loader.fit(kind, rows, made, settings())
    monkeypatch.setattr(uses, "ROWS_AT_ONCE", 1)
    alone = loader.fit(kind, rows, made, settings())
    codec, lengths = together.codec, {"prompt_length": settings().prompt_length, "response_length": settings().response_length}
    assert together.dropped == alone.dropped and len(together.drops) >= 2
    assert len(together.rows) + len(together.dropped) == len(rows) and loader.digest(together) == loader.digest(alone)
    for row in together.rows:
        example = rows[row.row] if kind != "prompts" else rows[row.row]._replace(responses=())
        expected = tokens.encode(codec, example, row.row, literal=kind == "guard", **lengths)
        for ids, other in zip((row.prompt, *row.responses), (expected.prompt, *expected.responses), strict=True):
            assert ids.dtype == other.dtype and ids.tolist() == other.tolist()


def test_a_process_gets_its_own_rows_of_the_batches_of_one(made):
    data = settings()
    prepared = loader.fit("pairs", examples(), made, data)
    whole = take(loader.batches(prepared, "pairs", made, data, seed=7), 5)
    for own in (np.array([1]), np.array([0, 3]), np.arange(4)):
        for batch, mine in zip(whole, take(loader.batches(prepared, "pairs", made, data, seed=7, rows_here=own), 5), strict=True):
            assert_same(jax.tree.map(lambda values: values[own], batch), mine)


def test_evaluation_sees_every_row_once_in_order(made, prompts):
    rows, real = [], []
    for batch, real_B in loader.all_batches(prompts, "prompts", made, settings(), batch_size=4):
        assert batch.tokens_BP.shape == (4, 24) and real_B.shape == (4,)
        rows += batch.row_B[real_B].tolist()
        real += real_B.tolist()
    assert rows == list(range(11)) and real == [True] * 11 + [False]


def test_filler_rows_take_no_part_in_any_loss(made):
    pairs = [batch for batch, _ in loader.all_batches(examples(5), "pairs", made, settings(), batch_size=4)][-1]
    assert pairs.helpful_weight_B.tolist() == [1, 0, 0, 0] == pairs.safety_weight_B.tolist()
    assert (pairs.sign_BS[1:] == 0).all() and (pairs.sign_BS[0] != 0).all()
    supervised = [batch for batch, _ in loader.all_batches(examples(5), "supervised", made, settings(), batch_size=4)][-1]
    assert supervised.response_mask_BR.any(axis=1).tolist() == [True, False, False, False]


def test_evaluation_over_processes_covers_every_row(made, prompts):
    parts = [
        list(loader.all_batches(prompts, "prompts", made, settings(), batch_size=4, rows_here=np.array(own)))
        for own in ([0, 3], [1, 2])
    ]
    assert len(parts[0]) == len(parts[1]) == 3
    found = []
    for (first, real_B), (second, also_B) in zip(*parts, strict=True):
        assert real_B.tolist() == also_B.tolist()  # of the whole batch, on every process
        found += np.stack([first.row_B[0], *second.row_B, first.row_B[1]])[real_B].tolist()
    assert found == list(range(11))


def test_pictures_belong_to_their_rows_and_the_cache_changes_nothing(made, prompts, monkeypatch):
    cached = [batch for batch, _ in loader.all_batches(prompts, "prompts", made, settings(), batch_size=11)][0]
    monkeypatch.setattr(picture_cache, "PICTURE_CACHE_BYTES", 0)
    without = prompts._replace(pictures=picture_cache.PictureCache())
    fresh = [batch for batch, _ in loader.all_batches(without, "prompts", made, settings(), batch_size=11)][0]
    assert_same(cached, fresh)
    for i in range(11):
        expected = next(pictures.cut(pictures.reader(made), [_open(png(i * 20))])) if i % 3 else np.zeros((9, 192))
        np.testing.assert_array_equal(cached.images.patches_BNC[i], expected)


def test_a_picture_is_cut_once_however_often_rows_are_read(made, prompts, monkeypatch):
    read = prompts._replace(pictures=picture_cache.PictureCache())
    first = [batch for batch, _ in loader.all_batches(read, "prompts", made, settings(), batch_size=4)]
    monkeypatch.setattr(pictures, "_cut", None)
    for batch, (again, _) in zip(first, loader.all_batches(read, "prompts", made, settings(), batch_size=4), strict=True):
        assert_same(batch, again)


def _open(encoded):
    from srlhfv_jax.data.images import decode

    return decode(encoded)


def test_batches_without_any_image_carry_none(made):
    rows = examples(images=False)
    assert next(loader.batches(rows, "pairs", made, settings(), seed=0)).images is None
    assert next(loader.batches(rows, "supervised", tokenizer(), settings(), seed=0)).images is None


def test_resuming_with_other_data_is_refused(made):
    state = loader.batches(examples(11), "prompts", made, settings(), seed=0).get_state()
    with pytest.raises(UserError, match="has 9 usable rows and the run to be resumed had 11"):
        loader.batches(examples(9), "prompts", made, settings(), seed=0).set_state(state)


@pytest.mark.parametrize(
    "change",
    [
        {"question": "where is this ?"},
        {"responses": ("a", "a knife .")},
        {"images": (png(7),)},
        {"chosen": None, "helpful_tie": True},
        {"severity": (0.5, -0.25)},
        {},  # the order alone
    ],
    ids=lambda change: "-".join(change) or "order",
)
def test_resuming_with_as_many_rows_of_other_content_is_refused(made, change):
    rows = examples(9)
    state = json.loads(json.dumps(loader.batches(rows, "pairs", made, settings(), seed=0).get_state()))
    loader.batches(examples(9), "pairs", made, settings(), seed=0).set_state(state)
    other = [*rows[:4], rows[4]._replace(**change), *rows[5:]] if change else rows[::-1]
    with pytest.raises(UserError, match="9 usable rows, as the run to be resumed had, but other ones"):
        loader.batches(other, "pairs", made, settings(), seed=0).set_state(state)


def test_a_batch_has_at_least_one_row(made, prompts):
    with pytest.raises(UserError, match="data.batch_size must be at least 1, got 0"):
        loader.batches(prompts, "prompts", made, settings(batch_size=0), seed=0)


def test_a_picture_that_went_bad_stops_the_run_with_its_row(made):
    rows = examples(3)
    prepared = loader.fit("prompts", rows, made, settings())
    rows[2] = rows[2]._replace(images=(b"overwritten",))
    with pytest.raises(UserError, match=r"an image of row 2 .* cannot be used: not_an_image"):
        list(loader.all_batches(prepared, "prompts", made, settings(), batch_size=3))


def test_pictures_of_several_sizes_come_in_few_shapes():
    """Rows without a picture, with one and with two: each batch has the smallest of the sizes, on every process."""
    processor = tiny_hf.processor("qwen2_vl")
    shapes = [(), ((10, 12),), ((40, 17), (33, 40)), ((20, 21),), ((12, 44),), ((9, 9), (10, 10))]
    rows = [Example(tuple(png(0, size) for size in sizes), "w3 w4", ()) for sizes in shapes]
    data = settings(prompt_length=120, batch_size=2, picture_buckets=3)
    prepared = loader.fit("prompts", rows, processor, data)
    totals = [collate.size(row.layouts).patches for row in prepared.rows]
    allowed = [size.patches for size in prepared.room.sizes]
    assert len(allowed) == 3 and allowed[-1] == max(totals) and set(allowed) <= set(totals)
    found = [[], []]
    for process in (0, 1):
        made = loader.batches(prepared, "prompts", None, data, seed=4, rows_here=np.array([process]), epochs=4)
        found[process] = [batch.images for batch in made]
    for two in zip(*found):
        assert two[0].patches_BNC.shape == two[1].patches_BNC.shape
        used = max(int(np.sum(images.picture_BN > 0)) for images in two)
        assert two[0].patches_BNC.shape[1] == min(size for size in allowed if size >= used)
    assert {two[0].patches_BNC.shape[1] for two in zip(*found)} == set(allowed)
    with_two = next(images for images in found[0] + found[1] if images.picture_BN.max() == 2)
    assert np.sum(with_two.picture_BN == 1) > 0
