"""Models and baselines on one set of labelled sequences: what the fits of a `finetune` run share.

    split ─▶ baselines ─▶ for each depth and seed: vectors or tokens ─▶ fit ─▶ calibrate on validation ─▶ judge on test

Each result is a file of its own, so that a run that was stopped goes on after the last of them.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import biometro
from biometro.alphabet import AlphabetError, Reading
from biometro.data import sides
from biometro.data.examples import Examples
from biometro.data.labels import Labelled, take
from biometro.data.sides import Division
from biometro.data.task import Answers, Calibration, Truth
from biometro.errors import UserError
from biometro.evaluation import label_examples, metrics, overlap, results
from biometro.evaluation.baselines import beside
from biometro.files import write_file
from biometro.inference.embed import Embedder
from biometro.inference.features import Features
from biometro.inference.predict import answers
from biometro.model import adapters
from biometro.model.adapters import LoraConfig
from biometro.model.bundle import BaseModel, Bundle
from biometro.objectives.supervised import Supervised
from biometro.training import checkpoint, finetuning
from biometro.training.finetuning import FROZEN, Depth, FitConfig, HeadConfig
from biometro.training.parallel import World
from biometro.training.signals import StopRequest
from biometro.training.tracking import read_metrics
from biometro.untrusted import read_json

_SAMPLE = 1000  # training sequences whose residues' vectors say how to standardise them


class Comparison:
    """What the fits of one run share."""

    def __init__(
        self, folder: Path, labelled: Labelled, base: Bundle, model: str, weights: str, head: HeadConfig,
        lora: LoraConfig, training: FitConfig, metric: str, coverage: float, max_length: int, reading: Reading,
        seed: int, world: World, request: StopRequest, console: Console,
        recipe: dict[str, Any],
    ):  # fmt: skip
        self.folder, self.base, self.model, self.weights = folder, base, model, weights
        self.head, self.lora, self.training, self.metric = head, lora, training, metric
        self.coverage, self.max_length, self.reading = coverage, max_length, reading
        self.seed, self.world, self.request, self.console, self.recipe = seed, world, request, console, recipe
        self.labelled, self.task = labelled, labelled.task
        limit = max_length if base.longest is None else min(max_length, base.longest)
        self.truth: Truth = labelled.truth
        if isinstance(self.truth, list):
            self.truth = [value[:limit] for value in self.truth]
        self.limit = limit
        whole = [_encode(base, record, letters) for record, letters in zip(labelled.ids, labelled.letters, strict=True)]
        self.cut = sum(len(tokens) > limit for tokens in whole)
        self.tokens = [tokens[:limit] for tokens in whole]
        # a SMILES that is cut is none: its tokens are cut where the model reads them
        by_letter = base.alphabet.letter_is_token
        self.letters = [letters[:limit] for letters in labelled.letters] if by_letter else labelled.letters
        self.vectors: dict[str, list[np.ndarray]] = {}
        self.first: str | None = None
        """The first split, whose fits compete for model/."""

    def describe(self) -> dict[str, Any]:
        """The beginning of results.json; says aloud what was read."""
        task, labelled = self.task, self.labelled
        facts = {
            "model": self.model,
            "task": f"{task.kind}: {', '.join(task.names[:20])}" + (" ..." if task.outputs > 20 else ""),
            "sequences": f"{len(labelled):,} of {labelled.account.read or len(labelled):,} records",
        }
        for reason, count in labelled.account.dropped.items():
            where = "; ".join(re.sub(r"^\S*/", "", place) for place in labelled.account.examples[reason])
            facts[f"left out ({reason})"] = f"{count:,}, first: {where}"
        unit = "residues" if self.base.alphabet.letter_is_token else "tokens"
        if self.cut:
            facts["cut"] = f"{self.cut:,} sequences longer than {self.limit:,} {unit}, to their first ones"
        facts["device"] = self.world.hardware
        facts["made with"] = f"biometro {biometro.__version__}"
        for name, text in facts.items():
            self.console.print(f"{name}: {text}", highlight=False, markup=False, soft_wrap=True)
        return {
            "title": self.folder.name, "task": {"kind": task.kind, "names": list(task.names)}, "metric": self.metric,
            "coverage": self.coverage, "facts": facts, "splits": {},
            "classes": {"before": labelled.before, "after": labelled.after},
        }  # fmt: skip

    def begin_split(self, division: Division) -> dict[str, Any]:
        """The entry of a split; says aloud its sizes and leak."""
        self.first = self.first or division.by
        parts = {"train": division.train, "valid": division.valid, "test": division.test}
        entry: dict[str, Any] = {
            "sizes": division.sizes(), "classes": {}, "relatives": None, "methods": {}, "leaks": {},
        }  # fmt: skip
        names = {side: [self.labelled.ids[i] for i in part] for side, part in parts.items()}
        for side, leak in division.leaks.items():
            entry["leaks"][side] = sides.describe(leak, names[side], names["train"])
            entry["relatives"] = leak.relatives
        if self.task.kind.endswith("classification"):
            for side, part in parts.items():
                counts = finetuning.class_counts(Examples(self.task, take(self.truth, part)))
                entry["classes"][side] = dict(zip(self.task.names, counts.tolist(), strict=True))
        tested = [self.labelled.letters[i] for i in division.test]
        entry["cdr3s"] = label_examples.cdr3s(self.reading.kind, self.task, take(self.truth, division.test), tested)
        found = division.leaks.get("test")
        if found is not None:
            entry["nearest"] = sides.near(found)
        text = ", ".join(f"{count:,} {side}" for side, count in division.sizes().items())
        if rest := len(self.labelled) - sum(division.sizes().values()):
            text += f", {rest:,} on no side"
        near = "relatives in train: unmeasured"
        if found is not None:
            near = f"relatives in train, {found.relatives}: {found.count:,} of {found.of:,} test sequences "
            near += f"({100 * found.share:.1f} %)"
        self.console.print(f"split by {division.by}: {text}; {near}", highlight=False)
        return entry

    def run_baselines(self, division: Division, entry: dict[str, Any], aligned: bool) -> None:
        """What answers without a model, on a split, or what is known of it from before.

        aligned: whether proteins and antibodies are aligned for it.
        """
        found = beside(self.labelled.kind, self.task.kind, self.task.names, self.seed, aligned=aligned)
        for name, make in found.items():
            place = self.folder / division.by / name.replace(" ", "-")
            said = self._known(place)
            if said is None:
                began = time.perf_counter()
                baseline = make().fit([self.letters[i] for i in division.train], take(self.truth, division.train))
                predicted = baseline.predict([self.letters[i] for i in division.test])
                said = self._judge(division, predicted) | {
                    "seed": self.seed, "seconds": time.perf_counter() - began
                }  # fmt: skip
                self._keep(place, said)
            self._enter(entry, name, said, baseline=True)

    def run_fit(self, division: Division, entry: dict[str, Any], depth: Depth, seed: int) -> str | None:
        """One fit, or what is known of it from before; gives why it was stopped early, if it was."""
        place = self.folder / division.by / f"{depth}-{seed}"
        said = self.world.first(lambda: self._known(place))
        if said is None:
            began = time.perf_counter()
            made = {name: self.examples(getattr(division, name), depth) for name in ("train", "valid", "test")}
            moments = self.world.first(lambda: self.moments(division.train))

            def build() -> Supervised:
                return finetuning.build(
                    self.task, depth, self.base.encoder, self.base.encoder.config.width, made["train"], self.head,
                    self.lora, self.training, moments, seed,
                )  # fmt: skip

            objective = build()
            learnt = sum(p.numel() for p in objective.parameters() if p.requires_grad)
            self.console.print(f"{division.by}, {depth}, seed {seed}: {learnt:,} weights learn", highlight=False)
            fit = finetuning.fit(
                objective, made["train"], made["valid"], self.training, place, seed=seed, world=self.world,
                measure=lambda truth, found: metrics.measure(
                    self.task.kind, truth, found, self.task.names, self._groups(division.valid)
                ),
                metric=self.metric, larger=metrics.larger_is_better(self.metric), request=self.request, quiet=False,
            )  # fmt: skip
            if fit.outcome.stopped is not None:
                return fit.outcome.stopped

            def conclude() -> dict[str, Any]:
                whole = objective
                if self.world.size > 1:  # ranks hold shares; the checkpoint has it all
                    whole = build().to(self.world.device)
                    checkpoint.read_weights(checkpoint.folders(place / "checkpoints")[-1], whole, "best")
                seconds = time.perf_counter() - began
                facts = {"seed": seed, "epoch": fit.epoch, "trained_parameters": learnt, "seconds": seconds}
                said = facts | self._conclude(division, whole, made, depth, place)
                self._keep(place, said)
                return said

            said = self.world.first(conclude)
        if self.world.leads:  # of a run that was killed too, after its result was kept
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        self._enter(entry, depth, said, baseline=False)
        return None

    def examples(self, part: np.ndarray, depth: Depth) -> Examples:
        """Sequences as a depth reads them: tokens, or the vectors of the encoder as it is."""
        truth = take(self.truth, part)
        if depth in FROZEN:
            pooled = self.head.pooling != "attention" and not self.task.per_residue
            return Examples(self.task, truth, features=self._vectors(part, self.head.pooling if pooled else "residues"))
        alphabet = self.base.alphabet
        return Examples(self.task, truth, [self.tokens[i] for i in part], alphabet.begin_ids, alphabet.end_ids)

    def _vectors(self, part: np.ndarray, pooling: Any) -> list[np.ndarray]:
        """Of the encoder as it was, from the cache where they are there."""
        if self.world.size > 1 and not self.world.leads:
            raise AssertionError("only rank 0 reads vectors")
        device, precision = self.world.device, self.training.precision
        settings = f"{self.weights} {pooling} {precision} {device.type}"

        def embedder() -> Embedder:
            return Embedder(
                self.base, pooling=pooling, long="first", max_length=self.limit, precision=precision, device=device
            )

        store = Features(embedder, settings)
        began = time.perf_counter()
        found = store.of([self.letters[i] for i in part])
        if store.computed:
            self.console.print(
                f"{store.computed:,} of {len(part):,} sequences read by the encoder in "
                f"{time.perf_counter() - began:.1f} s; their vectors are kept in {store.store}", highlight=False,
                soft_wrap=True,
            )  # fmt: skip
        return found

    def moments(self, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (D,) of the encoder's vectors over training sequences, or a sample's residues."""
        residues = self.task.per_residue or self.head.pooling == "attention"
        if residues:
            chosen = np.random.default_rng(self.seed).permutation(train)[:_SAMPLE]
            rows = np.concatenate(self._vectors(chosen, "residues"))
        else:
            rows = np.stack(self._vectors(train, self.head.pooling))
        spread = rows.std(0)
        return rows.mean(0), np.where(spread > 1e-6, spread, 1).astype(np.float32)

    def _conclude(
        self, division: Division, objective: Supervised, made: dict[str, Examples], depth: Depth, place: Path
    ) -> dict[str, Any]:
        """Calibrate on validation, answer the test sequences, keep the model if it is the best so far."""
        head, task = objective.head, self.task
        scale = head.offset.cpu().numpy(), head.unit.cpu().numpy()
        budget = 4 * self.training.batch_tokens
        found = {
            side: finetuning.predict(objective, made[side], budget, self.world.device) for side in ("valid", "test")
        }
        fitted = results.calibrate(task, made["valid"].truth, found["valid"], *scale, self.coverage)
        said = self._judge(
            division, answers(task, found["test"], *scale, fitted.temperature), fitted,
            answers(task, found["test"], *scale) if task.discrete else None,
        )  # fmt: skip
        valid = metrics.measure(
            task.kind, made["valid"].truth, answers(task, found["valid"], *scale, fitted.temperature), task.names,
            self._groups(division.valid),
        )  # fmt: skip
        answered = answers(task, found["test"], *scale, fitted.temperature)
        letters = [self.labelled.letters[i] for i in division.test]
        drawn = label_examples.structures(self.reading.kind, task, made["test"].truth, answered, letters)
        said |= {"valid": results.plain(valid), "history": self._history(place), "examples": drawn}
        said |= {"temperature": fitted.temperature, "threshold": fitted.threshold, "radius": fitted.radius}
        if division.by == self.first and self._best_so_far(division.by, valid[self.metric]):
            self._save(objective, fitted, depth, division, said)
        return results.plain(said) if isinstance(said, dict) else said

    def _best_so_far(self, by: str, value: float | None) -> bool:
        """Whether no fit on this split was as good on validation, those of earlier commands in this folder included."""

        def worth(figure: float | None) -> float:
            if figure is None or not np.isfinite(figure):
                return -np.inf
            return float(figure) if metrics.larger_is_better(self.metric) else -float(figure)

        results_kept = (read_json(path) for path in (self.folder / by).glob("*/result.json"))
        before = [worth(said["valid"].get(self.metric)) for said in results_kept if "valid" in said]
        return not before or worth(value) > max(before)

    def _save(
        self, objective: Supervised, fitted: Calibration, depth: Depth, division: Division, said: dict[str, Any]
    ) -> None:
        encoder = self.base.encoder if objective.encoder is None else objective.encoder
        if depth == "lora_head":
            adapters.merge(objective.head)
        facts = {
            "fine-tuned": f"{depth} on {len(division.train):,} sequences, from {Path(self.model).name}",
            "task": f"{self.task.kind} ({self.task.outputs} outputs)",
            "split": f"by {division.by}: " + ", ".join(f"{count:,} {side}" for side, count in division.sizes().items()),
        }
        for name in results.MAIN[self.task.kind]:
            if said["figures"].get(name) is not None:
                facts[f"test: {name}"] = f"{said['figures'][name]:.4f}"
        if "test" in division.leaks:
            facts["test sequences with a relative in training"] = f"{100 * division.leaks['test'].share:.1f} %"
        corpus = overlap.training_of(self.base).digest
        if corpus is not None:  # for `evaluate`, which counts test sequences that the encoder has seen
            facts[overlap.DIGEST] = corpus
        asked = Answers(self.task, fitted, self.reading, self.limit)
        Bundle(
            self.base.alphabet, {"encoder": encoder, "head": objective.head}, self.recipe, facts, self.base.crop, asked,
            BaseModel(str(Path(self.model).absolute()), self.weights) if depth == "lora" else None,
        ).save(self.folder / "model")  # fmt: skip

    def _history(self, place: Path) -> dict[str, list[float | None]]:
        """The metric of every validation, and the mean training loss since the one before."""
        rows = read_metrics(place / "metrics.jsonl")
        history: dict[str, list[float | None]] = {"epoch": [], "valid": [], "loss": []}
        losses: list[float] = []
        for row in rows:
            if row["split"] == "train":
                losses.append(row["label_loss"])
            else:
                history["epoch"].append(float(len(history["epoch"]) + 1))
                history["valid"].append(row.get(self.metric))
                history["loss"].append(float(np.mean(losses)) if losses else None)
                losses = []
        return history

    def _judge(
        self, division: Division, predicted: Any, fitted: Calibration | None = None, raw: Any = None
    ) -> dict[str, Any]:
        families = None if division.families is None else division.families[division.test]
        return results.judge(
            self.task, take(self.truth, division.test), predicted, fitted, families, self.seed, raw,
            self._groups(division.test), self.metric,
        )  # fmt: skip

    def _groups(self, part: np.ndarray) -> np.ndarray | None:
        numbers = self.labelled.group_numbers
        return None if numbers is None else numbers[part]

    def _known(self, place: Path) -> dict[str, Any] | None:
        path = place / "result.json"
        said = read_json(path) if path.exists() else None
        if said is not None and not (isinstance(said, dict) and {"figures", "intervals", "seed"} <= {*said}):
            raise UserError(f"{path}: holds no result of a fit; remove it, and the fit is done again")
        return said

    def _keep(self, place: Path, said: dict[str, Any]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        write_file(place / "result.json", json.dumps(results.plain(said), indent=1))

    def _enter(self, entry: dict[str, Any], method: str, said: dict[str, Any], baseline: bool) -> None:
        found = entry["methods"].setdefault(method, {"baseline": baseline, "runs": []})
        found["runs"].append(results.plain(said))
        found["summary"] = results.summarise(found["runs"])


def _encode(base: Bundle, name: str, letters: bytes) -> np.ndarray:
    try:
        return base.alphabet.encode(letters)
    except AlphabetError as error:
        raise UserError(f"{name}: {error}") from error
