"""The rows of the embedded task: naming and SFT rows, prompts, labelled pairs, probes; all deterministic in a seed.

Cells (thing, question) are split once per seed: test cells are in no training row, and test pictures have their own seeds. Every
generator starts from a seed, so equal seeds give equal rows. Rows are dicts in the layouts that data/rows.py reads (BeaverTails-V
single-QA for naming and SFT, its dual-preference layout for pairs, question and image for prompts), with `concept` and `intent`
beside them: that is what the oracle needs to judge an answer. Writing files is left to data/tfds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from srlhfv_jax.data.quickstart import answers
from srlhfv_jax.data.quickstart.concepts import CONCEPTS, KINDS, RISKS
from srlhfv_jax.data.quickstart.oracle import OracleVerdict, harmless_rate, helpful_rate, judge
from srlhfv_jax.data.quickstart.pictures import picture_seed, png
from srlhfv_jax.data.quickstart.questions import (
    CONTEXTUAL,
    GROUPS,
    HARM,
    INTENTS,
    NAMING_QUESTION,
    QUESTIONS,
    Cell,
    group,
    harmful,
)

TRAIN_PICTURES = 128  # per concept
TEST_PICTURES = 24  # per concept, of the validation and of the test split

# Shares of held-out cells, within each (intent, harmful or not).
TEST_SHARE = {"contextual": 0.20, "neutral": 0.15}
VALIDATION_SHARE = 0.10
MOST_HELD_OUT = 2  # of the contextual questions about one thing


class Mix(NamedTuple):
    """Shares of prompts from each group of questions.GROUPS, and of contextual harmless ones that show a hazardous thing.

    Within a group the intent is drawn uniformly, so a contextual question is as often harmful as the shares say, whichever it is.
    """

    harmful: float
    contextual_harmless: float
    neutral_hazard: float
    neutral_harmless: float
    hazard_in_harmless: float = 0.15  # where the intent is harmless for some hazard at all

    @property
    def shares(self) -> np.ndarray:
        return np.array([self.harmful, self.contextual_harmless, self.neutral_hazard, self.neutral_harmless])


PROMPT_MIX = Mix(0.42, 0.38, 0.10, 0.10)  # PPO, validation and test
# What is learnt from shows the rare case, a harmless question about a hazardous thing, more often than what is asked in the end.
PAIR_MIX = Mix(0.48, 0.33, 0.08, 0.11, hazard_in_harmless=0.35)  # the preferences disagree in harmful cells only: more of these
GUARD_MIX = Mix(0.42, 0.38, 0.10, 0.10, hazard_in_harmless=0.35)
SFT_MIX = Mix(0.26, 0.26, 0.20, 0.28, hazard_in_harmless=0.35)  # what a thing is and is for takes more examples than declining

# Forms of SFT answers and their shares. Whoever wrote them was careful now and then: half of the answers in a harmful cell
# decline or warn, and 22 % of those in a harmless one.
HARMFUL_ANSWERS = {
    "comply": 0.23,
    "comply_wrong_name": 0.06,
    "comply_nameless": 0.17,
    "safe": 0.18,
    "safe_wrong_name": 0.04,
    "safe_nameless": 0.13,
    "safe_wrong_risk": 0.04,
    "refusal": 0.12,
    "off_topic": 0.02,
    "splice": 0.01,
}
HARMLESS_ANSWERS = {
    "comply": 0.38,
    "comply_wrong_name": 0.10,
    "comply_nameless": 0.27,
    "safe": 0.06,
    "safe_wrong_name": 0.02,
    "safe_nameless": 0.05,
    "safe_wrong_risk": 0.01,
    "refusal": 0.08,
    "off_topic": 0.02,
    "splice": 0.01,
}
NEUTRAL_ANSWERS = {
    "comply": 0.68,
    "comply_wrong_name": 0.14,
    "comply_nameless": 0.08,
    "comply_wrong_content": 0.02,
    "safe": 0.02,
    "refusal": 0.03,
    "off_topic": 0.02,
    "splice": 0.01,
}


class Cells(NamedTuple):
    """The split of all (thing, question) combinations. `unseen` are those of things that no training row shows or names."""

    train: tuple[Cell, ...]
    validation: tuple[Cell, ...]
    test: tuple[Cell, ...]
    unseen: tuple[Cell, ...]


class Noise(NamedTuple):
    """Noise of the annotators: a Bradley-Terry choice with inverse temperature `beta`, then flips."""

    beta: float = 2.0
    flip: float = 0.05


class PairLabel(NamedTuple):
    """Labels of one pair in BeaverTails-V columns, and what holds before noise."""

    columns: dict[str, str | int]
    strict: bool  # both preferences are strict
    disagree: bool  # strict, and the more helpful answer is the costlier one
    verdicts: tuple[OracleVerdict, OracleVerdict]


def split_cells(seed: int) -> Cells:
    """Hold out whole cells for test and validation, the same share of every (intent, harmful or not).

    What a held-out cell asks can be known from others: of the things that share its hazard (contextual) or kind (neutral) at
    least half keep their cell of this intent in training, and most contextual questions about a thing stay there.
    """
    rng = np.random.default_rng((seed, 1))
    parts: dict[str, list[Cell]] = {"train": [], "validation": [], "test": []}
    held_out = dict.fromkeys(CONCEPTS, 0)  # contextual questions about each thing
    for intent in INTENTS:
        contextual = intent in CONTEXTUAL
        test_share = TEST_SHARE["contextual" if contextual else "neutral"]
        for danger in (False, True):
            things = [c for c in CONCEPTS.values() if c.seen and harmful(c.name, intent) == danger]
            family = [c.hazard if contextual else c.kind for c in things]
            may_leave = {name: family.count(name) // 2 for name in family}
            left_for = {"test": round(test_share * len(things)), "validation": round(VALIDATION_SHARE * len(things))}
            for i in rng.permutation(len(things)):
                name = things[i].name
                part = next((part for part, left in left_for.items() if left > 0), "train")
                if may_leave[family[i]] == 0 or held_out[name] == MOST_HELD_OUT:
                    part = "train"
                if part != "train":
                    left_for[part] -= 1
                    may_leave[family[i]] -= 1
                    held_out[name] += contextual
                parts[part].append(Cell(name, intent))
    unseen = tuple(Cell(c.name, intent) for c in CONCEPTS.values() if not c.seen for intent in INTENTS)
    return Cells(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), unseen)


def draw_cells(rng: np.random.Generator, cells: Sequence[Cell], mix: Mix, count: int) -> list[Cell]:
    """`count` cells: a group by its share, then an intent uniformly, then a thing."""
    pools: dict[str, dict[str, dict[bool, list[Cell]]]] = {name: {} for name in GROUPS}
    for cell in cells:
        by_hazard = pools[group(cell)].setdefault(cell.intent, {})
        by_hazard.setdefault(bool(CONCEPTS[cell.concept].hazard), []).append(cell)
    shares = mix.shares * np.array([bool(pools[name]) for name in GROUPS])
    chosen = []
    for index in rng.choice(len(GROUPS), size=count, p=shares / shares.sum()):
        intents = pools[GROUPS[index]]
        by_hazard = intents[list(intents)[rng.integers(len(intents))]]
        hazard = bool(rng.random() < mix.hazard_in_harmless) if len(by_hazard) == 2 else next(iter(by_hazard))
        pool = by_hazard[hazard]
        chosen.append(pool[rng.integers(len(pool))])
    return chosen


def naming_rows(seed: int, count: int) -> list[dict]:
    """Warm-up rows: every seen thing equally often, the answer is its name."""
    rng = np.random.default_rng((seed, 2))
    names = [c.name for c in CONCEPTS.values() if c.seen]
    order = np.concatenate([rng.permutation(len(names)) for _ in range(-(-count // len(names)))])[:count]
    rows = []
    for index in order:
        name = names[index]
        columns = {"response": answers.name_only(name), "is_response_safe": "yes"}
        rows.append(_row(rng, Cell(name, "name"), NAMING_QUESTION, "train") | columns)
    return rows


def sft_rows(seed: int, cells: Cells, count: int, mix: Mix = SFT_MIX) -> list[dict]:
    """Questions with answers of every form, so that the supervised policy is unsafe about half of the time."""
    rng = np.random.default_rng((seed, 3))
    rows = []
    for cell in draw_cells(rng, cells.train, mix, count):
        answer = sample_answer(rng, cell)
        safe = "no" if judge(*cell, answer).unsafe else "yes"
        rows.append(_question_row(rng, cell, "train") | {"response": answer, "is_response_safe": safe})
    return rows


def guard_rows(seed: int, cells: Cells, part: str, count: int, mix: Mix = GUARD_MIX) -> list[dict]:
    """Questions of one part of the split with answers of every form, labelled by the oracle without noise: our plain layout, with
    the category of the hazard, the level of harm and whether the question itself is harmful."""
    rng = np.random.default_rng((seed, 6, Cells._fields.index(part)))
    pictures = "test" if part == "unseen" else part
    rows = []
    for cell in draw_cells(rng, cells._asdict()[part], mix, count):
        answer = sample_answer(rng, cell)
        unsafe = judge(*cell, answer).unsafe
        level = HARM[CONCEPTS[cell.concept].hazard] if unsafe else -1
        labels = {"responses": [answer], "unsafe": [unsafe], "severity": [float(level)]}
        rows.append(_question_row(rng, cell, pictures) | labels)
    return rows


def prompt_rows(seed: int, cells: Cells, part: str, count: int, mix: Mix = PROMPT_MIX) -> list[dict]:
    """Prompts of one part of the split: "train", "validation", "test" or "unseen", with pictures of that part.

    Things unseen in training are shown in test pictures.
    """
    rng = np.random.default_rng((seed, 4, Cells._fields.index(part)))
    pictures = "test" if part == "unseen" else part
    pool = {"train": cells.train, "validation": cells.validation, "test": cells.test, "unseen": cells.unseen}[part]
    return [_question_row(rng, cell, pictures) for cell in draw_cells(rng, pool, mix, count)]


def probe_rows(seed: int, cells: Cells, part: str, count: int, noise: Noise | None, mix: Mix = PAIR_MIX) -> list[dict]:
    """Pairs that differ in the name alone (same picture, question and form): the one with the right name is more helpful.

    `part` "test" (without noise) asks whether a reward model looks at the name; "train" gives hard negatives to train it with,
    labelled by the same noisy annotators as other pairs: without noise a name would outweigh everything else in the learned
    reward.
    """

    def two(rng: np.random.Generator, cell: Cell) -> list[str]:
        body = _answer_of_form(rng, cell, "safe_nameless" if harmful(*cell) and rng.random() < 0.5 else "comply_nameless")
        return [f"{answers.name_only(name)} {body}" for name in (cell.concept, wrong_name(rng, cell.concept))]

    return _constructed_pairs(two, np.random.default_rng((seed, 5, Cells._fields.index(part))), cells, part, count, noise, mix)


def topic_rows(seed: int, cells: Cells, part: str, count: int, noise: Noise | None, mix: Mix = PAIR_MIX) -> list[dict]:
    """Pairs of the best answer and one to another question.

    Sampled pairs seldom differ in that, as they seldom do in the name, and a policy finds what the learned reward does not know: the
    answer of one question given to another one too.
    """

    def two(rng: np.random.Generator, cell: Cell) -> list[str]:
        return [answers.ideal(*cell), _answer_of_form(rng, cell, "off_topic")]

    return _constructed_pairs(two, np.random.default_rng((seed, 13, Cells._fields.index(part))), cells, part, count, noise, mix)


def _constructed_pairs(
    two: Callable[[np.random.Generator, Cell], list[str]],
    rng: np.random.Generator,
    cells: Cells,
    part: str,
    count: int,
    noise: Noise | None,
    mix: Mix,
) -> list[dict]:
    """Labelled rows of the two answers that `two` makes for each cell, in either order."""
    pool = {"train": cells.train, "validation": cells.validation, "test": cells.test}[part]
    rows = []
    for cell in draw_cells(rng, pool, mix, count):
        pair = two(rng, cell)
        if rng.random() < 0.5:
            pair.reverse()
        labels = label_pair(rng, *cell, *pair, noise)
        rows.append(pair_row(_question_row(rng, cell, part), *pair, labels))
    return rows


def pair_row(prompt_row: dict, answer_1: str, answer_2: str, labels: PairLabel, source: str = "policy") -> dict:
    """A prompt with two answers and their labels, in BeaverTails-V's dual-preference layout."""
    columns = {"response_1": answer_1, "response_2": answer_2, "response_1_from": source, "response_2_from": source}
    return prompt_row | columns | labels.columns


def label_pair(
    rng: np.random.Generator, concept: str, intent: str, answer_1: str, answer_2: str, noise: Noise | None
) -> PairLabel:
    """Labels of two answers by the annotators. Equal values are marked "tie"; noise=None gives the oracle's own order.

    Annotators agree with themselves: who calls one answer unsafe and the other safe also calls the safe one safer. So the safety
    noise is a flip of each safe / unsafe flag, then a Bradley-Terry choice by true cost where the flags are equal.
    """
    verdicts = (judge(concept, intent, answer_1), judge(concept, intent, answer_2))
    helpful_gap = verdicts[0].helpful - verdicts[1].helpful
    safety_gap = verdicts[1].cost - verdicts[0].cost  # > 0: answer 1 is safer
    unsafe = [v.unsafe for v in verdicts]
    if noise is not None:
        unsafe = [flag != (rng.random() < noise.flip) for flag in unsafe]
    more_helpful = _choose(rng, helpful_gap, noise)
    safer = _choose(rng, safety_gap, noise) if unsafe[0] == unsafe[1] else ("2" if unsafe[0] else "1")
    columns: dict[str, str | int] = {"more_helpful_response_id": more_helpful, "safer_response_id": safer}
    for side, (verdict, flag) in enumerate(zip(verdicts, unsafe), start=1):
        rate = harmless_rate(verdict) if flag == verdict.unsafe else (-1 if flag else 1)
        columns |= {f"is_response_{side}_safe": "no" if flag else "yes", f"response_{side}_harmless_rate": rate}
        columns |= {f"response_{side}_helpful_rate": helpful_rate(verdict)}
    strict = helpful_gap != 0 and safety_gap != 0
    return PairLabel(columns, strict, bool(strict and (helpful_gap > 0) != (safety_gap > 0)), verdicts)


def sample_answer(rng: np.random.Generator, cell: Cell) -> str:
    """An answer of the SFT mix for this cell."""
    shares = NEUTRAL_ANSWERS
    if cell.intent in CONTEXTUAL:
        shares = HARMFUL_ANSWERS if harmful(*cell) else HARMLESS_ANSWERS
    forms = list(shares)
    return _answer_of_form(rng, cell, forms[rng.choice(len(forms), p=np.array(list(shares.values())))])


def wrong_name(rng: np.random.Generator, concept: str) -> str:
    """Another seen thing: half of the time of the same kind, half of the time any."""
    others = [c.name for c in CONCEPTS.values() if c.seen and c.name != concept]
    alike = [name for name in others if CONCEPTS[name].kind == CONCEPTS[concept].kind]
    pool = alike if alike and rng.random() < 0.5 else others
    return pool[rng.integers(len(pool))]


def _answer_of_form(rng: np.random.Generator, cell: Cell, form: str) -> str:
    concept, intent = cell
    name: str | None = concept
    if form.endswith("wrong_name"):
        name = wrong_name(rng, concept)
    elif form.endswith("nameless"):
        name = None
    if form == "refusal":
        return answers.REFUSAL
    if form == "splice":
        return answers.splice(rng, concept, intent)
    if form == "off_topic":
        other = _other(rng, [i for i in INTENTS if i != intent])
        return answers.comply(other, answers.content(concept, other), name if rng.random() < 0.8 else None)
    if form == "comply_wrong_content":
        wrong = _other(rng, [kind for kind in KINDS if kind != CONCEPTS[concept].kind])
        use, place = KINDS[wrong]
        return answers.comply(intent, {"what": wrong, "use": use, "where": place}[intent], name)
    if form.startswith("safe"):
        # A harmless thing has no right risk: any is stated.
        hazard = CONCEPTS[concept].hazard
        if form == "safe_wrong_risk" or not hazard:
            hazard = _other(rng, [h for h in RISKS if h != hazard])
        return answers.safe_completion(hazard, name)
    return answers.comply(intent, answers.content(concept, intent), name)


def _other(rng: np.random.Generator, pool: Sequence[str]) -> str:
    return pool[rng.integers(len(pool))]


def _choose(rng: np.random.Generator, gap: float, noise: Noise | None) -> str:
    """ "1" if the first side wins, "2" if the second, "tie" if nothing sets them apart."""
    if gap == 0:
        return "tie"
    first = gap > 0
    if noise is not None:
        first = bool(rng.random() < 1.0 / (1.0 + np.exp(-noise.beta * gap)))
        first = first != (rng.random() < noise.flip)
    return "1" if first else "2"


def _question_row(rng: np.random.Generator, cell: Cell, pictures: str) -> dict:
    phrasings = QUESTIONS[cell.intent]
    return _row(rng, cell, phrasings[rng.integers(len(phrasings))], pictures)


def _row(rng: np.random.Generator, cell: Cell, question: str, pictures: str) -> dict:
    thing = CONCEPTS[cell.concept]
    number = int(rng.integers(TRAIN_PICTURES if pictures == "train" else TEST_PICTURES))
    danger = cell.intent in CONTEXTUAL and harmful(*cell)
    return {
        "question": question,
        "image": png(cell.concept, picture_seed(pictures, number)),
        "category": thing.hazard or "none",
        "image_severity": 1 if thing.hazard else 0,
        "concept": cell.concept,
        "intent": cell.intent,
        "harmful": "yes" if danger else "no",
    }
