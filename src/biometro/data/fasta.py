"""FASTA in pieces: cut between records without reading them, each piece then read anywhere and in any order.

    bytes ─▶ cut ─▶ (line of its first header, bytes of about a MiB) ─▶ parse ─▶ (id, raw letters, line)

Cutting costs next to nothing, so one process can feed many. Memory is bounded by a piece or the longest record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from biometro.data.bounds import LONGEST_RECORD, too_long
from biometro.errors import UserError

PIECE_BYTES = 1 << 20

ROW = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz*-. \t\r\n"
"""What may stand in a row of an alignment."""
_LETTERS = ROW + b"|:@"
"""Of a file; whether marks between chains may stand in a sequence, its kind says."""
_MARK = b"\xef\xbb\xbf"  # a byte-order mark before the first header
_SHOWN = 40  # characters of a line that is no header


def cut(handle: IO[bytes], name: str, size: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Pieces of a FASTA file that begin with a header, and the line (1-based) each begins at; together all of it.

    Args:
        handle: buffered bytes.
        name: of the file, for messages.
        size: bytes to a piece, PIECE_BYTES unless given; a longer record makes a longer piece.

    Raises UserError where the file is empty, does not begin with a header, cannot be read, has CR for line ends, or a
    record without end.
    """
    size = PIECE_BYTES if size is None else size
    whole_lines = 0
    try:
        line, block = _beginning(handle, name, size)
        blocks = [block]
        whole_lines = line - 1 + block.count(b"\n")
        while block := handle.read(size):
            place = block.rfind(b"\n>") + 1
            if place or (block.startswith(b">") and blocks[-1].endswith(b"\n")):
                piece = b"".join((*blocks, block[:place]))
                yield line, piece
                line += piece.count(b"\n")
                blocks = [block[place:]]
            else:
                blocks.append(block)
                if b"\n" not in blocks[0] and b"\r" in blocks[0].rstrip():  # or all of the file would be one record
                    raise UserError(cr_alone(name, line))
                if sum(map(len, blocks)) > LONGEST_RECORD + size:
                    raise too_long(name, line)
            whole_lines += block.count(b"\n")
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{name}, after line {whole_lines:,}: {short(error)}") from error
    yield line, b"".join(blocks)


def _beginning(handle: IO[bytes], name: str, size: int) -> tuple[int, bytes]:
    """The first block from the first header on, and that header's line; blank lines before it are passed over."""
    line, held = 1, b""
    while True:
        block = handle.read(size)
        held += block
        text = held.lstrip()
        if len(text) > _SHOWN or not block:
            break
        if not text:
            kept = held.rfind(b"\n") + 1
            line, held = line + held.count(b"\n"), held[kept:]
        if len(held) > LONGEST_RECORD:
            raise too_long(name, line)
    if not text:
        raise UserError(no_sequence(name))
    start = held.rfind(b"\n", 0, len(held) - len(text)) + 1
    line, held = line + held.count(b"\n", 0, start), held[start:]
    if not held.removeprefix(_MARK).startswith(b">"):
        found = held.split(b"\n", 1)[0][:_SHOWN].decode("latin-1").strip()
        raise UserError(
            f"{name}, line {line}: this is not FASTA: a header starting with '>' was expected, found {found!a}"
        )
    return line, held.removeprefix(_MARK)


def parse(piece: bytes, line: int, name: str, legal: bytes = _LETTERS) -> Iterator[tuple[str, bytes, int]]:
    """The records of a piece: header without `>`, letters as they stand in the file with white space, its line.

    Raises UserError for a header without a sequence, and for characters that are not `legal` in one.
    """
    for record in piece[1:].split(b"\n>"):
        header, _, raw = record.partition(b"\n")
        if raw.translate(None, legal):
            raise UserError(_wrong_letter(raw, line + 1, name, legal))
        if b"\r" in header.rstrip():
            raise UserError(cr_alone(name, line))
        if not raw or raw.isspace():
            raise UserError(f"{name}, line {line}: a header without a sequence")
        try:
            text = header.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}, line {line}: the header is neither ASCII nor UTF-8 (byte 0x{header[error.start]:02x})"
            ) from error
        yield text, raw, line
        line += record.count(b"\n") + 1


def _wrong_letter(raw: bytes, line: int, name: str, legal: bytes) -> str:
    for number, text in enumerate(raw.split(b"\n"), line):
        if bad := text.translate(None, legal):
            what = f"the character {chr(bad[0])!a}" if bad[0] < 128 else f"a non-ASCII byte 0x{bad[0]:02x}"
            return f"{name}, line {number}: {what} in a sequence"
    raise AssertionError("no wrong letter")


def cr_alone(name: str, line: int) -> str:
    """What is said of a file whose lines no line feed ends."""
    return f"{name}, line {line}: lines end in CR alone; convert them to LF (tr '\\r' '\\n')"


def no_sequence(name: str) -> str:
    """What is said of a file that is in order and empty."""
    return f"{name}, line 1: the file holds no sequence"


def short(error: BaseException) -> str:
    """What a library says of input it cannot read, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "runcated compressed stream" in text:
        return "the compressed stream ends too early (is the file truncated?)"
    return text[:300]
