"""No string of a row or a request opens a turn, ends one, or stands for a picture; all other texts have the ids they always had."""

import numpy as np
import pytest
import tiny_tokenizers
import transformers
from tiny_data import png
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from srlhfv_jax.data import chat, tokens
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example

PLENTY = {"prompt_length": 9999, "response_length": 9999}
INNOCENT = (
    "what is this?",
    "  Spaces around,  and  within \n\n and lines\n",
    "½ ﬁ Å naïve 日本語 🙂 ​ zero width",
    "if a<b and c>d: print('<', \"|>\") # <b>bold</b>",
    "an email <me@host.org> | a | table |",
    "tab\tand ... ]] [[ {{ x }} {% if y %}",
)


@pytest.fixture(scope="module", params=tiny_tokenizers.FAMILIES)
def family(request):
    processor = tiny_tokenizers.processor(request.param)
    return request.param, processor, chat.codec(processor)


def rendered(processor, codec, question: str) -> list[int]:
    """What transformers makes of a question."""
    parts = [{"type": "text", "text": question}]
    owner = processor if isinstance(processor, transformers.ProcessorMixin) else codec.tokenizer
    message = {"role": "user", "content": question if codec.reader is None else parts}
    text = owner.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    begins = codec.tokenizer.bos_token is not None and text.startswith(codec.tokenizer.bos_token)
    return codec.tokenizer(text, add_special_tokens=not begins)["input_ids"]


def meaning(codec, ids) -> list[int]:
    """The special and added tokens among ids, but the unknown word, which any text may have."""
    known = {index for index in codec.literal.ids.values()} - {codec.tokenizer.unk_token_id}
    return [index for index in np.asarray(ids).tolist() if index in known]


def spelled(word: str) -> list[str]:
    """Ways to smuggle a token in."""
    ways = [word, f"a cat {word} a dog", f" {word} ", f"{word}{word}", f"cat{word}dog", f"\n{word}\nassistant\nyes"]
    ways += [word.upper(), word.replace("<", "＜").replace(">", "＞").replace("|", "｜"), f"{word[:2]}​{word[2:]}"]
    return [*ways, f"▁{word}", f"{word[:-1]} {word[-1:]}", word[:1] + word, word + word[-1:]]


def test_an_innocent_text_has_the_ids_of_the_whole_rendered_prompt(family):
    _, processor, codec = family
    for text in INNOCENT:
        assert tokens.prompt_ids(codec, text, ()).tolist() == rendered(processor, codec, text), text
        expected = codec.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens.response_ids(codec, text).tolist() == [*expected, codec.eos_id], text


def test_no_question_has_a_token_that_the_template_did_not_write(family):
    _, _, codec = family
    expected = meaning(codec, tokens.prompt_ids(codec, "a cat", ()))
    for word in codec.literal.ids:
        for text in spelled(word):
            if codec.reader is None or chat.MARK not in text:
                assert meaning(codec, tokens.prompt_ids(codec, text, ())) == expected, text


def test_a_question_about_pictures_has_their_placeholders_alone(family):
    _, _, codec = family
    if codec.reader is None:
        return
    pictures = (png(1, (26, 21)), png(2, (40, 17)))
    benign = tokens.encode(codec, Example(pictures, "a <image> cat <image> b", ()), 0, **PLENTY).prompt
    for word in codec.literal.ids:
        if word != chat.MARK:
            split = f"a {word[:2]}<image>{word[2:]} cat <image> {word}"  # its halves in two parts of one message
            ids = tokens.encode(codec, Example(pictures, split, ()), 0, **PLENTY).prompt
            assert meaning(codec, ids) == meaning(codec, benign), split
    for marks in ("", "<image>", "<image><image><image>"):  # with as many marks as pictures, or none, it is documented
        question = f"a {marks} cat {codec.reader.written if codec.reader.written != chat.MARK else ''}"
        if marks:
            with pytest.raises(Unusable, match="special_token_in_text"):
                tokens.encode(codec, Example(pictures, question, ()), 0, **PLENTY)
        else:
            ids = tokens.encode(codec, Example(pictures, question, ()), 0, **PLENTY).prompt
            assert sorted(meaning(codec, ids)) == sorted(meaning(codec, benign))


def test_an_answer_that_is_read_is_characters_and_one_to_learn_from_has_no_special_token(family):
    _, _, codec = family
    for word, index in codec.literal.ids.items():
        for text in spelled(word):
            ids = tokens.response_ids(codec, text, literal=True)
            assert meaning(codec, ids) == [codec.eos_id], text
        if index in codec.literal.special:
            with pytest.raises(Unusable, match="special_token_in_text"):
                tokens.response_ids(codec, f"a cat {word} a dog")
        else:
            assert meaning(codec, tokens.response_ids(codec, f"a cat {word} a dog")) == [codec.eos_id]


def test_characters_of_a_special_token_are_all_there(family):
    name, _, codec = family
    if name in ("qwen", "llama3", "smolvlm"):  # of byte-level tokenizers, which know every character
        for word in codec.literal.ids:
            ids = tokens.response_ids(codec, f"a {word} b", literal=True)
            assert codec.tokenizer.decode(ids[:-1]) == f"a {word} b" == codec.spoken(ids)


def odd_tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    """Vocabularies and normalizers in which more than the exact spelling becomes a special token."""
    words = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "[sep]", "a", "cat", ":", "user", "assistant"])}
    if kind == "unigram":
        core = Tokenizer(models.Unigram([(word, -1.0) for word in [*words, "▁", *"<>/sent[]p"]], unk_id=0))
        core.pre_tokenizer = pre_tokenizers.Metaspace()
    elif kind == "merges":
        letters = {letter: len(words) + index for index, letter in enumerate(["<", "/", "s", ">", "</", "</s"])}
        core = Tokenizer(models.BPE(words | letters, [("<", "/"), ("</", "s"), ("</s", ">")], unk_token="<unk>"))
    else:
        core = Tokenizer((models.WordPiece if kind == "wordpiece" else models.WordLevel)(words, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind in ("words", "wordpiece"):
        core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": [AddedToken("[sep]", normalized=True, single_word=True)]})
    return made


@pytest.mark.parametrize("kind", ["words", "wordpiece", "unigram", "merges"])
def test_normalizers_and_vocabularies_make_no_special_token_either(kind):
    codec = chat.codec(made := odd_tokenizer(kind))
    for text in ("a cat", "cat a : user"):
        assert tokens.prompt_ids(codec, text, ()).tolist() == made(f"USER: {text} ASSISTANT:")["input_ids"]
    for word in codec.literal.ids:
        for text in spelled(word):
            assert meaning(codec, tokens.prompt_ids(codec, text, ())) == [], text
            assert meaning(codec, codec.ids((chat.Piece(text, True),), False)) == [], text


def test_templates_of_old_tokenizers_whose_special_tokens_are_normalized_keep_their_ids():
    core = tiny_tokenizers.llava().backend_tokenizer
    core.add_special_tokens([AddedToken(word, normalized=True) for word in ("<s>", "</s>")])
    template = "{% for m in messages %}<s>[INST] {{ m.content }} [/INST]{% endfor %}"
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template
    )
    codec = chat.codec(made)
    for text in INNOCENT:
        assert tokens.prompt_ids(codec, text, ()).tolist() == rendered(made, codec, text)
    expected = meaning(codec, tokens.prompt_ids(codec, "a cat", ()))
    for word in codec.literal.ids:
        for text in spelled(word):
            assert meaning(codec, tokens.prompt_ids(codec, text, ())) == expected, text


@pytest.mark.parametrize("text", ["half \ud83d a pair", "\udc00", "a \U0010fffd302\U0010fffd b"])
def test_what_is_no_text_is_dropped_by_name(family, text):
    codec = family[2]
    for example in (Example((), text, ()), Example((), "a cat", (text,))):
        with pytest.raises(Unusable, match="not_text"):
            tokens.encode(codec, example, 0, **PLENTY)
