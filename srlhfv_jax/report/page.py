"""HTML of the report: the page, tables, figures, badges. Everything from a workdir is escaped here; nothing on the page is
fetched.

The style follows the reader's light or dark setting; wide tables scroll inside their own box, so that a phone never scrolls
sideways.
"""

import html
from collections.abc import Sequence
from typing import NamedTuple

from srlhfv_jax.report.style import STYLE

# The policy forbids every request, so "self-contained" is enforced by the browser too.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Section(NamedTuple):
    anchor: str
    title: str
    body: str  # HTML; "" when the workdir has nothing for it
    absent: str = ""  # what is missing then, in words; "": nothing that a reader would look for


def page(title: str, lead: str, sections: Sequence[Section], footer: str, *, reload_seconds: int = 0) -> str:
    """The whole document; `lead`, `footer` and the section bodies are HTML, titles are text.

    Args:
        reload_seconds: how often it is loaded again; 0: never.
    """
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    bodies = "\n".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>\n{section.body}</section>' for section in sections
    )
    again = f'<meta http-equiv="refresh" content="{reload_seconds}">\n' if reload_seconds else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{again}'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><main>\n<h1>{escape(title)}</h1>\n{lead}\n<nav>{links}</nav>\n{bodies}\n"
        f"<footer>{footer}</footer>\n</main></body></html>\n"
    )


def escape(text: object) -> str:
    """Text as HTML, quotes included."""
    return html.escape(str(text), quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """`kind`: "", dim (said by the way) or lead (the first thing to read)."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def badge(text: str, kind: str) -> str:
    """`kind`: good, bad, warn or none. The words carry the meaning, the colour only repeats it."""
    return f'<span class="badge {kind}">{escape(text)}</span>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool, caption: str = "") -> str:
    """Cells are HTML; the first column is the row's name. `numbers`: right-align the other columns."""
    kind = ' class="number"' if numbers else ""
    head = "".join(f'<th scope="col"{kind if i else ""}>{escape(name)}</th>' for i, name in enumerate(header))
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td{kind}>{item}</td>" for item in row[1:]) + "</tr>\n" for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def pairs(items: Sequence[tuple[str, str]]) -> str:
    """A long list of (name, value) in as many columns as fit; names are text, values HTML."""
    rows = "".join(f"<div><code>{escape(name)}</code> <span>{value}</span></div>" for name, value in items)
    return f'<div class="pairs">{rows}</div>\n'


def figures(items: Sequence[str]) -> str:
    """Pictures side by side, as many in a row as fit."""
    return f'<div class="figures">{"".join(items)}</div>\n' if items else ""


def beside(picture: str, text: str) -> str:
    """One large picture with something beside it, or below it where the page is narrow."""
    return f'<div class="beside"><div>{picture}</div><div>{text}</div></div>\n'


def bullets(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>\n"


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def number(value: object, digits: int = 3) -> str:
    """A number for people: integers whole, small ones with `digits` decimals, huge and tiny ones in scientific notation."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(value)
    if value != value:
        return "not a number"
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}".replace(",", "\u2009")
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.1f}"
    return f"{value:.2e}"
