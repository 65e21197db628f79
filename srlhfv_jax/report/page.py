"""HTML of the report: the page, tables, figures, badges. Everything from a workdir is escaped here; nothing on the page is fetched.

The style follows the reader's light or dark setting; wide tables scroll inside their own box, so that a phone never scrolls sideways.
"""

import html
from collections.abc import Sequence
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --ink:#1c2024; --dim:#60646c; --page:#fcfcfd; --card:#ffffff; --line:#e0e1e6; --link:#0b62c4;
  --good:#18794e; --goodbg:#e6f6eb; --bad:#b4232a; --badbg:#ffe9e9; --warn:#8a5300; --warnbg:#fff3d6; --none:#60646c; --nonebg:#f0f0f3; }
@media (prefers-color-scheme: dark) { :root { --ink:#edeef0; --dim:#b0b4ba; --page:#111113; --card:#19191b; --line:#363a3f; --link:#70b8ff;
  --good:#71d083; --goodbg:#132d21; --bad:#ff9592; --badbg:#3b1219; --warn:#ffca16; --warnbg:#302008; --none:#b0b4ba; --nonebg:#272a2d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p { margin: .5rem 0; max-width: 44rem; } .dim, figcaption, caption { color: var(--dim); }
figcaption, caption, .small { font-size: .875rem; line-height: 1.45; text-align: left; }
a { color: var(--link); } nav { font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .75rem 0; }
.scroll { overflow-x: auto; margin: .75rem 0; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; } thead th { color: var(--dim); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap; }
.badge { display: inline-block; padding: .05rem .5rem; border-radius: 1rem; font-size: .78rem; font-weight: 600; white-space: nowrap; }
.good { color: var(--good); background: var(--goodbg); } .bad { color: var(--bad); background: var(--badbg); }
.warn { color: var(--warn); background: var(--warnbg); } .none { color: var(--none); background: var(--nonebg); }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); margin: .75rem 0; }
figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
figure img { display: block; width: 100%; height: auto; } figcaption { margin-top: .4rem; }
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); margin: 1rem 0; }
.tile { padding: .7rem .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { font-size: .82rem; color: var(--dim); }
.sample { display: grid; grid-template-columns: 8rem 1fr; gap: .4rem 1rem; margin: .8rem 0; padding: .8rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; }
.sample > img, .sample > .noimage { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: .3rem; background: #fff; }
.sample > .noimage { display: grid; place-items: center; background: var(--nonebg); color: var(--none); font-size: .8rem; }
.sample .question { font-weight: 600; margin: 0 0 .2rem; } dl { margin: .4rem 0 0; } dt { font-size: .85rem; font-weight: 600; color: var(--dim); }
dd { margin: 0 0 .6rem; overflow-wrap: anywhere; } dd p { margin: .1rem 0; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; } code { font-size: .88em; overflow-wrap: anywhere; }
@media (max-width: 34rem) { .sample { grid-template-columns: 1fr; } .sample > img, .sample > .noimage { width: 8rem; } }
@media print { details { display: block; } figure, .sample, .tile { break-inside: avoid; } }
"""

# The policy forbids every request, so "self-contained" is enforced by the browser too.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Section(NamedTuple):
    anchor: str
    title: str
    body: str  # HTML


def page(title: str, intro: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document; `intro`, `footer` and the section bodies are HTML, titles are text."""
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    bodies = "\n".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>\n{section.body}</section>' for section in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><main>\n<h1>{escape(title)}</h1>\n{intro}\n<nav>{links}</nav>\n{bodies}\n"
        f"<footer>{footer}</footer>\n</main></body></html>\n"
    )


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def paragraph(text: str, *, dim: bool = False) -> str:
    return f'<p class="dim">{escape(text)}</p>' if dim else f"<p>{escape(text)}</p>"


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


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """A row of (number, what it is)."""
    cells = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in items)
    return f'<div class="tiles">{cells}</div>\n' if items else ""


def figures(items: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(items)}</div>\n' if items else ""


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
