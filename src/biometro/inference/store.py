"""A library of vectors on disk: what `index` leaves and `screen` ranks.

    ids, letters, vectors ─▶ shard folders, whole or not at all ─▶ store.json over them ─▶ memory maps

A store is a folder: `store.json`, and one folder for each shard with

    vectors.npy (N, P) float32, rows of length 1      codes.npy (N, P) int8, scales.npy (N,) float32,
    text.bin, offsets.npy (2N+1,) int64               centre.npy (P,) float32

Codes are a row less the shard's centre, in steps of the row's scale. `residual` says by how much a row and what its
codes stand for differ at most, so that a product of codes bounds the product of the rows (`screen.py`). Identifiers
and letters lie in text.bin by turns, and are looked up by number: ranking reads none of them.

Shape letters: N rows of a shard, P width of the common space, M rows asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biometro.errors import UserError
from biometro.files import new_folder, write_file
from biometro.untrusted import inside, map_npy, read_json

FORMAT = "biometro store 1"
WIDEST = 1 << 16  # P; products of codes stay far below 2^31
SHARD_NUMBERS = 1 << 24  # of a shard's vectors, 4 bytes each: memory while it is written
_ROWS = 8192  # quantised at once
_UNIT = 1e-3  # by which a row's length may differ from 1
_FILES = ("vectors", "codes", "scales", "centre", "offsets")


@dataclass(frozen=True)
class About:
    """What a store holds and what made it.

    model: as the user named it. weights: its fingerprint. tower: whose vectors these are. kind: of sequence. settings:
    what else the vectors depend on, in words.
    """

    model: str
    weights: str
    tower: str
    kind: str
    settings: str = ""


@dataclass(frozen=True)
class ShardNote:
    """What store.json says of a shard: its folder, rows, and of all rows the largest distance to what the code stands
    for (`residual`) and the largest length of that (`norm`)."""

    name: str
    rows: int
    residual: float
    norm: float


@dataclass(frozen=True)
class Shard:
    """One shard, memory-mapped; `first` is the number of its first row in the store."""

    note: ShardNote
    first: int
    vectors: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    centre: np.ndarray
    offsets: np.ndarray
    text: np.ndarray

    def __len__(self) -> int:
        return self.note.rows


# Writing --------------------------------------------------------------------------------------------------------


def quantise(vectors_NP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """codes (N, P) int8, scales (N,) float32, centre (P,) float32, and the bounds `residual` and `norm`.

    Bounds are computed in float64 and rounded up. Where mean-pooled vectors all point one way, taking the centre away
    first leaves small numbers, and so a small residual.
    """
    count, width = vectors_NP.shape
    centre_P = vectors_NP.mean(0, dtype=np.float64).astype(np.float32)
    codes_NP, scales_N = np.empty((count, width), np.int8), np.empty(count, np.float32)
    residual = norm = 0.0
    for start in range(0, count, _ROWS):
        rows = slice(start, start + _ROWS)
        offset_NP = vectors_NP[rows].astype(np.float64) - centre_P
        scales_N[rows] = np.maximum(np.abs(offset_NP).max(1) / 127, 1e-30)
        step_N1 = scales_N[rows, None].astype(np.float64)
        codes_NP[rows] = np.clip(np.rint(offset_NP / step_N1), -127, 127)
        told_NP = codes_NP[rows] * step_N1
        residual = max(residual, float(np.linalg.norm(offset_NP - told_NP, axis=1).max()))
        norm = max(norm, float(np.linalg.norm(told_NP, axis=1).max()))
    return codes_NP, scales_N, centre_P, residual * (1 + 1e-9), norm * (1 + 1e-9)


def shard_name(number: int, parts: Sequence[str]) -> str:
    """A shard's folder: its place, and the digest of the names of the parts it is made of."""
    return f"{number:08d}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}"


def write_shard(folder: Path, ids: Sequence[str], letters: Sequence[bytes], vectors_NP: np.ndarray) -> ShardNote:
    """One shard, in one stroke.

    Raises ValueError where what is given does not fit together, or rows are not finite and of length 1; UserError for
    whatever the file system refuses.
    """
    count, width = vectors_NP.shape
    if not 0 < width <= WIDEST or not 0 < count == len(ids) == len(letters):
        raise ValueError(f"{len(ids)} ids and {len(letters)} sequences do not go with vectors {vectors_NP.shape}")
    vectors_NP = np.ascontiguousarray(vectors_NP, np.float32)
    check_unit(vectors_NP)
    codes_NP, scales_N, centre_P, residual, norm = quantise(vectors_NP)
    pieces = [piece for id_, row in zip(ids, letters, strict=True) for piece in (id_.encode(), row)]
    offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    note = ShardNote(folder.name, count, residual, norm)
    with new_folder(folder) as work:
        arrays = (vectors_NP, codes_NP, scales_N, centre_P, offsets)
        for name, array in zip(_FILES, arrays, strict=True):
            np.save(work / f"{name}.npy", array, allow_pickle=False)
        (work / "text.bin").write_bytes(b"".join(pieces))
        write_file(work / "shard.json", json.dumps(asdict(note)))
    return note


def check_unit(vectors_NP: np.ndarray) -> None:
    """Raises ValueError for rows that are not finite, or not of length 1."""
    lengths_N = np.linalg.norm(vectors_NP.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths_N - 1) <= _UNIT))
    if len(wrong):
        raise ValueError(f"vector {wrong[0]} has length {lengths_N[wrong[0]]:.4g}, not 1")


def read_note(folder: Path) -> ShardNote | None:
    """Of a shard that stands in its folder, what it holds; None where there is none, or it cannot be read."""
    try:
        note = _note(read_json(inside(folder, "shard.json")), folder.name)
        Shard(note, 0, *_maps(folder, note, None))
    except (UserError, OSError, ValueError):
        return None
    return note


def write_about(folder: Path, about: About, width: int, shards: Sequence[ShardNote]) -> None:
    """store.json over the shards that stand in a folder."""
    count = sum(note.rows for note in shards)
    text = json.dumps([asdict(about), width, [note.name for note in shards]])
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = {"format": FORMAT, "count": count, "width": width, "digest": digest, **asdict(about)}
    write_file(folder / "store.json", json.dumps(found | {"shards": [asdict(note) for note in shards]}, indent=1))


# Reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A store that was opened: plain names, numbers, memory maps. `digest` is that of what was indexed, and how."""

    folder: Path
    about: About
    width: int
    count: int
    digest: str
    shards: tuple[Shard, ...]

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """Rows by number: (M,) -> (M, P) float32."""
        found_MP = np.empty((len(numbers), self.width), np.float32)
        home_M = self._home(numbers)
        for place in np.unique(home_M):
            which = np.flatnonzero(home_M == place)
            shard = self.shards[place]
            found_MP[which] = shard.vectors[numbers[which] - shard.first]
        return found_MP

    def entries(self, numbers: np.ndarray) -> list[tuple[str, bytes]]:
        """Identifier and letters of rows by number. Raises UserError where the store is damaged."""
        found = []
        for number, place in zip(numbers.tolist(), self._home(numbers).tolist(), strict=True):
            shard = self.shards[place]
            row = number - shard.first
            a, b, c = shard.offsets[2 * row : 2 * row + 3].tolist()
            if not 0 <= a <= b <= c <= len(shard.text):
                raise UserError(f"{self.folder / shard.note.name}: damaged: row {row} has no text; index again")
            try:
                found.append((shard.text[a:b].tobytes().decode(), shard.text[b:c].tobytes()))
            except UnicodeDecodeError as error:
                raise UserError(f"{self.folder / shard.note.name}: damaged: row {row} has no identifier") from error
        return found

    def _home(self, numbers: np.ndarray) -> np.ndarray:
        return np.searchsorted([shard.first for shard in self.shards], numbers, "right") - 1


def open_store(folder: str | Path) -> Store:
    """The store in a folder. Raises UserError where it is none, or its files are not of the sizes it promises.

    Numbers are not read here: what is wrong in them makes ranks wrong, and nothing worse.
    """
    folder = Path(folder)
    try:
        found = read_json(inside(folder, "store.json"))
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{folder}: is no store of vectors ({why}); biometro index makes one") from error
    try:
        return _opened(folder, found)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError) as error:
        raise UserError(f"{folder}: is no store that can be read ({error}); index again") from error


def _opened(folder: Path, found: Any) -> Store:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"store.json does not say {FORMAT!r}")
    names = [field.name for field in dataclasses.fields(About)]
    if not all(isinstance(found[name], str) for name in (*names, "digest")):
        raise ValueError("store.json does not say what made it")
    width = _whole(found["width"], WIDEST)
    shards: list[Shard] = []
    first = 0
    if not isinstance(found["shards"], list) or not found["shards"]:
        raise ValueError("store.json names no shard")
    for told in found["shards"]:
        note = _note(told)
        where = folder / note.name
        if where.is_symlink() or not where.is_dir():
            raise ValueError(f"the shard {note.name} is not there")
        shards.append(Shard(note, first, *_maps(where, note, width)))
        first += note.rows
    if found["count"] != first:
        raise ValueError(f"its shards hold {first} rows, and it says {found['count']}")
    return Store(folder, About(**{name: found[name] for name in names}), width, first, found["digest"], tuple(shards))


def _note(told: Any, name: str | None = None) -> ShardNote:
    note = ShardNote(str(told["name"]), _whole(told["rows"], 1 << 40), float(told["residual"]), float(told["norm"]))
    if Path(note.name).name != note.name or note.name in ("", ".", "..") or not note.name.isprintable():
        raise ValueError(f"{note.name!r} is no name of a shard")
    if name not in (None, note.name):
        raise ValueError(f"it says that it is {note.name}")
    if not all(math.isfinite(bound) and 0 <= bound < 4 for bound in (note.residual, note.norm)):
        raise ValueError("its bounds are none")
    return note


def _whole(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ValueError(f"{str(value)[:20]} is not a number from 1 to {most}")
    return value


def _maps(folder: Path, note: ShardNote, width: int | None) -> tuple[np.ndarray, ...]:
    """The arrays of a shard as `Shard` has them. Raises ValueError, OSError or UserError where they do not fit."""
    vectors, codes, scales, centre, offsets = (map_npy(inside(folder, f"{name}.npy")) for name in _FILES)
    width = (vectors.shape[1] if vectors.ndim == 2 else 0) if width is None else width
    rows = note.rows
    for name, array, dtype, shape in (
        ("vectors", vectors, np.float32, (rows, width)), ("codes", codes, np.int8, (rows, width)),
        ("scales", scales, np.float32, (rows,)), ("centre", centre, np.float32, (width,)),
        ("offsets", offsets, np.int64, (2 * rows + 1,)),
    ):  # fmt: skip
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{note.name}/{name}.npy is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    path = inside(folder, "text.bin")
    text = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    if int(offsets[-1]) != len(text):
        raise ValueError(f"{note.name}/text.bin has {len(text)} bytes, not {int(offsets[-1])}")
    return vectors, codes, scales, centre, offsets, text
