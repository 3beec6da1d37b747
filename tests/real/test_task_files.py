"""The shipped protein tasks on their data: digests fit, and what needs no search for relatives can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from biometro.evaluation import probes, retrieval, tasks

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_data_are_those_of_the_task_files(real_data: Path) -> None:
    found = tasks.find(["protein"])
    for task in found:
        task.digest(task.locate(real_data))
    assert len({task.digest(task.locate(real_data))[0] for task in found}) == len(found)


@pytest.mark.parametrize("name", ["localisation", "secondary_structure", "signal_peptide", "solubility"])
def test_published_sides_can_be_read(name: str, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "installed", lambda: False)
    (task,) = tasks.find([name])
    exam = task.read(task.locate(real_data), resamples=100)
    assert isinstance(exam, probes.ProbeExam)
    assert all(len(exam.letters[side]) > 100 for side in ("train", "valid", "test"))
    assert not {*exam.letters["train"]} & {*exam.letters["valid"]}


def test_pairs_of_remote_homologues_are_told_apart_by_length(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "installed", lambda: False)
    (task,) = tasks.find(["remote_homology"])
    exam = task.read(task.locate(real_data), resamples=200)
    assert isinstance(exam, retrieval.PairsExam)
    score = exam.baselines()["length"]
    names = [[exam.test[i] for i in pair] for pair in exam.pair_P2.tolist()]
    apart = [-abs(np.log(len(a) / len(b))) for a, b in names]
    # Two pairs of one ratio differ in the last digit or not, which moves ties a little.
    assert score.figures["auroc"] == pytest.approx(roc_auc_score(exam.related_P, apart), abs=1e-4)
    assert 0.9 < score.figures["auroc"] < 0.91
