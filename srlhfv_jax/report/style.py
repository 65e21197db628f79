"""The style sheet of the report: light or dark as the reader's system is, one column on a phone."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c2024; --dim: #60646c; --page: #fcfcfd; --card: #ffffff; --line: #e0e1e6; --link: #0b62c4;
  --good: #18794e; --goodbg: #e6f6eb; --bad: #b4232a; --badbg: #ffe9e9;
  --warn: #8a5300; --warnbg: #fff3d6; --none: #60646c; --nonebg: #f0f0f3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #edeef0; --dim: #b0b4ba; --page: #111113; --card: #19191b; --line: #363a3f; --link: #70b8ff;
    --good: #71d083; --goodbg: #132d21; --bad: #ff9592; --badbg: #3b1219;
    --warn: #ffca16; --warnbg: #302008; --none: #b0b4ba; --nonebg: #272a2d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 74rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p { margin: .5rem 0; max-width: 48rem; }
.lead { max-width: 60rem; font-size: 1.2rem; line-height: 1.45; margin: .6rem 0 1rem; text-wrap: pretty; }
a { color: var(--link); }
code { font-size: .88em; overflow-wrap: anywhere; }
.dim { color: var(--dim); }
.small, figcaption, caption { font-size: .875rem; line-height: 1.45; text-align: left; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .75rem 0; font-size: .9rem; }
footer { margin-top: 2.5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
details { margin: .75rem 0; }
summary { cursor: pointer; font-weight: 600; }

.scroll { overflow-x: auto; margin: .75rem 0; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { padding: .5rem .7rem 0; }
th, td { padding: .45rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--dim); font-weight: 600; vertical-align: bottom; line-height: 1.3; }
tbody th { font-weight: 600; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }

.badge {
  display: inline-block; padding: .05rem .5rem; border-radius: 1rem; font-size: .78rem; font-weight: 600; white-space: nowrap;
}
.good { color: var(--good); background: var(--goodbg); }
.bad { color: var(--bad); background: var(--badbg); }
.warn { color: var(--warn); background: var(--warnbg); }
.none { color: var(--none); background: var(--nonebg); }

.beside {
  display: grid; gap: 1rem; grid-template-columns: minmax(20rem, 3fr) minmax(min-content, 2fr); align-items: start;
  margin: .75rem 0;
}
.beside .scroll { margin: 0; }

.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); margin: .75rem 0; }
figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-bottom: .4rem; }
figcaption, caption { color: var(--ink); font-weight: 600; }
figure > p { margin: .4rem 0 0; font-size: .875rem; line-height: 1.45; color: var(--dim); }

.pairs { columns: 24rem; column-gap: 2rem; margin: .75rem 0; font-size: .85rem; font-variant-numeric: tabular-nums; }
.pairs > div {
  display: flex; justify-content: space-between; gap: .2rem 1rem; flex-wrap: wrap; padding: .15rem 0;
  border-bottom: 1px solid var(--line); break-inside: avoid;
}
.pairs span { overflow-wrap: anywhere; text-align: right; margin-left: auto; }

.samples { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 32rem), 1fr)); margin: .75rem 0; }
.sample {
  display: grid; grid-template-columns: 11rem 1fr; gap: .4rem 1rem; padding: .8rem;
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
}
.sample > * { min-width: 0; }
.pictures { display: grid; gap: .4rem; align-content: start; }
.pictures > * { width: 100%; border-radius: .3rem; }
.pictures > img { height: auto; background: #fff; }
.pictures > img.drawn { image-rendering: pixelated; }
.pictures > .noimage { display: grid; place-items: center; aspect-ratio: 1; background: var(--nonebg); color: var(--none); font-size: .8rem; }
.question { font-weight: 600; margin: 0 0 .2rem; }
dl { margin: .4rem 0 0; }
dt { font-size: .85rem; font-weight: 600; color: var(--dim); }
dd { margin: 0 0 .6rem; overflow-wrap: anywhere; }
dd p { margin: .1rem 0; }

.error { display: block; font-size: .8em; color: var(--dim); }

@media (max-width: 60rem) { .beside { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 34rem) {
  .sample { grid-template-columns: minmax(0, 1fr); }
  .pictures { grid-template-columns: repeat(2, minmax(0, 12rem)); }
}
@page { size: A4; margin: 14mm 12mm; }
@media print {
  :root {
    color-scheme: light; font-size: 11.5px;
    --ink: #1c2024; --dim: #60646c; --page: #ffffff; --card: #ffffff; --line: #d0d2d8; --link: #1c2024;
    --good: #18794e; --goodbg: #e6f6eb; --bad: #b4232a; --badbg: #ffe9e9;
    --warn: #8a5300; --warnbg: #fff3d6; --none: #60646c; --nonebg: #f0f0f3;
  }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .scroll { overflow: visible; }
  th, td { padding: .25rem .4rem; }
  .figures { grid-template-columns: 1fr 1fr; }
  .samples { grid-template-columns: 1fr 1fr; }
  .sample { grid-template-columns: 7rem 1fr; }
  .pairs { columns: 3; column-gap: 1rem; font-size: .7rem; line-height: 1.25; }
  .pairs > div { padding: .05rem 0; }
  h1, h2, h3, caption, summary, figcaption, section > p, .lead { break-after: avoid; }
  p, figure, .sample, .scroll, tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  summary { list-style: none; }
}
"""
