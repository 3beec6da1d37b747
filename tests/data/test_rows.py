"""Tables that are written chunk by chunk."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from biometro.data.rows import Rows, table_writer


def written(path: Path, chunks: list[Rows]) -> pa.Table:
    with table_writer(path, []) as put:
        for chunk in chunks:
            put(chunk)
    return pq.read_table(path)


def test_a_column_may_begin_with_nothing(tmp_path: Path) -> None:
    """Its type is that of the first value, however many chunks later."""
    chunks: list[Rows] = [
        [{"id": 1, "cell": None, "never": None}],
        [{"id": 2, "cell": None, "never": None}, {"id": 3, "cell": "x", "never": None}],
        [{"id": 4, "cell": None, "never": None}],
    ]
    found = written(tmp_path / "x.parquet", chunks)
    assert found.to_pylist() == [row for chunk in chunks for row in chunk]
    assert found.schema.field("cell").type == pa.string()
    seen: list[Rows] = [[{"id": 1, "cell": "x"}], [{"id": 2, "cell": None}]]
    assert written(tmp_path / "y.parquet", seen).to_pylist() == [row for chunk in seen for row in chunk]
