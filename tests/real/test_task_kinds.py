"""The shipped tasks of molecules, T-cell receptors and antibodies on their data: digests, sizes, sides, letters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from biometro.alphabet import Reading
from biometro.alphabet.immune import MARKS, split
from biometro.data import fingerprints, sides
from biometro.evaluation import probes, retrieval, tasks

pytestmark = [pytest.mark.real, pytest.mark.slow]

SUITES = ["molecule", "tcr", "antibody"]
NAMES = [task.name for task in tasks.find(SUITES) if task.head.kind != "retrieval"]
LARGE = {"hiv", "tox21", "aqsoldb", "binding", "binding_unseen"}  # half a minute or more
PARTS = {
    "epitope_beta": {"second"}, "epitope_paired": {"first", "second"}, "binding": {"second", "peptide"},
    "binding_unseen": {"second", "peptide"}, "binding_paired": {"first", "second", "peptide"},
    "neutralisation": {"first", "second"}, "spike_domain": {"first", "second"},
}  # fmt: skip


def test_data_are_those_of_the_task_files(real_data: Path) -> None:
    found = tasks.find(SUITES)
    assert len({task.digest(task.locate(real_data))[0] for task in found}) == len(found) > 18


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] if n in LARGE else []) for n in NAMES])
def test_tasks_are_read_and_their_sides_are_sound(name: str, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "installed", lambda: False)
    (task,) = tasks.find([name])
    exam = task.read(task.locate(real_data), resamples=100)
    assert isinstance(exam, probes.ProbeExam) and exam.sequences == task.config.sequences
    letters = {side: {*exam.letters[side]} for side in sides.SIDES}
    assert len(exam.letters["train"]) > 300 and all(len(exam.letters[side]) > 50 for side in sides.SIDES)
    # a pair of receptor and peptide stands once; published sides are taken as they are
    assert not letters["train"] & letters["test"] and not letters["train"] & letters["valid"]
    reading = Reading(exam.sequences, molecules=task.config.molecules)
    some = exam.test[:: max(1, len(exam.test) // 100)]
    assert [reading.cleaner()(text).letters for text in some] == some
    for text in some if name in PARTS else ():
        assert set(split(text)) == PARTS[name]
    if exam.sequences == "molecule" and task.config.split.by == "scaffold":
        scaffolds = {side: {fingerprints.scaffold(text) for text in exam.letters[side]} for side in sides.SIDES}
        assert not scaffolds["train"] & (scaffolds["test"] | scaffolds["valid"])
    for side in sides.SIDES:
        truth = exam.truth[side]
        if exam.kind == "classification":
            assert np.bincount(truth, minlength=exam.task.outputs).min() >= (5 if side != "train" else 20)  # type: ignore[arg-type]
        elif exam.kind == "multilabel":
            assert np.nanmin(np.nansum(truth, axis=0)) >= (1 if side != "train" else 10)  # type: ignore[arg-type]


@pytest.mark.long
def test_epitopes_are_held_out_whole(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "installed", lambda: False)
    (task,) = tasks.find(["binding_unseen"])
    exam = task.read(task.locate(real_data), resamples=100)
    assert isinstance(exam, probes.ProbeExam)
    epitopes = {side: {split(text)["peptide"] for text in exam.letters[side]} for side in sides.SIDES}
    assert not epitopes["train"] & (epitopes["valid"] | epitopes["test"]) and len(epitopes["test"]) >= 20


def test_receptors_of_one_epitope_can_be_looked_for(real_data: Path) -> None:
    (task,) = tasks.find(["epitope_neighbours"])
    exam = task.read(task.locate(real_data), resamples=100)
    assert isinstance(exam, retrieval.RetrievalExam) and len(exam.letters) == 1200
    assert all(not MARKS.isdisjoint(text.decode()) for text in exam.letters)
    scores = exam.baselines()
    assert list(scores) == ["composition", "k-mers", "edit similarity"]
    assert scores["edit similarity"].figures["top1"] > scores["composition"].figures["top1"]
