"""Bytes on their way in: counted, digested, and decompressed where they are compressed."""

from __future__ import annotations

import hashlib
import io
from typing import IO, Any

import pyarrow as pa

from biometro.data.bounds import Decompressed

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}


class CountingReader(io.RawIOBase):
    """Passes bytes on, and keeps their number and sha256."""

    def __init__(self, raw: IO[bytes]):
        self.raw, self.count, self.digest = raw, 0, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.raw.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        self.digest.update(data)
        return len(data)


def decompress(raw: CountingReader, name: str) -> io.BufferedReader:
    """Buffered bytes of a possibly compressed file; its first bytes, not its name, tell.

    Arrow's streams, unlike zstandard's, notice a file that was cut.
    """
    buffered: io.BufferedReader = io.BufferedReader(raw, 1 << 20)
    start = buffered.peek(4)
    codec = next((codec for magic, codec in COMPRESSIONS.items() if start.startswith(magic)), None)
    if codec is None:
        return buffered
    stream = pa.CompressedInputStream(pa.PythonFile(buffered, mode="r"), codec)
    return io.BufferedReader(Decompressed(stream, lambda: raw.count, name), 1 << 20)
