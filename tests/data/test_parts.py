"""Parts made anywhere, in any order, are the corpus of one machine; what does not fit together is refused."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_fill import OPTIONS, content, fasta_of, sequences, write_input

from biometro.data import fasta
from biometro.data.corpus import Corpus
from biometro.data.parts import numbers
from biometro.errors import UserError
from biometro.jobs.prepare import prepare


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasta, "PIECE_BYTES", 2000)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("order", list(itertools.permutations(["1/3", "2/3", "3/3"])))
def test_parts_in_any_order_make_the_corpus_of_one_machine(tmp_path: Path, order: tuple[str, ...]) -> None:
    data = write_input(tmp_path / "in")
    prepare(data, str(tmp_path / "one"), **OPTIONS)
    out = str(tmp_path / "c")
    for number, part in enumerate(order):
        assert not (tmp_path / "c").exists()
        found = prepare(data, out, part=part, workers=1 + number % 2, **OPTIONS)
        assert (found is None) == (number < 2)
    assert content(tmp_path / "one") == content(tmp_path / "c")
    assert names(tmp_path) == ["c", "in", "one"]
    again = prepare(data, out, part="2/3", **OPTIONS)  # a batch system may start a job twice
    assert again is not None and again.digest == Corpus.open(tmp_path / "one").digest
    assert names(tmp_path) == ["c", "in", "one"]
    with pytest.raises(UserError, match="holds a corpus already"):
        prepare(data, out, part="2/3", **{**OPTIONS, "valid": 0.5})


def test_more_machines_than_files_of_every_kind(tmp_path: Path) -> None:
    data = write_input(tmp_path / "in")
    prepare(data, str(tmp_path / "one"), **OPTIONS)
    found = [prepare(data, str(tmp_path / "c"), part=f"{i}/7", **OPTIONS) for i in range(7, 0, -1)]
    assert [corpus is None for corpus in found] == [True] * 6 + [False]
    assert content(tmp_path / "one") == content(tmp_path / "c")


def test_one_file_is_shared_by_more_machines_than_files(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(gzip.compress(fasta_of(sequences(800, 0))))
    prepare(str(path), str(tmp_path / "one"), **OPTIONS)
    sizes = []
    for part in ("4/4", "1/4", "3/4"):
        assert prepare(str(path), str(tmp_path / "c"), part=part, **OPTIONS) is None
        about = tmp_path.glob(f".c.parts/part-{part[0]}-of-4-*/part.json")
        sizes.append(json.loads(next(about).read_text())["account"]["read"])
    assert min(sizes) > 100
    assert prepare(str(path), str(tmp_path / "c"), part="3/4", **OPTIONS) is None  # done already
    prepare(str(path), str(tmp_path / "c"), part="2/4", **OPTIONS)
    assert content(tmp_path / "one") == content(tmp_path / "c")


@pytest.mark.long
def test_machines_at_the_same_time(tmp_path: Path) -> None:
    data = write_input(tmp_path / "in")
    prepare(data, str(tmp_path / "one"), valid=0.2)
    command = [sys.executable, "-m", "biometro", "prepare", f"--data={data}", f"--out={tmp_path / 'c'}", "--valid=0.2"]
    processes = [subprocess.Popen([*command, f"--part={i}/3"], stderr=subprocess.PIPE) for i in (1, 2, 3)]
    said = [process.communicate(timeout=100)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert content(tmp_path / "one") == content(tmp_path / "c")
    assert names(tmp_path) == ["c", "in", "one"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 50}, r"\(max_length: None then, 50 now\)"),
        ({"part": "1/2"}, r"\(parts: 3 then, 2 now\)"),
        ({"data": ["MKTA"]}, r"\(files: .*x\.fasta then, MKTA now\)"),
    ],
)
def test_parts_of_other_options_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(fasta_of(sequences(50, 0)))
    options = {"data": [str(path)], "out": str(tmp_path / "c"), "part": "2/3"}
    assert prepare(**options) is None
    with pytest.raises(UserError, match=message) as error:
        prepare(**{**options, "part": "1/3", **change})
    assert str(tmp_path / ".c.parts") in str(error.value) and "\n" not in str(error.value)
    assert len(names(tmp_path / ".c.parts")) == 1


def test_a_failed_part_leaves_nothing_and_the_others_stay(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.fasta", tmp_path / "b.fasta"
    good.write_bytes(fasta_of(sequences(50, 0)))
    bad.write_text(">a\nM1K\n")
    data, out = [str(good), str(bad)], str(tmp_path / "c")
    assert prepare(data, out, part="1/2") is None
    with pytest.raises(UserError, match=r"b\.fasta, line 2"):
        prepare(data, out, part="2/2")
    assert [name[:9] for name in names(tmp_path / ".c.parts")] == ["part-1-of"]
    bad.write_text(">a\nMK\n")
    corpus = prepare(data, out, part="2/2")
    assert corpus is not None and corpus.info["intake"]["read"] == 56


def test_files_that_differ_between_machines_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(fasta_of(sequences(100, 0)))
    assert prepare(str(path), str(tmp_path / "c"), part="1/2") is None
    path.write_bytes(fasta_of(sequences(100, 1)))
    with pytest.raises(UserError, match=r"x\.fasta: part 2 has read other bytes"):
        prepare(str(path), str(tmp_path / "c"), part="2/2")
    assert not (tmp_path / "c").exists() and "assembling" not in names(tmp_path / ".c.parts")


def test_only_one_assembles_unless_it_was_killed(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(fasta_of(sequences(100, 0)))
    out, claim = str(tmp_path / "c"), tmp_path / ".c.parts" / "assembling"
    assert prepare(str(path), out, part="1/2") is None
    claim.write_text(f"{socket.gethostname()} {os.getpid()}")
    assert prepare(str(path), out, part="2/2") is None
    assert "is assembling; if it was killed, remove" in capsys.readouterr().err
    claim.write_text("another 1")
    assert prepare(str(path), out, part="2/2") is None
    claim.write_text(f"{socket.gethostname()} {2**22 + 1}")  # beyond the largest process number of Linux
    assert prepare(str(path), out, part="2/2") is not None
    assert names(tmp_path) == ["c", "x.fasta"]


def test_how_parts_are_named() -> None:
    assert (numbers("3/16"), numbers("1/1")) == ((3, 16), (1, 1))
    for wrong in ("0/3", "4/3", "3", "a/b", "-1/3", "1/0", ""):
        with pytest.raises(UserError, match="say which of how many"):
            numbers(wrong)
