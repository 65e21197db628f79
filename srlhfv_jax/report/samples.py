"""Sections of sample answers with their pictures, and of the facts of the run."""

import base64
import binascii
from typing import Any

from srlhfv_jax.checkpoint import provenance
from srlhfv_jax.data.taxonomies import SEVERITIES
from srlhfv_jax.report import page
from srlhfv_jax.report.page import Section, badge, escape
from srlhfv_jax.report.workdir import Workdir

MOMENTS = 6  # answers to one prompt that are shown
OPEN = 6  # samples shown at once; the others are folded
DRAWN = 128  # pictures narrower than this are drawn pixel by pixel, not blurred
PNG = b"\x89PNG\r\n\x1a\n"


def sample_section(work: Workdir) -> Section:
    title = "Sample answers"
    if not work.samples:
        return Section("samples", title, "", "No samples.jsonl in this workdir.")
    merit = "helpful" if work.by_oracle else "learned reward"
    cards = [_card(row, merit) for row in work.samples]
    body = page.paragraph("Every policy's answer to the same prompt. The prompts were drawn at random, not picked.")
    body += f'<div class="samples">{"".join(cards[:OPEN])}</div>'
    if cards[OPEN:]:
        body += page.details(f"{len(cards) - OPEN} more", f'<div class="samples">{"".join(cards[OPEN:])}</div>')
    return Section("samples", title, body)


def same_prompts_section(work: Workdir) -> Section:
    """Answers to the same prompts as training went on."""
    body = ""
    for stage in work.stages:
        if stage.same_prompts:
            rows = [row | {"answers": _over_time(row.get("answers"))} for row in stage.same_prompts]
            cards = "".join(_card(row, "reward") for row in rows)
            count = len(rows)
            summary = (
                f"How the same {count} prompts were answered over time" if count > 1 else "How one prompt was answered over time"
            )
            own = "; reward and cost are the run's own" if stage.kind == "ppo_lag" else ""
            body += page.paragraph(f"{stage.name}: {summary}, each time with the same random key{own}.")
            body += f'<div class="samples">{cards}</div>'
    return Section("same_prompts", "The same prompts over time", body)


def _over_time(answers: Any) -> dict[str, Any]:
    """At most MOMENTS answers, the first and the last among them, by the name of their step."""
    answers = answers if isinstance(answers, dict) else {}
    steps = sorted((step for step in answers if step.isdecimal()), key=int)
    last, shown = len(steps) - 1, min(len(steps), MOMENTS)
    chosen = [steps[round(last * index / max(1, shown - 1))] for index in range(shown)]
    return {f"step {step}": answers[step] for step in chosen}


def facts_section(work: Workdir) -> Section:
    """Settings, seconds and versions."""
    body = ""
    seconds = {key.removeprefix("seconds."): value for key, value in work.result.items() if key.startswith("seconds.")}
    if seconds:
        items = sorted(seconds.items(), key=lambda item: item[0] == "total")
        body += page.paragraph("Seconds of each part:") + page.pairs([(key, page.number(value, 1)) for key, value in items])
    if "seed" in work.config:
        body += page.paragraph(f"Seed of the run: {work.config['seed']}.")
    # A pipeline's own settings hold those of its stages: only where it has none are they shown one by one.
    configs = (
        [("settings", work.config)] if work.config else [(f"settings of {stage.name}", stage.config) for stage in work.stages]
    )
    for name, config in configs:
        if config:
            rows = [(key, f"<code>{escape(value)}</code>") for key, value in _flat(config)]
            body += page.details(name.capitalize(), page.pairs(rows))
    if not any(config for _, config in configs):
        body += page.paragraph("No config.json in this workdir.", "dim")
    made = provenance.record({})
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    commit = f", commit {made['commit']}" if made["commit"] else ""
    body += page.paragraph(f"Report written with {versions}{commit}.", "dim")
    return Section("facts", "Facts of the run", body)


def attribution(work: Workdir) -> str:
    """HTML naming the makers of the pictures: what the samples say, "" when they say nothing."""
    makers = list(dict.fromkeys(str(row["attribution"]) for row in work.samples if row.get("attribution")))
    return "".join(page.paragraph(f"Pictures: {text}", "dim") for text in makers)


def _card(row: dict[str, Any], merit: str) -> str:
    kind = {True: badge("harmful prompt", "warn"), False: badge("harmless prompt", "none")}.get(row.get("harmful"), "")
    about = ", ".join(str(row[key]) for key in ("concept", "intent", "category") if row.get(key))
    answers = row.get("answers")
    answers = answers if isinstance(answers, dict) else {}
    texts = "".join(f"<dt>{escape(name)}</dt><dd>{_answer(answer, merit)}</dd>" for name, answer in answers.items())
    return (
        f'<article class="sample">{_images(row)}<div>{_earlier(row)}<p class="question">{escape(row.get("question", ""))}</p>'
        f'<p class="small dim">{kind} {escape(about)}</p><dl>{texts}</dl></div></article>\n'
    )


def _earlier(row: dict[str, Any]) -> str:
    """The turns before the question."""
    turns = row.get("history")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    said = (f"<b>{escape(turn.get('role', ''))}</b> {escape(turn.get('content', ''))}" for turn in turns)
    return "".join(f'<p class="small">{words}</p>' for words in said)


def _images(row: dict[str, Any]) -> str:
    texts = row.get("images_png_base64")
    if not isinstance(texts, list) or not texts:
        return '<div class="pictures"><div class="noimage">no picture</div></div>'
    words = escape(row.get("concept") or "the picture of the prompt")
    return f'<div class="pictures">{"".join(_image(text, words) for text in texts)}</div>'


def _image(text: Any, words: str) -> str:
    """A picture; anything but a base64 PNG is not put on the page."""
    try:
        data = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data.startswith(PNG):
        return '<div class="noimage">picture unreadable</div>'
    clean = base64.b64encode(data).decode("ascii")
    kind = ' class="drawn"' if int.from_bytes(data[16:20]) < DRAWN else ""  # the width, in the first chunk of every PNG
    return f'<img{kind} src="data:image/png;base64,{clean}" alt="{words}">'


def _answer(answer: Any, merit: str) -> str:
    if not isinstance(answer, dict):
        return f"<p>{escape(answer)}</p>"
    text = str(answer.get("text", ""))
    marks = []
    if "unsafe" in answer:
        marks.append(badge("unsafe", "bad") if answer["unsafe"] else badge("safe", "good"))
    marks += [badge(name, "warn") for name in ("refusal", "evasion") if answer.get(name)]
    marks += [badge("cut", "none")] if answer.get("ended") is False else []
    if "guard.severity" in answer:
        kinds = f": {answer['guard.categories']}" if answer.get("guard.categories") else ""
        safe = answer["guard.severity"] == SEVERITIES[0]
        marks.append(badge(f"guard: {answer['guard.severity']}{kinds}", "good" if safe else "bad"))
    marks += [badge(f"guard: {answer['guard.unread']}", "none")] if "guard.unread" in answer else []
    names = {"helpful": merit, "reward": "reward", "cost": "cost", "guard.unsafe": "unsafe by the guard", "length": "length"}
    scores = ", ".join(f"{name} {page.number(answer[key], 2)}" for key, name in names.items() if key in answer)
    shown = escape(text) if text.strip() else '<span class="dim">(empty answer)</span>'
    return f'<p>{shown}</p><p class="small dim">{" ".join(marks)} {escape(scores)}</p>'


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in config.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows
