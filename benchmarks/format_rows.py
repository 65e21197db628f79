"""The rows that `formats.py` writes: one small set of conversations, in every layout, as far as the layout can say it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

ROWS = 8
VIOLENCE = {  # taxonomy -> one of its categories
    "beavertails_v": "violence_and_physical_harm",
    "pku_saferlhf": "Violence",
    "beavertails": "violence,aiding_and_abetting,incitement",
}
FLAGS_OF_OPENAI = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")


class Talk(NamedTuple):
    """The content of one row."""

    number: int
    picture: str  # a file beside the rows
    question: str
    better: str
    worse: str


class Written(NamedTuple):
    """One layout: its row, what of the content it can say, and the stages that can learn from it."""

    row: Callable[[Talk], dict[str, Any]]
    says: str  # of the content, by the words of `plain`
    stages: tuple[str, ...]  # as in `formats.STAGES`
    options: tuple[str, ...] = ()  # of the data section


def talks(folder: Path) -> list[Talk]:
    """Content whose rows all differ, and its pictures."""
    things = "knife rope match pill saw lamp cup hammer".split()
    for number in range(ROWS):
        Image.linear_gradient("L").resize((30 + number, 26)).convert("RGB").save(folder / f"{number}.png")
    return [
        Talk(i, f"{i}.png", f"what is the {things[i]} for ?", f"the {things[i]} is for work .", "do not ask .")
        for i in range(ROWS)
    ]


def user(text: Any, role: str = "role", content: str = "content", who: str = "user") -> dict[str, Any]:
    return {role: who, content: text}


def assistant(text: str, role: str = "role", content: str = "content", who: str = "assistant") -> dict[str, Any]:
    return {role: who, content: text}


SYSTEM = {"role": "system", "content": "be brief ."}
EARLIER = [user("is it old ?"), assistant("it is new .")]
OLD = "is it old ?", "it is new ."
HUMAN = {"role": "from", "content": "value", "who": "human"}
GPT = {"role": "from", "content": "value", "who": "gpt"}
BOTH = ("chosen_means=both",)
PAIR, JUDGED = ("sft", "scores"), ("sft", "guard")
UNSAFE = ("label_means=unsafe",)
LAYOUTS: dict[str, Written] = {
    "beavertails_v": Written(
        lambda t: {
            "image": t.picture,
            "question": t.question,
            "response_1": t.better,
            "response_2": t.worse,
            "more_helpful_response_id": "1",
            "safer_response_id": "1",
            "is_response_1_safe": "yes",
            "is_response_2_safe": "no",
            "category": VIOLENCE["beavertails_v"],
        },
        "picture pair chosen safer flags category:beavertails_v",
        ("sft", "scores", "guard:beavertails_v"),
    ),
    "beavertails_v_qa": Written(
        lambda t: {
            "image": t.picture,
            "question": t.question,
            "response": t.better,
            "is_response_safe": "yes" if t.number % 2 else "no",
            "category": VIOLENCE["beavertails_v"],
        },
        "picture answer flag category:beavertails_v",
        ("sft", "guard:beavertails_v"),
    ),
    "pku_saferlhf": Written(
        lambda t: {
            "prompt": t.question,
            "response_0": t.better,
            "response_1": t.worse,
            "better_response_id": 0,
            "safer_response_id": 0,
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "response_0_harm_category": {VIOLENCE["pku_saferlhf"]: False, "Drugs": False},
            "response_1_harm_category": {VIOLENCE["pku_saferlhf"]: True, "Drugs": False},
        },
        "pair chosen safer flags category:pku_saferlhf",
        ("sft", "scores", "guard:pku_saferlhf"),
    ),
    "beavertails": Written(
        lambda t: {
            "prompt": t.question,
            "response": t.better,
            "category": {"animal_abuse": False, VIOLENCE["beavertails"]: t.number % 2 == 0},
            "is_safe": t.number % 2 == 1,
        },
        "answer flag category:beavertails",
        ("sft", "guard:beavertails"),
    ),
    "openai_moderation": Written(lambda t: {"prompt": t.question} | flags(t), "asked", ("guard:openai_moderation",)),
    "preference": Written(
        lambda t: {
            "prompt": [SYSTEM, *EARLIER, user(t.question)],
            "chosen": [assistant(t.better)],
            "rejected": [assistant(t.worse)],
            "images": [t.picture],
        },
        "system history picture pair chosen safer",
        PAIR,
        BOTH,
    ),
    "preference (standard)": Written(
        lambda t: {"prompt": t.question, "chosen": f" {t.better}", "rejected": f" {t.worse}"}, "pair chosen safer", PAIR, BOTH
    ),
    "preference (implicit)": Written(
        lambda t: {"chosen": [user(t.question), assistant(t.better)], "rejected": [user(t.question), assistant(t.worse)]},
        "pair chosen safer",
        PAIR,
        BOTH,
    ),
    "spa_vl": Written(
        lambda t: {"image": t.picture, "question": t.question, "chosen": t.better, "rejected": t.worse},
        "picture pair chosen safer",
        PAIR,
        BOTH,
    ),
    "mmsafe_po": Written(
        lambda t: {
            "question": f"USER: <image>\n{t.question} ASSISTANT:",
            "image": t.picture,
            "chosen": f"ASSISTANT: {t.better}",
            "rejected": f"ASSISTANT: {t.worse}",
            "type": "harmless" if t.number % 2 else "helpful",
            "text_prompt": "USER: x ASSISTANT:",
        },
        "picture placed pair typed",
        PAIR,
    ),
    "alpaca_pairs": Written(
        lambda t: {"instruction": t.question, "input": "", "chosen": t.better, "rejected": t.worse},
        "pair chosen safer",
        PAIR,
        BOTH,
    ),
    "sharegpt_pairs": Written(
        lambda t: {
            "conversations": [user(t.question, **HUMAN)],
            "chosen": assistant(t.better, **GPT),
            "rejected": assistant(t.worse, **GPT),
        },
        "pair chosen safer",
        PAIR,
        BOTH,
    ),
    "message_pairs": Written(
        lambda t: {
            "chosen_messages": [*EARLIER, user(t.question), assistant(t.better)],
            "rejected_messages": [*EARLIER, user(t.question), assistant(t.worse)],
        },
        "history pair chosen safer",
        PAIR,
        BOTH,
    ),
    "aligner": Written(
        lambda t: {"question": t.question, "answer": t.worse, "correction": t.better}, "pair chosen safer", PAIR, BOTH
    ),
    "messages": Written(
        lambda t: {
            "messages": [
                SYSTEM,
                *EARLIER,
                user([{"type": "image_url", "image_url": {"url": t.picture}}, {"type": "text", "text": t.question}]),
                assistant(t.better),
            ]
        },
        "system history picture placed answer",
        ("sft",),
    ),
    "messages (label)": Written(
        lambda t: {"messages": [*EARLIER, user(t.question), assistant(t.better)], "label": t.number % 2 == 0},
        "history answer flag",
        JUDGED,
        UNSAFE,
    ),
    "messages (rejected)": Written(
        lambda t: {"messages": [user(t.question), assistant(t.better)], "rejected_response": t.worse},
        "pair chosen safer",
        PAIR,
        BOTH,
    ),
    "conversation": Written(
        lambda t: {"conversations": [user(f"<image>\n{t.question}", **HUMAN), assistant(t.better, **GPT)], "image": t.picture},
        "picture placed answer",
        ("sft",),
    ),
    "conversation (label)": Written(
        lambda t: {"conversations": [user(t.question, **HUMAN), assistant(t.better, **GPT)], "kto_tag": t.number % 2 == 0},
        "answer flag",
        JUDGED,
        UNSAFE,
    ),
    "verl": Written(
        lambda t: {"data_source": "made", "prompt": [user(t.question)], "reward_model": {"style": "rule", "ground_truth": "4"}},
        "",
        ("ppo_lag",),
    ),
    "unpaired": Written(
        lambda t: {"prompt": t.question, "completion": t.better, "label": t.number % 2 == 0},
        "answer desirable",
        ("sft",),
    ),
    "unpaired (safety)": Written(
        lambda t: {"prompt": t.question, "completion": t.better, "label": t.number % 2 == 1},
        "answer flag",
        JUDGED,
        ("label_means=safe",),
    ),
    "prompt_completion": Written(lambda t: {"prompt": t.question, "completion": t.better}, "answer", ("sft",)),
    "question_answer": Written(lambda t: {"question": t.question, "answer": t.better}, "answer", ("sft",)),
    "alpaca": Written(lambda t: {"instruction": t.question, "input": "", "output": t.better}, "answer", ("sft",)),
    "alpaca (label)": Written(
        lambda t: {"instruction": t.question, "output": t.better, "history": [OLD], "label": t.number % 2 == 0},
        "history answer flag",
        JUDGED,
        UNSAFE,
    ),
    "swift": Written(
        lambda t: {
            "system": "be brief .",
            "query": t.question,
            "response": t.better,
            "history": [OLD],
            "images": [t.picture],
        },
        "system history picture answer",
        ("sft",),
    ),
    "swift (label)": Written(
        lambda t: {"query": t.question, "response": t.better, "label": t.number % 2 == 0, "images": [t.picture]},
        "picture answer flag",
        JUDGED,
        UNSAFE,
    ),
    "swift (rejected)": Written(
        lambda t: {"query": t.question, "response": t.better, "rejected_response": t.worse}, "pair chosen safer", PAIR, BOTH
    ),
    "plain": Written(
        lambda t: {
            "question": t.question,
            "image": t.picture,
            "responses": [t.better, t.worse],
            "chosen": 0,
            "safer": 0,
            "unsafe": [False, True],
            "category": VIOLENCE["beavertails_v"],
        },
        "picture pair chosen safer flags category:beavertails_v",
        ("sft", "scores", "guard:beavertails_v"),
    ),
}


def plain(talk: Talk, says: str) -> dict[str, Any]:
    """What a layout says of the content, as a plain row.

    picture            a picture before the first question; `placed`: before the last one
    system, history    a system turn; an earlier question and its answer
    pair, answer       two answers; the better one alone
    chosen, safer      the first answer is more helpful; is safer. typed: the one or the other, by turns
    flags, flag        which of two answers are unsafe; whether the one answer is, by turns
    category:TAXONOMY  what the harm of unsafe answers is
    desirable          whether the one answer is to be learned from, by turns: a plain row cannot say it
    asked              whether the question is harmful
    """
    words, even = says.split(), talk.number % 2 == 0
    row: dict[str, Any] = {"question": "<image>" * ("placed" in words) + talk.question}
    turns = [SYSTEM] * ("system" in words) + EARLIER * ("history" in words)
    row |= {"history": turns} if turns else {}
    row |= {"image": talk.picture} if "picture" in words else {}
    row |= {"responses": [talk.better, talk.worse]} if "pair" in words else {}
    row |= {"responses": [talk.better]} if "answer" in words else {}
    row |= {"chosen": 0} if "chosen" in words or ("typed" in words and even) else {}
    row |= {"safer": 0} if "safer" in words or ("typed" in words and not even) else {}
    row |= {"unsafe": [False, True]} if "flags" in words else {"unsafe": [even]} if "flag" in words else {}
    row |= {"category": VIOLENCE[taxonomy(says)]} if taxonomy(says) else {}
    return row | ({"harmful": any(flags(talk).values())} if "asked" in words else {})


def taxonomy(says: str) -> str:
    """Whose categories are said; "": none."""
    return next((word.partition(":")[2] for word in says.split() if ":" in word), "")


def flags(talk: Talk) -> dict[str, int]:
    """A row's flags in OpenAI's set: one, or none."""
    return {name: int(talk.number == place) for place, name in enumerate(FLAGS_OF_OPENAI[:-1])} | {FLAGS_OF_OPENAI[-1]: 0}


def desirable(talk: Talk, says: str) -> bool | None:
    """Whether a row's answer is to be learned from; None: nothing is said of that."""
    return talk.number % 2 == 0 if "desirable" in says.split() else None


def as_meant(example, talk: Talk, says: str, folder: Path) -> bool:
    """Whether an example is the content with its labels, as far as its layout says it."""
    row = plain(talk, says)
    answers = tuple(row.get("responses", ()))
    unsafe = tuple(row.get("unsafe", (None,) * len(answers)))
    harm = (row["category"],) if "category" in row else None
    read = (
        [(turn.role, turn.text) for turn in example.history],
        example.question.removeprefix("<image>").strip(),
        (example.responses, example.unsafe, example.categories),
        (example.chosen, example.safer, example.harmful, example.desirable),
        example.images,
        [int(flag) for _, flag in example.asked],
    )
    return read == (
        [(turn["role"], turn["content"]) for turn in row.get("history", ())],
        talk.question,
        (answers, unsafe, tuple({True: harm, False: (), None: None}[flag] for flag in unsafe)),
        (row.get("chosen"), row.get("safer"), row.get("harmful"), desirable(talk, says)),
        ((folder / talk.picture).read_bytes(),) if "image" in row else (),
        list(flags(talk).values()) if "asked" in says.split() else [],
    )
