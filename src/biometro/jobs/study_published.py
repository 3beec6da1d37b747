"""What a study published stands for its runs: elsewhere, or once its run folder is lost, it goes on from there.

docs/study.yaml, study.csv, study-runs.csv ─▶ of the same study? ─▶ rates, runs that need not be made, their figures
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from biometro.errors import UserError
from biometro.evaluation.study_results import Measured, Trained
from biometro.jobs.study_options import check_same, read_kept

T = TypeVar("T")
Model = tuple[str, str, float, str, int]
"""Corpus, size, budget, arm and seed, as the tables name them."""
_OF_RUN = ("corpus", "size", "flops", "arm", "seed", "steps", "tokens")


@dataclass(frozen=True)
class Published:
    """Rates of corpora and arms, and rows of study.csv and study-runs.csv; empty where nothing was published."""

    rates: Mapping[tuple[str, str], float] = field(default_factory=dict)
    rows: Sequence[Measured] = ()
    runs: Sequence[Trained] = ()

    def has(self, model: Model) -> bool:
        """Whether its figures are here."""
        return any(_model(row) == model for row in self.rows)

    def rows_with(self, rows: Sequence[Measured], asked: Iterable[Model]) -> list[Measured]:
        """These, of models that are asked for, then `rows`; by corpus and budget. A baseline that both have is here
        once."""
        models = list(asked)
        corpora = {name: number for number, name in enumerate(dict.fromkeys(corpus for corpus, *_ in models))}
        here = [row for row in self.rows if _model(row) in models or (not row.size and row.corpus in corpora)]
        known = {(_model(row), row.task) for row in here}
        every = [*here, *(row for row in rows if (_model(row), row.task) not in known)]
        return sorted(every, key=lambda row: (corpora[row.corpus], row.flops))


def _model(row: Measured) -> Model:
    return row.corpus, row.size, row.flops, row.arm, row.seed


def published(path: str, options: Mapping[str, Any]) -> Published:
    """What stands in `path`, a study.yaml, and in the tables of its name beside it.

    Raises UserError where it is of another study than these options, or cannot be read.
    """
    place = Path(path)
    try:
        kept = read_kept(place)
        rows = _table(place.with_suffix(".csv"), _measured)
        runs = _table(place.with_name(f"{place.stem}-runs.csv"), _trained)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error
    try:
        chosen = kept.get("chosen") or {}
        rates = {(corpus, arm): float(rate) for corpus, arms in chosen.items() for arm, rate in arms.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: chosen: must be a rate for each corpus and arm ({error})") from error
    searched = [*zip(*rates, strict=True)] or [(), ()]
    ran = {"corpora": {row.corpus for row in rows}.union(searched[0]), "sizes": {row.size for row in rows},
           "arms": {row.arm for row in rows if not row.baseline}.union(searched[1])}  # fmt: skip
    asked = {name: found & {*options[name]} for name, found in ran.items()}
    check_same(path, kept, options, asked, bool(rates), "leave `known` out")
    return Published(rates, rows, runs)


def _table(path: Path, read: Callable[[dict[str, str]], T]) -> list[T]:
    """Rows of a CSV. Raises UserError with file and line."""
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        found: list[T] = []
        try:
            for row in reader:
                found.append(read(row))
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            what = f"there is no column {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}, line {reader.line_num or 1}: is no row of such a table ({what})") from error
    return found


def _measured(row: dict[str, str]) -> Measured:
    said = {one.name: row[one.name] for one in fields(Measured)}
    flags = {name: {"True": True, "False": False}[said.pop(name)] for name in ("larger_is_better", "baseline")}
    numbers = {"flops": _finite(said.pop("flops")), "value": _finite(said.pop("value")), "seed": int(said.pop("seed"))}
    return Measured(**said, **numbers, **flags)  # type: ignore[arg-type]


def _trained(row: dict[str, str]) -> Trained:
    corpus, size, flops, arm, seed, steps, tokens = (row[name] for name in _OF_RUN)
    figures = {name: float(value) for name, value in row.items() if name not in _OF_RUN and value}
    return Trained(corpus, size, _finite(flops), arm, int(seed), int(steps), int(tokens), figures)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no figure")
    return value
