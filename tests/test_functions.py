"""Functions as rewards and costs: how they are named, loaded, called, kept, and what is said where they go wrong."""

import functools
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from srlhfv_jax.config import FunctionsConfig, terms
from srlhfv_jax.data.rows import Example, Turn
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.journal import Journal
from srlhfv_jax.functions import answers, call, identity, load
from srlhfv_jax.functions.cache import Cache
from srlhfv_jax.functions.load import Function
from srlhfv_jax.functions.sample import sample

HOW = FunctionsConfig(rows=3, workers=4, timeout_s=5.0, attempts=2, backoff_s=0.0, reward_cache=True)
SAMPLES = [sample(Example((), f"question {row}", ()), "a" * (row + 1), True, row) for row in range(8)]


def scored(function, samples=SAMPLES, **how) -> list[float]:
    """Scores of one function, in the order of the samples."""
    settings = FunctionsConfig(**vars(HOW) | how)
    found = call.scores(
        [Function("reward", "f", 1.0, function, None, "config.reward_fn")], [range(len(samples))], samples, settings
    )
    return [found[0, place] for place in range(len(samples))]


def lengths(samples):
    return [len(one.answer) / 4 for one in samples]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("model", "", 1.0)]),
        ("model*0.25", [("model", "", 0.25)]),
        ("a/b.py:f", [("f", "a/b.py", 1.0)]),
        ("a.py:f*-0.5, model ,b.py:g * 2e-1", [("f", "a.py", -0.5), ("model", "", 1.0), ("g", "b.py", 0.2)]),
        (r"C:\x\a.py:f,g*0", [("f", r"C:\x\a.py", 1.0), ("g", "", 0.0)]),
    ],
)
def test_terms_are_read_from_text_and_written_as_text(text, expected):
    found = terms.parse(text, "config.reward_fn")
    assert list(found) == [terms.Term(*one) for one in expected]
    assert terms.parse(terms.write(found), "config.reward_fn") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.py", "has the item 'a.py': expected FILE.py:NAME"),
        ("a.py:", "expected FILE.py:NAME"),
        ("a.py:f,", "has the item ''"),
        ("a.py:f*", "its weight '' is no number"),
        ("a.py:f*x", "its weight 'x' is no number"),
        ("a.py:f*nan", "its weight 'nan' is no number"),
        ("a.py:f*inf", "its weight 'inf' is no number"),
        ("a.py:f-1", "expected FILE.py:NAME"),
        ("a.py:model", "expected FILE.py:NAME"),
        ("a.py:f,b.py:f", "names f twice"),
        ("model,model", "names model twice"),
        ("a.py:f*0", "all weights are 0"),
        ("model*0,a.py:f", "leave the model out"),
    ],
)
def test_what_is_no_list_of_terms_is_refused(text, message):
    with pytest.raises(UserError, match="config.reward_fn") as refused:
        terms.parse(text, "config.reward_fn")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_cost_head_is_a_term_of_the_reward_and_other_heads_are_terms_of_no_cost():
    own, cost = terms.parse("model,model:cost*-0.5", "config.reward_fn", ("cost",))
    assert cost == terms.Term("cost", "model", -0.5) and cost.is_learned
    assert (terms.role("reward", own), terms.role("reward", cost)) == ("reward", "cost")
    with pytest.raises(UserError, match="its own head is 'model', and other heads are model:cost"):
        terms.parse("model:reward", "config.reward_fn", ("cost",))
    with pytest.raises(
        UserError, match="config.cost_fn has the item 'model:cost': its own head is 'model', and it takes no other"
    ):
        terms.parse("model:cost", "config.cost_fn")


def test_verifiers_of_the_answer_itself():
    said = ["<think>w6</think> w7", "w6 w7", "I cannot", "<think></think>w6"]
    samples = [SimpleNamespace(answer=text, tokens=3 + place) for place, text in enumerate(said)]
    given = {name: function(samples) for name, function in answers.FUNCTIONS.items()}
    assert given == {"length": [3.0, 4.0, 5.0, 6.0], "declined": [0.0, 0.0, 1.0, 0.0], "format": [1.0, 0.0, 0.0, 0.0]}


def named(**some: tuple) -> SimpleNamespace:
    """What `load` reads of settings."""
    return SimpleNamespace(terms=some, setting_of=lambda score: f"config.{score}_fn")


def loaded(folder: Path, text: bytes | str, name: str = "f") -> Function:
    path = folder / "own.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = named(cost=terms.parse(f"{path}:{name}", "config.cost_fn"))
    (found,) = load.load(settings, {})
    return found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(: pass", "cannot be run as Python (SyntaxError, line 1: "),
        (b"\x89PNG\r\n\x1a\n\x00", "cannot be run as Python ("),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("import sys; sys.exit(3)", "cannot be run as Python (SystemExit"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def g(samples): ...", "has no f; did you mean 'g'?"),
        ("x = 3", "has no f; there is no function in it"),
        ("f = 3", "config.cost_fn: f is 3: expected a function"),
        ("def f(): ...", "cannot be called with one argument, a list of samples (too many positional arguments)"),
        ("def f(prompts, completions): ...", "f(prompts, completions) cannot be called with one argument"),
    ],
)
def test_a_file_without_the_function_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match="config.cost_fn") as refused:
        loaded(tmp_path, text)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_not_there_and_a_name_without_a_file_are_refused():
    for text, message in (("no/own.py:f", "there is no file 'no/own.py'"), ("f", "names f without a file")):
        with pytest.raises(UserError, match=message):
            load.load(named(cost=terms.parse(text, "config.cost_fn")), {"reward": {"f": lengths}})


def test_a_file_may_import_its_neighbours_and_keep_something_between_its_functions(tmp_path):
    (tmp_path / "neighbour_of_own.py").write_text("HALF = 0.5\n")
    text = (
        "from neighbour_of_own import HALF\nseen = []\ndef f(samples):\n    seen.extend(samples)\n    return [HALF] * len(seen)\n"
    )
    text += "def g(samples):\n    return [len(seen) / 4] * len(samples)\n"
    path = tmp_path / "both.py"
    path.write_text(text)
    both = {"reward": terms.parse(f"{path}:f", "x"), "cost": terms.parse(f"{path}:g*2", "x")}
    f, g = load.load(named(**both), {})
    assert f.call(SAMPLES[:3]) == [0.5] * 3 and g.call(SAMPLES[:1]) == [0.75] and (f.weight, g.weight) == (1.0, 2.0)


@pytest.mark.parametrize("how", [dict(rows=1, workers=1), dict(rows=3, workers=2), dict(rows=100, workers=9)], ids=str)
def test_scores_depend_on_neither_the_rows_of_a_call_nor_the_number_of_threads(how):
    assert scored(lengths, **how) == [0.25 * (row + 1) for row in range(8)]


def test_several_functions_score_different_samples_at_once():
    functions = [
        Function("reward", "f", 1.0, lengths, None, "config.reward_fn"),
        Function("cost", "g", 1.0, lambda some: [-0.5] * len(some), None, "config.cost_fn"),
    ]
    found = call.scores(functions, [[1, 3], [0]], SAMPLES, HOW)
    assert found == {(0, 1): 0.5, (0, 3): 1.0, (1, 0): -0.5}


def test_calls_run_beside_each_other():
    together = threading.Barrier(4)  # broken unless four are under way at once

    def wait(samples):
        together.wait(timeout=4)
        return [0.5] * len(samples)

    assert scored(wait, rows=2, workers=4, attempts=1) == [0.5] * 8


@pytest.mark.parametrize(
    "give", [tuple, np.asarray, lambda some: np.asarray(some, np.float16), lambda some: [x > 0.6 for x in some]]
)
def test_any_sequence_of_numbers_will_do(give):
    assert scored(lambda some: give(lengths(some))) == [float(x) for x in give(lengths(SAMPLES))]


def test_a_call_that_fails_once_is_repeated_row_by_row():
    calls = []

    def flaky(samples):
        calls.append(len(samples))
        if len(samples) > 1:
            raise ConnectionError("for a moment")
        return [0.75]

    assert scored(flaky, SAMPLES[:4], rows=4) == [0.75] * 4
    assert sorted(calls) == [1, 1, 1, 1, 4]


@pytest.mark.parametrize("error", [ValueError("no\nsuch word"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_an_exception_names_the_row_and_is_one_line(error):
    def bad(samples):
        if any(one.row == 5 for one in samples):
            raise error
        return lengths(samples)

    with pytest.raises(UserError, match=r"config.reward_fn: f raised .*row 5 \(question 'question 5', answer") as refused:
        scored(bad)
    assert "after 2 attempts" in str(refused.value) and "\n" not in str(refused.value)


def test_a_row_that_hangs_is_named_in_time_and_the_process_can_end():
    ended = threading.Event()

    def hang(samples):
        if any(one.row == 2 for one in samples):
            ended.wait(30)
        return lengths(samples)

    began = time.monotonic()
    with pytest.raises(UserError, match="f gave no answer within 0.2 seconds for row 2"):
        scored(hang, timeout_s=0.2)
    assert time.monotonic() - began < 5
    stuck = [thread for thread in threading.enumerate() if thread.name == "srlhfv-function" and thread.is_alive()]
    assert stuck and all(thread.daemon for thread in stuck)
    ended.set()


def test_an_answer_that_comes_too_late_is_not_taken():
    calls = []

    def slow(samples):
        calls.append(0)
        if len(calls) == 1:
            time.sleep(2.0)
            return [9.5]
        return [0.5]

    assert scored(slow, SAMPLES[:1], timeout_s=0.25, attempts=2) == [0.5]


class Ragged:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("a tensor that needs a gradient")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([0.5], "gave a list of 1 for 3 samples (rows 0, 1, 2): expected a list of 3 numbers"),
        ([0.5] * 4, "gave a list of 4 for 3 samples"),
        ([], "gave a list of 0 for 3 samples"),
        (0.5, "gave 0.5 for 3 samples"),
        (None, "gave None for 3 samples"),
        ({0: 0.5, 1: 0.5, 2: 0.5}, "expected a list of 3 numbers"),
        ((x for x in [0.5] * 3), "expected a list of 3 numbers"),
        ("abc", "gave 'abc' for 3 samples"),
        ([0.5, "0.5", 0.5], "that of row 1 (question 'question 1', answer 'aa') is '0.5'"),
        ([0.5, None, 0.5], "that of row 1 (question 'question 1', answer 'aa') is None"),
        ([[0.5], [0.5], [0.5]], "gave a list of 3 for 3 samples"),
        ([0.5, [0.5, 0.5], 0.5], "expected a list of 3 numbers"),
        (np.zeros((3, 1)), "gave an array of shape (3, 1) and float64"),
        ([0.5, 1j, 0.5], "is 1j"),
        (Ragged(), "a tensor that needs a gradient"),
        ([0.5, 0.5, float("nan")], "gave nan for row 2 (question 'question 2', answer 'aaa'): expected a finite number"),
        ([0.5, float("-inf"), 0.5], "gave -inf for row 1"),
        ([1e39, 0.5, 0.5], "gave inf for row 0"),
    ],
)
def test_what_is_no_number_for_each_sample_is_refused_at_once(result, message):
    """Not repeated row by row: a list of one number would be right there by chance."""
    calls = []
    with pytest.raises(UserError, match="config.reward_fn: f gave") as refused:
        scored(lambda samples: calls.append(0) or result, SAMPLES[:3])
    assert message in str(refused.value) and "\n" not in str(refused.value) and len(calls) == 1


def test_an_object_of_another_kind_is_shown():
    later = (lambda: (yield))()  # any object that is no list
    with pytest.raises(UserError, match="gave <generator object .* for 1 sample "):
        scored(lambda samples: later, SAMPLES[:1])


def test_the_content_of_a_sample_is_everything_that_a_function_reads():
    picture, other = b"one picture", b"another"
    row = Example((picture,), "q", ("gold",), meta={"level": "1"})
    one = sample(row, "a", True, 3)
    assert sample(row, "a", True, 3).content == one.content
    changed = [row._replace(images=(other,)), row._replace(question="p"), row._replace(responses=()), row._replace(meta={})]
    changed += [row._replace(history=(Turn("system", text),)) for text in ("s", "t")]
    others = [sample(each, "a", True, 3) for each in changed] + [sample(row, *rest) for rest in (("b", True, 3), ("a", False, 3))]
    assert len({one.content, *(each.content for each in others)}) == 9


def test_scores_are_kept_by_function_and_content_for_the_next_start(tmp_path):
    path = tmp_path / "reward_cache.jsonl"
    cache = Cache(path)
    cache.put("f", b"one", "reward.f", 0.1)
    cache.put("f", b"one", "reward.f", 7.0)  # the first holds
    cache.put(None, b"one", "reward.g", 0.3)
    for again in (cache, Cache(path)):
        assert again.get("f", b"one") == 0.1 and again.get(None, b"one") is None
        assert again.get("g", b"one") is None and again.get("f", b"two") is None
    nothing = Cache(None)
    nothing.put("f", b"one", "reward.f", 0.1)
    assert nothing.get("f", b"one") is None
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("row", [{"key": "k"}, {"key": "k", "score": "0.5"}, {"key": 3, "score": 0.5}], ids=str)
def test_a_damaged_line_of_kept_scores_is_named(tmp_path, row):
    journal = Journal(tmp_path / "kept.jsonl")
    journal.append({"key": "whole", "name": "f", "score": 0.5})
    journal.append(row)
    journal.close()
    with pytest.raises(UserError, match=r"kept.jsonl:2 is no score"):
        Cache(tmp_path / "kept.jsonl")


def weighted(weight):
    def score(samples):
        return [weight * len(one.answer) for one in samples]

    return score


class Silent:
    def __call__(self, samples): ...


class Telling(Silent):
    def __init__(self, url):
        self.url = url

    def __repr__(self):
        return f"Telling({self.url!r})"


def test_functions_of_python_are_told_apart_by_their_source_and_by_what_they_hold():
    known = [
        lengths,
        weighted(0.5),
        weighted(0.25),
        Telling("a"),
        Telling("b"),
        functools.partial(lengths, 0.5),
        functools.partial(lengths, 0.75),
    ]
    identities = [identity.of_callable(one) for one in known]
    assert None not in identities and len(set(identities)) == len(known)
    assert identity.of_callable(weighted(0.5)) == identities[1] and identity.of_callable(Telling("a")) == identities[3]


@pytest.mark.parametrize(
    "function", [Silent(), weighted(Silent()), Silent().__call__, len], ids=["object", "closure", "method", "built-in"]
)
def test_what_does_not_tell_its_content_has_no_identity(function):
    assert identity.of_callable(function) is None


def test_a_function_of_a_file_is_another_one_when_the_file_changes(tmp_path):
    first = loaded(tmp_path, "def f(samples): return [0.5]").identity
    assert loaded(tmp_path, "def f(samples): return [0.5]").identity == first
    assert loaded(tmp_path, "def f(samples): return [0.25]").identity != first
    assert loaded(tmp_path, "def f(samples): return [0.5]\ndef g(samples): ...", "g").identity != first
