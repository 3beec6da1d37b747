"""Models and baselines through tasks, each result kept as a file, so that a command goes on where it stopped.

    tasks ─▶ at hand? ─▶ baselines of each ─┐
    models ─▶ one at a time ─▶ each task ───┴─▶ parts/*.json ─▶ Run: all that was found, ready to be compared

A part is named by all that its figures depend on: the model's fingerprint, the task's digest (which covers its data),
the options. What was computed is never computed again, and another model or task computes what is new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biometro.data.mmseqs import installed
from biometro.errors import UserError
from biometro.evaluation import overlap
from biometro.evaluation.overlap import Corpora, Trained
from biometro.evaluation.protocol import RESAMPLES, Exam, NotAtHandError, Score, Subject
from biometro.evaluation.results import plain
from biometro.evaluation.tasks import TaskFile
from biometro.files import saying, write_file
from biometro.inference.likelihood import FloatPrecision
from biometro.model.bundle import Bundle
from biometro.model.load import load, merged
from biometro.untrusted import read_json

Say = Callable[[str], None]
Done = Callable[[str, str, Score | str], None]  # task, method, its score or why there is none


@dataclass(frozen=True)
class Candidate:
    """A model that is examined: its name in tables, where it is, and its fingerprint (`load.fingerprint`)."""

    name: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class Settings:
    """What figures depend on beside model and task, and how they are computed; see `evaluate`."""

    seed: int = 0
    resamples: int = RESAMPLES
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: FloatPrecision = "auto"
    batch_tokens: int | None = None
    overlap: overlap.Mode = "exact"
    base: str | None = None


@dataclass
class Ready:
    """A task whose data are at hand: where, its digest, and the sha256 of each file ('' of an example)."""

    task: TaskFile
    places: list[str]
    digest: str
    sha256: list[str]


@dataclass
class Examined:
    """One task with all that was found: facts, scores of baselines, scores of models, why others have none, and how
    many test sequences each model has seen."""

    ready: Ready
    facts: dict[str, str]
    baselines: dict[str, Score]
    models: dict[str, dict[str, Score]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    overlaps: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Run:
    """All that was found. `about` says of each model what it is; `left_out` of each task why it was not run."""

    examined: list[Examined]
    left_out: list[tuple[TaskFile, str]]
    about: dict[str, dict[str, Any]]
    computed: int


def ready(tasks: Sequence[TaskFile], folder: Path | None) -> tuple[list[Ready], list[tuple[TaskFile, str]]]:
    """Tasks whose data are at hand, and the others with the reason.

    Raises UserError where no task is, and for data that are not those of the task.
    """
    found, missing = [], []
    for task in tasks:
        try:
            places = task.locate(folder)
            digest, sha256 = task.digest(places)
            found.append(Ready(task, places, digest, sha256))
        except NotAtHandError as error:
            missing.append((task, str(error)))
    if not found:
        raise UserError(f"none of {len(tasks)} tasks can be run: {missing[0][0].name}: {missing[0][1]}")
    return found, missing


class Harness:
    """The parts of one output folder.

    Args:
        folder: where parts are kept; made if it is not there.
        settings: of the run.
        corpora: those that are at hand.
    """

    def __init__(self, folder: Path, settings: Settings, corpora: Corpora):
        self.parts, self.settings, self.corpora = folder / "parts", settings, corpora
        with saying(self.parts):
            self.parts.mkdir(parents=True, exist_ok=True)
        self._exams: dict[str, Exam] = {}
        self.computed = 0

    def run(self, tasks: Sequence[Ready], models: Sequence[Candidate], say: Say, done: Done) -> Run:
        """Every model through every task.

        Args:
            tasks: what is at hand.
            models: what is examined.
            say: hears what is being done.
            done: hears of each task and method its score, or why there is none.

        Raises UserError for a model that cannot be loaded, data that cannot be read, and where no task can be run.
        """
        examined, left_out = [], []
        for each in tasks:
            say(f"{each.task.name}: baselines")
            try:
                facts, baselines = self._baselines(each)
            except NotAtHandError as error:
                left_out.append((each.task, str(error)))
                continue
            examined.append(Examined(each, facts, baselines))
            for name, score in baselines.items():
                done(each.task.name, name, score)
        if not examined:
            raise UserError(f"none of {len(tasks)} tasks can be run: {left_out[0][1]}")
        about = {}
        for model in models:
            subject = _Lazy(model, self.settings)
            about[model.name] = self._about(model, subject)
            trained = Trained(**about[model.name]["trained"])
            for one in examined:
                self._examine(one, model, subject, say, done)
                one.overlaps[model.name] = self._overlap(one.ready, trained, say)
        return Run(examined, left_out, about, self.computed)

    def _examine(self, each: Examined, model: Candidate, subject: _Lazy, say: Say, done: Done) -> None:
        name = each.ready.task.name
        settings = self.settings
        key = [each.ready.digest, model.fingerprint, settings.seed, settings.resamples, settings.precision]
        path = self._path(name, [*key, settings.device.type])
        try:
            found = self._known(path)
            if found is None:
                say(f"{name}: {model.name}")
                exam = self._exam(each.ready)
                scores = exam.model(subject.get(), lambda text: say(f"{name}: {model.name}, {text}"))
                found = self._keep(path, {"task": name, "model": model.path, "methods": _to_json(scores)})
            each.models[model.name] = _from_json(found["methods"])
            for method, score in each.models[model.name].items():
                done(name, f"{model.name} ({method})", score)
        except UserError as error:
            each.refused[model.name] = str(error)
            done(name, model.name, str(error))

    def _baselines(self, each: Ready) -> tuple[dict[str, str], dict[str, Score]]:
        key = [each.digest, "baselines", self.settings.seed, self.settings.resamples, installed()]
        path = self._path(each.task.name, key)
        found = self._known(path)
        if found is None:
            exam = self._exam(each)
            scores = exam.baselines()
            said = {"task": each.task.name, "facts": dict(exam.facts), "methods": _to_json(scores)}
            found = self._keep(path, said)
        return {str(name): str(text) for name, text in found["facts"].items()}, _from_json(found["methods"])

    def _about(self, model: Candidate, subject: _Lazy) -> dict[str, Any]:
        """What a model is, and what it says of its training; a part too, so that nothing is loaded to say it."""
        path = self._path("about", [model.fingerprint])
        found = self._known(path)
        if found is None:
            bundle = subject.get().bundle
            said = {
                "encoder": bundle.encoder.config.summary,
                "parameters": sum(p.numel() for p in bundle.encoder.parameters()),
                "width": bundle.encoder.config.width,
                "trained": dataclasses.asdict(overlap.training_of(subject.bundle())),
            }
            found = self._keep(path, said)
        return found

    def _overlap(self, each: Ready, trained: Trained, say: Say) -> dict[str, Any]:
        mode = self.settings.overlap
        corpus = self.corpora.find(trained) if mode != "none" else None
        if corpus is None:
            return overlap.describe([], "protein", trained, self.corpora, mode)
        path = self._path(each.task.name, [each.digest, "overlap", corpus.digest, mode, trained.tuned])
        found = self._known(path)
        if found is None:
            say(f"{each.task.name}: looking test sequences up in {corpus.folder}")
            exam = self._exam(each)
            found = self._keep(path, overlap.describe(exam.test, exam.sequences, trained, self.corpora, mode))
        return found

    def _exam(self, each: Ready) -> Exam:
        if each.digest not in self._exams:
            settings = self.settings
            keep = self.parts / f"{each.task.name}-{_digest([each.digest, settings.seed])}.parquet"
            self._exams[each.digest] = each.task.read(
                each.places, seed=settings.seed, resamples=settings.resamples, keep=keep
            )
        return self._exams[each.digest]

    def _path(self, name: str, key: list[Any]) -> Path:
        return self.parts / f"{name}-{_digest(key)}.json"

    def _known(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        found = read_json(path)
        if not isinstance(found, dict):
            raise UserError(f"{path}: holds no result; remove it, and it is computed again")
        return found

    def _keep(self, path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
        self.computed += 1
        found = plain(said)
        write_file(path, json.dumps(found))
        assert isinstance(found, dict)
        return found


class _Lazy:
    """A model that is loaded when it is first needed, and not before."""

    def __init__(self, model: Candidate, settings: Settings):
        self._model, self._settings = model, settings
        self._bundle: Bundle | None = None
        self._subject: Subject | None = None

    def bundle(self) -> Bundle:
        if self._bundle is None:
            self._bundle = load(self._model.path, self._settings.base)
        return self._bundle

    def get(self) -> Subject:
        if self._subject is None:
            settings, model = self._settings, self._model
            self._subject = Subject(
                model.name, model.path, merged(self.bundle()), model.fingerprint, settings.device, settings.precision,
                settings.batch_tokens,
            )  # fmt: skip
        return self._subject


def _digest(key: list[Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]


def _to_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {
        name: {**dataclasses.asdict(score), "replicates": score.replicates.tolist()} for name, score in scores.items()
    }


def _from_json(found: Mapping[str, Any]) -> dict[str, Score]:
    """Scores as they were kept; what is not finite was written as null."""
    scores = {}
    for name, said in found.items():
        figures = {key: np.nan if value is None else float(value) for key, value in said["figures"].items()}
        replicates = np.array([np.nan if value is None else value for value in said["replicates"]], dtype=np.float64)
        scores[name] = Score(figures, replicates, said["seconds"] or 0.0, said["details"], said["note"])
    return scores
