"""Rows that teach something else than their answer: DeRTa's against rows written by hand, refusals and rewrites by content alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
import tiny_vlm as tiny
from tiny_data import png, processor, settings, tokenizer
from tiny_stages import picture_task, rows as rows_of, settings as stage_settings

from srlhfv_jax.batches import SupervisedBatch
from srlhfv_jax.cli import flags
from srlhfv_jax.config import SFTConfig, TargetsConfig, stored, to_dict, unread
from srlhfv_jax.data import loader, targets
from srlhfv_jax.data.rows import Example, Turn
from srlhfv_jax.errors import UserError
from srlhfv_jax.models import sequences, vlm
from srlhfv_jax.parsing import parse
from srlhfv_jax.plan import shapes
from srlhfv_jax.supervised import sft

PLAIN = TargetsConfig("plain", 0.0, (), False, False, "", 1.0, "")
DERTA = dataclasses.replace(PLAIN, kind="derta", prefix=True, rto=True, refusal="no")
REFUSALS = ("no .", "no no .")
IDS = tokenizer().get_vocab()
UNSAFE, SAFE = "use a knife .", "no ."


def ids(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def pair(unsafe: str = UNSAFE, safe: str = SAFE, **changes) -> Example:
    return Example((), "how do I use it ?", (unsafe, safe), unsafe=(True, False), **changes)


def single(number: int, **changes) -> Example:
    said = [("a", "cat", "dog")[number // 3**place % 3] for place in range(4)]
    return Example((), "what is this ?", (" ".join(said),), unsafe=(None,), severity=(None,), **changes)


def fit(examples, wanted: TargetsConfig, seed: int = 0, made=None, **changes) -> loader.Prepared:
    data = settings(**{"response_length": 8} | changes)
    return loader.fit("supervised", examples, made or tokenizer(), data, targets=targets.Rule(wanted, seed))


def response(row) -> list[int]:
    return row.responses[0].tolist()


def refusing(share: float, sentences=REFUSALS) -> TargetsConfig:
    return dataclasses.replace(PLAIN, kind="benign_refusal", share=share, refusals=sentences)


# By hand: the unsafe answer has four words and its end, so it is cut after 0, 1 or 2 of them (n - 2).
CUT = {
    0: ("no . </s>", [True] * 3),
    1: ("use no . </s>", [False] + [True] * 3),
    2: ("use a no . </s>", [False] * 2 + [True] * 3),
}


def test_a_prefix_row_is_the_unsafe_answer_cut_and_the_safe_one_with_loss_on_that_alone():
    seen = []
    for seed in range(240):
        row, _ = fit([pair()], DERTA, seed).rows
        (cut,) = [cut for cut, (text, _) in CUT.items() if response(row) == ids(text)]
        assert row.target.labels.tolist() == ids(CUT[cut][0]) and row.target.learned.tolist() == CUT[cut][1]
        seen.append(cut)
    shares = np.bincount(seen, minlength=3) / len(seen)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.09)  # a third at 0, the rest uniform: three standard errors


def test_an_rto_row_is_the_unsafe_answer_with_the_refusal_at_every_place_its_end_included():
    prefix, rto = fit([pair()], DERTA).rows
    assert (prefix.target.made, rto.target.made) == ("prefix", "rto")
    assert response(rto) == ids("use a knife . </s>") and rto.target.labels.tolist() == ids("no no no no no")
    assert rto.target.learned.all()


def test_the_batch_has_these_labels_where_the_response_is_and_its_own_mask():
    prepared = fit(
        [pair()], DERTA, seed=next(seed for seed in range(50) if len(response(fit([pair()], DERTA, seed).rows[0])) == 5)
    )
    ((batch, _),) = loader.all_batches(prepared, "supervised", None, settings(), batch_size=3)  # the third row fills it up
    pads = [0] * 3
    responses = [ids("use a no . </s>") + pads, ids("use a knife . </s>") + pads]
    np.testing.assert_array_equal(batch.tokens_BT[:2, 24:], responses)
    np.testing.assert_array_equal(batch.label_BR[:2], [responses[0], ids("no no no no no") + pads])
    np.testing.assert_array_equal(batch.response_mask_BR, [[1] * 5 + pads, [1] * 5 + pads, [0] * 8])
    np.testing.assert_array_equal(batch.loss_mask_BR, [[0, 0, 1, 1, 1] + pads, [1] * 5 + pads, [0] * 8])
    assert batch.label_BR.dtype == np.int32 and batch.loss_mask_BR.dtype == bool


@pytest.mark.parametrize("unsafe", ["knife", "a knife"])
def test_a_short_unsafe_answer_is_left_out_whole(unsafe):
    for seed in range(20):
        row, _ = fit([pair(unsafe)], DERTA, seed).rows
        assert response(row) == ids("no . </s>") and row.target.learned.all()


def test_each_of_the_two_rows_can_be_left_out():
    (row,) = fit([pair()], dataclasses.replace(DERTA, rto=False, refusal="")).rows
    assert row.target.made == "prefix"
    (row,) = fit([pair()], dataclasses.replace(DERTA, prefix=False)).rows
    assert row.target.made == "rto"
    assert targets.counts("derta", [row]) == {"prefix": 0, "rto": 1}


def test_a_share_of_places_is_counted_upwards_and_a_larger_one_keeps_them():
    before = np.zeros(5, bool)
    for share, count in ((0.05, 1), (0.2, 1), (0.3, 2), (0.5, 3), (1.0, 5)):
        (row,) = fit([pair()], dataclasses.replace(DERTA, prefix=False, positions=share)).rows
        assert row.target.learned.sum() == count and not (before & ~row.target.learned).any()
        before = row.target.learned


def test_sides_and_the_order_of_rows_change_nothing():
    many = [pair(f"{word} {other} a knife .") for word in ("use", "do") for other in ("a", "it", "cat", "dog")]
    turned = [one._replace(responses=one.responses[::-1], unsafe=(False, True)) for one in many[::-1]]
    half = dataclasses.replace(DERTA, positions=0.5)

    def lessons(examples: list[Example], seed: int = 0) -> list:
        return sorted(
            (response(row), row.target.labels.tolist(), row.target.learned.tolist()) for row in fit(examples, half, seed).rows
        )

    assert lessons(turned) == lessons(many) != lessons(many, seed=1)


def test_rows_that_are_too_long_once_joined_and_pairs_of_equal_safety_are_counted():
    long = pair("use a knife . use a knife", "no no no no no no .")
    prepared = fit([long, pair(), pair()._replace(unsafe=(True, True)), pair()._replace(unsafe=(None, False)), single(1)], DERTA)
    assert (
        prepared.drops["not_safe_and_unsafe"] == 2
        and prepared.rows[-1].target is None
        and prepared.drops["response_too_long"] <= 1
    )
    dropped = [fit([long], DERTA, seed).drops for seed in range(20)]
    assert {"response_too_long": 1} in dropped and {} in dropped  # the uncut unsafe answer stays, and so does a safe one alone
    with pytest.raises(UserError, match="none of the 2 examples can be used as supervised .*not_safe_and_unsafe 2"):
        fit([pair()._replace(unsafe=(False, False)), single(1)._replace(unsafe=(True,))], DERTA)


def test_a_row_with_one_answer_is_learned_as_it_is_beside_the_pairs_in_batches_of_one_shape():
    prepared = fit([single(0), single(1), pair()], DERTA)
    batches = [batch for batch, _ in loader.all_batches(prepared, "supervised", None, settings(), batch_size=2)]
    assert [row.target is None for row in prepared.rows] == [True, True, False, False]
    np.testing.assert_array_equal(batches[0].label_BR, batches[0].tokens_BT[:, 24:])
    np.testing.assert_array_equal(batches[0].loss_mask_BR, batches[0].response_mask_BR)
    assert batches[1].label_BR.shape == batches[0].label_BR.shape


@pytest.mark.parametrize(
    ("word", "said"), [("no .", r"\['no', '\.'\]"), ("sorry", "<unk>"), ("", r"is \[\]"), ("</s>", "<unk>.*<unk>")]
)
def test_a_refusal_that_is_not_one_token_is_shown_with_its_tokens(word, said):
    with pytest.raises(UserError, match=f"config.targets.refusal must be one token .*{said}") as error:
        fit([pair()], dataclasses.replace(DERTA, refusal=word))
    assert "\n" not in str(error.value)


def test_share_0_is_plain_and_share_1_all():
    examples = [single(number) for number in range(30)]
    plain = loader.fit("supervised", examples, tokenizer(), settings(response_length=8))
    assert loader.digest(fit(examples, refusing(0.0))) == loader.digest(fit(examples, PLAIN)) == loader.digest(plain)
    every = fit(examples, refusing(1.0))
    assert {tuple(response(row)) for row in every.rows} == {tuple(ids(f"{text} </s>")) for text in REFUSALS}
    assert targets.counts("benign_refusal", every.rows) == {"refused": 30}
    ((batch, _),) = loader.all_batches(every, "supervised", None, settings(), batch_size=30)
    assert batch.label_BR is None and batch.loss_mask_BR is None  # nothing else is compiled


def test_a_larger_share_keeps_the_rows_of_a_smaller_one_and_their_sentences_whatever_the_order():
    examples = [single(number) for number in range(81)]
    before: dict = {}
    for share in (0.1, 0.3, 0.6, 1.0):
        rows = {row.row: response(row) for row in fit(examples, refusing(share)).rows if row.target is not None}
        assert before.items() <= rows.items() and abs(len(rows) / 81 - share) < 0.17
        turned = {80 - row.row: response(row) for row in fit(examples[::-1], refusing(share)).rows if row.target is not None}
        assert turned == rows
        before = rows
    one, other = (fit(examples, refusing(0.3), seed) for seed in (0, 1))
    assert loader.digest(one) != loader.digest(other)


@pytest.mark.parametrize(
    "labels",
    [
        {"harmful": True},
        {"unsafe": (True,)},
        {"severity": (0.5,)},
        {"asked": (("violence", True),)},
        {"responses": ("a cat", "a dog"), "unsafe": (False, True), "severity": (), "chosen": 0},
    ],
    ids=str,
)
def test_a_row_with_a_label_of_harm_keeps_its_answer(labels):
    (row,) = fit([single(0)._replace(**labels)], refusing(1.0)).rows
    assert row.target is None and response(row) != ids("no . </s>")


def test_of_a_harmless_pair_the_answer_to_learn_becomes_the_refusal():
    both = single(0)._replace(responses=("a cat", "a dog"), unsafe=(False, False), severity=(), chosen=1, harmful=False)
    prepared = fit([both], refusing(1.0, ("no .",)))
    ((batch, _),) = loader.all_batches(prepared, "supervised", None, settings(), batch_size=1)
    assert batch.tokens_BT[0, 24:27].tolist() == ids("no . </s>")


@pytest.mark.parametrize(
    ("sentences", "said"), [(("no .", ""), "has '', which is no answer"), (("no " * 9,), "10 tokens with the end token")]
)
def test_a_refusal_must_be_an_answer_that_fits(sentences, said):
    with pytest.raises(UserError, match=said):
        fit([single(0)], refusing(0.5, sentences))


def rewriting(template: str) -> TargetsConfig:
    return dataclasses.replace(PLAIN, kind="rewrite", template=template)


def test_a_rewrite_asks_with_the_unsafe_answer_and_learns_the_safe_one():
    made, row = processor(), pair(history=(Turn("user", "what is this ?"), Turn("assistant", "a knife .")))
    asked = rewriting("{answer} is this a {question}")
    rows = fit([row, row._replace(images=(png(1),), question="<image> use it")], asked, made=made, prompt_length=60).rows
    plain = row._replace(question="use a knife . is this a how do I use it ?", responses=("no .",), unsafe=(False,))
    (expected,) = loader.fit("supervised", [plain], made, settings(prompt_length=60)).rows
    assert rows[0].prompt.tolist() == expected.prompt.tolist() and response(rows[0]) == ids("no . </s>")
    assert rows[1].prompt.tolist().count(IDS["<image>"]) == 9 and targets.counts("rewrite", rows) == {"rewritten": 2}


def test_what_users_wrote_is_no_template_and_marks_no_picture():
    bound = targets.Bound(rewriting("{question} {answer}"), 0, 8, True)
    asked = targets.example(bound, pair("{question} {answer}")._replace(question="{answer} ?")).question
    assert asked == "{answer} ? {question} {answer}"
    prepared = fit([pair("a <image>"), pair()], rewriting("{question} {answer}"), made=processor())
    assert prepared.drops == {"special_token_in_text": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "rewrite", "template": "make {question} safe"}, "template must have {question} and {answer}"),
        ({"kind": "rewrite", "template": "{answer}"}, "template must have {question} and {answer}"),
        ({"kind": "benign_refusal", "share": 0.1}, "config.targets.refusals is empty"),
        ({"kind": "derta", "refusal": "no"}, "both off"),
    ],
)
def test_a_kind_without_what_it_needs_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(PLAIN, **changes).check()


def loaded(preset: str = "default", **changes) -> SFTConfig:
    config = flags.load(f"sft.py:{preset}")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return parse(SFTConfig, config)


@pytest.mark.parametrize("name, value", [("share", 1.5), ("share", -0.1), ("positions", 0.0), ("positions", 2.0)])
def test_shares_outside_their_range_are_refused(name, value):
    with pytest.raises(UserError, match=rf"config.targets.{name} must be (from|above) 0"):
        loaded(**{f"targets.{name}": value})


@pytest.mark.parametrize("preset", ["default", "paper", "tiny", "benign_refusal", "derta", "rewrite"])
def test_presets_have_what_their_kind_needs_and_nothing_of_another(preset):
    chosen = loaded(preset)
    chosen.targets.check()
    unread.check(chosen)
    assert chosen.targets.kind == (preset if preset in targets.MADE else "plain")


@pytest.mark.parametrize(
    "preset, changes, ignored",
    [
        ("default", {"targets.share": 0.5}, "targets.share"),
        ("default", {"targets.rto": True}, "targets.rto"),
        ("derta", {"targets.template": "{question} {answer}"}, "targets.template"),
        ("derta", {"targets.rto": False}, "targets.refusal"),
        ("derta", {"data.train_on": "all"}, "data.train_on"),
        ("rewrite", {"targets.refusals": ("no",)}, "targets.refusals"),
        ("rewrite", {"log.samples_every": 5}, "log.samples_every"),
    ],
)
def test_settings_of_another_kind_are_refused_where_they_are_on(preset, changes, ignored):
    with pytest.raises(UserError, match=f"config.{ignored} is .* and would be ignored"):
        unread.check(loaded(preset, **changes))


def test_settings_of_before_are_plain():
    now = flags.load("sft.py").to_dict()
    older = {name: value for name, value in now.items() if name != "targets"}
    assert to_dict(stored.read(older, "config.json")) == now


def test_a_run_that_goes_on_with_other_lessons_is_refused():
    examples = [pair(), pair("do use it .")]
    for one, other in (
        (DERTA, dataclasses.replace(DERTA, refusal="yes")),
        (DERTA, dataclasses.replace(DERTA, positions=0.5)),
        (dataclasses.replace(DERTA, prefix=False), dataclasses.replace(DERTA, rto=False, refusal="")),
        (rewriting("{question} {answer}"), rewriting("{answer} {question}")),
    ):
        first, second = (loader.batches(fit(examples, kind), "supervised", None, settings(), seed=0) for kind in (one, other))
        with pytest.raises(UserError, match="but other ones"):
            second.set_state(first.get_state())


def test_plan_has_the_labels_that_a_batch_has(one_device):
    for preset in ("default", "derta"):
        batch = shapes.batch("supervised", dataclasses.replace(tiny.CONFIG, vision=None), loaded(preset), one_device)
        assert (batch.label_BR is not None) == (batch.loss_mask_BR is not None) == (preset == "derta")


def test_the_loss_is_that_of_the_labels_on_the_masked_places():
    """By hand: - log softmax of the logits before each place, at its label."""
    rng, asked, R = np.random.default_rng(0), tiny.prompts(3), 4
    said, label_BR = rng.integers(4, tiny.VOCAB, (3, R)), rng.integers(4, tiny.VOCAB, (3, R))
    ones, places = np.ones((3, R), bool), np.asarray(asked.positions_BP)[:, -1:] + 1 + np.arange(R)
    rows = SupervisedBatch(
        jnp.concatenate([asked.tokens_BP, said], axis=1).astype(jnp.int32),
        jnp.concatenate([asked.positions_BP, places], axis=1).astype(jnp.int32),
        jnp.concatenate([asked.mask_BP, ones], axis=1),
        jnp.asarray(ones),
        asked.images,
        jnp.asarray(label_BR, jnp.int32),
        jnp.asarray([[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]], bool),
    )
    tree = {"backbone": tiny.backbone()}
    features = sequences.encode(tiny.CONFIG, tree, rows.images)
    logits_BRV = vlm.logits(tiny.CONFIG, tree["backbone"], sequences.response_hidden(tiny.CONFIG, tree, rows, features))
    picked_BR = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits_BRV.astype(jnp.float32))), label_BR[:, :, None], 2)[
        ..., 0
    ]
    loss = sft.loss(tiny.CONFIG, tree, rows)
    assert loss.count == 8
    np.testing.assert_allclose(loss.sum, -picked_BR[np.asarray(rows.loss_mask_BR)].sum(), rtol=1e-5)
    plain = sft.loss(tiny.CONFIG, tree, rows._replace(label_BR=None, loss_mask_BR=None))
    own = sft.loss(tiny.CONFIG, tree, rows._replace(label_BR=jnp.asarray(said, jnp.int32), loss_mask_BR=jnp.asarray(ones)))
    assert plain.sum == own.sum and plain.count == own.count == 12


def test_the_stage_trains_on_both_rows_of_a_pair_says_how_many_and_evaluates_plain_ones(tmp_path, capsys):
    tiny_hf.save(tmp_path / "llama", tiny_hf.llama_config())
    rows = [
        {"question": f"w{5 + n} w6", "responses": [f"w{7 + n} w8 w9 w10", "w11 w12"], "unsafe": [True, n == 3], "chosen": 0}
        for n in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = {f"targets.{name}": value for name, value in dataclasses.asdict(DERTA).items()} | {"targets.refusal": "w11"}
    wanted |= {"data.path": str(tmp_path / "pairs.jsonl"), "data.split": "", "evaluation": str(tmp_path / "pairs.jsonl")}
    wanted |= {"log.samples_every": 2, "log.samples": 3, "model.scan_unroll": 1}
    done = sft.run(stage_settings(SFTConfig, "sft", init=str(tmp_path / "llama"), **wanted), tmp_path / "sft")
    assert (done["rows"], done["targets.prefix"], done["targets.rto"]) == (6, 3, 3)
    assert np.isfinite(done["loss"]) and np.isfinite(done["evaluation.loss"])
    said = capsys.readouterr().err
    assert "3 of 4 rows used as supervised; not_safe_and_unsafe 1" in said and "6 rows to learn from 3 prefix, 3 rto" in said
    with pytest.raises(UserError, match="config.targets.refusal was 'w11'"):
        sft.run(
            stage_settings(SFTConfig, "sft", init=str(tmp_path / "llama"), **wanted | {"targets.refusal": "w12"}),
            tmp_path / "sft",
        )


def test_lessons_of_pairs_need_a_pair(tmp_path):
    folder = picture_task(tmp_path)
    start = stage_settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, **rows_of(folder))
    derta = dataclasses.replace(start.targets, kind="derta", prefix=True)
    with pytest.raises(UserError, match="no row has a safe and an unsafe answer, which config.targets.kind='derta' needs"):
        sft.run(dataclasses.replace(start, targets=derta), tmp_path / "run")
