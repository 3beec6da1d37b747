"""How much a file of sequences may unfold into, whoever wrote it: bytes, one record, a Parquet's claims."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any

import pyarrow.parquet as pq

from biometro.errors import UserError

LONGEST_RECORD = 1 << 24  # characters of one record, or one table cell; the longest proteins known have 45,000
GRACE = 64 << 20  # decompressed bytes that are never questioned
RATIO = 200  # decompressed bytes for each compressed byte beyond that; FASTA has 2 to 10, and gzip can 1,032


class Decompressed(io.RawIOBase):
    """Passes decompressed bytes on, as long as their number is in proportion to the compressed ones read so far.

    Args:
        stream: of decompressed bytes.
        compressed: number of compressed bytes read so far.
        name: of the file.
    """

    def __init__(self, stream: Any, compressed: Callable[[], int], name: str):
        self._stream, self._compressed, self._name = stream, compressed, name
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size: int = self._stream.readinto(buffer)  # its `read` leaks what it allocated where the stream is damaged
        self._count += size
        check_ratio(self._count, self._compressed(), self._name)
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()


def check_ratio(unfolded: int, compressed: int, name: str) -> None:
    """Raises UserError where so many bytes from so few are no data, but a bomb."""
    if unfolded > GRACE + RATIO * compressed:
        raise UserError(
            f"{name}: {compressed:,} compressed bytes unfold to more than {unfolded:,}, over {RATIO} times as many; if "
            "that is meant, decompress the file first"
        )


def too_long(name: str, line: int) -> UserError:
    """The error of a record beyond LONGEST_RECORD."""
    return UserError(
        f"{name}, line {line:,}: a record of more than {LONGEST_RECORD:,} characters; no protein is that long (is this "
        "a genome, or is a line break or a quotation mark missing?)"
    )


class Lines:
    """Lines of a binary stream, where the lines of one row together have at most LONGEST_RECORD characters.

    Whoever iterates sets `taken` to 0 where a row begins, and `latin` where bytes that are not UTF-8 are Latin-1.
    """

    def __init__(self, handle: IO[bytes], name: str):
        self._handle, self._name = handle, name
        self.number = self.taken = 0
        self.latin = False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> bytes:
        line = self._handle.readline(LONGEST_RECORD + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.taken += len(line)
        if self.taken > LONGEST_RECORD:
            raise too_long(self._name, self.number)
        return line


def check_parquet(metadata: pq.FileMetaData, size: int, name: str) -> None:
    """Raises UserError where a Parquet file of `size` bytes claims more than it can hold.

    Arrow decodes pages by what they say of themselves, so this finds files that are wrong about themselves as a whole.
    """
    rows = unfolded = 0
    for number in range(metadata.num_row_groups):  # their columns are not asked: of some damaged ones, Arrow aborts
        group = metadata.row_group(number)
        if group.num_rows < 0 or group.total_byte_size < 0:
            raise UserError(f"{name}: damaged: row group {number} claims fewer than no rows or bytes")
        rows += group.num_rows
        unfolded += group.total_byte_size
    if rows != metadata.num_rows:
        raise UserError(f"{name}: damaged: its row groups have {rows:,} rows, where it claims {metadata.num_rows:,}")
    check_ratio(max(unfolded, rows), size, name)  # a row is a byte at least
