"""Towers and controls on one set of pairs: what the fits of an `align` run share.

    split ─▶ controls ─▶ for each losses and seed: vectors or tokens ─▶ fit ─▶ judge on test ─▶ keep the best towers

Each result is a file of its own, so that a run that was stopped goes on after the last of them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import biometro
from biometro.alphabet import AlphabetError
from biometro.data.pair_examples import PairExamples, Side
from biometro.data.pair_splits import PairDivision
from biometro.data.pairs import Pairs
from biometro.errors import UserError
from biometro.evaluation import overlap, pair_results
from biometro.evaluation.controls import shuffled
from biometro.files import write_file
from biometro.inference.embed import Embedder
from biometro.inference.features import Features
from biometro.model.bundle import BaseModel, Bundle
from biometro.model.pairing import Projection
from biometro.model.towers import PairAnswers, Towers
from biometro.objectives.contrastive import Contrastive
from biometro.objectives.pair_losses import LossConfig
from biometro.training import alignment, checkpoint
from biometro.training.alignment import AlignTraining, Scored, TowerConfig, TowerModel
from biometro.training.parallel import World
from biometro.training.signals import StopRequest
from biometro.untrusted import read_json

_SAMPLE = 2000  # training sequences whose vectors say how to standardise them, where the encoder learns


class Alignment:
    """What the fits of one run share.

    Args:
        folder: of the run.
        pairs: of all data sets; those of the first are held out from.
        bundles: the models, by tower.
        models: path and fingerprint of each.
        towers: how each learns.
        width: of the common space.
        training: the fit.
        weights: share of each data set in a batch.
        pool: sequences among which partners are looked for.
        seed: of the split, the pool and the draws.
        named: the models, in words.
    """

    def __init__(
        self, folder: Path, pairs: Pairs, bundles: Mapping[str, Bundle], models: Mapping[str, tuple[str, str]],
        towers: list[TowerConfig], width: int, training: AlignTraining, weights: list[float] | None, pool: int,
        seed: int, world: World, request: StopRequest, console: Console, recipe: dict[str, Any], named: str,
    ):  # fmt: skip
        self.folder, self.all, self.bundles, self.models = folder, pairs, bundles, models
        self.configs = dict(zip(bundles, towers, strict=True))
        self.width, self.training, self.weights, self.pool, self.seed = width, training, weights, pool, seed
        self.world, self.request, self.console, self.recipe, self.named = world, request, console, recipe, named
        names = [*bundles]
        self.views = {"a": names[0], "b": names[0]} if len(names) == 1 else dict(zip(names, names, strict=True))
        self.pairs = pairs
        self.classes: np.ndarray | None = None
        self.first: str | None = None
        self.entry: dict[str, Any] = {"methods": {}}
        self.cut: dict[str, int] = {}
        letters = {self.views["a"]: pairs.a_letters} if len(names) == 1 else dict(
            zip(names, (pairs.a_letters, pairs.b_letters), strict=True)
        )  # fmt: skip
        self.letters = letters
        self.tokens = {name: self._tokens(name, rows) for name, rows in letters.items()}
        self._sides: dict[str, Side] = {}

    def _tokens(self, name: str, letters: list[bytes]) -> list[np.ndarray]:
        """Of every sequence, without specials, cut to the tower's longest."""
        alphabet, limit = self.bundles[name].alphabet, self._limit(name)
        found, self.cut[name] = [], 0
        for row in letters:
            try:
                tokens = alphabet.encode(row)
            except AlphabetError as error:
                raise UserError(f"{row[:40].decode('ascii', 'replace')}...: {error}") from error
            self.cut[name] += len(tokens) > limit
            found.append(tokens[:limit])
        return found

    def _limit(self, name: str) -> int:
        longest, asked = self.bundles[name].longest, self.configs[name].max_length
        return asked if longest is None else min(asked, longest)

    def describe(self) -> dict[str, Any]:
        """The head of the results; says aloud what was read."""
        found = self.all.to_json()
        facts = {"models": self.named}
        facts["pairs"] = (
            f"{found['pairs']:,} of {found['distinct_a']:,} and {found['distinct_b']:,} sequences"
            + (f"; {found['values']:,} with {found['unit'] or 'a score'}, {found['bounds']:,} of them bounds"
               if found["values"] else "")
            + (f"; {found['binding']:,} bind, {found['not_binding']:,} do not" if found["not_binding"] else "")
        )  # fmt: skip
        for number, account in enumerate(found["sources"]):
            where = f"data set {number + 1}: " if len(found["sources"]) > 1 else ""
            for reason, count in account.get("dropped", {}).items():
                facts[f"{where}dropped, {reason}"] = f"{count:,}"
            if account.get("repaired"):
                facts[f"{where}with a molecule whose charges were put right"] = f"{account['repaired']:,}"
        for name, count in self.cut.items():
            if count:
                facts[f"{name}: cut"] = f"{count:,} sequences, to their first {self._limit(name):,} tokens"
        facts["towers"] = "; ".join(
            f"{name}: {self.bundles[name].encoder.config.summary}, {how.depth}" for name, how in self.configs.items()
        )
        facts["device"] = self.world.hardware
        facts["made with"] = f"biometro {biometro.__version__}"
        for name, text in facts.items():
            self.console.print(f"{name}: {text}", highlight=False, markup=False, soft_wrap=True)
        if (self.all.label != 0).all() and found["values"]:
            self.console.print(
                "every pair counts as a partner, whatever its value: say with pairs.binds_from from which value on "
                "pairs bind", highlight=False, soft_wrap=True,
            )  # fmt: skip
        return {
            "title": self.folder.name, "unit": self.all.unit, "facts": facts, "pairs": found, "splits": {},
            "kinds": [self.all.kind_a, self.all.kind_b], "pool": self.pool,
        }  # fmt: skip

    # Splits ----------------------------------------------------------------------------------------------------------

    def begin_split(self, division: PairDivision, partners: int, others: int) -> dict[str, Any]:
        """The entry of a split; says aloud its sizes and what its sides share."""
        self.first = self.first or division.by
        self.pairs, self.train, self.valid, self.test = self._divided(division, partners, others)
        entry: dict[str, Any] = division.to_json() | {"methods": {}}
        entry["sizes"] = {
            "train": len(self.train), "valid": len(self.valid), "test": len(self.test), "left_out": division.left_out
        }  # fmt: skip
        entry["added"] = self._added(division)
        self.entry = entry
        text = ", ".join(f"{count:,} {side}" for side, count in entry["sizes"].items() if count)
        shares = division.overlaps["test"].shares
        seen = ", ".join(f"{pair_results.SEEN[name]} {100 * value:.1f} %" for name, value in shares.items())
        self.console.print(
            f"split by {division.by}: {text.replace('left_out', 'left out')}; of the test pairs, seen in train: {seen}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return entry

    def _divided(
        self, division: PairDivision, partners: int, others: int
    ) -> tuple[Pairs, np.ndarray, np.ndarray, np.ndarray]:
        """All pairs, and the numbers of those to train on, validate and test by. Where sequences have classes, pairs
        are made within each side."""
        own = np.flatnonzero(self.all.source == 0)
        if self.all.classes is None:
            self.classes = None
            held = np.concatenate([own[division.valid], own[division.test]])
            more = self._allowed(np.flatnonzero(self.all.source > 0), held, division)
            return self.all, np.concatenate([own[division.train], more]), own[division.valid], own[division.test]
        classes = np.full(len(self.all.a_letters), -1, np.int64)
        classes[self.all.a] = self.all.classes
        self.classes = classes
        parts = [
            self.all.take(part).of_classes(partners, others, self.seed)
            for part in (division.train, division.valid, division.test)
        ]
        ends = np.cumsum([len(part) for part in parts])
        joined = dataclasses.replace(Pairs.join(parts), source=np.zeros(int(ends[-1]), np.int64))
        numbers = np.split(np.arange(int(ends[-1])), ends[:-1])
        return joined, numbers[0], numbers[1], numbers[2]

    def _allowed(self, more: np.ndarray, held: np.ndarray, division: PairDivision) -> np.ndarray:
        """Further pairs that tell nothing of held-out ones: not the same pair, and where sequences are kept apart, no
        held-out sequence of that side."""
        pairs = self.all
        key = pairs.a * len(pairs.b_letters) + pairs.b
        fine = ~np.isin(key[more], key[held])
        if division.by in ("cold_target", "cold_both", "homology"):
            fine &= ~np.isin(pairs.a[more], pairs.a[held])
        if division.by in ("cold_drug", "cold_both", "scaffold"):
            fine &= ~np.isin(pairs.b[more], pairs.b[held])
        return more[fine]

    def _added(self, division: PairDivision) -> dict[str, int] | None:
        """Of further data sets: how many pairs are trained on, and how many would tell of held-out ones."""
        total = int((self.all.source > 0).sum())
        if not total:
            return None
        used = int((self.all.source[self.train] > 0).sum()) if self.all.classes is None else 0
        self.console.print(
            f"further pairs: {used:,} trained on, {total - used:,} left out (they tell of held-out ones)"
        )
        return {"trained on": used, "left out": total - used}

    def run_controls(self, division: PairDivision, entry: dict[str, Any]) -> None:
        """What needs no towers, on a split, or what is known of it from before."""
        place = self.folder / division.by / "controls"
        found = self._known(place)
        if found is None:
            self.console.print("controls ...", highlight=False)
            found = pair_results.controls(self.pairs, self.train, self.test, self.seed)
            self._keep(place, found)
        for name, said in found["methods"].items():
            entry["methods"][name] = {"control": True, "runs": [said]}

    # Fits ------------------------------------------------------------------------------------------------------------

    def run_fit(
        self, division: PairDivision, entry: dict[str, Any], name: str, losses: LossConfig, seed: int
    ) -> str | None:
        """One fit, or what is known of it from before; gives why it was stopped early, if it was."""
        place = self.folder / division.by / f"{name}-{seed}"
        said = self.world.first(lambda: self._known(place))
        if said is None:
            began = time.perf_counter()
            value, moments = self._values()
            models = {tower: self._model(tower) for tower in self.bundles}
            train = self.pairs.take(self.train)

            def build() -> Contrastive:
                return alignment.build(
                    self.views, models, train, value[self.train], losses, self.width, moments,
                    self.training.encoder_rate, seed, self.classes,
                )  # fmt: skip

            objective = build()
            examples = PairExamples(
                self.pairs, {view: self._side(tower) for view, tower in self.views.items()}, value,
                self.training.hard_negatives, seed, self.train,
            )  # fmt: skip
            metric = self.training.metric or self._own_metric(losses)
            self._check_metric(objective.to(self.world.device), examples, metric)
            learnt = sum(p.numel() for p in objective.parameters() if p.requires_grad)
            self.console.print(f"{division.by}, {name}, seed {seed}: {learnt:,} weights learn", highlight=False)
            outcome = alignment.fit(
                objective, examples, self._drawn(losses), self.training, place, seed=seed, world=self.world,
                measure=lambda goal: self._validation(goal, examples, metric), metric=metric,
                larger=pair_results.larger_is_better(metric), weights=self.weights, recipe=self.recipe,
                request=self.request,
            )  # fmt: skip
            if outcome.stopped is not None:
                return outcome.stopped

            def conclude() -> dict[str, Any]:
                whole = objective
                if self.world.size > 1:  # ranks hold shares; the checkpoint has it all
                    whole = build().to(self.world.device)
                    checkpoint.read_weights(checkpoint.folders(place / "checkpoints")[-1], whole, "best")
                facts: dict[str, Any] = {"seed": seed, "step": outcome.progress.best_step, "trained_parameters": learnt}
                facts |= {"seconds": time.perf_counter() - began, "history": alignment.history(place, metric)}
                said = facts | self._conclude(division, whole, examples, name, losses, metric)
                self._keep(place, said)
                return said

            said = self.world.first(conclude)
        if self.world.leads:
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        found = entry["methods"].setdefault(name, {"control": False, "runs": []})
        found["runs"].append(said)
        return None

    def _drawn(self, losses: LossConfig) -> np.ndarray:
        """Numbers of the training pairs that batches are made of: those that bind, and, where values are learnt, those
        that have one."""
        train = self.pairs.take(self.train)
        wanted = (train.label != 0) if losses.contrasts else np.zeros(len(train), bool)
        if losses.measures:
            wanted = wanted | np.isfinite(train.value)
        return self.train[wanted]

    def _values(self) -> tuple[np.ndarray, tuple[float, float]]:
        """(N,) float32 values in units of the training pairs' deviation, and their mean and deviation."""
        train = self.pairs.value[self.train]
        known = train[np.isfinite(train)]
        mean, deviation = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
        deviation = deviation if deviation > 0 else 1.0
        return ((self.pairs.value - mean) / deviation).astype(np.float32), (mean, deviation)

    def _model(self, name: str) -> TowerModel:
        vectors = self._pooled(name, self._trained_on(name))
        spread = vectors.std(0)
        return TowerModel(
            self.bundles[name], self.configs[name], vectors.mean(0).astype(np.float32),
            np.where(spread > 1e-6, spread, 1).astype(np.float32),
        )  # fmt: skip

    def _trained_on(self, name: str) -> np.ndarray:
        """Sequences of a tower that stand in training pairs; of an encoder that learns, a sample of these."""
        train = self.pairs.take(self.train)
        sides = [
            numbers for (_, tower), numbers in zip(self.views.items(), (train.a, train.b), strict=True) if tower == name
        ]
        found = np.unique(np.concatenate(sides))
        if self.configs[name].depth != "frozen" and len(found) > _SAMPLE:
            found = np.sort(np.random.default_rng(self.seed).choice(found, _SAMPLE, replace=False))
        return found

    def _side(self, name: str) -> Side:
        if self.configs[name].depth != "frozen":
            alphabet = self.bundles[name].alphabet
            return Side(self.tokens[name], tuple(alphabet.begin_ids), tuple(alphabet.end_ids))
        if name not in self._sides:
            self._sides[name] = Side(features=self._pooled(name, np.arange(len(self.letters[name]))))
        return self._sides[name]

    def _pooled(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """(sequences, D) float32 of the encoder as it was, from the cache where they are there."""
        how, device, precision = self.configs[name], self.world.device, self.training.precision
        limit = self._limit(name)

        def embedder() -> Embedder:
            return Embedder(
                self.bundles[name], pooling=how.pooling, long="first", max_length=limit, precision=precision,
                device=device,
            )  # fmt: skip

        store = Features(embedder, f"{self.models[name][1]} {how.pooling} first {limit} {precision} {device.type}")
        letters = [self.letters[name][i] for i in numbers.tolist()]
        began = time.perf_counter()
        self.world.first(lambda: len(store.of(letters)))  # the others find what the first has made
        found = store.of(letters)
        if store.computed:
            self.console.print(
                f"{name}: {store.computed:,} of {len(letters):,} sequences read by the encoder in "
                f"{time.perf_counter() - began:.1f} s; their vectors are kept in {store.store}", highlight=False,
                soft_wrap=True,
            )  # fmt: skip
        return np.stack(found)

    # What fits say ---------------------------------------------------------------------------------------------------

    def _own_metric(self, losses: LossConfig) -> str:
        if self.classes is not None:  # among few classes nearly every ranking begins with one of the own
            return "auroc" if (self.pairs.label == 0).any() else "mrr"
        return "spearman" if {"affinity", "cross"} & {*losses.weights} else "mrr"

    def _validation(self, objective: Contrastive, examples: PairExamples, metric: str) -> dict[str, float]:
        found = self._figures(alignment.score(objective, examples, self.valid, self.world.device))
        watched = {name: found[name] for name in pair_results.WATCHED if name in found}
        return watched | {metric: found.get(metric, float("nan"))}

    def _check_metric(self, objective: Contrastive, examples: PairExamples, metric: str) -> None:
        """Raises UserError where the validation pairs do not define the figure by which weights are chosen."""
        found = self._figures(alignment.score(objective, examples, self.valid, self.world.device))
        if metric not in found:
            raise UserError(
                f"training.metric is {metric}, which the {len(self.valid):,} validation pairs do not define; they "
                f"define {', '.join(found) or 'nothing: give a larger split.valid'}"
            )

    def _figures(self, scored: Scored) -> dict[str, float]:
        return pair_results.figures(
            scored.pairs, scored.a, scored.b, scored.score, self.pairs, self.pool, self.seed,
            scored.affinity is not None, self.classes,
        )  # fmt: skip

    def _conclude(
        self, division: PairDivision, objective: Contrastive, examples: PairExamples, name: str, losses: LossConfig,
        metric: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Figures on test, also with partners shuffled; the towers are kept if they are the best so far."""
        device = self.world.device
        valid, test = (alignment.score(objective, examples, part, device) for part in (self.valid, self.test))
        scaled = test.affinity is not None
        said = pair_results.judge(
            self.pairs, self.test, test.score, self.seed, scaled=scaled, vectors=(test.a, test.b), pool=self.pool,
            classes=self.classes,
        )  # fmt: skip
        dealt = shuffled(test.pairs, self.seed).b
        other = alignment.score(objective, examples, self.test, device, partners=dealt)
        said["shuffled"] = pair_results.judge(self.pairs, self.test, other.score, self.seed, scaled=scaled)["figures"]
        validated = self._figures(valid)
        said |= {"valid": pair_results.plain(validated), "metric": metric}
        deviation = validated.get("rmse")
        answers = PairAnswers(
            self.all.unit or "score" if scaled else "", deviation if scaled else None,
            pair_results.probability(valid.cosine, valid.pairs.label), self._binds(),
        )  # fmt: skip
        if division.by == self.first and self._best_so_far(division.by, validated):
            self._save(objective, name, losses, answers, division, said)
        return said

    def _binds(self) -> str:
        """What a label of 1 says, in words."""
        pairs = self.recipe["pairs"]
        if pairs["binds_from"] is not None:
            return f"{self.all.unit or 'score'} of at least {pairs['binds_from']:g}"
        return f"{pairs['label']} is 1" if pairs["label"] is not None and pairs["b"] is not None else ""

    def _best_so_far(self, by: str, validated: Mapping[str, float]) -> bool:
        """Whether no fit on this split was as good on validation: by ranks of values where there are any, so that fits
        that were themselves selected by different figures can be compared, else by retrieval."""
        figure = "spearman" if "spearman" in validated else "mrr"
        kept = (read_json(path) for path in (self.folder / by).glob("*/result.json"))
        before = [said["valid"].get(figure) for said in kept if "valid" in said]
        return all(value is None or validated.get(figure, -np.inf) > value for value in before)

    def _save(
        self, objective: Contrastive, name: str, losses: LossConfig, answers: PairAnswers, division: PairDivision,
        said: dict[str, Any],
    ) -> None:  # fmt: skip
        facts = {
            "aligned by": f"{name} ({', '.join(f'{k} {v:g}' for k, v in losses.weights.items())})",
            "pairs": f"{len(self.train):,} to train on, from {Path(str(self.recipe['data'])).name}",
            "split": f"by {division.by}: {len(self.valid):,} valid, {len(self.test):,} test",
        }
        facts |= pair_results.card_facts(said["figures"], self.entry)
        towers = {}
        for tower, bundle in self.bundles.items():
            how, (path, fingerprint) = self.configs[tower], self.models[tower]
            encoder = dict(objective.encoders.items()).get(tower, bundle.encoder)
            projection = objective.projections[tower]
            assert isinstance(projection, Projection)
            own = facts | {"tower": f"{how.depth}, from {Path(path).name}"}
            corpus = overlap.training_of(bundle).digest
            if corpus is not None:
                own[overlap.DIGEST] = corpus
            towers[tower] = Bundle(
                bundle.alphabet, {"encoder": encoder, "projection": projection}, self.recipe, own,
                self._limit(tower), None,
                BaseModel(str(Path(path).absolute()), fingerprint) if how.depth == "lora" else None,
            )  # fmt: skip
        Towers(towers, objective.head, answers, self.recipe, facts).save(self.folder / "model")

    def _known(self, place: Path) -> dict[str, Any] | None:
        path = place / "result.json"
        said = read_json(path) if path.exists() else None
        if said is not None and not (isinstance(said, dict) and {*said} & {"figures", "methods"}):
            raise UserError(f"{path}: holds no result of a fit; remove it, and the fit is done again")
        return said

    def _keep(self, place: Path, said: dict[str, Any]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        write_file(place / "result.json", json.dumps(said, indent=1))
