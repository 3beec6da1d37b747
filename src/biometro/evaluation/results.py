"""What is said of a model's answers on a held-out set: figures with intervals, calibration, abstention, tables.

    outputs on validation ─▶ temperature, conformal threshold ─┐
    outputs on test ───────────────────────────────────────────┴▶ answers ─▶ figures, intervals, tables, pictures' data

All is plain numbers, ready for JSON; what is undefined is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from biometro.data.task import Calibration, Task, Truth
from biometro.evaluation import calibration, metrics
from biometro.inference.predict import answers

Predictions = np.ndarray | list[np.ndarray]
MAIN: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "weighted_f1", "mcc", "auroc", "auprc", "log_loss", "ece"),
    "multilabel": ("macro_f1", "micro_f1", "exact_match", "auroc", "auprc", "log_loss", "ece"),
    "regression": ("spearman", "pearson", "rmse", "mae", "r2"),
    "residue_classification": ("accuracy", "q3", "q8", "macro_f1", "mcc", "auroc", "log_loss", "ece"),
    "residue_regression": ("spearman", "spearman_per_sequence", "pearson", "rmse", "mae"),
}
"""The figures that stand in tables, by kind of task."""
_POINTS = 2000  # of a scatter plot


def calibrate(
    task: Task, truth: Truth, found: Predictions, offset: np.ndarray, unit: np.ndarray, coverage: float
) -> Calibration:
    """Fit a temperature and conformal thresholds to outputs on validation, laid out as `inference.predict.outputs`."""
    if task.discrete:
        temperature = calibration.temperature(task.kind, found, truth)
        if task.kind == "multilabel":
            return Calibration(temperature, coverage=coverage)
        p_NK, truth_N = _flat(task, truth, answers(task, found, offset, unit, temperature))
        return Calibration(temperature, calibration.conformal_threshold(p_NK, truth_N, coverage), coverage=coverage)
    predicted_NK, truth_NK = _flat(task, truth, answers(task, found, offset, unit))
    columns = zip(truth_NK.T, predicted_NK.T, strict=True)
    return Calibration(
        radius=tuple(calibration.conformal_radius(*pair, coverage) for pair in columns), coverage=coverage
    )


def judge(
    task: Task, truth: Truth, predicted: Predictions, calibrated: Calibration | None = None,
    families: np.ndarray | None = None, seed: int = 0, raw: Predictions | None = None,
    groups: np.ndarray | None = None, metric: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything about the answers on one held-out set.

    Args:
        task: what was predicted.
        truth: as in `Labelled`.
        predicted: probabilities or numbers, laid out alike.
        calibrated: of the model; baselines have none.
        families: (N,), of which whole ones are drawn for the intervals.
        seed: of the bootstrap.
        raw: probabilities before the temperature, for the picture of calibration.
        groups: (N,) within which figures per group are measured, see `metrics.measure`.
        metric: the figure that models are chosen by, which has an interval too.
    """
    figures = metrics.measure(task.kind, truth, predicted, task.names, groups)
    names = dict.fromkeys((*MAIN[task.kind], *(metrics.PER_GROUP if groups is not None else ()), metric or ""))
    wanted = [name for name in names if math.isfinite(figures.get(name, math.nan))]
    intervals = metrics.bootstrap(
        task.kind, truth, predicted, task.names, wanted, seed=seed, families=families, groups=groups
    )
    said: dict[str, Any] = {"figures": figures, "intervals": {name: list(pair) for name, pair in intervals.items()}}
    p_NK, truth_N = _flat(task, truth, predicted)
    if task.discrete:
        said["per_class"] = metrics.per_class(truth_N, p_NK, task.names)
    if task.kind.endswith("classification"):
        said["confusion"] = metrics.confusion(truth_N, p_NK, task.outputs).tolist()
        if calibrated is not None and calibrated.threshold is not None:
            said["conformal"] = calibration.conformal_summary(p_NK, truth_N, calibrated.threshold)
    if task.discrete:
        said["reliability"] = calibration.reliability(p_NK, truth_N)
        if raw is not None:
            said["reliability_raw"] = calibration.reliability(_flat(task, truth, raw)[0], truth_N)
            said["ece_raw"] = calibration.ece(_flat(task, truth, raw)[0], truth_N)
    else:
        radius = calibrated.radius if calibrated is not None else None
        if radius is not None:
            said["conformal"] = [
                calibration.conformal_radius_summary(truth_N[:, k], p_NK[:, k], r) for k, r in enumerate(radius)
            ]
        chosen = np.random.default_rng(0).permutation(len(truth_N))[:_POINTS]
        said["points"] = {
            name: [truth_N[chosen, k].tolist(), p_NK[chosen, k].tolist()] for k, name in enumerate(task.names)
        }
    return plain(said)


def _flat(task: Task, truth: Truth, predicted: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (M, K) and truth (M,) class numbers or (M, K) numbers; of residues, those that are known."""
    if isinstance(truth, np.ndarray):
        return np.asarray(predicted), truth
    flat_M = np.concatenate(truth)
    p_MK = np.concatenate([np.asarray(p).reshape(len(t), -1) for p, t in zip(predicted, truth, strict=True)])
    known_M = flat_M >= 0 if task.discrete else np.isfinite(flat_M)
    return p_MK[known_M], flat_M[known_M] if task.discrete else flat_M[known_M, None]


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation (n - 1) over seeds of every figure; None where undefined."""
    names = runs[0]["figures"]
    summary = {}
    for name in names:
        values = np.array([run["figures"][name] for run in runs], dtype=np.float64)
        spread = values.std(ddof=1) if len(values) > 1 else math.nan
        summary[name] = {"mean": float(values.mean()), "sd": float(spread)}
    return {name: plain(entry) for name, entry in summary.items()}


def plain(value: Any) -> Any:
    """The same of Python's own types, what is not finite as None: ready for JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(results: Mapping[str, Any], intervals: bool = True) -> str:
    """The table of all methods on all splits, in Markdown: mean ± deviation over seeds, or a figure's 95 % interval."""
    names = [name for name in MAIN[results["task"]["kind"]] if _anywhere(results, name)]
    lines = []
    for by, split in results["splits"].items():
        sizes = ", ".join(f"{count:,} {side}" for side, count in split["sizes"].items())
        leaks = split["leaks"].get("test")
        near = "leak not measured" if leaks is None else f"{100 * leaks['share']:.1f} % of test has a relative in train"
        lines += [
            f"**Split by {by}** ({sizes}; {near})",
            "",
            f"| | {' | '.join(names)} |",
            f"|---|{'---|' * len(names)}",
        ]
        for method, entry in split["methods"].items():
            cells = [_cell(entry, name, intervals) for name in names]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _anywhere(results: Mapping[str, Any], name: str) -> bool:
    methods = (m for split in results["splits"].values() for m in split["methods"].values())
    return any((m["summary"].get(name) or {}).get("mean") is not None for m in methods)


def _cell(entry: Mapping[str, Any], name: str, intervals: bool) -> str:
    found = entry["summary"].get(name) or {}
    if found.get("mean") is None:
        return ""
    if found.get("sd") is not None:
        return f"{found['mean']:.3f} ± {found['sd']:.3f}"
    low, high = (entry["runs"][0]["intervals"].get(name) if intervals else None) or (None, None)
    return f"{found['mean']:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")
