"""Chat format of a checkpoint: its tokenizer, placeholder, pictures, chat template and end of an answer, as one `Codec`.

A prompt is what the checkpoint's own chat template writes around the texts of a conversation, up to and including the opening of
the assistant's turn. The template sees a word in the place of each text, never the text: what it writes cannot depend on what users
write (`frames`). The response follows directly and ends with what the template writes after an assistant's turn, or with the
tokenizer's end-of-sequence token where it writes nothing.

Images come before the first user's text, or where texts say "<image>", as far as the template keeps them there (LLaVA's moves them
to the front of their turn).
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from srlhfv_jax.data import frames, pictures, templates
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.frames import QUESTION, Frame, Shape
from srlhfv_jax.data.literal import Literal, Piece, Request, literal
from srlhfv_jax.data.rows import Turn
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.files import read_json, take

MARK = "<image>"  # in a question: an image belongs here
REMEMBERED = 1 << 14  # texts: data sets repeat their questions, a policy repeats its answers
SETTINGS = ("generation_config.json", "config.json")  # beside the tokenizer: the first that is there says when an answer ends
VISION = re.compile(r"image|img|vision|video|audio|multimodal|row_\d+_col_\d+|^[be]o[ia]_token", re.IGNORECASE)

MERGED = "the checkpoint's chat template has no place for a system turn: its text stands at the front of the first user turn"
SYSTEM = ("system", ("text",))  # a turn's shape
Parts = list[tuple[str, str]]  # of a turn, as (kind, text): ("image", "") or ("text", ...)


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
    system: str  # text of the system turn of a conversation that has none; "" = none
    merges_system: bool  # the template has no place for a system turn: its text goes to the front of the first user turn
    frame: Callable[[Shape], Frame]  # of a conversation that a user's turn ends, and the opening of the assistant's turn
    ids: Callable[[tuple[Piece, ...], bool], Int[np.ndarray, "T"]]  # of a text, with the tokenizer's own additions or without

    def prompt(self, question: str, images: int, history: Sequence[Turn] = ()) -> tuple[Piece, ...]:
        """The prompt with ONE placeholder where an image is; `tokens` expands it.

        Args:
            images: of all turns together.
            history: the turns before the question.

        Raises:
            Unusable: the turns have another number of "<image>" than there are images.
        """
        added = (Turn("system", self.system),) if self.system and not (history and history[0].role == "system") else ()
        turns = (*added, *history, Turn("user", question))
        parts = parts_of(turns, images) if self.reader is not None else [[("text", turn.text)] for turn in turns]
        said = [(turn.role, part) for turn, part in zip(turns, parts, strict=True)]
        if self.merges_system and said[0][0] == "system":
            said = _merged(said[0][1][0][1], said[1:])
        frame = self.frame(tuple((role, tuple(kind for kind, _ in part)) for role, part in said))
        texts = [text for _, part in said for kind, text in part if kind == "text"]
        written = [Piece(slot.read(texts[slot.text]), True) for slot in frame.slots]
        own = [Piece(text, False) for text in frame.around]
        return tuple(piece for piece in itertools.chain(*itertools.zip_longest(own, written)) if piece is not None)

    def prompt_text(self, question: str, images: int, history: Sequence[Turn] = ()) -> str:
        """`prompt` as one text."""
        return "".join(piece.text for piece in self.prompt(question, images, history))

    def with_ids_of(self, requests: Iterable[Request]) -> "Codec":
        """The same with the ids of these texts at hand. They are encoded together, on all cores; all others one by one, as before."""
        at_hand = self.literal.encode_all(requests)
        for one in at_hand.values():
            one.setflags(write=False)  # rows that repeat a text share its array

        def ids(pieces: tuple[Piece, ...], add_special_tokens: bool) -> Int[np.ndarray, "T"]:
            request = pieces, add_special_tokens
            return at_hand[request] if request in at_hand else self.ids(*request)

        return self._replace(ids=ids)

    def spoken(self, ids: Sequence[int]) -> str:
        """The text of an answer, without its end and without special tokens."""
        ids = list(ids)
        return self.tokenizer.decode(ids[:-1] if ids and ids[-1] in self.stop_ids else ids, skip_special_tokens=True)


def codec(processor: Any, max_pixels: int = 0, system_prompt: str = "") -> Codec:
    """Describe a Hugging Face processor, its parts, or a tokenizer alone; the rest as in DataConfig.

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
    respelled, render = literal(tokenizer), _render(template, tokenizer, reader)
    frame = functools.lru_cache(REMEMBERED)(functools.partial(frames.frame, render, reader))
    eos_id, stop_ids = _ends(tokenizer, frame, respelled)
    # Padding is never read (masks are carried), so any id will do where a tokenizer has none of its own.
    pad_id = eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    never = {tokenizer.bos_token_id, tokenizer.unk_token_id, image_token_id, pad_id} | _vision(tokenizer)
    never |= {index for text in frame(QUESTION).around for index in respelled.found(text)} & respelled.special  # opens a turn
    ids = functools.lru_cache(REMEMBERED)(functools.partial(_ids, respelled))
    codec = Codec(
        tokenizer,
        reader,
        image_token_id,
        pad_id,
        eos_id,
        stop_ids,
        frozenset({*stop_ids, image_token_id} - {None, *respelled.ids.values()}),
        tuple(sorted(never - {None, *stop_ids})),
        respelled,
        system_prompt,
        _merges_system(frame, reader is not None),
        frame,
        ids,
    )
    _compare(codec)
    return codec


def _compare(codec: Codec) -> None:
    """A text without special tokens must have the ids that the tokenizer itself gives it."""
    prompt = codec._replace(system="").prompt("Which a?", 0)
    text = "".join(piece.text for piece in prompt)
    expected = codec.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    if codec.ids(prompt, False).tolist() != expected:
        name = type(codec.tokenizer).__name__
        raise UserError(
            f"this {name} finds the special tokens of its chat template by more than their spelling ({shown(text)}): set normalized and "
            "single_word to false for them in tokenizer.json"
        )


def _render(template: Any, tokenizer: Any, reader: pictures.Reader | None) -> templates.Render:
    """The template, tried on a question, one with a picture, and a conversation."""
    if template is None:
        return frames.without_template(reader, tokenizer.eos_token or "")
    kinds = (("text",),) if reader is None else (("text",), ("image", "text"))
    questions = [frames.messages(reader, (("user", one),)) for one in kinds]
    talk = tuple(turn for one in kinds for turn in (("user", one), ("assistant", ("text",))))
    talks = [frames.messages(reader, (*first, *talk, *QUESTION)) for first in ((), (SYSTEM,))]
    render = templates.renderer(template, tokenizer.special_tokens_map, questions, talks)
    return frames.as_it_reads(render) if reader is None else render


def _merges_system(frame: Callable[[Shape], Frame], sees: bool) -> bool:
    """Whether the template raises at a system turn, or leaves it out, where it takes the same conversation without one."""
    for kinds in (("text",), ("image", "text"))[: 1 + sees]:
        try:
            frame((("user", kinds),))
        except UserError:  # it takes no such question at all
            continue
        try:
            frame((SYSTEM, ("user", kinds)))
        except UserError:
            return True
    return False


def _ends(tokenizer: Any, frame: Callable[[Shape], Frame], respelled: Literal) -> tuple[int, tuple[int, ...]]:
    """Ids that end an answer: the one that is learned, and all that end a sampled one: those of the files, the tokenizer's
    end-of-sequence token, and what the template writes after an assistant's turn.

    Raises:
        UserError: nothing says how an answer ends.
    """
    stops = {index for index in _declared(tokenizer) if 0 <= index < 1 << 31 and respelled.core.id_to_token(index) is not None}
    stops |= {tokenizer.eos_token_id} - {None}
    try:
        tail = frame(frames.ANSWERED).around[-1].lstrip()
    except UserError:  # a template for questions alone
        tail = ""
    first = respelled.pattern.match(tail)
    following = respelled.encode([Piece(tail, False)], add_special_tokens=False).tolist()
    if first is not None:
        end_id = respelled.ids[first[0]]
    elif following and following[0] in stops:
        end_id = following[0]
    elif tokenizer.eos_token_id is not None:
        end_id = tokenizer.eos_token_id
    elif stops:
        end_id = min(stops)
    else:
        raise UserError("the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    return end_id, tuple(sorted(stops | {end_id}))


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


def parts_of(turns: Sequence[Turn], images: int) -> list[Parts]:
    """Images and texts of each turn, in the order of the turn. Without marks, all images come before the first user's text."""
    marks = sum(turn.text.count(MARK) for turn in turns if turn.role != "system")
    if marks not in (0, images):
        where = "question has" if len(turns) == 1 else "turns have"
        raise Unusable(
            "special_token_in_text", f"the {where} {marks} times {MARK} and the row {images} images: {turns[-1].text[:80]!r}"
        )
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    parts = []
    for number, turn in enumerate(turns):
        if turn.role == "system" or marks == 0:
            parts.append([("image", "")] * (images * (number == first)) + [("text", turn.text)])
        else:
            parts.append(_split(turn.text))
    return parts


def _split(text: str) -> Parts:
    """Images and texts in the order of a turn. Data sets written for LLaVA have the mark of their image at either end."""
    if text.count(MARK) == 1:
        text = text.removeprefix(MARK).removesuffix(MARK).strip()
        if MARK not in text:
            return [("image", ""), ("text", text)]
    parts = []
    for index, words in enumerate(text.split(MARK)):
        parts += [("image", "")] * (index > 0) + [("text", words)] * bool(words)
    return parts


def _merged(system: str, said: list[tuple[str, Parts]]) -> list[tuple[str, Parts]]:
    """The conversation with the system's text at the front of the first user's."""
    (role, parts), *rest = said
    place = next((place for place, (kind, _) in enumerate(parts) if kind == "text"), len(parts))
    text = "".join(text for _, text in parts[place : place + 1])
    return [(role, [*parts[:place], ("text", f"{system}\n\n{text}"), *parts[place + 1 :]]), *rest]
