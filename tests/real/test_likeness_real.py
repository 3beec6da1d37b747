"""Splits of real molecules and receptors, and what their leaks say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from biometro.alphabet import Reading
from biometro.data import sides
from biometro.data.intake import Account
from biometro.data.labels import Labelled, read_labelled
from biometro.data.sides import SplitConfig
from biometro.data.sources import ReadOptions
from biometro.data.task import LabelConfig, Task
from biometro.evaluation.baselines import beside
from biometro.evaluation.metrics import measure

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_scaffolds_of_bace_keep_molecules_apart_and_baselines_work(real_data: Path) -> None:
    found = read_labelled(
        str(real_data / "moleculenet" / "bace.parquet"), LabelConfig(column="Class"),
        ReadOptions(column="mol", id_column="CID"), Reading("molecule"),
    )  # fmt: skip
    assert len(found) > 1500
    near = {}
    for by in ("random", "scaffold"):
        made = sides.divide(found, by, SplitConfig(by=by), 0)  # type: ignore[arg-type]
        near[by] = made.leaks["test"].similarity.mean()
        assert made.sizes()["test"] == pytest.approx(0.2 * len(found), rel=0.05)
    assert made.families is not None
    held = [{*made.families[part].tolist()} for part in (made.train, made.valid, made.test)]
    assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    assert near["scaffold"] < near["random"] - 0.02
    letters, truth = np.array(found.letters, dtype=object), np.asarray(found.truth)
    for make in beside("molecule", "classification", found.task.names, 0).values():
        p = make().fit(letters[made.train].tolist(), truth[made.train]).predict(letters[made.test].tolist())
        assert measure("classification", truth[made.test], p, found.task.names)["auroc"] > 0.7


def test_receptors_of_vdjdb_have_no_relatives_across(real_data: Path) -> None:
    columns = ["cdr3.alpha", "cdr3.beta", "antigen.epitope"]
    table = pq.read_table(real_data / "tcr" / "vdjdb.parquet", columns=columns).to_pylist()
    rows = dict.fromkeys((row["cdr3.alpha"] or "", row["cdr3.beta"] or "", row["antigen.epitope"]) for row in table)
    rows = {row: None for row in rows if (row[0] + row[1]).isalpha()}
    letters = [f"{alpha}|{beta}:{epitope}".encode() for alpha, beta, epitope in rows]
    assert len(letters) > 40_000
    names = sorted({row[2] for row in rows})
    truth = np.array([names.index(row[2]) for row in rows])
    data = Labelled(
        Task("classification", tuple(names)), [str(i) for i in range(len(letters))], letters, [row[2] for row in rows],
        truth, {}, {}, Account(), "tcr",
    )  # fmt: skip
    config: Any = SplitConfig(by="cdr3")
    families = sides._families(data, "cdr3", config)
    betas: dict[str, set[int]] = {}
    for (_, beta, _), family in zip(rows, families.tolist(), strict=True):
        betas.setdefault(beta, set()).add(family)
    alone = {beta for alpha, beta, _ in rows if not alpha}
    assert all(len(found) == 1 for beta, found in betas.items() if beta in alone)
    chosen = np.random.default_rng(0).permutation(sorted(alone))[:500].tolist()
    others = [beta for beta in betas if beta]
    near = np.argwhere(cdist(chosen, others, scorer=Levenshtein.distance, score_cutoff=1) <= 1)
    assert len(near) > 600
    assert all(betas[chosen[i]] == betas[others[j]] for i, j in near.tolist())
    data = replace(data, truth=np.arange(len(rows)) % 2, task=Task("classification", ("a", "b")))
    made = sides.divide(data, "group", SplitConfig(by="group", column="antigen.epitope"), 0)
    held = [{names[k] for k in truth[part]} for part in (made.train, made.test)]
    assert not held[0] & held[1] and 0 < made.leaks["test"].share < 1
