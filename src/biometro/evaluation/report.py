"""The page that a pretraining run leaves behind: one HTML file, no network, no script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from biometro.evaluation import molecule_plots, plots
from biometro.evaluation.page import card, fact_list, frame, number, swatch, warning_box
from biometro.evaluation.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, Curve, Points
from biometro.files import write_file

Colours = Mapping[str, np.ndarray | Sequence[str]]  # of each name, N numbers or N category labels
Columns = Mapping[str, Points]  # of each key, the steps (N,) at which it was logged and its values (N,)
# A series keeps its name and colour in every panel: orange is the auxiliary, blue the main model's CLM.
SERIES = {
    "mlm_loss": ("MLM loss", GREEN),
    "mlm_masked_loss": ("MLM loss where the mask token stood", SKY),
    "mlm_accuracy": ("MLM accuracy", GREEN),
    "aux_loss": ("auxiliary loss", ORANGE),
    "aux_masked_loss": ("auxiliary loss where the mask token stood", PURPLE),
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
RULES = ("lr", "flops")
AXES = ("step", "split", "tokens", "seconds")
NATS, FRACTION = "nats per position", "fraction correct"


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
    Panel("Loss at masked positions",
          ("mlm_loss", "mlm_masked_loss", "aux_loss", "aux_masked_loss", "clm_masked_loss"), NATS,
          "Lower is better. Knowing only how frequent each token is leaves a model on the dashed line; what "
          "lies below was learnt from context."),
    Panel("CLM loss where it learns", ("clm_loss",), NATS,
          "If the CLM learns at all positions, most are unchanged and easy: do not compare it with the "
          "unigram entropy."),
    Panel("RTD: gain over the base rate", ("rtd_gain",), NATS,
          "Entropy of the base rate minus RTD loss. At 0 the main model knows how many tokens are replaced, "
          "not which; above 0 it detects.", level=("base rate alone", 0.0)),
    Panel("RTD: loss beside its base rate", ("rtd_loss", "rtd_entropy"), NATS,
          "The loss alone says little: it also falls when fewer tokens are replaced. Only the gap below the "
          "dashed line is detection."),
    Panel("RTD: average precision", ("rtd_ap", "replaced"), "average precision",
          "Guessing scores the replaced fraction (dashed); 1 finds every replacement with no false alarm.",
          from_zero=True),
    Panel("Accuracy where a token was hidden", ("aux_accuracy", "clm_accuracy_replaced"), FRACTION,
          "The auxiliary is counted at all masked positions, the CLM only where the auxiliary's sample was "
          "wrong, which is harder.", from_zero=True),
    Panel("CLM accuracy at kept positions", ("clm_accuracy_kept",), FRACTION,
          "How often the main model leaves an original token alone, among the positions where its CLM "
          "learns."),
    Panel("MLM accuracy", ("mlm_accuracy",), FRACTION,
          "How often the likeliest token is the original one, at the positions chosen for masking.",
          from_zero=True),
    Panel("Weighted total", ("loss",), "weighted nats",
          "What the optimiser sees: every loss times its weight. It shows divergence; it compares no "
          "objectives."),
    Panel("Learning rate", ("lr",), "learning rate",
          "The schedule as it was run.", from_zero=True),
    Panel("Gradient norm", ("grad_norm",), "gradient norm (log scale)",
          "A slow drift is normal; growth together with a rising loss announces divergence.", log=True),
    Panel("Throughput", ("tokens_per_s",), "tokens per second",
          "Dips are waiting: evaluation, checkpoints, or a loader that cannot keep up.",
          against="seconds", from_zero=True),
    Panel("Compute spent", ("flops",), "FLOPs so far",
          "Compare objectives at equal FLOPs: a METRO step costs more than an MLM step.",
          against="seconds", from_zero=True),
)  # fmt: skip


def write_report(
    out: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    metrics: Sequence[Mapping[str, Any]],
    unigram_entropy: float | None = None,
    embeddings: np.ndarray | None = None,
    colours: Colours | None = None,
    gallery: str = "",
) -> None:
    """Writes the page of a finished or interrupted run to the file `out`, whole or not at all.

    `metrics` are the rows of metrics.jsonl, `unigram_entropy` is that of the held-out set in nats.
    `embeddings` (N, width) are held-out sequences; an entry of `colours` is N numbers or category labels. `gallery` is
    HTML that follows: pictures of held-out sequences.
    """
    train, valid = _columns(metrics, "train"), _columns(metrics, "valid")
    body = BODY.format(
        facts=fact_list(facts),
        reading=READING if train or valid else "This run has logged no metrics yet.",
        warning=_warning(train, valid),
        curves="\n".join(_curve_cards(train, valid, unigram_entropy)),
        maps="\n".join(_map_cards(embeddings, colours or {})),
        gallery=gallery,
    )
    write_file(out, frame(title, body, molecule_plots.STYLE if gallery else ""))


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
    if unigram_entropy is not None and np.isfinite(unigram_entropy):
        losses = replace(losses, level=("unigram entropy, held out", unigram_entropy))
    # A single loss is its own total, and a CLM that learns at masked positions has one loss, not two.
    twice = [key for key in ("loss", "clm_loss") if any(_same(train, key, other) for other in train)]
    rest = [panel for panel in rest if panel.keys[0] not in twice]
    # Objectives to come get their curves here, the losses beside the losses; nobody knows their scales, so
    # each stands alone.
    note = "As the objective logged it under this name."
    unknown = [key for key in dict.fromkeys([*train, *valid]) if key not in SERIES and key not in AXES]
    more = [Panel(key, (key,), "loss (nats)", note) for key in unknown if key.endswith("_loss")]
    others = [Panel(f"Other: {key}", (key,), "value", note) for key in unknown if not key.endswith("_loss")]
    return (drawn for panel in (losses, *more, *rest, *others) if (drawn := _curve_card(panel, train, valid)))


def _same(columns: Columns, key: str, other: str) -> bool:
    if key == other or key not in columns or not other.endswith("_loss"):
        return False
    one_N, other_N = columns[key][1], columns[other][1]
    return one_N.shape == other_N.shape and np.allclose(one_N, other_N, equal_nan=True)


def _curve_card(panel: Panel, train: Columns, valid: Columns) -> str:
    """The card of one panel, empty where the run has nothing to show in it."""
    against = panel.against if len(_finite(train, panel.against)[0]) else "step"
    unit, size = "", 1
    if against == "seconds":
        seconds = _finite(train, against)[1].max()
        unit, size = ("h", 3600) if seconds > 7200 else ("min", 60) if seconds > 120 else ("s", 1)
    clock = _clock(train, against, size)
    curves = []
    for key in panel.keys:
        label, colour = SERIES.get(key, (key, INK))
        (steps_N, y_N), (valid_steps_M, valid_y_M) = _finite(train, key), _finite(valid, key)
        if len(steps_N) or len(valid_steps_M):
            points = (clock(steps_N), y_N), (clock(valid_steps_M), valid_y_M)
            curves.append(Curve(label, colour, *points, dashed=key in LEVELS, exact=key in RULES))
    if all(curve.dashed for curve in curves):  # a level alone says nothing
        return ""
    end = max(x_N.max() for curve in curves for x_N, _ in (curve.train, curve.valid) if len(x_N))
    xlabel = {"tokens": "training tokens", "seconds": f"training time ({unit})", "step": "step"}[against]
    if panel.level is not None:
        name, value = panel.level
        level = np.array([0.0, end]), np.full(2, value)
        curves.append(Curve(name, GREY, level, (np.empty(0), np.empty(0)), dashed=True, exact=True))
    top_ticks = None
    if against == "tokens":
        last = train["step"][0][-1]
        steps_N = np.asarray(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True).tick_values(0, last))
        steps_N = steps_N[(steps_N >= 0) & (steps_N <= last)]
        top_ticks = clock(steps_N).tolist(), ["step 0", *map(plots.SI, steps_N[1:])]
    looks: dict[str, Any] = {"ylabel": panel.ylabel, "log": panel.log, "from_zero": panel.from_zero}
    svg = plots.draw_curves(curves, xlabel=xlabel, top_ticks=top_ticks, **looks)
    return card(panel.title, svg, panel.note, _table(curves))


def _clock(train: Columns, against: str, size: float) -> Callable[[np.ndarray], np.ndarray]:
    """From steps to places on the x axis, in units of `size`: held-out rows carry only their step."""
    if against == "step":
        return lambda steps_N: steps_N.astype(np.float64)
    known_N, places_N = _finite(train, against)
    if known_N[0] > 0:
        known_N, places_N = np.append(0, known_N), np.append(0.0, places_N)
    return lambda steps_N: np.interp(steps_N, known_N, places_N) / size


def _warning(train: Columns, valid: Columns) -> str:
    """Names the series that left the numbers, and where: what to know first about a run that diverged."""
    found = []
    for split, columns in (("train", train), ("held out", valid)):
        for key, (steps_N, values_N) in columns.items():
            bad_N = ~np.isfinite(values_N)
            if bad_N.any():
                first = steps_N[bad_N.argmax()]
                rows = f"{bad_N.sum():,} of {len(bad_N):,} rows"
                found.append(f"{key}, {split}: {rows}, first at step {first:,}")
    text = f"Values that are not finite are left out of the pictures. {'; '.join(found)}."
    return warning_box(text if found else "")


def _map_cards(embeddings: np.ndarray | None, colours: Colours) -> Iterator[str]:
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
        if values_P.dtype.kind == "f" and (missing := (~np.isfinite(values_P)).sum()):
            extra = f" {missing:,} grey points have no value."
        if len(looks) > len(plots.LOOKS):
            extra = f" {len(looks):,} categories are too many for a legend, and colours repeat."
        elif name and looks:
            items = (
                f"<li>{swatch(colour, marker)}{escape(label or 'unnamed')} <small>{count:,}</small>"
                for label, colour, marker, count in looks
            )
            legend = f"<ul>{''.join(items)}</ul>"
        title = f"Held-out embeddings by {name}" if name else "Held-out embeddings"
        yield card(title, svg, note + MAP_NOTES[method] + extra, legend)


def _table(curves: Sequence[Curve]) -> str:
    """The legend of a panel, which also tells where each series stands at the end."""
    rows = ["<tr><th>last values<td>train<td>" + "held out" * any(len(curve.valid[0]) for curve in curves)]
    for curve in curves:
        y_N, valid_y_M = curve.train[1], curve.valid[1]
        train = number(float(curve.trend()[1][1, -1])) if len(y_N) else ""
        valid = number(float(valid_y_M[-1])) if len(valid_y_M) else ""
        sample = swatch(curve.colour, "--" if curve.dashed else "-" if train else "o")
        # A constant belongs to neither column.
        cells = f"<td colspan=2>{train}" if curve.dashed and curve.exact else f"<td>{train}<td>{valid}"
        rows.append(f"<tr><th>{sample}{escape(curve.label)}{cells}")
    return f"<table>{''.join(rows)}</table>"


READING = (
    "Lines are running medians over 4 % of the training rows, bands their 10th to 90th percentile (up to 400 "
    "rows, thin lines are the rows themselves). Dots are held-out values. The first 4 % of a run may leave "
    "the frame."
)
MAP_NOTES = {
    "t-SNE": "Neighbours here are neighbours in the model; distances between groups, and sizes, say little.",
    "PCA": "The two directions of largest variance; distances in the model are never smaller than here.",
}
BODY = """{facts}
{warning}
<p>{reading}</p>
<section>
{curves}
</section>
<section>
{maps}
</section>
{gallery}"""
