"""Rows out: tables that jobs write in a stream, as CSV, TSV or Parquet; the file appears when all are written."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from biometro.errors import UserError
from biometro.files import new_file

Rows = list[dict[str, Any]]


def check_table(path: Path, others: Sequence[str] = ()) -> None:
    """Raises UserError unless the name ends as a table's (or in one of `others`), in a folder that is there."""
    if path.suffix not in (*_WRITERS, *others):
        raise UserError(f"{path}: the output's name must end in one of {', '.join((*_WRITERS, *others))}")
    check_place(path)


def check_page(page: Path, beside: Path | None) -> None:
    """Raises UserError unless a report can be written there: .html, and not the other output."""
    if page.suffix != ".html" or page == beside:
        raise UserError(f"{page}: the report's name must end in .html")
    check_place(page)


def check_place(path: Path) -> None:
    """Raises UserError where a file cannot be put: said before the work, which may take hours, and not after it."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the output a file's name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first, or choose another")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: nothing can be written in the folder {path.parent}; choose another")


def check_no_input(path: Path, names: Iterable[str]) -> None:
    """Raises UserError where the output is one of the inputs, which it would replace while they are read."""
    for name in names if path.exists() else ():
        for found in (name, *glob.glob(name)):  # noqa: PTH207 (Path.glob refuses absolute patterns)
            if os.path.exists(found) and path.samefile(found):  # noqa: PTH110 (Path.exists raises on a long name)
                raise UserError(f"{path}: is one of the inputs, and would be replaced; choose another name")


@contextmanager
def table_writer(path: Path | None, rows: Rows) -> Iterator[Callable[[Rows], None]]:
    """Takes rows: into the file, which appears when all are written, or into `rows`."""
    if path is None:
        yield rows.extend
        return
    with new_file(path) as work, _WRITERS[path.suffix](work) as write:
        yield write


@contextmanager
def _text(work: Path, mark: str) -> Iterator[Any]:
    with work.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter=mark, lineterminator="\n")
        first = True

        def write(rows: Rows) -> None:
            nonlocal first
            if first:
                writer.writerow(rows[0])
                first = False
            writer.writerows([_cell(value) for value in row.values()] for row in rows)

        yield write


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join(f"{entry:.6g}" for entry in value)
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else value


@contextmanager
def _parquet(work: Path) -> Iterator[Any]:
    """Rows wait until every column has had a value, since a file has one type for each."""
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []

    def write(rows: Rows) -> None:
        waiting.append(pa.Table.from_pylist(rows))
        if writer is not None or not any(map(pa.types.is_null, _joined(waiting).schema.types)):
            flush()

    def flush() -> None:
        nonlocal writer
        table = _joined(waiting)
        if writer is None:
            writer = pq.ParquetWriter(work, table.schema, compression="zstd")
        writer.write_table(table.cast(writer.schema))
        waiting.clear()

    try:
        yield write
        if waiting:
            flush()
    finally:
        if writer is not None:
            writer.close()


def _joined(tables: list[pa.Table]) -> pa.Table:
    """One table; a column in which nothing stood yet takes the type of what comes."""
    return pa.concat_tables(tables, promote_options="default")


_WRITERS: dict[str, Any] = {
    ".csv": lambda work: _text(work, ","), ".tsv": lambda work: _text(work, "\t"), ".parquet": _parquet,
}  # fmt: skip
