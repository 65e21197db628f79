"""Chat format of a checkpoint: its tokenizer, placeholder, pictures, chat template and end of an answer, as one `Codec`.

A prompt is what the checkpoint's own chat template writes around the question, up to and including the opening of the assistant's
turn. The template sees a word in the question's place, never the question: what it writes cannot depend on what users write. The
response follows directly and ends with what the template writes after an assistant's turn, or with the tokenizer's
end-of-sequence token where it writes nothing. No system prompt is added.

Images come before the question, or where the question says "<image>", as far as the template keeps them there (LLaVA's moves
them to the front).
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from srlhfv_jax.data import pictures, templates
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.literal import Literal, Piece, literal
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.files import read_json, take

MARK = "<image>"  # in a question: an image belongs here
REMEMBERED = 1 << 14  # texts: data sets repeat their questions, a policy repeats its answers
SETTINGS = ("generation_config.json", "config.json")  # beside the tokenizer: the first that is there says when an answer ends
VISION = re.compile(r"image|img|vision|video|audio|multimodal|row_\d+_col_\d+|^[be]o[ia]_token", re.IGNORECASE)

Kinds = tuple[str, ...]  # of the parts of a message: "image" or "text"


class Frame(NamedTuple):
    """Texts that the template writes around those of a message, and whether it strips them."""

    around: tuple[str, ...]  # before, between and after the texts
    strips: tuple[tuple[bool, bool], ...]  # of each text: white space on its left, on its right


class Codec(NamedTuple):
    """Everything that data needs of a checkpoint's processor (vision-language) or tokenizer (text-only). It remembers texts."""

    tokenizer: Any
    reader: pictures.Reader | None  # None: text-only
    image_token_id: int | None
    pad_id: int
    eos_id: int  # ends an answer that is learned from
    stop_ids: tuple[int, ...]  # each ends an answer that is sampled
    words: frozenset[int]  # stop ids and placeholder that are ordinary words of the vocabulary: texts with them cannot be used
    never_ids: tuple[int, ...]  # no answer has them: vision markers, what opens a turn, begin of sequence, pad, unknown
    literal: Literal
    frame: Callable[[Kinds], Frame]  # of a user's message, and the opening of the assistant's turn
    ids: Callable[[tuple[Piece, ...], bool], Int[np.ndarray, "T"]]  # of a text, with the tokenizer's own additions or without

    def prompt(self, question: str, images: int) -> tuple[Piece, ...]:
        """The prompt with ONE placeholder where an image is; `tokens` expands it.

        Raises:
            Unusable: the question has another number of "<image>" than there are images.
        """
        parts = [("text", question)] if self.reader is None else _parts(question, images)
        frame = self.frame(tuple(kind for kind, _ in parts))
        texts = (text for kind, text in parts if kind == "text")
        written = [Piece(_stripped(text, *strips), True) for text, strips in zip(texts, frame.strips, strict=True)]
        own = [Piece(text, False) for text in frame.around]
        return tuple(piece for piece in itertools.chain(*itertools.zip_longest(own, written)) if piece is not None)

    def prompt_text(self, question: str, images: int) -> str:
        """`prompt` as one text."""
        return "".join(piece.text for piece in self.prompt(question, images))

    def spoken(self, ids: Sequence[int]) -> str:
        """The text of an answer, without its end and without special tokens."""
        ids = list(ids)
        return self.tokenizer.decode(ids[:-1] if ids and ids[-1] in self.stop_ids else ids, skip_special_tokens=True)


def codec(processor: Any, max_pixels: int = 0) -> Codec:
    """Describe a Hugging Face processor, its parts, or a tokenizer alone; `max_pixels` as in DataConfig.

    Raises:
        UserError: something that batches need is missing in it.
    """
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    if isinstance(processor, (ProcessorMixin, pictures.Bundle)):
        tokenizer, image_token = processor.tokenizer, processor.image_token
        reader = pictures.limited(pictures.reader(processor), max_pixels)
        image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if image_token_id is None or image_token_id == tokenizer.unk_token_id:
            raise UserError(f"the tokenizer does not know the image placeholder {image_token!r} of its processor")
        owners = (tokenizer,) if isinstance(processor, pictures.Bundle) else (processor, tokenizer)
        template = next((part.chat_template for part in owners if part.chat_template), None)
    elif isinstance(processor, PreTrainedTokenizerBase):
        tokenizer, reader, image_token_id = processor, None, None
        template = tokenizer.chat_template or None
    else:
        raise UserError(f"expected a Hugging Face processor or tokenizer, got {type(processor).__name__}")
    respelled, render = literal(tokenizer), None
    if template is not None:
        trials = [
            _messages(reader, kinds, False) for kinds in ((("text",),) if reader is None else (("text",), ("image", "text")))
        ]
        render = templates.renderer(template, tokenizer.special_tokens_map, trials)
        render = _either(render) if reader is None else render
    frame = functools.lru_cache(REMEMBERED)(functools.partial(_frame, render, reader))
    eos_id, stop_ids = _ends(tokenizer, render, reader, respelled)
    # Padding is never read (masks are carried), so any id will do where a tokenizer has none of its own.
    pad_id = eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    never = {tokenizer.bos_token_id, tokenizer.unk_token_id, image_token_id, pad_id} | _vision(tokenizer)
    never |= {index for text in frame(("text",)).around for index in respelled.found(text)} & respelled.special  # opens a turn
    ids = functools.lru_cache(REMEMBERED)(functools.partial(_ids, respelled))
    made = Codec(
        tokenizer,
        reader,
        image_token_id,
        pad_id,
        eos_id,
        stop_ids,
        frozenset({*stop_ids, image_token_id} - {None, *respelled.ids.values()}),
        tuple(sorted(never - {None, *stop_ids})),
        respelled,
        frame,
        ids,
    )
    _compare(made)
    return made


def _compare(made: Codec) -> None:
    """A text without special tokens must have the ids that the tokenizer itself gives it."""
    prompt = made.prompt("Which a?", 0)
    text = "".join(piece.text for piece in prompt)
    expected = made.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    if made.ids(prompt, False).tolist() != expected:
        name = type(made.tokenizer).__name__
        raise UserError(
            f"this {name} finds the special tokens of its chat template by more than their spelling ({shown(text)}): set normalized and "
            "single_word to false for them in tokenizer.json"
        )


def _ends(
    tokenizer: Any, render: templates.Render | None, reader: pictures.Reader | None, respelled: Literal
) -> tuple[int, tuple[int, ...]]:
    """Ids that end an answer: the one that is learned, and all that end a sampled one: those of the files, the tokenizer's
    end-of-sequence token, and what the template writes after an assistant's turn.

    Raises:
        UserError: nothing says how an answer ends.
    """
    stops = {index for index in _declared(tokenizer) if 0 <= index < 1 << 31 and respelled.core.id_to_token(index) is not None}
    stops |= {tokenizer.eos_token_id} - {None}
    try:
        tail = _frame(render, reader, ("text",), answer=True).around[-1].lstrip()
    except UserError:  # a template for questions alone
        tail = ""
    first = respelled.pattern.match(tail)
    following = respelled.encode([Piece(tail, False)], add_special_tokens=False).tolist()
    if first is not None:
        own = respelled.ids[first[0]]
    elif following and following[0] in stops:
        own = following[0]
    elif tokenizer.eos_token_id is not None:
        own = tokenizer.eos_token_id
    elif stops:
        own = min(stops)
    else:
        raise UserError("the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    return own, tuple(sorted(stops | {own}))


def _declared(tokenizer: Any) -> list[int]:
    """Ids from the settings beside the tokenizer's files, as `transformers` reads them: config.json where there are no others."""
    if not tokenizer.name_or_path:
        return []
    path = next((path for name in SETTINGS if (path := Path(tokenizer.name_or_path) / name).is_file()), None)
    if path is None:
        return []
    data = read_json(path, dict[str, Any])
    if path.name == "config.json" and "eos_token_id" not in data and "text_config" in data:
        data = take(data, "text_config", dict[str, Any], str(path))
    found = take({"eos_token_id": None} | data, "eos_token_id", int | list[int] | None, str(path))
    return found if isinstance(found, list) else [found] * (found is not None)


@functools.lru_cache(4)  # by identity
def _vision(tokenizer: Any) -> frozenset[int]:
    """Tokens that stand for pictures, sounds and films, or around them: by name, or by what the tokenizer calls it."""
    called = [token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str) and VISION.search(name)]
    return frozenset(index for word, index in literal(tokenizer).ids.items() if word in called or VISION.search(word))


def _ids(respelled: Literal, pieces: tuple[Piece, ...], add_special_tokens: bool) -> Int[np.ndarray, "T"]:
    ids = respelled.encode(pieces, add_special_tokens=add_special_tokens)
    ids.setflags(write=False)  # whoever asks again gets the same array
    return ids


def _parts(question: str, images: int) -> list[tuple[str, str]]:
    """Images and texts in the order of the question. Data sets written for LLaVA have the mark of their image at either end."""
    if images == 1 and question.count(MARK) == 1:
        question = question.removeprefix(MARK).removesuffix(MARK).strip()
    marks = question.count(MARK)
    if marks == 0:
        return [("image", "")] * images + [("text", question)]
    if marks != images:
        raise Unusable(
            "special_token_in_text", f"the question has {marks} times {MARK} and the row {images} images: {question[:80]!r}"
        )
    parts = []
    for index, text in enumerate(question.split(MARK)):
        parts += [("image", "")] * (index > 0) + [("text", text)] * bool(text)
    return parts


# What stands for a text while the template is rendered, and white space around it that shows what is stripped.
WORD, LEFT, RIGHT = "Users{}Words", "\t", "\n"


def _frame(render: templates.Render | None, reader: pictures.Reader | None, kinds: Kinds, answer: bool = False) -> Frame:
    """Texts that the template writes around a message of these parts.

    Args:
        render: the chat template; None: the fallback text.
        answer: an assistant's turn of one text follows, and its end; otherwise the opening of such a turn.

    Raises:
        UserError: the template does not write each text once, as it is.
    """
    slots = kinds.count("text") + answer
    around, padded = (_around(_rendered(render, reader, kinds, answer, *pads), slots) for pads in (("", ""), (LEFT, RIGHT)))
    lefts, rights = [], []  # of each text: whether the template strips it there
    for place, (bare, wide) in enumerate(zip(around, padded, strict=True)):
        kept = [(right, left) for right in (RIGHT, "") for left in (LEFT, "") if wide == right + bare + left]
        if not kept:
            raise UserError(f"{ALTERED}: {wide[:80]!r} where {bare[:80]!r} was expected")
        rights += [not kept[0][0]] * (place > 0)
        lefts += [not kept[0][1]] * (place < slots)
    return Frame(around, tuple(zip(lefts, rights, strict=True)))


def _around(rendered: str, slots: int) -> tuple[str, ...]:
    """The text before, between and after the words that stand for texts."""
    around, rest = [], rendered
    for slot in range(slots):
        before, *after = rest.split(WORD.format(slot))
        if len(after) != 1:
            raise UserError(f"{ALTERED}: {rendered[:80]!r}")
        around.append(before)
        rest = after[0]
    return (*around, rest)


ALTERED = "expected a chat template that writes every text of a message once, in order and as it is; it writes"


def _rendered(
    render: templates.Render | None, reader: pictures.Reader | None, kinds: Kinds, answer: bool, left: str, right: str
) -> str:
    """The template's text, with a word for each text of the message and of the answer."""
    messages = _messages(reader, kinds, answer, left, right)
    if render is not None:
        return render(messages, not answer)
    # LLaVA-1.5's format, which also serves a tokenizer without a template of its own
    content, *said = (message["content"] for message in messages)
    if reader is None:
        flat = content
    else:
        flat = "".join(part.get("text", f"{reader.written}\n") for part in content)
    return f"USER: {flat} ASSISTANT:" + "".join(f" {text if reader is None else text[0]['text']}" for text in said)


def _either(render: templates.Render) -> templates.Render:
    """Message content for a text-only checkpoint: most templates expect strings, those that came from a processor lists of parts."""

    def rendered(messages: templates.Messages, opens_answer: bool) -> str:
        text = render(messages, opens_answer)
        if all(message["content"].strip() in text for message in messages):
            return text
        parts = ([{"type": "text", "text": message["content"]}] for message in messages)
        return render([message | {"content": part} for message, part in zip(messages, parts)], opens_answer)

    return rendered


def _messages(
    reader: pictures.Reader | None, kinds: Kinds, answer: bool, left: str = "", right: str = ""
) -> list[dict[str, Any]]:
    """A user's message of these parts, and the assistant's answer, with a word for each text."""
    words = (left + WORD.format(slot) + right for slot in itertools.count())
    content = [{"type": "text", "text": next(words)} if kind == "text" else {"type": "image"} for kind in kinds]
    messages = [{"role": "user", "content": content}]
    if answer:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": next(words)}]})
    if reader is None:
        messages = [message | {"content": message["content"][0]["text"]} for message in messages]
    return messages


def _stripped(text: str, left: bool, right: bool) -> str:
    text = text.lstrip() if left else text
    return text.rstrip() if right else text
