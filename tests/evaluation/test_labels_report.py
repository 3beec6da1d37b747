"""The page of a fine-tuning run: every kind of task leaves a readable one, it is honest, and it stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biometro.data.task import Task
from biometro.evaluation import results
from biometro.evaluation.labels_report import write_labels_report

KINDS = ["classification", "multilabel", "regression", "residue_classification", "residue_regression"]
METRIC = {
    "classification": "macro_f1",
    "multilabel": "auroc",
    "regression": "spearman",
    "residue_classification": "macro_f1",
    "residue_regression": "spearman",
}
OTHERS = {
    "classification": ("accuracy", "weighted_f1", "mcc", "auroc", "auprc", "log_loss", "ece"),
    "multilabel": ("macro_f1", "micro_f1", "exact_match", "auprc", "log_loss", "ece"),
    "regression": ("pearson", "rmse", "mae", "r2"),
    "residue_classification": ("accuracy", "q3", "q8", "mcc", "auroc", "log_loss", "ece"),
    "residue_regression": ("spearman_per_sequence", "pearson", "rmse", "mae"),
}
Said = dict[str, Any]


def bins_of(random: np.random.Generator, lean: float) -> list[Said]:
    rows: list[Said] = []
    for i in range(15):
        count = int(20 + 80 * (i / 14) ** 3) if i > 3 else 0
        middle = (i + 0.5) / 15
        accuracy = float(np.clip(middle - lean * middle * (1 - middle) * 2 + random.normal(0, 0.03), 0, 1))
        rows.append({
            "low": i / 15, "high": (i + 1) / 15, "count": count,
            "confidence": middle if count else None, "accuracy": accuracy if count else None,
        })  # fmt: skip
    return rows


def run_of(kind: str, names: list[str], level: float, seed: int, model: bool) -> Said:
    """One run that scores about `level`, with all that `results.judge` says of it."""
    random = np.random.default_rng([seed, int(1000 * level)])
    discrete = "regression" not in kind
    figures = {METRIC[kind]: level + float(random.normal(0, 0.01)) * (seed > 0)}
    for name in OTHERS[kind]:
        bad = name in ("log_loss", "ece", "rmse", "mae")
        figures[name] = float((1 - level if bad else level) * random.uniform(0.9, 1.05))
    run: Said = {
        "seed": seed, "figures": figures, "seconds": 12.5 * (1 + model),
        "intervals": {name: [value - 0.04, value + 0.04] for name, value in figures.items()},
    }  # fmt: skip
    if model:
        epochs = np.arange(1, 13)
        loss = 1.5 * np.exp(-epochs / 3)
        valid = level * (1 - np.exp(-epochs / 2)) + random.normal(0, 0.01, 12)
        run |= {
            "valid": {METRIC[kind]: float(valid.max())}, "epoch": float(1 + valid.argmax()),
            "trained_parameters": 1_234_567,
            "history": {"epoch": epochs.tolist(), "valid": valid.tolist(), "loss": loss.tolist()},
        }  # fmt: skip
    if discrete:
        run["reliability"] = bins_of(random, 0.05)
        if model:
            run |= {"temperature": 1.83, "ece_raw": 0.12, "reliability_raw": bins_of(random, 0.7)}
    if kind.endswith("classification"):
        support = (200 * np.arange(1, len(names) + 1) ** -0.8).astype(int) * (90 if "residue" in kind else 1)
        support[-1] = 0  # a class that test lacks
        confusion = np.array([random.multinomial(n, wrong_share(len(names), k, level)) for k, n in enumerate(support)])
        run["confusion"] = confusion.tolist()
        run["per_class"] = [
            {"name": name, "support": int(n), "precision": level if n else None, "recall": level if n else None,
             "f1": float(random.uniform(0.4, 1)) if n else None, "auroc": 0.97 if n else None}
            for name, n in zip(names, support, strict=True)
        ]  # fmt: skip
        if model:
            run["conformal"] = {"coverage": 0.91, "set_size": 1.37, "answered": 0.72, "accuracy_answered": 0.95}
    elif not discrete:
        truth = random.normal(50, 10, (300, len(names)))
        found = 50 + level * (truth - 50) + random.normal(0, 10 * (1 - level), truth.shape)
        run["points"] = {name: [truth[:, k].tolist(), found[:, k].tolist()] for k, name in enumerate(names)}
        if len(names) > 1:
            figures |= {f"{figure}/{name}": level for name in names for figure in (METRIC[kind], *OTHERS[kind])}
        if model:
            run["conformal"] = [{"coverage": 0.9, "width": 12.0} for _ in names]
    return run


def wrong_share(K: int, k: int, level: float) -> np.ndarray:
    """(K,) probabilities of the answers to class k."""
    share = (1 - level) * np.exp(-np.abs(np.arange(K) - k) / 2)
    share[k] = 0
    share *= (1 - level) / max(share.sum(), 1e-9)
    share[k] = 1 - share.sum()
    return share


def said_of(
    kind: str, names: list[str] | None = None, seeds: int = 1, splits: tuple[str, ...] = ("random",),
    levels: dict[str, float] | None = None, leaks: bool = True,
) -> Said:  # fmt: skip
    """What results.json holds; the methods and what they reach are `levels`."""
    names = names or (["stability"] if "regression" in kind else ["alpha", "beta", "gamma", "delta"])
    levels = levels or {"nearest neighbour": 0.7, "k-mers": 0.62, "probe": 0.8, "lora": 0.84}
    counts = {name: 400 // (k + 1) for k, name in enumerate(names)}
    entries: Said = {}
    for by in splits:
        share = 0.31 if by == "random" else 0.0
        methods: Said = {}
        for name, level in levels.items():
            model = name not in ("nearest neighbour", "k-mers")
            runs = [run_of(kind, names, level, seed, model) for seed in range(seeds if model else 1)]
            summary = {}
            for figure in runs[0]["figures"]:
                values = np.array([run["figures"][figure] for run in runs], float)
                sd = float(values.std(ddof=1)) if len(values) > 1 else None
                summary[figure] = {"mean": float(values.mean()), "sd": sd}
            methods[name] = {"baseline": not model, "summary": summary, "runs": runs}
        sides = {side: {n: c // d for n, c in counts.items()} for side, d in (("train", 2), ("valid", 10), ("test", 5))}
        entries[by] = {
            "sizes": {"train": 700, "valid": 100, "test": 230},
            "classes": {} if "regression" in kind else sides,
            "leaks": {} if not leaks else {
                "test": {"share": share, "count": int(230 * share), "of": 230, "examples": [[0, 17, 0.98]]},
                "valid": {"share": share, "count": int(100 * share), "of": 100, "examples": []},
            },
            "relatives": "from 40 % identity",
            "methods": methods,
        }  # fmt: skip
        if leaks:
            edges = np.arange(20) / 20
            tall = 60 * np.exp(-((edges - (0.5 if by == "random" else 0.2)) ** 2) / 0.03)
            entries[by]["nearest"] = {
                "low edges": edges.tolist(), "counts": tall.astype(int).tolist(), "measure": "identity",
                "related": np.where(edges > 0.39, tall, 0).astype(int).tolist(), "threshold": 0.4,
            }  # fmt: skip
    classes = {} if "regression" in kind else {"before": {"rare": 2} | counts, "after": counts}
    return {
        "title": "arg-lora", "task": {"kind": kind, "names": names}, "metric": METRIC[kind], "coverage": 0.9,
        "facts": {"model": "esm2_t6_8M_UR50D", "data": "arg.fasta: 1,032 sequences", "dropped": "2: class too rare, "
                  "first at line 88", "cut": "3 sequences longer than 1,022 residues", "hardware": "2 cores"},
        "classes": {"before": {}, "after": {}} | classes, "splits": entries,
    }  # fmt: skip


def page_of(folder: Path, said: Said) -> str:
    write_labels_report(folder / "report.html", json.loads(json.dumps(said, allow_nan=False)))
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    text = re.sub(r'"data:[^"]*"', "", page)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)
    return page.replace("\u00a0", " ")


def verdicts(page: str) -> list[str]:
    return re.findall(r'<p class="verdict">(.*?)</p>', page)


def titles(page: str) -> list[str]:
    return re.findall(r"<h3>(.*?)</h3>", page)


def cells(page: str, row: str) -> list[str]:
    """The texts of the first table row whose name ends like this."""
    found = re.search(rf"<th scope=row>[^\n]*?{re.escape(row)}(<td.*?)(?:<tr>|</table>)", page)
    assert found, row
    return [re.sub("<[^>]*>", " ", cell).strip() for cell in re.split(r"<td[^>]*>", found[1])[1:]]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_pictures(tmp_path: Path, kind: str, seeds: int) -> None:
    page = page_of(tmp_path, said_of(kind, seeds=seeds, splits=("random", "homology")))
    wanted = {"How near test is to train", "Learning: lora", "Fits"}
    if "regression" not in kind:
        wanted |= {"Calibration: lora"}
        assert "after temperature 1.830 <small>ECE" in page
    if kind.endswith("classification"):
        wanted |= {"Classes: lora", "Confusion matrix: lora", "When it does not know: lora"}
    if "regression" in kind:
        wanted |= {"stability: lora", "Columns: lora"}
        assert "<h2>Classes</h2>" not in page
    found = titles(page)
    assert wanted <= {*found}
    assert len(found) == 2 * (len(wanted) + 1)  # and the dot plot; in both splits
    assert page.count("<svg role=") == sum(page.count(f"<h3>{t}</h3>") for t in {*found} if is_picture(t))
    assert len(verdicts(page)) == 2


def is_picture(title: str) -> bool:
    return not title.startswith(("Classes", "Confusion", "When it", "Columns", "Fits"))


def test_the_table_shows_means_with_deviation_or_interval(tmp_path: Path) -> None:
    said = said_of("classification", seeds=3)
    page = page_of(tmp_path, said)
    methods = said["splits"]["random"]["methods"]
    assert cells(page, "k-mers")[0].split() == ["0.620", "0.580", "to", "0.660"]
    entry = methods["lora"]["summary"]["macro_f1"]
    assert cells(page, "lora")[0].split() == [f"{entry['mean']:.3f}", "±", f"{entry['sd']:.3f}"]
    assert "macro F1 ↑" in page
    assert "log loss ↓" in page


def test_bold_is_the_best_of_its_column_whichever_way_it_counts(tmp_path: Path) -> None:
    said = said_of("regression")
    for name, method in said["splits"]["random"]["methods"].items():
        method["summary"] = {
            "rmse": {"mean": {"k-mers": 1.0}.get(name, 2.0), "sd": None},
            "r2": {"mean": None, "sd": None},
        }
    said["metric"] = "rmse"
    page = page_of(tmp_path, said)
    assert re.findall(r"<td><b>(.*?)</b>", page) == ["1.000"]
    assert "R²" not in page  # nowhere defined


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ({"nearest neighbour": 0.7, "lora": 0.84}, "is better than the stronger baseline, nearest neighbour (0.700)."),
        ({"nearest neighbour": 0.78, "k-mers": 0.6, "lora": 0.84},
         "better than the stronger baseline, nearest neighbour (0.780), though their intervals overlap."),
        ({"nearest neighbour": 0.82, "lora": 0.84}, "lies within that interval: better here, but not clearly so."),
        ({"nearest neighbour": 0.86, "lora": 0.84}, "lies within that interval: worse here, but not clearly so."),
        ({"nearest neighbour": 0.9, "lora": 0.84}, "is worse than the stronger baseline, nearest neighbour (0.900)."),
        ({"lora": 0.84}, "No baseline was run"),
        ({"k-mers": 0.6}, "no model was fitted; the stronger baseline is k-mers (0.600)."),
    ],
)  # fmt: skip
def test_the_verdict_is_honest(tmp_path: Path, levels: dict[str, float], words: str) -> None:
    (verdict,) = verdicts(page_of(tmp_path, said_of("classification", levels=levels)))
    assert words in verdict
    if "lora" in levels:
        assert "reaches macro F1 0.840 (95 % interval 0.800 to 0.880) on 230 test sequences." in verdict


def test_the_verdict_knows_that_less_can_be_better(tmp_path: Path) -> None:
    said = said_of("regression", levels={"k-mers": 0.6, "probe": 0.8, "lora": 0.84})
    said["metric"] = "rmse"
    methods = said["splits"]["random"]["methods"]
    for name, value in (("k-mers", 2.0), ("probe", 1.0), ("lora", 1.5)):
        run = methods[name]["runs"][0]
        run["figures"]["rmse"], run["intervals"]["rmse"], run["valid"] = (
            value,
            [value - 0.1, value + 0.1],
            {"rmse": value},
        )
        methods[name]["summary"]["rmse"]["mean"] = value
    (verdict,) = verdicts(page_of(tmp_path, said))
    assert "probe, the best on validation, reaches RMSE 1.000" in verdict
    assert "That is better than the stronger baseline, k-mers (2.000)." in verdict


def test_validation_chooses_not_test(tmp_path: Path) -> None:
    said = said_of("classification", seeds=3)
    said["splits"]["random"]["methods"]["probe"]["runs"][2]["valid"]["macro_f1"] = 0.99
    page = page_of(tmp_path, said)
    assert "probe (seed 2), the best on validation" in verdicts(page)[0]
    assert "<b>probe, seed 2</b>" in page
    assert "Confusion matrix: probe" in titles(page)


def test_leaks_are_said_and_warned_of(tmp_path: Path) -> None:
    page = page_of(tmp_path, said_of("classification", splits=("random", "homology")))
    assert (
        "31.0 % of test sequences (71 of 230) and 31.0 % of validation sequences (31 of 100) have a relative in" in page
    )
    assert "have a relative in train (from 40 % identity)." in page
    assert page.count('<p class="warning">') == 1  # not for the split by homology
    page = page_of(tmp_path, said_of("classification", leaks=False))
    assert "was not measured" in page
    assert "How near test is to train" not in titles(page)
    assert '<p class="warning">' not in page


def test_classes_without_sequences_are_named(tmp_path: Path) -> None:
    said = said_of("classification", leaks=False)
    said["splits"]["random"]["classes"]["test"].pop("delta")
    said["splits"]["random"]["classes"]["train"]["gamma"] = 0
    page = page_of(tmp_path, said)
    assert "Classes without a train sequence cannot be learnt: gamma." in page
    assert "Classes without a test sequence are not judged: delta." in page
    assert cells(page, "delta")[:2] == ["100", "100"]
    assert cells(page, "rare")[:2] == ["2", ""]


@pytest.mark.parametrize("count", [2, 20, 70])
def test_confusion_matrices_of_any_size(tmp_path: Path, count: int) -> None:
    names = [f"class number {k} of the antibiotic resistance ontology" for k in range(count)]
    said = said_of("classification", names)
    page = page_of(tmp_path, said)
    run = said["splits"]["random"]["methods"]["lora"]["runs"][0]
    table = re.search(r'<table class="grid heat">.*?</table>', page)
    assert (table is None) == (count > 20)
    if table:
        first = cells(table[0], names[0])
        assert [int(cell) if cell != "·" else 0 for cell in first] == run["confusion"][0]
        assert re.search(r'--share:0\.8\d"', table[0])
    assert ("<details>" in page) == (count > 40)
    wrong = np.array(run["confusion"])
    np.fill_diagonal(wrong, 0)
    if count > 2:
        i, j = np.unravel_index(wrong.argmax(), wrong.shape)
        assert f"Most frequent: {names[i]} taken for {names[j]} ({wrong.max()})" in page


def test_several_columns_have_their_own_figures(tmp_path: Path) -> None:
    page = page_of(tmp_path, said_of("regression", ["pH optimum", "melting temperature"]))
    assert {"pH optimum: lora", "melting temperature: lora"} <= {*titles(page)}
    assert cells(page, "pH optimum") == ["0.840"] * 5 + ["90.0 %", "± 6.000"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_undefined_stays_empty(tmp_path: Path, kind: str) -> None:
    page = page_of(tmp_path, emptied(said_of(kind, seeds=2)))
    assert "is not defined" in verdicts(page)[0]
    said = said_of(kind)
    for method in said["splits"]["random"]["methods"].values():
        for run in method["runs"]:
            for key in [key for key in run if key not in ("seed", "figures")]:
                del run[key]
    assert "without an interval, chance is not ruled out" in verdicts(page_of(tmp_path, said))[0]
    said["splits"]["random"]["methods"] = {}
    assert "nothing was run" in verdicts(page_of(tmp_path, said))[0]


def emptied(value: Any) -> Any:
    """The same with None for every number of the runs and summaries."""
    if isinstance(value, dict):
        keep = ("sizes", "classes", "seed", "confusion", "count")
        return {key: entry if key in keep else emptied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [emptied(entry) for entry in value]
    return None if isinstance(value, float) else value


def test_empty_classes_divide_nothing(tmp_path: Path) -> None:
    said = said_of("classification")
    run = said["splits"]["random"]["methods"]["lora"]["runs"][0]
    run["confusion"] = np.zeros((4, 4), int).tolist()
    for row in run["reliability"]:
        row |= {"count": 0, "confidence": None, "accuracy": None}
    said["splits"]["random"]["nearest"] = {"low edges": [], "counts": []}
    said["splits"]["random"]["leaks"]["test"] |= {"share": 0.0, "count": 0, "of": 0}
    with np.errstate(all="raise"):
        page = page_of(tmp_path, said)
    assert not {"Confusion matrix: lora", "Calibration: lora", "How near test is to train"} & {*titles(page)}


def hostile(value: Any, evil: str) -> Any:
    """Every name and text made hostile, but for those that the page goes by."""
    if isinstance(value, dict):
        names = ("facts", "before", "after", "train", "valid", "test", "points", "methods")
        return {
            key: {f"{name}{evil}": hostile(v, evil) for name, v in entry.items()}
            if key in names and isinstance(entry, dict) and not {"share", "macro_f1", "spearman", "auroc"} & {*entry}
            else entry if key in ("kind", "metric") else hostile(entry, evil)
            for key, entry in value.items()
        }  # fmt: skip
    if isinstance(value, list):
        return [hostile(entry, evil) for entry in value]
    return f"{value}{evil}" if isinstance(value, str) else value


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_escaped(tmp_path: Path, kind: str) -> None:
    evil = "<script>alert('x & y')</script>\"'$x_1$ $\\frac{1$"
    said = hostile(said_of(kind, seeds=2), evil)
    assert f"lora{evil}" in said["splits"]["random"]["methods"]
    said["splits"][evil] = said["splits"].pop("random")
    page = page_of(tmp_path, said)
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_stands_alone_and_closes_what_it_opens(tmp_path: Path, kind: str) -> None:
    page = page_of(tmp_path, said_of(kind))
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "iframe")
            for name, value in attrs:
                if name.split(":")[-1] in ("href", "src"):
                    assert (value or "").startswith(("#", "data:image/png;base64,"))
            if tag in ("section", "figure", "table", "details", "div", "p"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag in ("section", "figure", "table", "details", "div", "p"):
                assert open_tags.pop() == tag

    Reader().feed(page)
    assert open_tags == []
    assert "http" not in page
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(page) < 1_000_000


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    said = said_of("classification", seeds=3)
    assert page_of(tmp_path, said) == page_of(tmp_path, said)


@pytest.mark.parametrize("kind", KINDS)
def test_what_judge_says_can_be_drawn(tmp_path: Path, kind: Any) -> None:
    random, said = np.random.default_rng(0), said_of(kind, ["H", "E", "C"] if "classif" in kind else ["one"])
    task = Task(kind, tuple(said["task"]["names"]))
    N, K = 60, task.outputs
    if "classification" in kind:
        truth: Any = random.integers(0, K, N)
        found: Any = (np.eye(K)[truth] + random.normal(0, 0.5, (N, K))).astype(np.float32)
    else:
        truth = (random.normal(size=(N, K)) > 0 if task.discrete else random.normal(size=(N, K))).astype(np.float32)
        found = (truth - 0.5 + random.normal(0, 0.5, (N, K))).astype(np.float32)
    if task.per_residue:
        truth, found = np.split(truth if task.discrete else truth[:, 0], 6), np.split(found, 6)
    zero, one = np.zeros(K, np.float32), np.ones(K, np.float32)
    calibrated = results.calibrate(task, truth, found, zero, one, 0.9)
    answers = results.answers(task, found, zero, one, calibrated.temperature if task.discrete else 1.0)
    raw = results.answers(task, found, zero, one) if task.discrete else None
    run = said["splits"]["random"]["methods"]["lora"]["runs"][0]
    kept = {key: run[key] for key in ("seed", "seconds", "valid", "epoch", "history")}
    run = kept | results.judge(task, truth, answers, calibrated, raw=raw)
    said["splits"]["random"]["methods"]["lora"] = results.plain(
        {"baseline": False, "runs": [run], "summary": results.summarise([run])}
    )
    page = page_of(tmp_path, said)
    assert cells(page, "lora")[0].split()[0] == f"{run['figures'][METRIC[kind]]:.3f}"
    drawn = {*titles(page)}
    assert ("Calibration: lora" in drawn) == task.discrete
    assert ("Confusion matrix: lora" in drawn) == ("When it does not know: lora" in drawn) == ("classif" in kind)
    assert ("one: lora" in drawn) == (not task.discrete)


def test_names_are_no_formulas(tmp_path: Path) -> None:
    page = page_of(tmp_path, said_of("regression", levels={"$\\frac{1$": 0.5}))
    assert re.search(r"<text [^>]*>\$\\frac{1\$</text>", page)
