"""Readers: what users' files look like, and what broken ones say."""

from __future__ import annotations

import bz2
import gzip
import http.server
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.alphabet import SequenceKind
from biometro.data.sources import ReadOptions, Record, Source, expand, read
from biometro.errors import UserError

FASTA = b">a first\nMKTA\nYI\n\n>b\nGG\n>c\nW"
EXPECTED = [("a", b"MKTAYI"), ("b", b"GG"), ("c", b"W")]


def records(path: Path | str, **options: str) -> list[Record]:
    settings = ReadOptions(**options)  # type: ignore[arg-type]
    return [record for source in expand(str(path), settings) for record in read(source, settings)]


def letters(found: list[Record]) -> list[tuple[str, bytes]]:
    return [(r.id, b"".join(r.raw.split())) for r in found]


COMPRESSED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_fasta_as_people_have_it(tmp_path: Path, suffix: str, newline: bytes, mark: bytes) -> None:
    path = tmp_path / f"x.fasta{suffix}"
    path.write_bytes(COMPRESSED[suffix](mark + FASTA.replace(b"\n", newline)))
    found = records(path)
    assert letters(found) == EXPECTED
    assert [r.line for r in found] == [1, 5, 7]


def test_zstandard_and_concatenated_members(tmp_path: Path) -> None:
    data = pa.Codec("zstd").compress(FASTA + b"\n", asbytes=True)
    (tmp_path / "x.fa.zst").write_bytes(data + data)
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(FASTA + b"\n") * 2)
    assert letters(records(tmp_path / "x.fa.zst")) == EXPECTED * 2
    assert letters(records(tmp_path / "x.fa.gz")) == EXPECTED * 2
    (tmp_path / "cut.fa.zst").write_bytes(data[:-3])
    with pytest.raises(UserError, match=r"cut\.fa\.zst, after .*ends too early"):
        records(tmp_path / "cut.fa.zst")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the file holds no sequence"),
        (b"\n\n", "line 1: the file holds no sequence"),
        (b"MKTA\n", "line 1: this is not FASTA"),
        (b"id,sequence\n1,MK\n", "line 1: this is not FASTA"),
        (b">a\n>b\nMK\n", "line 1: a header without a sequence"),
        (b">a\nMK\n>b\n", "line 3: a header without a sequence"),
        (b">a\nMK\nM1K\n", "line 3: the character '1'"),
        (b">a\nMK\n\nM\xc3\xa9K\n", "line 4: a non-ASCII byte 0xc3"),
        (b">a \xff\nMK\n", "line 1: the header is neither ASCII nor UTF-8"),
        (b">a\rMK\r>b\rGG\r", "line 1: lines end in CR alone"),
        (b"\x00\x01\x02", "line 1: this is not FASTA"),
    ],
)
def test_wrong_fasta_names_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "wrong.fasta"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        records(path)
    assert "wrong.fasta" in str(error.value) and "\n" not in str(error.value)


def test_truncated_gzip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cut.fasta.gz"
    whole = gzip.compress(b"".join(b">s%d\nMKTAYIAKQRQISFVKSHFSRQ\n" % i for i in range(5000)))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.fasta\.gz, after line [\d,]+: .*ends too early"):
        records(path)


def test_content_not_name_tells_the_compression(tmp_path: Path) -> None:
    (tmp_path / "plain.fasta.gz").write_bytes(FASTA)  # as browsers leave it
    (tmp_path / "packed.fasta").write_bytes(gzip.compress(FASTA))
    assert letters(records(tmp_path / "plain.fasta.gz")) == letters(records(tmp_path / "packed.fasta")) == EXPECTED


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t"), ("csv.gz", ",")])
def test_tables(tmp_path: Path, suffix: str, separator: str) -> None:
    text = "\n".join(separator.join(row) for row in [("name", "seq"), ("x", "MK"), ('"y y"', '"GG"')]) + "\n"
    data = text.encode()
    (tmp_path / f"t.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    found = records(tmp_path / f"t.{suffix}", column="seq", id_column="name")
    assert letters(found) == [("x", b"MK"), ("y y", b"GG")]
    assert [r.line for r in found] == [2, 3]
    assert [r.id for r in records(tmp_path / f"t.{suffix}", column="seq")] == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file is empty"),
        ("a,b\n1,2\n", "line 1: no column named 'sequence'; its columns are: a, b"),
        ("id,sequence\n1,MK\n2\n", "line 3: 1 fields where the header has 2"),
        ("id,sequence\n1,MK\n2,\n", "line 3: an empty cell"),
        ("id,sequence\n1,MK\n2,MÉ\n", "line 3: a non-ASCII character"),
        ("id,sequence\n", "line 1: the file holds no sequence"),
        ('id,sequence\n1,"MK\n', "line 2: unexpected end"),
    ],
)
def test_wrong_tables_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        records(path)
    assert "t.csv" in str(error.value)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"name": ["x", "y"], "sequence": ["MK", "GG"], "n": [1, 2]}), path)
    assert letters(records(path, id_column="name")) == [("x", b"MK"), ("y", b"GG")]
    with pytest.raises(UserError, match=r"t\.parquet, line 1: no column named 'seq'"):
        records(path, column="seq")
    with pytest.raises(UserError, match=r"line 1: a int where"):
        records(path, column="n")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"t\.parquet"):
        records(path)


def test_names_that_stand_for_nothing(tmp_path: Path) -> None:
    for name, message in {
        str(tmp_path / "no.fasta"): "no such file",
        str(tmp_path / "*.fasta"): "no file fits",
        str(tmp_path): "is a folder",
        "example:nothing": "example:families",
        "nosuchprotocol://x/y.fasta": "cannot be reached",
    }.items():
        with pytest.raises(UserError, match=message):
            expand(name)
    (tmp_path / "data").write_text("x")
    with pytest.raises(UserError, match="format"):
        expand(str(tmp_path / "data"))


def test_patterns_lists_and_plain_sequences(tmp_path: Path) -> None:
    for name in ("b.fa", "a.fa"):
        (tmp_path / name).write_bytes(FASTA)
    assert [Path(s.name).name for s in expand(str(tmp_path / "*.fa"))] == ["a.fa", "b.fa"]
    found = [r for s in expand(["MKTA", str(tmp_path / "a.fa")]) for r in read(s)]
    assert letters(found) == [("", b"MKTA"), *EXPECTED]


@pytest.mark.parametrize(
    ("kind", "letters"),
    [
        ("molecule", "CC(=O)Oc1ccccc1C(=O)O"),
        ("molecule", "C/C=C/C"),
        ("antibody", "EVQLVES|DIQMTQS"),
        ("tcr", "|CASSF@GIL"),
    ],
)
def test_a_name_written_as_its_kind_writes_sequences_is_one(kind: SequenceKind, letters: str) -> None:
    options = ReadOptions(kind=kind)
    assert [r.raw for s in expand(letters, options) for r in read(s, options)] == [letters.encode()]
    with pytest.raises(UserError):
        expand(letters)


def test_a_file_goes_before_a_molecule_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("CCO").write_text("CCN ethylamine\n")
    options = ReadOptions(kind="molecule", format="smi")
    assert [(r.id, r.raw) for s in expand("CCO", options) for r in read(s, options)] == [("ethylamine", b"CCN")]
    with pytest.raises(UserError, match="no such file"):
        expand("molecules.smi", options)


def test_counts_and_digest_are_of_the_file_as_it_lies(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "x.fasta.gz"
    path.write_bytes(gzip.compress(FASTA))
    source = expand(str(path))[0]
    list(read(source))
    assert (source.records, source.bytes) == (3, path.stat().st_size)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reads_over_http(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "x.fasta.gz").write_bytes(gzip.compress(FASTA))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(tmp_path), **kwargs)  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert letters(records(f"{url}/x.fasta.gz")) == EXPECTED
        with pytest.raises(UserError, match="no such file"):
            records(f"{url}/y.fasta")
        server.shutdown()


@given(
    st.lists(
        st.tuples(
            st.text("abcdefgh|_.:", min_size=1, max_size=8),
            st.lists(st.text("ACDEFGHIKLMNPQRSTVWYacdxXBUZO*-", min_size=1, max_size=12), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_any_fasta_that_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, list[str]]], newline: str, last: bool
) -> None:
    text = newline.join(line for name, lines in entries for line in (f">{name} words", *lines))
    path = tmp_path_factory.mktemp("f") / "x.fasta"
    path.write_bytes((text + (newline if last else "")).encode())
    assert letters(list(read(Source(str(path), "fasta")))) == [
        (name, "".join(lines).encode()) for name, lines in entries
    ]


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("g")
    for name in ("x.fasta", "x.fasta.gz", "x.csv", "x.parquet", "x.fa.zst"):
        path = folder / name
        path.write_bytes(data)
        try:
            list(read(expand(str(path))[0]))
        except UserError as error:
            assert name in str(error)
