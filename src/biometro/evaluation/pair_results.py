"""What is said of scores of held-out pairs: figures with intervals, controls beside them, verdicts, tables.

    scores of test pairs ─┬─▶ affinities, classes, retrieval ─▶ figures, intervals, resamples
    controls ─────────────┘                                       └─▶ differences, draw by draw ─▶ verdict

All is plain numbers, ready for JSON; what is undefined is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from biometro.data.pairs import Pairs
from biometro.evaluation import binding, pair_retrieval
from biometro.evaluation.binding import AFFINITY, CLASSES
from biometro.evaluation.controls import run_controls
from biometro.evaluation.metrics import interval

MAIN = (
    "pearson", "spearman", "spearman_per_target", "ci", "ci_per_target", "rmse", "rmse_per_target", "auroc",
    "auroc_per_target", "auprc", "bedroc", "ef0.5", "ef1", "ef5", "mrr", "recall@1_a_to_b", "recall@10_a_to_b",
    "recall@10_b_to_a", "median_rank_a_to_b", "median_rank_b_to_a",
)  # fmt: skip
"""The figures that stand in tables, where they are defined."""
JUDGED = ("spearman", "spearman_per_target", "auroc", "auroc_per_target")
"""By which a model is said to beat its controls, or not."""
SHORT = ("spearman", "spearman_per_target", "rmse", "auroc", "ef1", "mrr")
"""The figures that a terminal has room for."""
WATCHED = ("spearman", "spearman_per_target", "pearson", "ci", "rmse", "auroc", "auprc", "mrr", "recall@10_a_to_b")
"""What a validation tells beside the figure that decides."""
SAMPLES = 300
SHUFFLED = "partners shuffled"
_SMALLER = ("rmse", "mse", "median_rank")
_SCALED = ("rmse", "mse")  # which mean something on the labels' scale alone
SEEN = {
    "a": "the first sequence", "b": "the second", "each": "both, in some pair", "pair": "the very pair",
    "neither": "neither", "scaffold": "the scaffold", "near_a": "a relative of the first",
    "near_b": "a relative of the second",
}  # fmt: skip
"""What stands in train of a test pair, in words (`PairDivision.Overlap`)."""


def larger_is_better(name: str) -> bool:
    return not name.startswith(_SMALLER)


def figures(
    pairs: Pairs, a: np.ndarray, b: np.ndarray, score: np.ndarray, every: Pairs, pool: int, seed: int,
    scaled: bool = False, classes: np.ndarray | None = None,
) -> dict[str, float]:  # fmt: skip
    """Figures of scored pairs, those that are defined.

    Args:
        pairs: the held-out ones.
        a, b: (A, P), (B, P) vectors of all sequences, NaN of those in none of these pairs.
        score: (N,) of each pair, more binds better.
        every: all pairs that are known; their partners are not held against a query.
        pool: sequences among which partners are looked for.
        seed: of the pool.
        scaled: whether scores are on the scale of the values.
        classes: (sequences,) of each sequence its class, where all of one class are partners.
    """
    found = _of_scores(pairs, score, scaled)[0]
    found |= retrieval(pairs, every, a, b, pool, seed, classes)[0]
    return {name: value for name, value in found.items() if math.isfinite(value)}


def judge(
    every: Pairs, test: np.ndarray, score: np.ndarray, seed: int, *, scaled: bool,
    vectors: tuple[np.ndarray, np.ndarray] | None = None, pool: int = 0, classes: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything about the scores of test pairs: figures, their intervals, counts, and resamples of those judged by.

    Args:
        every: all pairs.
        test: numbers of the held-out ones.
        score: (N,) of these.
        seed: of resamples and of the pool.
        scaled: whether scores are on the scale of the values.
        vectors: (A, P), (B, P) of all sequences, where there are such.
        pool: sequences among which partners are looked for.
        classes: as of `figures`.
    """
    pairs = every.take(test)
    values, intervals, about = _of_scores(pairs, score, scaled, SAMPLES, seed)
    if vectors is not None:
        found, sizes = retrieval(pairs, every, *vectors, pool, seed, classes)
        values, about = values | found, about | sizes
    drawn = {name: list(values_S) for name, values_S in _resamples(pairs, score, seed).items()}
    return {
        "figures": plain(values), "intervals": {k: [_plain(x) for x in v] for k, v in intervals.items()},
        "about": about, "resamples": {name: [_plain(x) for x in row] for name, row in drawn.items()},
    }  # fmt: skip


def retrieval(
    pairs: Pairs, every: Pairs, a: np.ndarray, b: np.ndarray, pool: int, seed: int, classes: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """How well partners are found among the sequences of the held-out pairs, at most `pool` of them, both ways: figures
    (`mrr` is the mean of both), and the sizes of the pools with what chance gives. Nothing where no pair binds, or
    there are not two to choose from."""
    values: dict[str, float] = {}
    about: dict[str, Any] = {}
    true = np.stack([pairs.a, pairs.b], 1)[pairs.label != 0]
    known = np.stack([every.a, every.b], 1)[every.label != 0]
    if pairs.shared:  # a sequence has one vector, whichever side it stood on; a pair is true both ways
        a = b = np.where(np.isnan(a), b, a)
        true, known = (np.concatenate([rows, rows[:, ::-1]]) for rows in (true, known))
    ways = {"a_to_b": (a, b, true, known)}
    if not pairs.shared:
        ways["b_to_a"] = (b, a, true[:, ::-1], known[:, ::-1])
    for name, (queries, others, wanted, seen) in ways.items():
        there = np.flatnonzero(~np.isnan(others).any(1))
        if len(there) > pool:
            there = np.sort(np.random.default_rng(seed).choice(there, pool, replace=False))
        if classes is not None:  # the pairs at hand are a few of those of a class
            wanted = seen = _of_one_class(there, classes)
        wanted = np.unique(wanted[np.isin(wanted[:, 1], there)], axis=0)
        if not len(wanted) or len(there) < 2:
            continue
        scores = pair_retrieval.products(queries, others[there])
        found = pair_retrieval.retrieve(scores, there, wanted, seen, shared=pairs.shared)
        values |= {f"{figure}_{name}": value for figure, value in found.values.items()}
        about[name] = {"queries": found.queries, "pool": found.pool, "chance": found.chance}
    ranks = [values[f"mrr_{name}"] for name in ways if f"mrr_{name}" in values]
    return values | ({"mrr": float(np.mean(ranks))} if ranks else {}), about


def _of_one_class(places: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(N, 2) all couples of different sequences of one class among these."""
    one, two = np.nonzero(classes[places][:, None] == classes[places][None])
    return np.stack([places[one], places[two]], 1)[one != two]


def _of_scores(
    pairs: Pairs, score: np.ndarray, scaled: bool, samples: int = 0, seed: int = 0
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, Any]]:
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    about: dict[str, Any] = {}
    if np.isfinite(pairs.value).any():
        found = binding.affinity_figures(pairs.value, score, pairs.group, pairs.censored, samples=samples, seed=seed)
        kept = [name for name in found.values if scaled or not name.startswith(_SCALED)]
        values |= {name: found.values[name] for name in kept}
        intervals |= {name: found.intervals[name] for name in kept if name in found.intervals}
        about |= {"values": found.pairs, "bounds": found.left_out, "targets": found.targets}
        about["targets counted"] = found.counted.get("spearman", 0)
    if (pairs.label == 1).any() and (pairs.label == 0).any():
        found = binding.class_figures(pairs.label, score, pairs.group, samples=samples, seed=seed)
        values |= found.values
        intervals |= found.intervals
        about |= {"labels": found.pairs, "binding": found.rate, "class targets counted": found.counted.get("auroc", 0)}
    return values, intervals, about


def _resamples(pairs: Pairs, score: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Of the figures that methods are compared by, (S,) each; the same draws for all methods."""
    found: dict[str, np.ndarray] = {}
    exact = np.where(pairs.censored == 0, pairs.value, np.nan)
    if np.isfinite(exact).any():
        names = [name for name in JUDGED if name.startswith(AFFINITY)]
        found |= binding.replicates("affinity", exact, score, pairs.group, names, samples=SAMPLES, seed=seed)
    if (pairs.label == 1).any() and (pairs.label == 0).any():
        names = [name for name in JUDGED if name.startswith(CLASSES)]
        found |= binding.replicates("classes", pairs.label, score, pairs.group, names, samples=SAMPLES, seed=seed)
    return found


def controls(every: Pairs, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, Any]:
    """All controls on a split, as `judge` has them."""
    kind: Any = "affinity" if np.isfinite(every.value[train]).any() else "classes"
    if kind == "classes" and not ((every.label[train] == 0).any() and (every.label[train] == 1).any()):
        return {"methods": {}}
    predicted = run_controls(every.take(train), every.take(test), kind, seed)
    scaled = kind == "affinity"
    return {"methods": {name: judge(every, test, score, seed, scaled=scaled) for name, score in predicted.items()}}


# Several runs, and methods beside one another -----------------------------------------------------------------------


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each figure over seeds; of one run, a deviation of NaN."""
    names = dict.fromkeys(name for run in runs for name, value in run["figures"].items() if value is not None)
    found = {}
    for name in names:
        row = np.array([run["figures"][name] for run in runs if run["figures"].get(name) is not None])
        found[name] = float(row.mean()), float(row.std(ddof=1)) if len(row) > 1 else math.nan
    return found


def verdicts(methods: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each model and each figure that methods are judged by: the best control, the difference to it with its 95 %
    interval (draw by draw; a model's draws are the mean of its seeds'), and whether the model is clearly better.

    Controls that were given shuffled partners are none to beat: who does not beat them has learnt nothing of pairs.
    """
    found = []
    for name, method in methods.items():
        if method["control"]:
            continue
        own = _drawn(method["runs"])
        for figure, own_S in own.items():
            rivals = {
                other: _drawn(m["runs"])[figure] for other, m in methods.items()
                if m["control"] and figure in _drawn(m["runs"])
            }  # fmt: skip
            if not rivals or not np.isfinite(own_S).any():
                continue
            best = max(rivals, key=lambda other: summarise(methods[other]["runs"]).get(figure, (-math.inf, 0))[0])
            low, high = interval(own_S - rivals[best])
            gap = summarise(method["runs"])[figure][0] - summarise(methods[best]["runs"])[figure][0]
            found.append({
                "method": name, "figure": figure, "rival": best, "difference": _plain(gap), "low": _plain(low),
                "high": _plain(high), "better": bool(low > 0), "worse": bool(high < 0),
            })  # fmt: skip
    return found


def _drawn(runs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for run in runs for name in run.get("resamples", {}))
    return {
        name: np.mean([[math.nan if x is None else x for x in run["resamples"][name]] for run in runs], axis=0)
        for name in names
    }


def card_facts(figures: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, str]:
    """For the model card: the model's figures on test, and of each that methods are judged by the best control."""
    facts = {f"test: {name}": f"{figures[name]:.4f}" for name in MAIN if figures.get(name) is not None}
    for name in JUDGED:
        values = {
            method: said["runs"][0]["figures"][name]
            for method, said in entry["methods"].items()
            if said["control"] and said["runs"][0]["figures"].get(name) is not None
        }
        if values:
            best = max(values, key=lambda method: values[method])
            facts[f"best control, test: {name}"] = f"{values[best]:.4f} ({best})"
    return facts


def without_resamples(said: dict[str, Any]) -> dict[str, Any]:
    """Results as results.json has them: what verdicts were drawn from stays in the parts."""
    entries = {}
    for by, entry in said["splits"].items():
        methods = {
            name: method | {"runs": [{k: v for k, v in run.items() if k != "resamples"} for run in method["runs"]]}
            for name, method in entry["methods"].items()
        }
        entries[by] = entry | {"methods": methods}
    return said | {"splits": entries}


def told(verdicts: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Verdicts in a sentence for each model, and whether it beats its best control in every figure."""
    found = []
    for name in dict.fromkeys(one["method"] for one in verdicts):
        own = [one for one in verdicts if one["method"] == name]
        parts = []
        for how in ("beats", "is beaten by", "does not clearly beat"):
            these = [
                f"{one['figure'].replace('_', ' ')} ({one['rival']}, {_signed(one['difference'])}, "
                f"{_signed(one['low'])} to {_signed(one['high'])})"
                for one in own if how == _how(one)
            ]  # fmt: skip
            if these:
                parts.append(f"{how} its best control in {', '.join(these)}")
        found.append((f"{name} {'; '.join(parts)}", all(one["better"] for one in own)))
    return found


def _how(verdict: Mapping[str, Any]) -> str:
    return "beats" if verdict["better"] else "is beaten by" if verdict["worse"] else "does not clearly beat"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.3f}"


def columns(entry: Mapping[str, Any]) -> list[str]:
    """The figures that stand in a split's table."""
    there = {
        name for method in entry["methods"].values() for run in method["runs"]
        for name, value in run["figures"].items() if value is not None
    }  # fmt: skip
    return [name for name in MAIN if name in there]


def table(said: Mapping[str, Any], intervals: bool = True, only: Sequence[str] = MAIN) -> str:
    """All splits as Markdown: a model's figures as mean ± deviation over seeds, a control's with its interval."""
    blocks = []
    for by, entry in said["splits"].items():
        names = [name for name in columns(entry) if name in only]
        sizes = entry["sizes"]
        head = f"**Split by {by}** ({sizes['train']:,} train, {sizes['valid']:,} valid, {sizes['test']:,} test pairs)"
        rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for name, method in entry["methods"].items():
            rows.append(f"| {name} | {' | '.join(cells(method, names, intervals))} |")
            if not method["control"]:
                dealt = cells(with_shuffled(method), names, False)
                rows.append(f"| {name}, {SHUFFLED} | {' | '.join(dealt)} |")
        blocks.append("\n".join([head, "", *rows, "", *(f"- {text}" for text, _ in told(entry.get("verdicts", [])))]))
    return "\n\n".join(blocks) + "\n"


def with_shuffled(method: Mapping[str, Any]) -> dict[str, Any]:
    """A model as it answers when the partners of test pairs are dealt anew."""
    return {"control": True, "runs": [{"figures": run.get("shuffled", {}), "intervals": {}} for run in method["runs"]]}


def cells(method: Mapping[str, Any], names: Iterable[str], intervals: bool) -> list[str]:
    """A method's figures as they stand in a table; a dash where there is none."""
    means = summarise(method["runs"])
    found = []
    for name in names:
        if name not in means:
            found.append("-")
            continue
        mean, deviation = means[name]
        text = f"{mean:.3f}" if abs(mean) < 100 else f"{mean:,.0f}"
        if math.isfinite(deviation):
            text += f" ± {deviation:.3f}"
        elif intervals and (between := method["runs"][0]["intervals"].get(name)) and None not in between:
            text += f" ({between[0]:.3f} to {between[1]:.3f})"
        found.append(text)
    return found


def probability(cosine: np.ndarray, label: np.ndarray) -> tuple[float, float] | None:
    """Slope and offset of the logistic function of the cosine that fits validation labels best (Platt 1999, with his
    targets, which keep it from certainty); None with one outcome."""
    from sklearn.linear_model import LogisticRegression

    known = label >= 0
    cosine, label = cosine[known].astype(np.float64), label[known]
    if not len(label) or label.min() == label.max():
        return None
    binding_, others = int(label.sum()), int(len(label) - label.sum())
    high, low = (binding_ + 1) / (binding_ + 2), 1 / (others + 2)
    target = np.where(label == 1, high, low)
    twice = np.concatenate([cosine, cosine])[:, None]
    fitted = LogisticRegression(C=1e6, max_iter=1000).fit(
        twice, np.repeat([1, 0], len(cosine)), sample_weight=np.concatenate([target, 1 - target])
    )
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
