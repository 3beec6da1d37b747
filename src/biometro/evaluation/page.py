"""What the pages that runs leave behind have in common: the frame, the style, cards, facts, legends.

One HTML file each, without script or network; light, dark, on a phone and in print.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from biometro.evaluation import plots
from biometro.evaluation.plots import INK


def frame(title: str, body: str, style: str = "") -> str:
    """The whole page. `body` is HTML that follows the title, `style` CSS that follows the common one."""
    return PAGE.format(title=escape(title), style=STYLE + style, body=body)


def fact_list(facts: Mapping[str, str]) -> str:
    """Names and values side by side; empty where there are none."""
    items = (f"<div><dt>{escape(name)}<dd>{escape(value)}</div>" for name, value in facts.items())
    return f"<dl>{''.join(items)}</dl>" if facts else ""


def warning_box(text: str) -> str:
    """A box that stands out; empty for no text."""
    return f'<p class="warning">{escape(text)}</p>' if text else ""


def card(title: str, picture: str, note: str, legend: str = "", heading: str = "h2", look: str = "") -> str:
    """One panel of a section: title, legend (HTML), picture (an <svg>, or other HTML) and how to read it.

    `look` is a CSS class: what the page's own style makes of it.
    """
    name = escape(title)
    if picture.startswith("<svg "):
        picture = picture.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    start = f'<figure class="{look}">' if look else "<figure>"
    return (
        f"{start}<{heading}>{name}</{heading}><div>{legend}</div>{picture}"
        f"<figcaption>{escape(note)}</figcaption></figure>"
    )


def number(value: float) -> str:
    """Four digits, with SI's prefixes for large numbers."""
    if abs(value) >= 1e4:
        return plots.SI(float(f"{value:.4g}"))
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"


def swatch(colour: str, shape: str) -> str:
    """A legend's sample of a line (`-`, `--`) or a marker (`o`, `^`)."""
    line = 'd="M0 6H20" fill="none" stroke="currentColor" stroke-width="2.4"'
    body = {
        "-": f"<path {line}/>",
        "--": f'<path {line} stroke-dasharray="5 2.5"/>',
        "o": '<circle cx="10" cy="6" r="4.5" fill="currentColor"/>',
        "^": '<path d="M10 1L15.5 11H4.5Z" fill="currentColor"/>',
    }[shape]
    style = "" if colour == INK else f' style="color:{colour}"'
    return f'<svg class="swatch" viewBox="0 0 20 12"{style}>{body}</svg>'


STYLE = """
:root { color-scheme: light dark; --ink: #1d2228; --soft: #5c6570; --line: #d9dde2; --paper: #fff;
        --warn: #fff1d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa3ae; --line: #363c44; --paper: #15181c; --warn: #4a3510; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #ccc; --paper: #fff; --warn: #fff;
          font-size: 12px; }
  body { padding: 0 !important; }
  section { grid-template-columns: 1fr 1fr !important; }
}
* { box-sizing: border-box; }
body { font: .94rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 80rem; margin: 0 auto; padding: 1.5rem clamp(.8rem, 3vw, 2.5rem); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
p { max-width: 60rem; color: var(--soft); }
p.warning { color: var(--ink); background: var(--warn); border: 1px solid; padding: .5rem .8rem; }
dl { columns: 24rem; column-gap: 2.5rem; margin: 0; }
dl div { display: flex; gap: 1rem; justify-content: space-between; padding: .2rem 0;
         border-bottom: 1px solid var(--line); break-inside: avoid; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 4rem; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
section { display: grid; column-gap: 2.5rem;
          grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
/* Title, legend, picture and sentence of neighbours stand on common lines. */
figure { display: grid; grid-row: span 4; grid-template-rows: subgrid; margin: 0 0 2.2rem; min-width: 0;
         break-inside: avoid; }
figure > svg { width: 100%; height: auto; }
figure > svg text { font-family: system-ui, sans-serif !important; }
figcaption, table, ul { font-size: .87rem; }
figcaption { color: var(--soft); margin-top: .3rem; }
table { border-collapse: collapse; width: 100%; margin-bottom: .5rem; }
th { font-weight: normal; text-align: left; padding: 0 0 0 28px; text-indent: -28px; }
td { text-align: right; padding: 0; width: 4.8rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr:first-child, small { color: var(--soft); }
ul { list-style: none; margin: 0 0 .5rem; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1rem; }
.swatch { width: 20px; height: 12px; margin-right: .5rem; vertical-align: -1px; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
