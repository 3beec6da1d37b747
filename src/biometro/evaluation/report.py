"""The page that a pretraining run leaves behind: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from biometro.evaluation import plots
from biometro.evaluation.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, Curve, Points

Columns = Mapping[str, Points]  # of each key, the steps (N,) at which it was logged and its values (N,)
# A series keeps its name and colour in every panel: orange is the auxiliary, blue the main model's CLM.
SERIES = {
    "mlm_loss": ("MLM loss", GREEN),
    "mlm_accuracy": ("MLM accuracy", GREEN),
    "aux_loss": ("auxiliary loss", ORANGE),
    "aux_accuracy": ("auxiliary accuracy", ORANGE),
    "clm_masked_loss": ("CLM loss at masked positions", SKY),
    "clm_loss": ("CLM loss where it learns", BLUE),
    "clm_accuracy_replaced": ("CLM accuracy at replaced positions", PURPLE),
    "clm_accuracy_kept": ("CLM accuracy at kept positions", BLUE),
    "rtd_gain": ("RTD gain", VERMILION),
    "rtd_ap": ("RTD average precision", VERMILION),
    "rtd_loss": ("RTD loss", VERMILION),
    "rtd_entropy": ("entropy of the base rate", GREY),  # made here: rtd_gain + rtd_loss
    "replaced": ("replaced fraction", GREY),
    "loss": ("weighted total", INK),
    "lr": ("learning rate", INK),
    "grad_norm": ("gradient norm", INK),
    "tokens_per_s": ("throughput", INK),
    "flops": ("training FLOPs so far", INK),
}
LEVELS = ("replaced", "rtd_entropy")
AXES = ("step", "split", "tokens", "seconds")


@dataclass(frozen=True)
class Panel:
    """What one picture of curves shows and how to read it."""

    title: str
    keys: tuple[str, ...]
    ylabel: str
    note: str
    against: str = "tokens"
    log: bool = False
    from_zero: bool = False
    level: tuple[str, float] | None = None


PANELS = (
    Panel("Loss at masked positions", ("mlm_loss", "aux_loss", "clm_masked_loss"), "nats per position",
          "Lower is better. A model that knows only how frequent each token is stays on the dashed line; what lies "
          "below the line was learnt from context."),
    Panel("CLM loss where it learns", ("clm_loss",), "nats per position",
          "If the CLM learns at all positions, most of them are unchanged and easy: compare this loss with other "
          "runs of the same kind, not with the unigram entropy."),
    Panel("RTD: gain over the base rate", ("rtd_gain",), "nats per position",
          "Entropy of the base rate minus RTD loss. At 0 the main model knows only how many tokens are replaced, "
          "not which; what lies above was learnt.", level=("base rate alone", 0.0)),
    Panel("RTD: average precision", ("rtd_ap", "replaced"), "average precision",
          "Guessing scores the replaced fraction (dashed); 1 finds every replaced token without a false alarm.",
          from_zero=True),
    Panel("RTD: loss beside its base rate", ("rtd_loss", "rtd_entropy"), "nats per position",
          "The loss alone says little: it falls when the auxiliary gets better at copying the data, for then fewer "
          "tokens are replaced. Only the gap below the dashed line is detection."),
    Panel("Accuracy where a token was hidden", ("mlm_accuracy", "aux_accuracy", "clm_accuracy_replaced"),
          "fraction correct",
          "The replaced positions are those that the auxiliary got wrong, so they are harder than the masked ones "
          "on which the auxiliary itself is counted.", from_zero=True),
    Panel("CLM accuracy where nothing changed", ("clm_accuracy_kept",), "fraction correct",
          "How often the main model leaves an original token alone; values near 1 are easy, for most are copies."),
    Panel("Weighted total", ("loss",), "weighted nats",
          "What the optimiser sees, with every loss times its weight. Good for spotting divergence, not for "
          "comparing objectives."),
    Panel("Learning rate", ("lr",), "learning rate", "The schedule as it was run.", from_zero=True),
    Panel("Gradient norm", ("grad_norm",), "gradient norm (log scale)",
          "A slow drift is normal; growth together with a rising loss announces divergence.", log=True),
    Panel("Throughput", ("tokens_per_s",), "tokens per second",
          "Dips are waiting: evaluation, checkpoints, or a loader that cannot keep up.", "seconds", from_zero=True),
    Panel("Compute spent", ("flops",), "FLOPs so far",
          "Compare objectives at equal FLOPs: a METRO step costs more than an MLM step.", "seconds", from_zero=True),
)  # fmt: skip


def write_report(
    out: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    metrics: Sequence[Mapping[str, Any]],
    unigram_entropy: float | None = None,
    embeddings: np.ndarray | None = None,
    colours: Mapping[str, np.ndarray | Sequence[str]] | None = None,
) -> None:
    """Writes the page of a finished or interrupted run to the file `out`, whole or not at all.

    `metrics` are the rows of metrics.jsonl, `unigram_entropy` is that of the held-out set in nats. `embeddings`
    (N, width) are held-out sequences, and each entry of `colours` gives them N numbers or N category labels.
    """
    train, valid = _columns(metrics, "train"), _columns(metrics, "valid")
    cards = [*_curve_cards(train, valid, unigram_entropy), *_map_cards(embeddings, colours or {})]
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    page = PAGE.format(
        title=escape(title),
        style=STYLE,
        facts=f"<dl>{rows}</dl>" if rows else "",
        reading=READING if train or valid else "This run has logged no metrics yet.",
        warning=_warning(train, valid),
        cards="\n".join(cards),
    )
    # Written beside its place and then renamed: a reader never meets half a page.
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _columns(metrics: Sequence[Mapping[str, Any]], split: str) -> Columns:
    """The numeric columns of one split. Steps that a resumed run repeats count once, as last written."""
    rows: dict[int, dict[str, Any]] = {}
    for row in metrics:
        if row.get("split") == split and row.get("step") is not None:
            rows.setdefault(int(row["step"]), {}).update(row)
    cells: dict[str, tuple[list[int], list[Any]]] = {}
    for step in sorted(rows):
        for key, value in rows[step].items():
            steps, values = cells.setdefault(key, ([], []))
            steps.append(step)
            values.append(value)
    columns = {}
    for key, (steps, values) in cells.items():
        try:
            columns[key] = np.array(steps), np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            continue  # words are no curve
    if {"rtd_gain", "rtd_loss"} <= columns.keys():
        (gain_steps, gain), (loss_steps, loss) = columns["rtd_gain"], columns["rtd_loss"]
        both_N, of_gain, of_loss = np.intersect1d(gain_steps, loss_steps, return_indices=True)
        columns["rtd_entropy"] = both_N, gain[of_gain] + loss[of_loss]
    return columns


def _finite(columns: Columns, key: str) -> Points:
    steps_N, values_N = columns.get(key, (np.empty(0), np.empty(0)))
    keep_N = np.isfinite(values_N)
    return steps_N[keep_N], values_N[keep_N]


def _curve_cards(train: Columns, valid: Columns, unigram_entropy: float | None) -> Iterator[str]:
    losses, *rest = PANELS
    if unigram_entropy is not None:
        losses = replace(losses, level=("unigram entropy, held out", unigram_entropy))
    if any(key.endswith("_loss") and _same(train[key], train.get("loss")) for key in train):
        rest = [panel for panel in rest if panel.keys != ("loss",)]  # a single loss is its own total
    # Objectives to come get their curves here, the losses beside the losses; nobody knows their scales, so each
    # stands alone.
    note = "As the objective logged it under this name."
    unknown = [key for key in dict.fromkeys([*train, *valid]) if key not in SERIES and key not in AXES]
    more = [Panel(key, (key,), "loss (nats)", note) for key in unknown if key.endswith("_loss")]
    others = [Panel(f"Other: {key}", (key,), "value", note) for key in unknown if not key.endswith("_loss")]
    return (card for panel in (losses, *more, *rest, *others) if (card := _curve_card(panel, train, valid)))


def _same(one: Points, other: Points | None) -> bool:
    return other is not None and one[1].shape == other[1].shape and np.allclose(one[1], other[1], equal_nan=True)


def _curve_card(panel: Panel, train: Columns, valid: Columns) -> str:
    """The card of one panel, empty where the run has nothing to show in it."""
    against = panel.against if len(_finite(train, panel.against)[0]) else "step"
    clock = _clock(train, against)
    curves = []
    for key in panel.keys:
        label, colour = SERIES.get(key, (key, INK))
        (steps_N, y_N), (valid_steps_M, valid_y_M) = _finite(train, key), _finite(valid, key)
        if len(steps_N) or len(valid_steps_M):
            points = (clock(steps_N), y_N), (clock(valid_steps_M), valid_y_M)
            curves.append(Curve(label, colour, *points, dashed=key in LEVELS))
    if all(curve.dashed for curve in curves):  # a level alone says nothing
        return ""
    end = max(x_N.max() for curve in curves for x_N, _ in (curve.train, curve.valid) if len(x_N))
    unit, size = ("h", 3600) if end > 7200 else ("min", 60) if end > 120 else ("s", 1)
    xlabel = {"tokens": "training tokens", "seconds": f"training time ({unit})", "step": "step"}[against]
    if against == "seconds":
        curves = [replace(c, train=(c.train[0] / size, c.train[1])) for c in curves]
    if panel.level is not None:
        name, value = panel.level
        level = np.array([0.0, end * 1.02]), np.full(2, value)
        curves.append(Curve(name, GREY, level, (np.empty(0), np.empty(0)), dashed=True))
    top_ticks = None
    if against == "tokens":
        last = train["step"][0][-1]
        steps_N = np.asarray(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True).tick_values(0, last))
        steps_N = steps_N[(steps_N >= 0) & (steps_N <= last)]
        top_ticks = clock(steps_N).tolist(), ["step 0", *map(plots.SI, steps_N[1:])]
    svg = plots.draw_curves(
        curves,
        xlabel=xlabel,
        ylabel=panel.ylabel,
        log=panel.log,
        from_zero=panel.from_zero,
        top_ticks=top_ticks,
    )
    return _card(panel.title, svg, panel.note, _table(curves))


def _clock(train: Columns, against: str) -> Callable[[np.ndarray], np.ndarray]:
    """From steps to places on the x axis: held-out rows carry only their step."""
    if against == "step":
        return lambda steps_N: steps_N.astype(np.float64)
    known_N, places_N = _finite(train, against)
    if known_N[0] > 0:
        known_N, places_N = np.append(0, known_N), np.append(0.0, places_N)
    return lambda steps_N: np.interp(steps_N, known_N, places_N)


def _warning(train: Columns, valid: Columns) -> str:
    """Names the series that left the numbers, and where: the first thing to know about a run that diverged."""
    found = []
    for split, columns in (("train", train), ("held out", valid)):
        for key, (steps_N, values_N) in columns.items():
            bad_N = ~np.isfinite(values_N)
            if bad_N.any():
                first = steps_N[bad_N.argmax()]
                found.append(f"{key}, {split}: {bad_N.sum():,} of {len(bad_N):,} rows, first at step {first:,}")
    text = f"Values that are not finite are left out of the pictures. {'; '.join(found)}."
    return f'<p class="warning">{escape(text)}</p>' if found else ""


def _map_cards(embeddings: np.ndarray | None, colours: Mapping[str, np.ndarray | Sequence[str]]) -> Iterator[str]:
    if embeddings is None or not len(embeddings):
        return
    for name, values in colours.items():
        if len(values) != len(embeddings):
            raise ValueError(f"colours[{name!r}] has {len(values)} values for {len(embeddings)} embeddings")
    shown_P, places_P2, method = plots.project(embeddings)
    if not len(shown_P):
        return
    note = f"{method} of {len(shown_P):,} of {len(embeddings):,} held-out sequences, one point each. "
    for name, values in (colours or {"": np.full(len(embeddings), "")}).items():
        values_P = np.asarray(values)[shown_P]
        svg, looks = plots.draw_map(places_P2, values_P, method)
        extra, legend = "", ""
        if values_P.dtype.kind == "f" and not np.isfinite(values_P).all():
            extra = f" {np.isnan(values_P).sum():,} grey points have no value."
        if len(looks) > len(plots.LOOKS):
            extra = f" {len(looks):,} categories are too many for a legend, and colours repeat."
        elif name and looks:
            items = (
                f"<li>{_swatch(colour, marker)}{escape(label or 'unnamed')} <small>{count:,}</small>"
                for label, colour, marker, count in looks
            )
            legend = f"<ul>{''.join(items)}</ul>"
        title = f"Held-out embeddings by {name}" if name else "Held-out embeddings"
        yield _card(title, svg, note + MAP_NOTES[method] + extra, legend)


def _card(title: str, svg: str, note: str, legend: str) -> str:
    name = escape(title)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    return f"<figure><h2>{name}</h2>{legend}{svg}<figcaption>{escape(note)}</figcaption></figure>"


def _table(curves: Sequence[Curve]) -> str:
    """The legend of a panel, which also tells where each series stands at the end."""
    rows = ["<tr><th>last values<td>train<td>" + "held out" * any(len(curve.valid[0]) for curve in curves)]
    for curve in curves:
        (_, y_N), (_, valid_y_M) = curve.train, curve.valid
        # The same median as at the right end of the line.
        train = _number(float(np.median(y_N[-1 - len(y_N) // 50 :]))) if len(y_N) else ""
        valid = _number(float(valid_y_M[-1])) if len(valid_y_M) else ""
        swatch = _swatch(curve.colour, "--" if curve.dashed else "-" if train else "o")
        rows.append(f"<tr><th>{swatch}{escape(curve.label)}<td>{train}<td>{valid}")
    return f"<table>{''.join(rows)}</table>"


def _number(value: float) -> str:
    if abs(value) >= 1e4:
        return plots.SI(float(f"{value:.4g}"))
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"


def _swatch(colour: str, shape: str) -> str:
    line = 'd="M0 6H20" fill="none" stroke="currentColor" stroke-width="2.4"'
    body = {
        "-": f"<path {line}/>",
        "--": f'<path {line} stroke-dasharray="5 2.5"/>',
        "o": '<circle cx="10" cy="6" r="4.5" fill="currentColor"/>',
        "^": '<path d="M10 1L15.5 11H4.5Z" fill="currentColor"/>',
    }[shape]
    style = "" if colour == INK else f' style="color:{colour}"'
    return f'<svg class="swatch" viewBox="0 0 20 12"{style}>{body}</svg>'


READING = (
    "Lines are running medians over 4 % of the training rows; the light band spans their 10th to 90th percentile "
    "(up to 400 rows, the rows themselves are the light line). Dots are held-out values. The first 2 % of a run may "
    "leave the frame, so that the rest can be read."
)
MAP_NOTES = {
    "t-SNE": "Neighbours on the map are neighbours in the model; distances between groups and sizes of groups mean "
    "nothing.",
    "PCA": "The two directions of largest variance; distances on the map are lower bounds of distances in the model.",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1d2228; --soft: #5c6570; --line: #d9dde2; --paper: #fff; --warn: #fff1d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa3ae; --line: #363c44; --paper: #15181c; --warn: #4a3510; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #ccc; --paper: #fff; --warn: #fff; }
  body { padding: 0 !important; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 80rem; margin: 0 auto; padding: 1.5rem clamp(.8rem, 3vw, 2.5rem); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
p { max-width: 60rem; color: var(--soft); }
p.warning { color: var(--ink); background: var(--warn); border: 1px solid; padding: .5rem .8rem; }
dl { columns: 24rem; column-gap: 2.5rem; margin: 0; }
dl div { display: flex; gap: 1rem; justify-content: space-between; padding: .2rem 0;
         border-bottom: 1px solid var(--line); break-inside: avoid; }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
main { display: grid; gap: 2.2rem 2.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; break-inside: avoid; }
figure > svg { width: 100%; height: auto; margin-top: auto; }
figure > svg text { font-family: system-ui, sans-serif !important; }
figcaption, table, ul { font-size: .87rem; }
figcaption { color: var(--soft); margin-top: .3rem; }
table { border-collapse: collapse; width: 100%; margin-bottom: .5rem; }
th { font-weight: normal; text-align: left; padding: 0; }
td { text-align: right; padding: 0 0 0 1rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
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
{facts}
{warning}
<p>{reading}</p>
<main>
{cards}
</main>
</body>
</html>
"""
