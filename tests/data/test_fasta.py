"""FASTA in pieces says what a reader of single lines says, wherever it is cut."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.alphabet import Reading
from biometro.data import fasta
from biometro.data.intake import Account, clean
from biometro.data.sources import ReadOptions, expand
from biometro.errors import UserError, one_line

LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz*-.|:@ \t\r\n"
Outcome = tuple[list[tuple[str, bytes, int]], str | None]


def line_by_line(data: bytes) -> Outcome:
    """The plain way: records as (header, letters without white space at the end, line), and the error if any."""
    found: list[tuple[str, bytes, int]] = []
    header, header_line, lines = b"", 0, list[bytes]()

    def end() -> str | None:
        for number, line in enumerate(lines, header_line + 1):
            if bad := line.translate(None, LETTERS):
                what = f"the character {chr(bad[0])!a}" if bad[0] < 128 else f"a non-ASCII byte 0x{bad[0]:02x}"
                return f"x, line {number}: {what} in a sequence"
        if b"\r" in header.rstrip():
            return f"x, line {header_line}: lines end in CR alone; convert them to LF (tr '\\r' '\\n')"
        if not b"".join(lines).strip():
            return f"x, line {header_line}: a header without a sequence"
        try:
            text = header[1:].decode().strip()
        except UnicodeDecodeError as error:
            byte = header[1 + error.start]
            return f"x, line {header_line}: the header is neither ASCII nor UTF-8 (byte 0x{byte:02x})"
        found.append((text, b"".join(lines).rstrip(), header_line))
        return None

    for number, line in enumerate(io.BytesIO(data), 1):
        if not header and line.startswith(b"\xef\xbb\xbf>"):
            line = line[3:]
        if line.startswith(b">"):
            if header and (error := end()):
                return found, error
            header, header_line, lines = line, number, []
        elif header:
            lines.append(line)
        elif line.strip():
            shown = line.rstrip(b"\n")[:40].decode("latin-1").strip()
            return found, one_line(
                f"x, line {number}: this is not FASTA: a header starting with '>' was expected, found {shown!a}"
            )
    return found, end() if header else "x, line 1: the file holds no sequence"


def in_pieces(data: bytes, size: int) -> Outcome:
    found: list[tuple[str, bytes, int]] = []
    try:
        for line, piece in fasta.cut(io.BytesIO(data), "x", size):
            found += ((id_, raw.rstrip(), at) for id_, raw, at in fasta.parse(piece, line, "x"))
    except UserError as error:
        return found, str(error)
    return found, None


FRAGMENTS = st.sampled_from(
    [b">a x\n", b">b\r\n", b">\n", b">", b"MKTA\n", b"GG", b"W*\r\n", b"\n", b"\r", b" ", b"\t\n", b"1", b"\xff",
     b"\x0b", b">\xc3\xa9 y\n", b"\xef\xbb\xbf", b"A>B\n", b"AC-.\n" * 9]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=24).map(b"".join), st.integers(1, 40))
def test_cut_anywhere_it_is_read_as_by_lines(data: bytes, size: int) -> None:
    found, error = in_pieces(data, size)
    expected, expected_error = line_by_line(data)
    assert error == expected_error
    assert found == expected


@given(st.lists(st.text("ACDEF", min_size=1, max_size=90), min_size=1, max_size=30), st.integers(1, 200), st.booleans())
def test_good_files_lose_nothing_and_pieces_are_of_the_size_asked(sequences: list[str], size: int, crlf: bool) -> None:
    end = "\r\n" if crlf else "\n"
    data = "".join(f">s{i}{end}{s}{end}" for i, s in enumerate(sequences)).encode()
    pieces = list(fasta.cut(io.BytesIO(data), "x", size))
    assert b"".join(piece for _, piece in pieces) == data
    longest = max(len(s) for s in sequences) + 50  # the first piece is at least a line that can be shown
    assert all(piece.startswith(b">") and len(piece) <= 2 * size + longest for _, piece in pieces)
    assert in_pieces(data, size) == ([(f"s{i}", s.encode(), 2 * i + 1) for i, s in enumerate(sequences)], None)


def test_a_file_without_newlines_is_refused_before_it_fills_the_memory() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            assert self.given < 1 << 20, "it goes on reading"
            return (b">a\rMKTA\r" * size)[:size]

    with pytest.raises(UserError, match="line 1: lines end in CR alone"):
        list(fasta.cut(Endless(), "x", 4096))  # type: ignore[arg-type]


def test_marks_between_chains_are_for_the_kind_to_take_or_refuse(tmp_path: Path) -> None:
    path = tmp_path / "a.fasta"
    path.write_text(">a\nCAVF|CAS\nSF:GIL\n")
    sources = expand(str(path))
    found = list(clean(sources, ReadOptions(), Reading("tcr"), Account()))
    assert [letters for _, letters in found] == [b"CAVF|CASSF:GIL"]
    for kind, words in (("protein", r"'\|' at position 5 .*kind: antibody or tcr"), ("antibody", "':' .*out of place")):
        with pytest.raises(UserError, match=f"a.fasta, line 1.*{words}"):
            list(clean(sources, ReadOptions(), Reading(kind), Account()))  # type: ignore[arg-type]
