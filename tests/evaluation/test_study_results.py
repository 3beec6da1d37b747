"""What a study says: paired differences over seeds, what is clear, and what is not."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp, ttest_rel

from biometro.evaluation.study_pictures import curves, dots, picture
from biometro.evaluation.study_report import About, publish, sentences, table, write
from biometro.evaluation.study_results import Measured, Trained, differences, overall, untrained

TASKS = [("binding", "auroc", True), ("affinity", "rmse", False)]


def rows(gap: float, noise: float = 0.01, seeds: int = 4) -> list[Measured]:
    """An arm that is better by `gap` on both tasks than the reference, with seeds in common."""
    random = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        luck = 0.1 * random.standard_normal()
        for arm, more in (("mlm", 0.0), ("metro", gap)):
            for task, metric, larger in TASKS:
                value = 0.7 + luck + more + noise * random.standard_normal()
                found.append(
                    Measured("tcr", "S", 1e13, arm, seed, task, metric, value if larger else 2 - value, larger)
                )
    baseline = [
        Measured("tcr", "", 0.0, "k-mers", 0, t, m, 0.9 if la else 1.0, la, baseline=True) for t, m, la in TASKS
    ]
    untrained = [
        Measured("tcr", "S", 0.0, "untrained", s, t, m, 0.4 + s / 10 if la else 1.0, la, baseline=True)
        for t, m, la in TASKS for s in (0, 1)
    ]  # fmt: skip
    return found + baseline + untrained


def test_differences_are_paired_by_seed_and_above_0_is_better() -> None:
    found = {one.task: one for one in differences(rows(0.1), "mlm")}
    assert set(found) == {"", "binding", "affinity"} and found[""].blocks == 4
    data = {(r.arm, r.task, r.seed): r.value if r.larger_is_better else -r.value for r in rows(0.1)}
    gaps = {t: [data["metro", t, s] - data["mlm", t, s] for s in range(4)] for t, _, _ in TASKS}
    for task, values in gaps.items():
        assert found[task].mean == pytest.approx(np.mean(values)) and found[task].mean > 0
    whole = np.mean(list(gaps.values()), axis=0)
    assert found[""].p == pytest.approx(ttest_1samp(whole, 0).pvalue)
    raw = sorted(ttest_1samp(values, 0).pvalue for values in gaps.values())
    assert sorted(found[t].p for t in gaps) == pytest.approx([2 * raw[0], max(2 * raw[0], raw[1])])


def test_with_more_arms_the_deviation_is_that_of_all_or_its_own_where_larger() -> None:
    """Against ordinary least squares with a dummy for each arm and each seed."""
    random = np.random.default_rng(1)
    arms, seeds = ["mlm", "a", "b", "c"], range(3)
    value = {
        (arm, s): 0.05 * i + 0.1 * s + 0.01 * random.standard_normal() for i, arm in enumerate(arms) for s in seeds
    }
    some = [Measured("tcr", "S", 1e13, arm, s, "binding", "auroc", v) for (arm, s), v in value.items()]
    design = np.array([[1.0] + [arm == a for a in arms[1:]] + [s == k for k in (1, 2)] for arm, s in value])
    y = np.array(list(value.values()))
    beta, rest, _, _ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - design.shape[1]
    pooled = np.sqrt(rest[0] / freedom * np.diag(np.linalg.inv(design.T @ design)))[1:4]
    table = y.reshape(4, 3)
    own = (table[1:] - table[0]).std(1, ddof=1) / np.sqrt(3)
    spread = np.maximum(pooled, own)
    assert 0 < (own > pooled).sum() < 3
    raw = 2 * student.sf(np.abs(beta[1:4] / spread), freedom)
    found = {one.arm: one for one in differences(some, "mlm") if one.task == "binding"}
    assert [found[a].mean for a in arms[1:]] == pytest.approx(beta[1:4])
    order = np.argsort(raw)
    expected = np.maximum.accumulate(np.sort(raw) * [3, 2, 1])
    assert [found[arms[1 + i]].p for i in order] == pytest.approx(expected)
    few = [r for r in some if (r.arm, r.seed) != ("c", 2)]  # of two seeds no verdict, and none is lost by it
    verdicts = {(one.arm, one.task): one.p for one in differences(few, "mlm")}
    without = {(one.arm, one.task): one.p for one in differences([r for r in some if r.arm != "c"], "mlm")}
    assert math.isnan(verdicts["c", "binding"]) and without["a", "binding"] < 1
    assert {key: p for key, p in verdicts.items() if key[0] != "c"} == without
    lacking = [r for r in some if r.arm in ("mlm", "a") and (r.arm, r.seed) != ("mlm", 2)]
    assert all(math.isnan(one.p) for one in differences(lacking, "mlm"))


def test_a_seed_that_one_arm_lacks_counts_for_the_others() -> None:
    """The deviation is that of the seeds that all arms have; the difference that of all that the two have."""
    random = np.random.default_rng(3)
    some = [
        Measured("tcr", "S", 1e13, arm, s, "binding", "auroc", 0.1 * s + 0.05 * i + 0.03 * random.standard_normal())
        for i, arm in enumerate(("mlm", "a", "c")) for s in range(4)
    ]  # fmt: skip
    lacking = [r for r in some if (r.arm, r.seed) != ("c", 3)]
    whole = {arm: np.array([r.value for r in some if r.arm == arm]) for arm in ("mlm", "a", "c")}
    shared = np.array([values[:3] for values in whole.values()])
    rest = shared - shared.mean(1, keepdims=True) - shared.mean(0) + shared.mean()
    error = (rest**2).sum() / 4
    raw = {}
    for arm, seeds in (("a", 4), ("c", 3)):
        gap = (whole[arm] - whole["mlm"])[:seeds]
        raw[arm] = 2 * student.sf(abs(gap.mean()) / np.sqrt(max(2 * error, gap.var(ddof=1)) / seeds), 4)
    found = {one.arm: one for one in differences(lacking, "mlm") if one.task == ""}
    assert (found["a"].blocks, found["c"].blocks) == (4, 3)
    least, most = sorted(raw, key=lambda arm: raw[arm])
    assert found[least].p == pytest.approx(2 * raw[least])
    assert found[most].p == pytest.approx(max(2 * raw[least], raw[most]))


def test_sentences_say_what_is_clear() -> None:
    def said(gap: float, **more: int) -> list[str]:
        return sentences(differences(rows(gap, **more), "mlm"), overall(rows(gap, **more), "mlm"), "mlm")

    assert "tcr, S: metro is clearly better at 1e+13 FLOPs (+0.097 ± 0.014" in said(0.1)[0] and len(said(0.1)) == 1
    assert "tcr, S: metro is clearly worse at 1e+13 FLOPs (-0.103 ± 0.014" in said(-0.1)[0]
    assert said(0.0) == ["On the mean of a corpus' tasks nothing differs clearly from mlm"]
    assert said(0.1, seeds=1) == ["1 of 1 comparisons on one corpus have too few seeds for a verdict (3)"]
    assert all(math.isnan(d.p) for d in differences(rows(0.1, seeds=1), "mlm"))


def test_over_all_corpora_a_block_is_a_corpus() -> None:
    """Against scipy's paired t-test on the corpora's means: an arm's own deviation, whatever the others'."""
    random = np.random.default_rng(2)
    arms, corpora = ["mlm", "a", "b"], ["t", "u", "v", "w"]
    some = [
        Measured(corpus, size, 1e13, arm, seed, task, metric, value if larger else 2 - value, larger)
        for i, arm in enumerate(arms) for j, corpus in enumerate(corpora) for size in ("S", "M") for seed in (0, 1)
        for task, metric, larger in TASKS
        for value in [0.1 * i + 0.2 * j + 0.03 * random.standard_normal()]
    ]  # fmt: skip
    signed: dict[tuple[str, str], list[float]] = {(arm, corpus): [] for arm in arms for corpus in corpora}
    for row in some:
        signed[row.arm, row.corpus].append(row.value if row.larger_is_better else -row.value)
    mean = {arm: np.array([np.mean(signed[arm, corpus]) for corpus in corpora]) for arm in arms}
    raw = [ttest_rel(mean[arm], mean["mlm"]).pvalue for arm in arms[1:]]
    found = overall(some, "mlm")
    assert [one.arm for one in found] == ["a", "b"] and {one.blocks for one in found} == {4}
    assert [one.mean for one in found] == pytest.approx([(mean[arm] - mean["mlm"]).mean() for arm in arms[1:]])
    assert sorted(one.p for one in found) == pytest.approx([2 * min(raw), max(2 * min(raw), max(raw))])
    text = sentences(differences(some, "mlm"), found, "mlm")
    assert text[1].startswith("At 1e+13 FLOPs, over 4 corpora, b is clearly better than mlm (+0.198 ")
    lacking = [r for r in some if (r.arm, r.corpus) != ("b", "w")]  # of all that every arm has
    assert {one.blocks for one in overall(lacking, "mlm")} == {3}
    unseen = [r for r in some if (r.arm, r.corpus, r.size) != ("b", "w", "S")]
    kept = [r for r in some if (r.corpus, r.size) != ("w", "S")]
    assert [o.mean for o in overall(unseen, "mlm")] == pytest.approx([o.mean for o in overall(kept, "mlm")])
    assert overall([r for r in some if r.corpus == "t"], "mlm") == []


def test_a_seed_that_one_arm_lacks_is_not_compared() -> None:
    some = [r for r in rows(0.1) if not (r.arm == "metro" and r.seed == 0 and r.task == "binding")]
    found = {one.task: one.blocks for one in differences(some, "mlm")}
    assert found == {"": 3, "binding": 3, "affinity": 4}


def test_models_that_nothing_has_trained_stand_beside_every_budget() -> None:
    some = [
        replace(row, corpus=corpus, flops=flops, value=row.value - less)
        for corpus, less in (("t", 0.0), ("u", 0.1), ("v", 0.2)) for flops in (1e12, 1e13) for row in rows(0.1)
        if row.task == "binding" and not row.baseline
    ]  # fmt: skip
    nothing = [
        Measured(corpus, "S", 0.0, "untrained", seed, "binding", "auroc", 0.5, baseline=True)
        for corpus in "tuv" for seed in range(4)
    ]  # fmt: skip
    found, over_all = untrained([*some, *nothing], "mlm")
    assert {(one.arm, one.flops) for one in found} == {("untrained", 1e12), ("untrained", 1e13)}
    mlm = [row.value for row in some if row.arm == "mlm" and row.corpus == "u" and row.flops == 1e12]
    (one,) = [one for one in found if (one.corpus, one.flops, one.task) == ("u", 1e12, "")]
    assert one.mean == pytest.approx(0.5 - np.mean(mlm)) and one.blocks == 4
    assert [(one.blocks, one.mean) for one in over_all] == [(3, pytest.approx(0.5 - np.mean(mlm)))] * 2
    assert untrained(some, "mlm") == ([], [])


def test_the_page_and_what_is_published(tmp_path: Path) -> None:
    rates = {("tcr", "mlm"): 0.001, ("tcr", "metro"): 0.002}
    trained = [
        Trained("tcr", "S", 1e13, arm, seed, 100 + seed, 2_000_000, {loss: 2.0 + seed, "seconds": 1.0})
        for arm, loss in (("mlm", "mlm_masked_loss"), ("metro", "aux_loss")) for seed in (0, 1)
    ]  # fmt: skip
    about = About(
        "Two ways", "mlm", {"mlm": {}, "metro": {"metro.mask_rate": 0.2}}, {"S": {"encoder.width": 64}}, rates,
        {"tcr": 2.5}, ["metro on tcr, S"], complete=False,
    )  # fmt: skip
    said = write(tmp_path / "s", about, rows(0.1), trained)
    assert "clearly better" in said
    publish(tmp_path / "s", tmp_path / "docs" / "results.md")
    page = (tmp_path / "docs" / "results.md").read_text()
    for text in (
        "# Two ways",
        "| S, 1e+13, mlm | 100 | 2.00 | 2.500 | - |",
        "| S, 1e+13, metro | 100 | 2.00 | - | 2.500 |",
        "results-runs.csv",
        "under way",
        "results-tcr.svg",
        "| tcr | 0.001 | 0.002 |",
        "k-mers | 0.900 | 1.000",
        "## Mean over tasks",
        "| | metro | untrained |",
        "| tcr, S, 1e+13 | +0.097 ± 0.014 ▲ | -",
        "over 4 seeds; ▲ clearly better",
        "means over 2 seeds; unigram entropy 2.500 nats; all runs: `results-runs.csv`",
        "- mlm: the recipe as it stands\n- metro: `metro.mask_rate 0.2`\n- S: `encoder.width 64`\n",
        "- No figures, for they diverged: metro on tcr, S.",
        "| untrained, S | 0.450 ± 0.071 | 1.000 ± 0.000 |",
    ):
        assert text in page
    minidom.parse(str(tmp_path / "docs" / "results-tcr.svg"))  # XML in its own right, not a part of a page
    found = list(csv.DictReader(io.StringIO((tmp_path / "docs" / "results.csv").read_text())))
    assert len(found) == 22 and found[0]["value"] == f"{rows(0.1)[0].value:.6g}"
    runs = list(csv.DictReader(io.StringIO((tmp_path / "docs" / "results-runs.csv").read_text())))
    assert [(row["arm"], row["seed"], row["steps"], row["aux_loss"]) for row in runs] == [
        ("mlm", "0", "100", ""), ("mlm", "1", "101", ""), ("metro", "0", "100", "2"), ("metro", "1", "101", "3"),
    ]  # fmt: skip
    assert table([]).count("\n") == 1
    write(tmp_path / "one", About("One", "mlm"), rows(0.1, seeds=1), [])
    assert "Learning rates" not in (tmp_path / "one" / "study.md").read_text()
    assert "nan" not in (tmp_path / "one" / "study.md").read_text()
    write(tmp_path / "s", About("None", "mlm", complete=False), [], [])


def test_of_one_budget_arms_stand_below_one_another() -> None:
    here = rows(0.1)
    axes = dots(here).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mlm", "metro"]
    drawn: Any = axes.containers[0]
    for place, (arm, x) in enumerate(zip(("mlm", "metro"), drawn.lines[0].get_xdata(), strict=True)):
        signed = [r.value if r.larger_is_better else -r.value for r in here if r.arm == arm]
        assert x == pytest.approx(np.mean(signed)) and drawn.lines[0].get_ydata()[place] == place
    bottom, top = axes.get_ylim()
    assert top < 0 and bottom > 1  # the first arm is on top
    text = picture(here)
    minidom.parseString(text)
    assert ">best baselines<" in text and "at 1e+13 FLOPs" in text


def test_of_more_budgets_a_line_joins_an_arm_s_means() -> None:
    here = rows(0.1)
    here += [replace(r, flops=1e14) for r in here if not r.baseline]
    axes: Any = curves(here).axes[0]
    low, high = axes.get_xlim()
    assert len(axes.containers) == 2
    for drawn in axes.containers:
        first, last = drawn.lines[0].get_xdata()
        assert low < 1e13 / 1.2 < first < 1.2e13 and 1e14 / 1.2 < last < 1.2e14 < high
    assert ">training FLOPs<" in picture(here)
