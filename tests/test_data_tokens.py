"""Token ids agree with the checkpoint's own processor; placeholders are counted; nothing is ever cut."""

import dataclasses

import numpy as np
import pytest
from tiny_data import FEATURES, IMAGE_ID, TEMPLATE, WORDS, png, processor, settings, tokenizer

from srlhfv_jax.data import chat, collate, images, loader, pictures, tokens
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.literal import Piece
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError

PLENTY = {"prompt_length": 99, "response_length": 99}


def words(ids) -> str:
    return " ".join(WORDS[i] for i in ids)


LAYOUT = pictures.Layout(FEATURES, FEATURES, None, None)


def pair(**changes) -> Example:
    values = {
        "images": (png(1),),
        "question": "what is this ?",
        "responses": ("a cat .", "no"),
        "chosen": 0,
        "safer": 1,
        "unsafe": (True, False),
        "severity": (2.0, -0.5),
    }
    return Example(**(values | changes))


def test_placeholders_are_expanded_as_the_processor_does():
    made = processor()
    codec = chat.codec(made)
    text = codec.prompt_text("what is this ?", 1)
    expected = made(images=images.decode(png(1)), text=text, return_tensors="np")["input_ids"][0]
    got = tokens.prompt_ids(codec, "what is this ?", [LAYOUT])
    np.testing.assert_array_equal(got, expected)
    assert FEATURES == np.sum(got == IMAGE_ID) and got.dtype == np.int32


def test_a_row_without_image_has_no_placeholder():
    codec = chat.codec(processor())
    assert words(tokens.prompt_ids(codec, "what is this ?", [])) == "<s> USER : what is this ? ASSISTANT :"


def test_a_tokenizer_alone_serves_a_text_only_model():
    codec = chat.codec(tokenizer())
    row = tokens.encode(codec, pair(images=()), 0, **PLENTY)
    assert words(row.prompt) == "<s> USER : what is this ? ASSISTANT :" and row.digests == row.layouts == ()
    with pytest.raises(Unusable, match="no_vision"):
        tokens.encode(codec, pair(), 0, **PLENTY)


def test_without_a_template_the_format_of_llava_is_used():
    template, fallback = (chat.codec(processor(template=t)) for t in (TEMPLATE, None))
    np.testing.assert_array_equal(
        tokens.prompt_ids(fallback, "what is this ?", [LAYOUT]), tokens.prompt_ids(template, "what is this ?", [LAYOUT])
    )


def test_a_template_that_writes_bos_does_not_get_a_second_one():
    codec = chat.codec(processor(template="<s>" + TEMPLATE))
    assert words(tokens.prompt_ids(codec, "what ?", [])) == "<s> USER : what ? ASSISTANT :"


def test_a_prompt_never_ends_with_the_end_of_sequence():
    codec = chat.codec(processor(specials="bos_eos"))
    assert words(tokens.prompt_ids(codec, "what ?", [])) == "<s> USER : what ? ASSISTANT :"


def test_a_response_ends_with_exactly_one_end_of_sequence():
    codec = chat.codec(processor(specials="bos_eos"))
    assert words(tokens.response_ids(codec, "a cat .")) == "a cat . </s>"


@pytest.mark.parametrize("question", ["<image>\nwhat is this ?", "what is this ?\n<image>"])
def test_a_placeholder_written_into_the_question_is_not_doubled(question):
    codec = chat.codec(processor())
    row = tokens.encode(codec, pair(question=question), 0, **PLENTY)
    np.testing.assert_array_equal(row.prompt, tokens.prompt_ids(codec, "what is this ?", [LAYOUT]))


@pytest.mark.parametrize(
    ("changes", "lengths", "reason"),
    [
        ({"question": "what <image> is <image> this ?"}, PLENTY, "special_token_in_text"),
        ({"responses": ("a <image> cat", "no")}, PLENTY, "special_token_in_text"),
        ({"responses": ("a cat </s> dog", "no")}, PLENTY, "special_token_in_text"),
        ({"responses": ("\u200b", "no")}, PLENTY, "empty_response"),
        ({"responses": ("zebra", "giraffe")}, PLENTY, "identical_responses"),
        ({}, {"prompt_length": 8 + FEATURES, "response_length": 99}, "prompt_too_long"),
        ({}, {"prompt_length": 99, "response_length": 3}, "response_too_long"),
    ],
)
def test_what_does_not_fit_is_dropped_and_never_cut(changes, lengths, reason):
    made = processor()
    if reason == "empty_response":
        made.tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("\u200b", "")
    codec = chat.codec(made)
    with pytest.raises(Unusable) as caught:
        tokens.encode(codec, pair(**changes), 0, **lengths)
    assert caught.value.reason == reason


def test_a_special_token_read_literally_is_other_tokens_between_those_of_the_text():
    codec = chat.codec(processor())
    plain, spelled = tokens.response_ids(codec, "a cat dog"), tokens.response_ids(codec, "a cat </s> dog", literal=True)
    assert codec.eos_id not in spelled[:-1] and len(spelled) > len(plain)
    assert [spelled[0], spelled[1], spelled[-2], spelled[-1]] == plain.tolist()


def test_a_text_that_was_seen_before_has_the_same_ids_and_nobody_can_change_them():
    codec = chat.codec(processor())
    before = tokens.encode(codec, pair(), 0, **PLENTY)
    made = codec.ids.cache_info().misses
    after = tokens.encode(codec, pair(images=(png(2),)), 1, **PLENTY)
    assert codec.ids.cache_info().misses == made
    for one, other in zip((before.prompt, *before.responses), (after.prompt, *after.responses), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="read-only"):
        codec.ids((Piece("no", True),), False)[0] = 1


def test_what_just_fits_is_kept():
    codec = chat.codec(processor())
    row = tokens.encode(codec, pair(), 0, prompt_length=9 + FEATURES, response_length=4)
    assert len(row.prompt) == 9 + FEATURES and [len(ids) for ids in row.responses] == [4, 2]


def test_a_processor_that_cannot_count_placeholders_is_refused():
    made = processor()
    made.patch_size = None
    with pytest.raises(UserError, match="set patch_size and vision_feature_select_strategy"):
        chat.codec(made)


def encoded(examples, made=None):
    codec = chat.codec(made or processor())
    return codec, [tokens.encode(codec, example, i, **PLENTY) for i, example in enumerate(examples)]


def test_prompts_pad_on_the_left_and_responses_on_the_right():
    codec, rows = encoded([pair(images=()), pair(images=(), question="what ?", responses=("no", "yes"))])
    batch = collate.supervised(rows, None, collate.Frame(11, 5, codec.pad_id))
    assert words(batch.tokens_BT[1]) == "<pad> <pad> <pad> <pad> <s> USER : what ? ASSISTANT : no </s> <pad> <pad> <pad>"
    assert batch.mask_BT[1].tolist() == [False] * 4 + [True] * 9 + [False] * 3
    assert batch.response_mask_BR.tolist() == [[True] * 4 + [False], [True] * 2 + [False] * 3]
    assert batch.positions_BT[1].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8]


def test_masks_do_not_depend_on_what_the_pad_token_is():
    batches = []
    for pad in ("<pad>", "</s>"):
        codec, rows = encoded([pair(), pair(images=())], processor(pad=pad))
        assert codec.pad_id == WORDS.index(pad)
        batches.append(collate.supervised(rows, None, collate.Frame(24, 6, codec.pad_id)))
    for field in ("mask_BT", "positions_BT", "response_mask_BR"):
        np.testing.assert_array_equal(*(batch._asdict()[field] for batch in batches))
    real = batches[0].mask_BT
    np.testing.assert_array_equal(batches[0].tokens_BT[real], batches[1].tokens_BT[real])


def test_padding_changes_nothing():
    codec, rows = encoded([pair(), pair(images=())])
    small, large = (collate.pairs(rows, None, collate.Frame(p, r, codec.pad_id), sign="label") for p, r in ((20, 5), (31, 9)))
    np.testing.assert_array_equal(small.tokens_BST, large.tokens_BST[:, :, 11:36])
    np.testing.assert_array_equal(small.positions_BST, large.positions_BST[:, :, 11:36])
    assert large.mask_BST.sum() == small.mask_BST.sum() and large.response_mask_BSR.sum() == small.response_mask_BSR.sum()


def test_pairs_carry_both_preferences_and_signs():
    codec, rows = encoded(
        [
            pair(images=()),
            pair(images=(), chosen=1, safer=None, safety_tie=True, unsafe=(None, False), severity=(0.0, -3.0)),
            pair(images=(), chosen=None, safer=0, unsafe=(False, True), severity=(None, None)),
            pair(images=(), chosen=1, helpful_tie=True, unsafe=(), severity=()),
        ]
    )
    frame = collate.Frame(24, 6, codec.pad_id)
    batch = collate.pairs(rows, None, frame, sign="label")
    assert batch.tokens_BST.shape == (4, 2, 30) and batch.response_mask_BSR.shape == (4, 2, 6) and batch.images is None
    assert words(batch.tokens_BST[0, 1][batch.mask_BST[0, 1]]).endswith("ASSISTANT : no </s>")
    np.testing.assert_array_equal(batch.tokens_BST[:, 0, :24], batch.tokens_BST[:, 1, :24])
    assert batch.chosen_B.tolist() == [0, 1, 0, 1] and batch.helpful_weight_B.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert batch.safer_B.tolist() == [1, 0, 0, 1] and batch.safety_weight_B.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert batch.sign_BS.tolist() == [[1.0, -1.0], [0.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]
    graded = collate.pairs(rows, None, frame, sign="graded")
    assert graded.sign_BS.tolist() == [[2.0, -0.5], [0.0, -3.0], [0.0, 0.0], [0.0, 0.0]]
    assert graded.sign_BS.dtype == np.float32 == graded.helpful_weight_B.dtype and graded.chosen_B.dtype == np.int32


def test_supervised_learning_from_pairs_takes_the_more_helpful_answer():
    made = processor()
    examples = [
        pair(images=(), chosen=1),
        pair(images=(), chosen=None),
        pair(images=(), responses=()),
        pair(images=(), responses=("yes",)),
    ]
    prepared = loader.fit("supervised", examples, made, settings())
    assert prepared.drops == {"missing_label": 1, "missing_response": 1}
    batch, _ = next(loader.all_batches(prepared, "supervised", made, settings(), batch_size=2))
    assert [words(batch.tokens_BT[i, 24:][batch.response_mask_BR[i]]) for i in (0, 1)] == ["no </s>", "yes </s>"]


def test_every_drop_of_a_use_is_counted():
    made = processor()
    examples = [
        pair(),
        pair(question="what is this ? " * 9),
        pair(responses=("a cat a cat a cat", "no")),
        pair(chosen=None, safer=None, helpful_tie=True, unsafe=(None, None)),
        pair(responses=("no",)),
    ]
    prepared = loader.fit("pairs", examples, made, settings())
    assert prepared.drops == {"prompt_too_long": 1, "response_too_long": 1, "missing_label": 1, "missing_response": 1}
    assert [drop.row for drop in prepared.dropped] == [1, 2, 3, 4] and [row.row for row in prepared.rows] == [0]
    assert loader.fit("prompts", examples, made, settings()).drops == {"prompt_too_long": 1}  # prompts need no labels


def test_if_nothing_fits_the_error_says_why():
    with pytest.raises(UserError, match=r"none of the 2 examples can be used as pairs \(prompt_too_long 2"):
        loader.fit("pairs", [pair(), pair()], processor(), settings(prompt_length=12))


def test_graded_signs_need_ratings():
    plain = pair(severity=(None, None))
    assert loader.fit("pairs", [plain], processor(), settings(), sign="label").rows
    with pytest.raises(UserError, match="no graded safety ratings .*use sign='label'"):
        loader.fit("pairs", [plain], processor(), settings(), sign="graded")


def test_settings_of_data_are_what_the_frame_holds():
    data = dataclasses.replace(settings(), prompt_length=21, response_length=7)
    assert loader.fit("pairs", [pair()], processor(), data).frame == (21, 7, 0)
