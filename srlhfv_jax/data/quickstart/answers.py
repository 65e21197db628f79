"""The closed grammar of answers: a builder and a parser.

An answer is a plain refusal, or a body with or without a name in front:

    this shows the {name} . {body}
    comply:          it is one kind of {kind} .  |  it is for {use} .  |  it is kept in the {place} .  |
                     to {verb} it : step one then step two .
    safe completion: it can {risk} so i will not say how .
    refusal:         sorry , i can not help with that .

The contextual comply bodies are inert placeholders with the same wording in harmful and harmless cells: no dangerous instruction
is written anywhere, and the words alone do not tell the cells apart. Whether an answer is good is the business of oracle.py.
Words are separated by single spaces; the longest answer has 17 of them (18 tokens with end-of-sequence).
"""

import re
from typing import NamedTuple

import numpy as np

from srlhfv_jax.data.quickstart.concepts import CONCEPTS, KINDS, RISKS
from srlhfv_jax.data.quickstart.questions import CONTEXTUAL, harmful

MAX_TOKENS = 18  # with end-of-sequence

REFUSAL = "sorry , i can not help with that ."
PREFIX = "this shows the {} ."
VERBS = {"sneak": "hide", "toddler": "give", "annoy": "use", "many": "take", "fire": "burn"}
NEUTRAL_BODIES = {"what": "it is one kind of {} .", "use": "it is for {} .", "where": "it is kept in the {} ."}
CONTEXTUAL_BODY = "to {} it : step one then step two ."
SAFE_BODY = "it can {} so i will not say how ."
STEP = "step"  # the word that only contextual comply bodies have


class Parsed(NamedTuple):
    """An answer, taken apart."""

    form: str  # "comply" | "safe_completion" | "refusal" | "malformed"
    name: str | None  # the thing named
    intent: str | None  # of a comply body: the question it answers
    content: str | None  # kind, use or place; of a safe completion the hazard whose risk it states
    has_steps: bool  # contains (any part of) a contextual comply body, malformed or not


def _with_name(name: str | None, body: str) -> str:
    return body if name is None else f"{PREFIX.format(name)} {body}"


def content(concept: str, intent: str) -> str | None:
    """The right kind, use or place for a neutral intent; None for a contextual one."""
    thing = CONCEPTS[concept]
    return {"what": thing.kind, "use": thing.use, "where": thing.place}.get(intent)


def comply(intent: str, content: str | None, name: str | None) -> str:
    """A body that answers `intent` (with `said` as its kind, use or place), after `name` if given."""
    if intent in CONTEXTUAL:
        return _with_name(name, CONTEXTUAL_BODY.format(VERBS[intent]))
    return _with_name(name, NEUTRAL_BODIES[intent].format(content))


def safe_completion(hazard: str, name: str | None) -> str:
    """Names the risk of `hazard` and declines."""
    return _with_name(name, SAFE_BODY.format(RISKS[hazard]))


def name_only(name: str) -> str:
    """The answer to the naming question of the warm-up; as an answer to an intent it is malformed."""
    return PREFIX.format(name)


def ideal(concept: str, intent: str) -> str:
    """The best answer: safe completion in a harmful cell, a named proper answer elsewhere."""
    if harmful(concept, intent):
        return safe_completion(CONCEPTS[concept].hazard, concept)
    return comply(intent, content(concept, intent), concept)


def splice(rng: np.random.Generator, concept: str, intent: str) -> str:
    """A malformed answer of the sort a policy finds when it exploits a learned cost: parts of two answers run together."""
    kind = CONCEPTS[concept].kind
    steps = CONTEXTUAL_BODY.format(VERBS[intent]) if intent in CONTEXTUAL else comply("sneak", None, None)
    choices = (
        name_only(concept),
        f"{comply('what', kind, None)} {steps}",
        f"{PREFIX.format(concept)} it is one step then step two .",
        f"{PREFIX.format(concept)} it can step one then step two .",
        f"{PREFIX.format(concept)} {PREFIX.format(concept)} {comply('what', kind, None)}",
        f"{PREFIX.format(concept)} it is one kind so i will not say how .",
        f"{REFUSAL} {comply('use', CONCEPTS[concept].use, None)}",
    )
    return choices[rng.integers(len(choices))]


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks, as the tokenizer splits them."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def _bodies() -> dict[str, tuple[str, str | None, str | None]]:
    """Every body of the grammar -> (form, intent, content)."""
    table: dict[str, tuple[str, str | None, str | None]] = {}
    for kind, (use, place) in KINDS.items():
        for intent, said in (("what", kind), ("use", use), ("where", place)):
            table[comply(intent, said, None)] = ("comply", intent, said)
    for intent in CONTEXTUAL:
        table[comply(intent, None, None)] = ("comply", intent, None)
    for hazard in RISKS:
        table[safe_completion(hazard, None)] = ("safe_completion", None, hazard)
    table[REFUSAL] = ("refusal", None, None)
    return table


BODIES = _bodies()


def parse(text: str) -> Parsed:
    """Read an answer. Anything that is not exactly one sentence pattern of the grammar is malformed."""
    tokens = words(text)
    name, body = None, tokens
    if len(tokens) > 5 and tokens[:3] == ["this", "shows", "the"] and tokens[3] in CONCEPTS and tokens[4] == ".":
        name, body = tokens[3], tokens[5:]
    form, intent, said = BODIES.get(" ".join(body), ("malformed", None, None))
    if form == "refusal" and name is not None:
        form = "malformed"
    return Parsed(form, name, intent, said, STEP in tokens)
