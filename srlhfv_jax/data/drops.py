"""Named reasons for which a row cannot be used, in one place, so that every dropped row is counted under a name users can look up.

Readers raise `Unusable`; `layouts.read` turns it into a `Drop`, `sources.Examples` and `loader.fit` count them, `srlhfv data
inspect` shows them.
"""

from typing import NamedTuple

REASONS = {
    "missing_image": "the image cell is empty or names a file that does not exist or cannot be read",
    "not_an_image": "the bytes are not a PNG, JPEG, WebP, GIF or BMP picture",
    "truncated_image": "the picture begins well but cannot be decoded to its end",
    "image_too_large": "the picture has more pixels than is sane (a decompression bomb)",
    "image_too_narrow": "the picture is so much longer than wide that the model cannot read it",
    "path_outside_folder": "the image path leaves the image folder, and data.allow_dir is not the folder it leads to",
    "image_not_here": "the image cell is the address of a picture, which is not downloaded (data.fetch), or did not come",
    "broken_text": "a text holds half of a surrogate pair, which is no character",
    "empty_question": "the question has no text",
    "bad_turns": "the turns are not a system turn or none, then user and assistant by turns, with a user's turn last",
    "empty_turn": "a turn before the question has no text",
    "empty_response": "a response has no text, or no tokens",
    "identical_responses": "both responses of the pair are the same",
    "contradictory_safety": "the safer response is labelled unsafe while the other one is labelled safe",
    "contradictory_severity": "an answer is labelled safe with a severity above 0, or unsafe with one below",
    "missing_field": "the row lacks a column, or text in a column, that the benchmark's layout has",
    "unknown_category": "the row is of a category or scenario that the benchmark, or the taxonomy, does not have",
    "duplicate_id": "a row with the same id came before",
    "duplicate_prompt": "the same question about the same picture came before",
    "missing_label": "the row carries no label that this use needs",
    "bad_label": "a label has a value that its column does not allow",
    "helpful_tie": "both responses are as helpful: none of them wins",
    "safety_tie": "both responses are as safe: none of them wins",
    "both_unsafe": "both responses are labelled unsafe: none of them may win",
    "unsafe_winner": "the response that wins is labelled unsafe",
    "missing_safety_label": "a response is not labelled safe or unsafe, and the method needs to know",
    "not_safe_and_unsafe": "the row does not have one response labelled safe and one labelled unsafe",
    "non_finite_score": "a model gave a response a score that is not finite",
    "no_token_kept": "no token of the winner has a value above the baseline, or none of the loser one below it",
    "not_in_mix": "the row is of a class that data.mix gives no share",
    "undesirable": "the answer is labelled as one not to learn from",
    "missing_response": "the row has fewer responses than this use needs",
    "no_vision": "the row has an image, but the model is text-only",
    "special_token_in_text": "an answer to learn from contains a special token, or a question another number of <image> than images",
    "lost_image": "the chat template writes another number of images than the row has",
    "not_text": "the text has half of a surrogate pair, or a character that is kept for special tokens (U+10FFFD)",
    "prompt_too_long": "the prompt needs more than prompt_length tokens (prompts are never cut: it could cut image placeholders)",
    "response_too_long": "a response and its end token need more than response_length tokens (responses are never cut)",
}


class Unusable(Exception):
    """This row cannot be used, for one of the named reasons."""

    def __init__(self, reason: str, detail: str):
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Drop(NamedTuple):
    """A row left out: why, and what was seen in it."""

    reason: str
    detail: str


class Dropped(NamedTuple):
    """One dropped row of a source, for `srlhfv data inspect`."""

    row: int
    reason: str
    detail: str
