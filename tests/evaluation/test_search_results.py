"""Tables of a search: order, deviations, tests against the best, what matters, and what a wider model is said to do."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from biometro.evaluation.search_report import write_search_report
from biometro.evaluation.search_results import Tried, importance, predict, rank, table

TRIED = [
    Tried({"lr": 0.1, "width": 64}, [1.0, 1.2, 1.1], number=0),
    Tried({"lr": 0.01, "width": 64}, [0.5, 0.7, 0.65], number=1),
    Tried({"lr": 0.01, "width": 128}, [0.45, 0.66, 0.6], number=2),
    Tried({"lr": 1.0, "width": 64}, [], "failed", "the gradient is not finite", 3),
    Tried({"lr": 0.001, "width": 64}, [0.8], number=4),
    Tried({"lr": 0.5, "width": 64}, [], "pruned", number=5),
]


def test_order_and_significance() -> None:
    ranked = rank(TRIED, smaller=True)
    assert [one.tried.number for one in ranked] == [2, 1, 4, 0, 3, 5]
    best = TRIED[2].values
    raw = [ttest_rel(one.values, best).pvalue for one in (TRIED[1], TRIED[0])]
    assert ranked[1].p == pytest.approx(max(2 * min(raw), max(raw)) if raw[0] > raw[1] else 2 * raw[0])
    assert math.isnan(ranked[0].p) and math.isnan(ranked[2].p)  # the best itself; one seed
    assert rank(TRIED, smaller=False)[0].tried.number == 0
    assert ranked[0].tried.deviation == pytest.approx(np.std(best, ddof=1))


def test_the_table_has_every_seed() -> None:
    rows = list(csv.DictReader(io.StringIO(table(rank(TRIED, True), "loss"))))
    assert rows[0]["lr"] == "0.01" and rows[0]["width"] == "128" and rows[0]["loss, seed 1"] == "0.66"
    assert rows[0]["mean"] == "0.57" and rows[2]["deviation"] == "" and rows[4]["note"] == "the gradient is not finite"


def test_what_matters() -> None:
    random = np.random.default_rng(0)
    tried = [
        Tried({"lr": lr, "name": name, "same": 1}, [abs(math.log10(lr) + 2) + 0.01 * random.random()])
        for lr in np.geomspace(1e-4, 1, 9).tolist() for name in ("a", "b")
    ]  # fmt: skip
    found = importance(tried)
    assert [*found] == ["lr", "name"] and found["lr"] > 0.95
    assert importance(tried[:3]) == {}


def test_a_wider_model_is_foretold() -> None:
    tried = [Tried({"encoder.width": w, "lr": lr}, [3 - 0.1 * math.log2(w) + lr]) for w in (64, 256) for lr in (0, 1)]
    best = rank(tried, True)[0].tried
    found = predict(tried, best, "encoder.width", 1024, True)
    assert found.value == pytest.approx(3 - 0.1 * 10) and "-0.1 for each doubling over 2 widths" in found.said
    alone = predict(tried[:2], tried[0], "encoder.width", 1024, True)
    assert alone.value is None and alone.said.startswith("at most 2.4")


def test_the_page(tmp_path: Path) -> None:
    write_search_report(tmp_path / "p.html", "s", {"job": "x"}, rank(TRIED, True), "loss", True, "told <so>")
    page = (tmp_path / "p.html").read_text()
    for text in (
        "loss against lr",
        "All options of each point",
        "width 128",
        "told &lt;so&gt;",
        "not finite",
        "pruned",
    ):
        assert text in page
    write_search_report(tmp_path / "q.html", "s", {}, [], "loss", True, "")
