"""Zero-shot effects of variants: do a model's scores rank variants as a deep mutational scan did?

    assays ─▶ variants, measured scores ─┬─▶ every method of a model ──┐
                                         └─▶ baselines, no model ──────┴▶ Spearman of each assay ─▶ one number

The one number is ProteinGym's (Notin et al. 2023): assays of one protein and one type of function are averaged first,
then proteins within a type, then types; a protein measured five times counts as one. Intervals come from drawing
proteins, and within each assay variants: what is claimed is about proteins, not about the variants of these.

Shapes: N variants of an assay, S resamples, P proteins.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from biometro.alphabet import Reading, SequenceKind
from biometro.data.alignment import Alignment, align
from biometro.data.changes import BadVariantError
from biometro.data.hgvs import Notation
from biometro.data.intake import Account, clean
from biometro.data.mmseqs import installed
from biometro.data.sources import ReadOptions, expand
from biometro.data.sources import read as read_records
from biometro.data.variants import Variant
from biometro.errors import UserError
from biometro.evaluation import metrics, resampling, substitution
from biometro.evaluation.protocol import RESAMPLES, Score, Subject
from biometro.inference.likelihood import Likelihood
from biometro.inference.variants import METHODS, Scorer, average, chosen, methods_of

Say = Callable[[str], None]
_OTHER = "other"
_SMALL = "assay of too few variants, or all alike"
_BUDGET = 20_000  # letters that the exact method may read to be compared with
_LEAST = 10  # variants with a measured score, below which an assay is left out


@dataclass(frozen=True)
class VariantsConfig:
    """What the file of a task of variant effects says beside what all files say.

    Its data are first the variants (a table, or a folder of tables, one for each assay), then, by name, other tables.

    Args:
        wildtypes: the table of wild types; it must be among the data.
        wildtype: its column with the letters.
        wildtype_assay: its column with the assay's name.
        assay: the variants' column with the assay's name; null: each table is an assay, named as its file.
        column: their column with the variant's text; empty is the wild type, which is left out.
        sequence_column: their column with the variant's sequence; null where there is none.
        score: their column with what was measured, higher is fitter.
        protein: column of the wild types' table that names the protein; default: the letters.
        function: column of that table that names the type of function.
        benchmark: column of that table with the assay's name in a benchmark, whose tables follow; null: its own name.
        reference: a table of the benchmark's assays, among the data, which has `reference_assay`, `reference_protein`
            and `reference_function`; it fills in what the wild types' table does not say.
        published: a table of published figures, among the data; its column `published_assay` names the assay.
        show: columns of that table that stand beside what is measured.
        search: sequences, among the data, in which relatives of each wild type are found for the site-independent
            baseline; null leaves it out.
        only: assays to take; default: all.
        most: variants of each assay at most, chosen by digest; null: all.
        methods: of scoring; auto, all, or names. Those that a model cannot be asked for are left out.
    """

    wildtypes: str
    wildtype: str = "wildtype"
    wildtype_assay: str = "assay"
    assay: str | None = "assay"
    column: str = "mutant"
    sequence_column: str | None = "mutated_sequence"
    score: str = "score"
    protein: str | None = None
    function: str | None = None
    benchmark: str | None = None
    reference: str | None = None
    reference_assay: str = "DMS_id"
    reference_protein: str = "UniProt_ID"
    reference_function: str = "coarse_selection_type"
    published: str | None = None
    published_assay: str = "DMS ID"
    show: list[str] = field(default_factory=list)
    search: str | None = None
    only: list[str] | None = None
    most: int | None = None
    methods: list[str] = field(default_factory=lambda: ["auto"])

    def __post_init__(self) -> None:
        if self.most is not None and self.most < _LEAST:
            raise UserError(f"most is {self.most}; it must be at least {_LEAST}")
        for name in self.methods:
            if name not in METHODS and name not in ("auto", "all"):
                raise UserError(f"methods: there is no {name!r}; choose from {', '.join(METHODS)}, auto, all")
        if {*self.methods} <= {"average"}:
            raise UserError("methods names nothing that average could be the mean of; name other methods, or all")


@dataclass(frozen=True)
class Assay:
    """One deep mutational scan. `measured`: (N,) float64. `published`: figures by name."""

    name: str
    wildtype: str
    protein: str
    function: str
    variants: list[Variant]
    measured: np.ndarray
    published: Mapping[str, float] = field(default_factory=dict)


def read(
    kind: str, data: Sequence[str], config: VariantsConfig, metric: str, *, seed: int = 0, resamples: int = RESAMPLES,
    keep: Path | None = None,
) -> VariantsExam:  # fmt: skip
    """The exam of a task of variant effects; arguments as for `probes.read`.

    Raises UserError for data that cannot be read, variants that do not fit their wild types, and where nothing is left.
    """
    if metric != "spearman":
        raise UserError(f"a {kind} task has no figure {metric!r}; its metric is spearman")
    places = {Path(place).name: place for place in data[1:]}
    dropped: dict[str, int] = {}
    wildtypes = _wildtypes(places, config)
    published = _published(places, config)
    assays = []
    for name, rows in _rows(data[0], config):
        if name not in wildtypes:
            raise UserError(f"{data[0]}: assay {name!r} has no wild type in {config.wildtypes}")
        letters, protein, function, known_as = wildtypes[name]
        variants, measured_N = _variants(name, letters, rows, config, dropped)
        if len(variants) < _LEAST or np.ptp(measured_N) == 0:
            dropped[_SMALL] = dropped.get(_SMALL, 0) + 1
            continue
        assays.append(Assay(name, letters, protein, function, variants, measured_N, published.get(known_as, {})))
    missing = [name for name in config.only or [] if name not in {assay.name for assay in assays}]
    if missing or not assays:
        told = "; ".join(f"{count:,} x {reason}" for reason, count in dropped.items())
        raise UserError(f"{data[0]}: no usable assay {', '.join(missing) or 'at all'}{f' ({told})' if told else ''}")
    search = None if config.search is None else _place(places, config.search, "search")
    return VariantsExam(assays, config.methods, seed, resamples, search, dropped)


class VariantsExam:
    """Assays, each with its wild type; see `protocol.Exam`."""

    sequences: SequenceKind = "protein"

    def __init__(
        self, assays: Sequence[Assay], methods: Sequence[str] = ("auto",), seed: int = 0, resamples: int = RESAMPLES,
        search: str | None = None, dropped: Mapping[str, int] | None = None,
    ):  # fmt: skip
        self.assays, self.methods = list(assays), list(methods)
        self.seed, self.resamples, self.search = seed, resamples, search
        self.test = list(dict.fromkeys(assay.wildtype.encode() for assay in assays))
        functions = dict.fromkeys(assay.function for assay in assays)
        self.facts = {
            "assays": f"{len(assays):,} of {len({assay.protein for assay in assays}):,} proteins",
            "variants": f"{sum(len(assay.variants) for assay in assays):,}",
            "functions": ", ".join(f"{name} {sum(a.function == name for a in assays)}" for name in functions),
            "resampled": "proteins, and variants within each assay",
        }
        self.facts |= {f"left out ({reason})": f"{count:,}" for reason, count in (dropped or {}).items()}
        if search is not None and not installed():
            self.facts["site-independent"] = "not run: MMseqs2 is not installed"

    def baselines(self) -> dict[str, Score]:
        found = {
            "BLOSUM62": self._scored(lambda assay: substitution.blosum62(assay.wildtype, assay.variants)),
            "hydrophobicity": self._scored(lambda assay: substitution.hydrophobicity(assay.wildtype, assay.variants)),
            "volume": self._scored(lambda assay: substitution.volume(assay.wildtype, assay.variants)),
            "composition": self._scored(lambda assay: substitution.composition(assay.wildtype, assay.variants)),
        }
        if any(len(variant.changes) > 1 for assay in self.assays for variant in assay.variants):
            found["few mutations"] = self._scored(
                lambda assay: -np.array([len(variant.changes) for variant in assay.variants], dtype=np.float64),
                note="minus the number of changes: what sums over mutations are worth by their length alone; of assays "
                "with several mutations only",
            )
        if self.search is not None and installed():
            relatives = self._alignments(self.search)
            depths = ", ".join(f"{assay.name} {relatives[assay.wildtype].effective:.0f}" for assay in self.assays)
            found["site-independent"] = self._scored(
                lambda assay: substitution.site_independent(relatives[assay.wildtype], assay.wildtype, assay.variants),
                note=f"effective sequences in each alignment: {depths}",
            )
        return found

    def model(self, subject: Subject, say: Say) -> dict[str, Score]:
        subject.reads(self.test, self.sequences)
        likelihood = Likelihood(
            subject.bundle, device=subject.device, batch_tokens=subject.batch_tokens, precision=subject.precision
        )
        scorers = {a.wildtype: Scorer(likelihood, a.wildtype) for a in self.assays}
        found: dict[str, Score] = {}
        kept: dict[str, dict[str, np.ndarray]] = {}
        for method in self._methods(likelihood):
            say(method)
            kept[method] = {}

            def scores(assay: Assay, method: str = method) -> np.ndarray:
                kept[method][assay.name] = scorers[assay.wildtype].score(method, assay.variants)
                return kept[method][assay.name]

            found[method] = self._scored(scores)
        for method, score in found.items():
            found[method] = replace(score, note=self._note(method, kept, scorers))
        if "average" in self.methods and len(kept) > 1:
            found["average"] = self._scored(lambda assay: average([scores[assay.name] for scores in kept.values()]))
        return found

    def _methods(self, likelihood: Likelihood) -> list[str]:
        able = methods_of(likelihood)
        wanted = [name for name in chosen(self.methods, likelihood) if name in able]
        if not wanted:
            raise UserError(f"it can be asked for {', '.join(able)}, and the task names {', '.join(self.methods)}")
        return wanted

    def _note(self, method: str, kept: Mapping[str, Mapping[str, np.ndarray]], scorers: Mapping[str, Scorer]) -> str:
        """That a method is an approximation, and how far it ranks variants as the exact one does, mean of assays."""
        exact = METHODS[method].approximates
        if not exact:
            return ""
        budget = None if exact in kept else _BUDGET
        rhos = []
        for assay in self.assays:
            scores = kept[method][assay.name]
            found = scorers[assay.wildtype].agreement(method, assay.variants, scores, budget)
            if found is not None:
                rhos.append(found[0])
        told = f"rank agreement {np.mean(rhos):.3f} (mean of {len(rhos)} assays)" if rhos else "not compared with it"
        return f"an approximation of {exact}; {told}"

    def _scored(self, scores: Callable[[Assay], np.ndarray], note: str = "") -> Score:
        """Spearman of each assay, what they come to, and the same of resamples; the scores alone are timed."""
        seconds = 0.0
        rho: list[float] = []
        rho_S: list[np.ndarray] = []
        details: dict[str, Any] = {}
        unscored = 0
        for number, assay in enumerate(self.assays):
            began = time.perf_counter()
            score_N = np.asarray(scores(assay), dtype=np.float64)
            seconds += time.perf_counter() - began
            both = np.isfinite(score_N)
            unscored += int((~both).sum())
            truth, told = assay.measured[both, None], score_N[both, None]
            value = metrics.measure("regression", truth, told, ["score"])["spearman"] if both.any() else math.nan
            drawn_S = np.full(self.resamples, np.nan)
            if math.isfinite(value):
                drawn_S = metrics.replicates(
                    "regression", truth, told, ["score"], ["spearman"], self.resamples, self.seed + number
                )["spearman"]
            if len(drawn_S) < self.resamples:  # ranks of many scores take fewer: these are used again
                drawn_S = np.resize(drawn_S, self.resamples)
            rho.append(value)
            rho_S.append(drawn_S)
            details[assay.name] = {
                "value": value, "interval": metrics.interval(drawn_S), "beside": dict(assay.published),
                "facts": {"variants": len(assay.variants), "function": assay.function},
            }  # fmt: skip
        if unscored:
            note += f"{'; ' * bool(note)}{unscored:,} variants that it has no score for are left out"
        figures, replicates_S = self._benchmark(np.array(rho), np.stack(rho_S))
        return Score(figures, replicates_S, seconds, {"parts": details}, note)

    def _benchmark(self, rho_M: np.ndarray, rho_MS: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        """The average of assays, with its parts by function, and (S,) the same of resampled proteins."""
        proteins, functions = [a.protein for a in self.assays], [a.function for a in self.assays]
        mean, by_function = average_of_assays(rho_M, proteins, functions)
        figures = {"spearman": mean} | {f"spearman/{name}": value for name, value in by_function.items()}
        number = {name: place for place, name in enumerate(dict.fromkeys(proteins))}
        weight_SP = np.concatenate(list(resampling.draws(len(number), self.resamples, self.seed)))
        means_FS = []
        for function in by_function:
            own: dict[int, list[int]] = {}
            for place in np.flatnonzero(np.isfinite(rho_M)).tolist():
                if functions[place] == function:
                    own.setdefault(number[proteins[place]], []).append(place)
            value_SP = np.stack([rho_MS[places].mean(0) for places in own.values()], 1)
            own_SP = weight_SP[:, list(own)]
            total_S = own_SP.sum(1)  # 0 where no protein of this function was drawn
            with np.errstate(invalid="ignore", divide="ignore"):
                means_FS.append(np.where(total_S > 0, (own_SP * value_SP).sum(1) / total_S, np.nan))
        if not means_FS:
            return figures, np.full(self.resamples, np.nan)
        known_FS = np.isfinite(means_FS)
        count_S = known_FS.sum(0)
        return figures, np.where(count_S > 0, np.where(known_FS, means_FS, 0).sum(0) / np.maximum(count_S, 1), np.nan)

    def _alignments(self, search: str) -> dict[str, Alignment]:
        """Of each wild type, with its relatives among the sequences to search."""
        pool = [
            letters for _, letters in clean(expand(search), ReadOptions(), Reading(residues="keep_as_x"), Account())
        ]
        return {letters.decode(): align(letters.decode(), pool) for letters in self.test}


def average_of_assays(
    rho_M: np.ndarray, proteins: Sequence[str], functions: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """ProteinGym's average of M assays, and its parts: means of assays of one protein and function, of these by
    function, of these. Assays without a figure (NaN) are left out."""
    cells: dict[str, dict[str, list[float]]] = {}
    for rho, protein, function in zip(rho_M.tolist(), proteins, functions, strict=True):
        if math.isfinite(rho):
            cells.setdefault(function, {}).setdefault(protein, []).append(rho)
    by_function = {
        function: float(np.mean([np.mean(values) for values in own.values()])) for function, own in cells.items()
    }
    return float(np.mean([*by_function.values()])) if by_function else math.nan, by_function


# Tables ---------------------------------------------------------------------------------------------------------


def _place(places: Mapping[str, str], name: str, key: str) -> str:
    if Path(name).name not in places:
        raise UserError(
            f"{key}: {name} is not among the data after the first; it names one of {', '.join(places) or 'none'}"
        )
    return places[Path(name).name]


def _table(place: str, column: str, fields: Sequence[str]) -> list[tuple[str, tuple[Any, ...]]]:
    """Cells of a column, as text, with those of others beside."""
    (source,) = expand(place)
    options = ReadOptions(column=column, fields=tuple(fields), identifiers=True)
    return [(record.raw.decode(), record.fields) for record in read_records(source, options)]


def _wildtypes(places: Mapping[str, str], config: VariantsConfig) -> dict[str, tuple[str, str, str, str]]:
    """Letters, protein, function and the benchmark's name of every assay."""
    place = _place(places, config.wildtypes, "wildtypes")
    optional = [name for name in (config.protein, config.function, config.benchmark) if name is not None]
    reference: dict[str, tuple[Any, ...]] = {}
    if config.reference is not None:
        columns = (config.reference_protein, config.reference_function)
        reference = dict(_table(_place(places, config.reference, "reference"), config.reference_assay, columns))
    found: dict[str, tuple[str, str, str, str]] = {}
    named: dict[str, str] = {}
    for assay, (letters, *cells) in _table(place, config.wildtype_assay, (config.wildtype, *optional)):
        said = dict(zip(optional, cells, strict=True))
        known_as = str(said.get(config.benchmark or "") or assay)
        protein, function = reference.get(known_as, (None, None))
        protein = said.get(config.protein or "") or protein or hashlib.sha256(str(letters).encode()).hexdigest()[:12]
        found[assay] = str(letters), str(protein), str(said.get(config.function or "") or function or _OTHER), known_as
        if known_as in reference or config.protein is not None:
            named.setdefault(str(letters), str(protein))
    # an assay that the benchmark does not know may be of a protein that it knows
    return {assay: (row[0], named.get(row[0], row[1]), *row[2:]) for assay, row in found.items()}


def _published(places: Mapping[str, str], config: VariantsConfig) -> dict[str, dict[str, float]]:
    if config.published is None:
        return {}
    place = _place(places, config.published, "published")
    rows = _table(place, config.published_assay, config.show)
    return {
        assay: {
            name: _number(cell, f"{place}: {assay}, column {name!r}")
            for name, cell in zip(config.show, cells, strict=True) if cell is not None and cell != ""
        }
        for assay, cells in rows
    }  # fmt: skip


def _number(cell: Any, where: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise UserError(f"{where}: {cell!r} is no number") from error


_Row = tuple[str, str | None, float, str]  # text, sequence, measured, where


def _rows(place: str, config: VariantsConfig) -> Iterator[tuple[str, list[_Row]]]:
    """The rows of each assay that is wanted. Where each has a table, one is in memory at a time."""
    files = sorted(map(str, Path(place).glob("*"))) if Path(place).is_dir() else [place]
    if config.assay is None:
        for file in files:
            name = Path(file).name.split(".")[0]
            if config.only is None or name in config.only:
                rows = [row for _, row in _read(file, config)]
                if rows:
                    yield name, rows
        return
    found: dict[str, list[_Row]] = {}
    for file in files:
        for name, row in _read(file, config):
            if config.only is None or name in config.only:
                found.setdefault(name, []).append(row)
    yield from found.items()


def _read(file: str, config: VariantsConfig) -> Iterator[tuple[str, _Row]]:
    """The rows of one table that have a text and a number, and what their column of assays says."""
    beside = [] if config.sequence_column is None else [config.sequence_column]
    (source,) = expand(file)
    # Sequences lead, where there are any: texts may be empty, and readers refuse a leading cell that is.
    lead, *rest = [*beside, config.column]
    fields = (*rest, config.score, *([] if config.assay is None else [config.assay]))
    for record in read_records(source, ReadOptions(column=lead, fields=fields, identifiers=True)):
        cells = [record.raw.decode(), *record.fields]
        sequence = cells.pop(0) if beside else None
        text, measured = str(cells[0] or "").strip(), cells[1]
        known = measured is not None and measured != ""
        value = _number(measured, f"{record.where}, column {config.score!r}") if known else math.nan
        if text and math.isfinite(value):
            yield "" if config.assay is None else str(cells[2]), (text, sequence, value, record.where)


def _variants(
    name: str, wildtype: str, rows: Sequence[_Row], config: VariantsConfig, dropped: dict[str, int]
) -> tuple[list[Variant], np.ndarray]:
    """The variants of an assay and what was measured. Raises UserError, with its place, for one that does not fit."""
    if config.most is not None and len(rows) > config.most:
        dropped["variants above most"] = dropped.get("variants above most", 0) + len(rows) - config.most
        rows = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest())[: config.most]
    notation = Notation(wildtype, 1)
    variants, measured = [], []
    for text, sequence, value, where in rows:
        try:
            variant = Variant(text, notation.changes(text), where)
        except BadVariantError as error:
            raise UserError(f"{where}: {text} of assay {name}: {error}") from error
        if sequence is not None and variant.apply(wildtype) != sequence:
            raise UserError(f"{where}: {text} of assay {name}: its sequence is another than its text says")
        if not variant.changes:
            continue
        variants.append(variant)
        measured.append(value)
    return variants, np.array(measured)
