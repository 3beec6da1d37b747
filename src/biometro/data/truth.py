"""From the cells of a label to its numbers.

"beta-lactam" ─▶ 3    "0;2" ─▶ [1, 0, 1]    "HHEC?" ─▶ [1, 1, 0, 2, -1]    "0.3, nan" ─▶ [.3, NaN]
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biometro.data.task import LabelConfig, Task
from biometro.errors import UserError

Cells = tuple[Any, ...]
LABEL = "label: "  # how reasons begin that have to do with labels
_MOST_CLASSES = 1000
_NUMBERS = re.compile(r"[\s,;]+")
_MARKS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


class BadLabelError(Exception):
    """Why a label is of no use; `length`: because it has another length than its sequence."""

    length = False


def _bad(reason: str, length: bool = False) -> BadLabelError:
    error = BadLabelError(LABEL + reason)
    error.length = length
    return error


def _is_unknown(cell: Any, config: LabelConfig) -> bool:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return str(cell).strip() in config.unknown


def _name(cell: Any) -> str:
    """A class by the text of its cell; whole numbers without a point."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _several(cell: Any, config: LabelConfig) -> list[str]:
    """The names in the cell of several labels: a list (of Parquet), or text with separators."""
    parts = cell if isinstance(cell, list | tuple) else str(cell).split(config.several)
    return [name for name in map(_name, parts) if name]


def _cells(cell: Any, length: int) -> list[Any]:
    """A cell for each residue: a list, a string with a letter for each (a blank reads as -), or one with separators."""
    if isinstance(cell, list | tuple | np.ndarray):
        return list(cell)
    for text in (str(cell), str(cell).strip()):  # a blank may be a letter too, as DSSP writes coil; then as it stands
        if len(text) == length:
            return ["-" if letter == " " else letter for letter in text]
    return [part.strip("'\"") for part in _NUMBERS.split(text.strip("[]() \t"))]  # quotes: a list as Python prints it


def find_task(found: Iterable[tuple[bytes, Cells | None]], config: LabelConfig) -> Task:
    """Names of classes in the order of numbers or letters; of several columns, their names."""
    kind, columns = config.task, config.columns
    if kind in ("regression", "residue_regression") or len(columns) > 1:
        return Task(kind, tuple(columns))
    names: set[str] = set()
    for letters, raw in found:
        if raw is None or _is_unknown(raw[0], config):
            continue
        if kind == "residue_classification":
            cells = _cells(raw[0], len(letters))
            names.update(
                {_name(cell) for cell in cells if not _is_unknown(cell, config)} if _fits(cells, letters) else ()
            )
        elif kind == "multilabel":
            names.update(_several(raw[0], config))
        else:
            names.add(_name(raw[0]))
    names.discard("")
    if len(names) > _MOST_CLASSES:
        hint = "; are these numbers? Then say labels.task: regression" if kind == "classification" else ""
        raise UserError(f"there are {len(names):,} different labels, more than {_MOST_CLASSES:,}{hint}")
    return Task(kind, tuple(sorted(names, key=_order)))


def _fits(cells: Sequence[Any], letters: bytes) -> bool:
    return len(cells) == len(letters)


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by value, then words by letters."""
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    return (1, 0.0, name) if math.isnan(value) else (0, value, name)


def parse(raw: Cells | None, task: Task, config: LabelConfig, length: int) -> np.ndarray:
    """A label's numbers, as in `Labelled.truth`. Raises BadLabelError."""
    if raw is None:
        raise _bad("missing" if config.file is None else f"no row in {Path(config.file).name}")
    count = len(config.columns)
    if task.per_residue:
        return _parse_residues(raw, task, config, length)
    if all(_is_unknown(cell, config) for cell in raw[:count]):
        raise _bad("unknown")
    if task.kind == "regression":
        return np.array([_number(cell, config) for cell in raw[:count]], dtype=np.float32)
    places = {name: number for number, name in enumerate(task.names)}
    if task.kind == "classification":
        if isinstance(raw[0], list):
            raise _bad("a list where one class was expected")
        if _name(raw[0]) not in places:
            raise _bad(f"{_name(raw[0])!r} is none of the classes")
        return np.array(places[_name(raw[0])], dtype=np.int64)
    if count > 1:
        values = np.array([_number(cell, config) for cell in raw[:count]], dtype=np.float32)
        if not np.isin(values[~np.isnan(values)], (0, 1)).all():
            raise _bad("neither 0 nor 1")
        return values
    values = np.zeros(task.outputs, dtype=np.float32)
    for name in _several(raw[0], config):
        if name not in places:
            raise _bad(f"{name!r} is none of the labels")
        values[places[name]] = 1
    return values


def _number(cell: Any, config: LabelConfig) -> float:
    if _is_unknown(cell, config):
        return math.nan
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise _bad(f"{cell!s:.20} is no number") from None
    if any(value == known for known in _unknown_numbers(config)):
        return math.nan
    if not math.isfinite(value):
        raise _bad(f"{value} is not finite")
    return value


def _unknown_numbers(config: LabelConfig) -> list[float]:
    found = []
    for text in config.unknown:
        try:
            found.append(float(text))
        except ValueError:
            continue
    return found


def _parse_residues(raw: Cells, task: Task, config: LabelConfig, length: int) -> np.ndarray:
    if _is_unknown(raw[0], config) and length != 1:
        raise _bad("unknown")
    cells = _cells(raw[0], length)
    if len(cells) != length:
        raise _bad("of another length than its sequence", length=True)
    if task.kind == "residue_regression":
        values = np.array([_number(cell, config) for cell in cells], dtype=np.float32)
        unknown: float = math.nan
    else:
        places = {name: number for number, name in enumerate(task.names)}
        values = np.empty(length, dtype=np.int64)
        unknown = -1
        for i, cell in enumerate(cells):
            name = _name(cell)
            if name not in places and not _is_unknown(cell, config):
                raise _bad(f"{name!r} is none of the classes")
            values[i] = places.get(name, -1)
    if config.mask is not None:
        marks = _cells(raw[1], length)
        if len(marks) != length:
            raise _bad("mask of another length than its sequence", length=True)
        said = [str(mark).strip().lower() for mark in marks]
        if not {*said} <= _MARKS.keys():
            raise _bad("a mask is 0 or 1 for each residue")
        values[[not _MARKS[mark] for mark in said]] = unknown
    if not (values != unknown if task.kind == "residue_classification" else np.isfinite(values)).any():
        raise _bad("unknown")
    return values
