"""Answers drawn row by row: each as its own request says, the same whoever else is in the batch, in few compiled shapes."""

import jax
import numpy as np
import pytest
import tiny_hf
from tiny_data import png

from srlhfv_jax.config import MeshConfig, inference
from srlhfv_jax.data import loader, pictures
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Prompt, Turn
from srlhfv_jax.evaluation import answering, by_row
from srlhfv_jax.evaluation.by_row import Draw
from srlhfv_jax.guard.service import warm_up
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.runs import few_shapes
from srlhfv_jax.runs.few_shapes import Lengths

DATA = loader.single_pass(prompt_length=200, response_length=7, batch_size=4)
MODEL = inference("float32")
CONFIGS = {"llava": tiny_hf.llava_config(), "qwen2_5_vl": tiny_hf.qwen2_5_vl_config()}
TILED = {"llava_next": tiny_hf.llava_next_config(), "smolvlm": tiny_hf.smolvlm_config()}
LENGTHS = Lengths((32, 128))
PROMPTS = [
    Prompt((png(0, (40, 17)),), "w6 w7 w8"),
    Prompt((), "w10 w11", (Turn("user", "w5"), Turn("assistant", ""), Turn("user", "w8"), Turn("assistant", "w6"))),
    Prompt((png(1, (13, 33)),), "w9"),
    Prompt((), " ".join(["w12"] * 40)),
    Prompt((), "w13"),
    Prompt((png(2, (20, 20)), png(0, (40, 17))), "w14 w15"),
]


@pytest.fixture(scope="module", params=CONFIGS)
def policy(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp(request.param))


def load(family, folder):
    tiny_hf.save(folder, (CONFIGS | TILED)[family])
    return by_row.load_policy(str(folder), DATA, MODEL, make_mesh(MeshConfig(data=1, fsdp=1, tensor=1)), LENGTHS)


def test_a_seeded_answer_is_the_same_whoever_else_is_in_the_batch(policy):
    draws = [Draw((number, 5), 1.0 + number / 8, 1.0 - number / 16) for number in range(len(PROMPTS))]
    together = by_row.answer(policy, PROMPTS, draws)
    backwards = by_row.answer(policy, PROMPTS[::-1], draws[::-1])[::-1]
    alone = [by_row.answer(policy, [prompt], [draw])[0] for prompt, draw in zip(PROMPTS, draws, strict=True)]
    crowd = [by_row.answer(policy, [PROMPTS[4]] * 3 + [PROMPTS[1]], [Draw((k,), 2.0) for k in range(3)] + [draws[1]])[3]]
    assert together == alone == backwards and crowd == together[1:2]
    assert len({drawn.text for drawn in together}) > 3


def test_another_seed_is_another_answer(policy):
    texts = {by_row.answer(policy, PROMPTS[:1], [Draw((seed,))])[0].text for seed in range(4)}
    assert len(texts) > 1


def test_greedy_rows_beside_sampled_ones_are_the_answers_of_the_other_sampler(policy):
    greedy = answering.load_policy(str(policy.checkpoint.path), DATA, MODEL, policy.mesh, temperature=0.0, seed=0)
    draws = [Draw((number,), 0.0 if number % 2 == 0 else 1.5) for number in range(len(PROMPTS))]
    drawn = by_row.answer(policy, PROMPTS, draws)
    assert [one.text for one in drawn[::2]] == answering.answer_prompts(greedy, PROMPTS, 0)[::2]
    least = by_row.answer(policy, PROMPTS, [Draw((number,), 1.5, 0.0) for number in range(len(PROMPTS))])
    assert [one.text for one in least] == answering.answer_prompts(greedy, PROMPTS, 0)


def test_an_answer_is_cut_at_its_own_length_and_says_so(policy):
    draws = [Draw((3,), length=length) for length in (1, 2, 4, None)]
    drawn = by_row.answer(policy, PROMPTS[:1] * 4, draws)
    full = drawn[3]
    for one, draw in zip(drawn[:3], draws, strict=False):
        assert one.tokens == min(draw.length, full.tokens) and full.text.startswith(one.text)
        assert one.ended == (full.ended and draw.length >= full.tokens)


def programs(policy) -> tuple[int, int]:
    return policy.begin._cache_size(), policy.go_on._cache_size()


def test_other_settings_compile_nothing_anew_and_lengths_few_programs(policy):
    by_row.answer(policy, PROMPTS, [Draw((0,))] * len(PROMPTS))
    compiled = programs(policy)
    more = [Prompt((), " ".join(["w7"] * count)) for count in range(1, 40, 3)]
    by_row.answer(policy, more, [Draw((k,), k / 8, 1 - k / 16, 1 + k % 7, ("w7",)) for k in range(len(more))])
    assert programs(policy) == compiled


@pytest.mark.parametrize("family", CONFIGS | TILED)
def test_pictures_of_every_size_and_number_compile_what_was_warmed_up(family, tmp_path, monkeypatch):
    policy = load(family, tmp_path)
    monkeypatch.setattr(warm_up, "WORD", "w9")
    warmed = warm_up.compile_policy(policy, LENGTHS)
    assert programs(policy) == (warmed - 2, 2)  # a program that draws on for each of two lengths
    sizes = [(side, 12 + side * 5 % 23) for side in range(8, 44, 5)]
    asked = [Prompt((png(0, size),), " ".join(["w9"] * (1 + 9 * k))) for k, size in enumerate(sizes)]
    asked += [Prompt((png(1, (12, 12)),) * count, "w9") for count in (2, 3)]
    drawn = by_row.answer(policy, asked, [Draw((1,), 0.0)] * len(asked))
    assert programs(policy) == (warmed - 2, 2)
    exact = answering.load_policy(str(tmp_path), DATA, MODEL, policy.mesh, temperature=0.0, seed=0)
    assert [one.text for one in drawn] == answering.answer_prompts(exact, asked, 0)


def test_a_text_that_ends_an_answer_ends_its_decoding(policy, monkeypatch):
    monkeypatch.setattr(by_row, "STOP_BLOCK", 2)
    whole = by_row.answer(policy, PROMPTS[4:5], [Draw((5,), 0.0)])[0]
    assert whole.tokens == 7
    words, steps = whole.text.split(), []

    def go_on(*given, **static):
        steps.append(int((state := policy.go_on(*given, **static)).step))
        return state

    watched = policy._replace(go_on=go_on)
    (cut,) = by_row.answer(watched, PROMPTS[4:5], [Draw((5,), 0.0, stop=(words[2],))])
    first = words.index(words[2])
    assert cut == by_row.Drawn(" ".join(words[:first] + [""]) if first else "", first + 1, True)
    assert steps[-1] <= first + 2 and len(steps) == -(-(first + 1) // 2)
    both = by_row.answer(policy, PROMPTS[4:5] * 2, [Draw((5,), 0.0, stop=(words[2],)), Draw((5,), 0.0)])
    assert both == [cut, whole]


def test_the_size_of_a_prompt_is_known_before_and_what_cannot_be_read_named(policy):
    sizes = by_row.read(policy, [PROMPTS[1], PROMPTS[4], Prompt((), " ".join(["w7"] * 300)), Prompt((), "w8 <image>")])
    assert 0 < sizes[1] < sizes[0] < 40
    assert [one.reason for one in sizes[2:] if isinstance(one, Unusable)] == ["prompt_too_long", "special_token_in_text"]


def test_a_text_that_ends_an_answer_is_left_out_and_its_tokens_counted():
    words = ["a", " b", " E", "N", "D", " c"]

    def decode(ids):
        return "".join(words[index] for index in ids)

    assert by_row.cut(range(6), ("END", "c"), decode) == ("a b ", 5, True)
    assert by_row.cut(range(6), ("x",), decode) == ("a b END c", 6, False)
    assert by_row.cut([], ("x",), decode) == ("", 0, False)


def test_random_numbers_depend_on_the_seed_alone():
    first = by_row.uniform((2**64 - 1, 0), 9)
    np.testing.assert_array_equal(first[:5], by_row.uniform((2**64 - 1, 0), 5))
    assert first.dtype == np.float32 and (first != by_row.uniform((2**64 - 1, 1), 9)).all()


# shapes


def test_a_length_is_the_least_that_fits_and_beyond_the_last_its_doubles():
    assert [few_shapes.fitting((16, 64), needed) for needed in (1, 16, 17, 64, 65, 129)] == [16, 16, 64, 64, 128, 256]


def test_pairs_of_lengths_that_hold_a_row():
    lengths = Lengths((16, 64), (8, 32))
    assert few_shapes.each(lengths, 17, 9) == [Lengths((64,), (32,))]
    assert few_shapes.each(lengths, 3) == [Lengths((16,), ()), Lengths((64,), ())]
    assert few_shapes.each(lengths, 65) == []


def reader(family: str):
    return pictures.reader(tiny_hf.processor(family))


def test_pictures_are_padded_to_what_prompts_of_few_lengths_can_hold():
    lengths = Lengths((16, 64))
    assert few_shapes.unit(reader("llava")) == (9, 9) and few_shapes.units(reader("llava"), lengths) == (1, 7)
    assert few_shapes.unit(reader("smolvlm")) == (9, 1) and few_shapes.units(reader("smolvlm"), lengths) == (16, 17, 64)
    assert few_shapes.unit(reader("qwen2_vl")) == (4, 1) and few_shapes.units(reader("qwen2_vl"), lengths) == (16, 64)
    grid = reader("qwen2_vl"), 60
    assert few_shapes.each(lengths, 15, 0, grid) == [
        Lengths((16,), (), (16,)),
        Lengths((64,), (), (16,)),
        Lengths((64,), (), (64,)),
    ]
    assert few_shapes.each(lengths, 17, 0, grid) == [Lengths((64,), (), (16,)), Lengths((64,), (), (64,))]
    assert few_shapes.each(lengths, 10, 0, (reader("llava"), 9)) == [
        Lengths((16,), (), (1,)),
        Lengths((64,), (), (1,)),
        Lengths((64,), (), (7,)),
    ]


def test_the_mesh_in_force_does_not_matter(policy, eight_devices):
    alone = by_row.answer(policy, PROMPTS[:2], [Draw((3,))] * 2)
    with jax.set_mesh(eight_devices):
        assert by_row.answer(policy, PROMPTS[:2], [Draw((3,))] * 2) == alone
