"""Chat templates of checkpoints, rendered so that rendering ends, and ends the same on every day.

A template is a program of whoever made the checkpoint. It is tried once in a process of its own, with little time and memory
(`template_trial`), before it is rendered here. It is told one fixed date, which is the one that Llama's own templates fall back
to: prompts of a resumed run, and of a guard that was trained yesterday, are those of today.
"""

import contextlib
import datetime
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from srlhfv_jax.data import template_trial
from srlhfv_jax.data.families import Bundle
from srlhfv_jax.errors import UserError, reason, shown

DATE = datetime.datetime(2024, 7, 26)
Messages = list[dict[str, Any]]
Render = Callable[[Messages, bool], str]  # the second: up to the opening of the assistant's turn, instead of without it


def renderer(template: Any, special_tokens: dict[str, Any], trials: list[Messages], refusable: list[Messages]) -> Render:
    """A function that renders conversations by a processor's or tokenizer's own template.

    Args:
        trials: conversations that it must render.
        refusable: conversations of the other kinds that it will be given; it may raise at them.

    Raises:
        UserError: it is no template, does not end, or raises; then also when it renders others.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _text(template)
    known = {name: str(token) for name, token in sorted(special_tokens.items()) if isinstance(token, str)}

    def variables(messages: Messages, opens_answer: bool) -> dict[str, Any]:
        return known | {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": opens_answer}

    def render(messages: Messages, opens_answer: bool) -> str:
        with _one_line():
            return compiled.render(**variables(messages, opens_answer), strftime_now=lambda how: DATE.strftime(how))

    _ends(template, json.dumps([variables(messages, True) for messages in [*trials, *refusable]]))
    with _one_line():
        compiled = _compile_jinja_template(template)
    compiled.environment.filters.pop("random", None)  # prompts are the same in every run
    for messages in trials:
        render(messages, True)
    return render


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a template does
        raise UserError(f"the checkpoint's chat template fails ({reason(error)}): correct it, or take another copy's") from None


def override(processor: Any, path: str) -> Any:
    """A processor with the template of a file in the place of its own; with "" as it is.

    Raises:
        UserError: the file cannot be read.
    """
    if path:
        owner = processor.tokenizer if isinstance(processor, Bundle) else processor
        owner.chat_template = read(path)
    return processor


def read(path: str | Path) -> str:
    """The template in a file.

    Raises:
        UserError: it cannot be read, or holds nothing.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.chat_template={path} cannot be read ({reason(error)}): give a file with a Jinja template"
        ) from None
    if not text.strip():
        raise UserError(f"data.chat_template={path} is empty: give a file with a Jinja template")
    return text


def _text(template: Any) -> str:
    """A template may be several by name, of which one is the default."""
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise UserError(
            f"the checkpoint's chat template must be a text, or texts with one named 'default', got {shown(template)}"
        )
    return template


@functools.lru_cache(maxsize=64)
def _ends(template: str, renderings: str) -> None:
    given = json.dumps({"template": template, "renderings": json.loads(renderings)})
    trial = [sys.executable, "-I", str(Path(template_trial.__file__))]
    try:
        code = subprocess.run(trial, input=given, text=True, capture_output=True, timeout=60 * template_trial.SECONDS).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code < 0:
        raise UserError(f"the checkpoint's chat template does not end within {template_trial.SECONDS} s: correct it")
    if code == template_trial.TOO_LONG:
        raise UserError(f"the checkpoint's chat template makes more than {template_trial.CHARACTERS} characters of one question")
