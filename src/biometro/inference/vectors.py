"""Files of embeddings: Parquet parts while they are made, then one Parquet, NumPy or safetensors file.

Writing holds one part and the identifiers in memory, whatever the size of the result.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file

from biometro.data.bounds import check_parquet
from biometro.errors import UserError
from biometro.files import new_file, safetensors_header
from biometro.untrusted import read_npy

SUFFIXES = (".parquet", ".npz", ".safetensors")


@dataclass(frozen=True)
class Embeddings:
    """Vectors in input order: `vectors[i]` is (D,) float32 of sequence `ids[i]`, or (L, D) where `per_residue`."""

    ids: list[str]
    vectors: list[np.ndarray]
    per_residue: bool

    @property
    def matrix(self) -> np.ndarray:
        """(N, D) float32. Raises ValueError for per-residue vectors, which have no common shape."""
        if self.per_residue:
            raise ValueError("per-residue vectors form no matrix; use .vectors")
        return np.stack(self.vectors)


def check_suffix(out: Path) -> None:
    """Raises UserError where the name says no format that can be written."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: the output's name must end in one of {', '.join(SUFFIXES)}")


def write_part(path: Path, embeddings: Embeddings, width: int) -> None:
    """One Parquet file, in one stroke: columns id, length (residues, only per residue), embedding."""
    vector = pa.list_(pa.float32(), width)
    flat = pa.array(np.concatenate([v.reshape(-1) for v in embeddings.vectors]))
    columns = {"id": pa.array(embeddings.ids, pa.string())}
    if embeddings.per_residue:
        rows = pa.FixedSizeListArray.from_arrays(flat, type=vector)
        offsets = np.cumsum([0, *(len(v) for v in embeddings.vectors)], dtype=np.int32)
        columns["length"] = pa.array(np.diff(offsets))
        columns["embedding"] = pa.ListArray.from_arrays(pa.array(offsets), rows)
    else:
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=vector)
    with new_file(path) as work:
        pq.write_table(pa.table(columns), work, compression="zstd", use_dictionary=False, write_page_checksum=True)


def sound(part: Path) -> bool:
    """Whether a part exists and its checksums hold."""
    try:
        _read(part)
    except (OSError, pa.ArrowException):
        return False
    return True


def _read(part: Path, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(part, columns=columns, page_checksum_verification=True)


def join(parts: Sequence[Path], out: Path, width: int, per_residue: bool, about: dict[str, str]) -> None:
    """Write the parts, in order, as one file whose format its name tells; it appears whole or not at all.

    Parquet: the parts' columns. npz: ids, embeddings (N, D), or (sum of L, D) with offsets (N+1) per residue.
    safetensors: embeddings and offsets likewise, and `ids_json`, the UTF-8 bytes of a JSON list.
    """
    write = {".parquet": _join_parquet, ".npz": _join_npz, ".safetensors": _join_safetensors}[out.suffix]
    with new_file(out) as work:
        write(parts, work, width, per_residue, about)


def _join_parquet(parts: Sequence[Path], work: Path, width: int, per_residue: bool, about: dict[str, str]) -> None:
    schema = pq.read_schema(parts[0]).with_metadata(about)
    with pq.ParquetWriter(work, schema, compression="zstd", use_dictionary=False) as writer:
        for part in parts:
            writer.write_table(_read(part).cast(schema))


def _flat(part: Path, per_residue: bool) -> np.ndarray:
    """All numbers of a part in order, float32, one dimension."""
    column = _read(part, ["embedding"]).column(0)
    chunks = [chunk.flatten().flatten() if per_residue else chunk.flatten() for chunk in column.chunks]
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])


def _layout(parts: Sequence[Path], per_residue: bool) -> tuple[list[str], np.ndarray, int]:
    """ids, offsets (N+1,) int64 and the number of vectors."""
    ids: list[str] = []
    lengths: list[int] = []
    for part in parts:
        table = _read(part, ["id", "length"] if per_residue else ["id"])
        ids += table.column("id").to_pylist()
        lengths += table.column("length").to_pylist() if per_residue else [1] * table.num_rows
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return ids, offsets, int(offsets[-1])


def _join_npz(parts: Sequence[Path], work: Path, width: int, per_residue: bool, about: dict[str, str]) -> None:
    ids, offsets, count = _layout(parts, per_residue)
    arrays: dict[str, Any] = {"ids": np.array(ids), "about": np.array(json.dumps(about))}
    if per_residue:
        arrays["offsets"] = offsets
    with zipfile.ZipFile(work, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
            np.lib.format.write_array_header_2_0(entry, header)
            for part in parts:
                entry.write(_flat(part, per_residue).tobytes())


def _join_safetensors(parts: Sequence[Path], work: Path, width: int, per_residue: bool, about: dict[str, str]) -> None:
    ids, offsets, count = _layout(parts, per_residue)
    names = np.frombuffer(json.dumps(ids).encode(), dtype=np.uint8)
    entries = {"embeddings": ("F32", [count, width], 4 * count * width)}
    if per_residue:
        entries["offsets"] = ("I64", [len(offsets)], offsets.nbytes)
    entries["ids_json"] = ("U8", [len(names)], names.nbytes)
    with work.open("wb") as handle:
        handle.write(safetensors_header(entries, about))
        for part in parts:
            handle.write(_flat(part, per_residue).tobytes())
        if per_residue:
            handle.write(offsets.tobytes())
        handle.write(names.tobytes())


def read(path: str | Path) -> Embeddings:
    """The embeddings of a file that `join` wrote, all in memory. Raises UserError where it is none."""
    path = Path(path)
    check_suffix(path)
    try:
        readers = {".parquet": _read_parquet, ".npz": _read_npz, ".safetensors": _read_safetensors}
        ids, flat, offsets = readers[path.suffix](path)
        _check(ids, flat, offsets)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError,
            NotImplementedError, zipfile.BadZipFile, SafetensorError, pa.ArrowException) as error:  # fmt: skip
        raise UserError(f"{path}: holds no embeddings that can be read ({error})") from error
    if offsets is None:
        return Embeddings(ids, list(flat), per_residue=False)
    return Embeddings(ids, [flat[a:b] for a, b in pairwise(offsets)], per_residue=True)


_Content = tuple[list[str], np.ndarray, np.ndarray | None]


def _check(ids: list[str], flat: np.ndarray, offsets: np.ndarray | None) -> None:
    """Raises ValueError where the parts of a file do not fit one another."""
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise ValueError("its identifiers are no list of text")
    if flat.dtype != np.float32 or flat.ndim != 2:
        raise ValueError(f"its embeddings are {flat.dtype} in {flat.ndim} dimensions")
    if offsets is None:
        if len(ids) != len(flat):
            raise ValueError(f"it has {len(ids)} identifiers and {len(flat)} vectors")
        return
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) != len(ids) + 1:
        raise ValueError("its offsets do not fit its identifiers")
    if offsets[0] != 0 or offsets[-1] != len(flat) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError("its offsets do not fit its embeddings")


def _read_parquet(path: Path) -> _Content:
    check_parquet(pq.read_metadata(path), path.stat().st_size, str(path))
    table = _read(path)
    per_residue = "length" in table.column_names
    column = table.schema.field("embedding").type
    vector = column.value_type if per_residue else column
    if not pa.types.is_fixed_size_list(vector) or vector.list_size < 1 or vector.value_type != pa.float32():
        raise ValueError(f"its embeddings are {column}")
    if any(column.null_count for column in table.columns):
        raise ValueError("values are missing")
    flat = _flat(path, per_residue).reshape(-1, vector.list_size)
    offsets = None
    if per_residue:
        offsets = np.cumsum([0, *table.column("length").to_pylist()], dtype=np.int64)
    return table.column("id").to_pylist(), flat, offsets


def _read_npz(path: Path) -> _Content:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        found = {}
        for name in ("ids", "embeddings", "offsets"):
            if f"{name}.npy" not in archive.namelist() and name == "offsets":
                continue
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                raise ValueError(f"{member.filename} in it is compressed, or larger than the file")
            with archive.open(member) as handle:
                found[name] = read_npy(handle, member.file_size)
    if found["ids"].ndim != 1 or found["ids"].dtype.kind != "U":
        raise ValueError("its identifiers are no list of text")
    return found["ids"].tolist(), found["embeddings"], found.get("offsets")


def _read_safetensors(path: Path) -> _Content:
    arrays = load_file(path)
    return json.loads(arrays["ids_json"].tobytes()), arrays["embeddings"], arrays.get("offsets")
