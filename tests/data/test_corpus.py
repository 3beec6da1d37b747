"""Corpora: a set of sequences, in whatever order they came; damage is noticed, a good one is never lost."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.alphabet import PROTEIN
from biometro.data import builder
from biometro.data.corpus import Corpus
from biometro.data.splits import by_hash
from biometro.data.spool import Spool
from biometro.errors import UserError
from biometro.files import new_folder
from biometro.jobs.prepare import prepare

SEQUENCES = st.lists(st.text("ACDEFGHIKLMNPQRSTVWYX", min_size=1, max_size=30), min_size=1, max_size=60)


def build(
    folder: Path, sequences: list[str], valid: float = 0.3, buffer_bytes: int = 1 << 20, spools: int = 1
) -> Corpus:
    parts = [Spool(folder.parent / f"{folder.name}-{i}", PROTEIN, buffer_bytes=buffer_bytes) for i in range(spools)]
    for number, sequence in enumerate(sequences):
        parts[number % spools].add(sequence.encode())
    for part in parts:
        part.flush()
    with new_folder(folder) as work:
        builder.build(work, [part.folder for part in parts], PROTEIN, lambda digests: by_hash(digests, valid), {})
    return Corpus.open(folder)


def contents(corpus: Corpus, name: str) -> list[str]:
    split = corpus.split(name)
    return [PROTEIN.decode(split[i]) for i in range(len(split))]


@given(SEQUENCES, st.integers(0, 100))
def test_a_corpus_is_the_set_of_its_sequences(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[str], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("c")
    sequences = ["MKTAYIAKQR", *sequences]
    shuffled = [*sequences, *sequences[:3]]
    random.Random(seed).shuffle(shuffled)
    try:
        one = build(folder / "one", sequences)
    except UserError as error:  # everything was held out, by chance
        assert "left to train on" in str(error)
        return
    two = build(folder / "two", shuffled, buffer_bytes=1, spools=3)
    train, valid = contents(one, "train"), contents(one, "valid")
    assert sorted(train + valid) == sorted(set(sequences))
    assert (train, valid) == (contents(two, "train"), contents(two, "valid"))
    assert one.digest == two.digest
    assert one.info["duplicates"] == len(sequences) - len(set(sequences))
    assert sum(one.info["splits"]["train"]["length_histogram"].values()) == len(train)
    counts = np.zeros(PROTEIN.size, dtype=int)
    for sequence in train:
        counts += np.bincount(PROTEIN.encode(sequence), minlength=PROTEIN.size)
    assert one.info["splits"]["train"]["token_counts"] == counts.tolist()


def test_the_split_is_stable_and_of_the_right_size(tmp_path: Path) -> None:
    random.seed(0)
    sequences = ["".join(random.choices(PROTEIN.standard, k=20)) for _ in range(4000)]
    corpus = build(tmp_path / "c", sequences, valid=0.1)
    held = set(contents(corpus, "valid"))
    assert 320 < len(held) < 480
    part = build(tmp_path / "d", sequences[:2000], valid=0.1)
    assert set(contents(part, "valid")) == held & set(sequences[:2000])
    wider = build(tmp_path / "e", sequences, valid=0.2)
    assert held < set(contents(wider, "valid"))
    assert contents(build(tmp_path / "f", sequences[:50], valid=0.0), "valid") == []


def test_unigram_entropy_is_that_of_the_letters(tmp_path: Path) -> None:
    corpus = build(tmp_path / "c", ["AAAAGGGGX"], valid=0.0)
    assert corpus.unigram_entropy("train") == pytest.approx(np.log(2))


def test_damage_is_found(tmp_path: Path) -> None:
    corpus = build(tmp_path / "c", ["MKTA", "GGGG", "WWWW"], valid=0.0)
    corpus.verify()
    path = tmp_path / "c" / "tokens.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"tokens\.bin: damaged"):
        Corpus.open(tmp_path / "c").verify()
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(UserError, match="disagree"):
        Corpus.open(tmp_path / "c")
    (tmp_path / "c" / "corpus.json").write_text("{")
    with pytest.raises(UserError, match="damaged corpus"):
        Corpus.open(tmp_path / "c")
    with pytest.raises(UserError, match="is not a corpus folder"):
        Corpus.open(tmp_path)


def test_prepare_accounts_for_everything(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(">a\nMKTA*\n>b\nmkta\n>c\nMUK\n>d\n--..\n>e\nMK\n>f\n" + "A" * 50 + "\n")
    corpus = prepare(str(path), str(tmp_path / "c"), residues="drop_sequence", valid=0, min_length=3, max_length=40)
    assert contents(corpus, "train") == ["MKTA"]
    intake = corpus.info["intake"]
    assert intake["read"] == 6 and corpus.info["duplicates"] == 1
    assert intake["dropped"] == {
        "non-standard residue": 1,
        "no residue but gaps and stops": 1,
        "shorter than min_length": 1,
        "longer than max_length": 1,
    }
    assert intake["dropped_examples"]["non-standard residue"] == [f"{path}, line 5 (c)"]
    assert corpus.info["sources"][0]["records"] == 6
    kept = prepare(str(path), str(tmp_path / "d"), valid=0)
    assert "MXK" in contents(kept, "train")
    with pytest.raises(UserError, match=r"line 5: non-standard residue 'U' at position 2"):
        prepare(str(path), str(tmp_path / "e"), residues="fail")


def test_a_failed_build_leaves_the_good_corpus_alone(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.fasta", tmp_path / "bad.fasta"
    good.write_text(">a\nMKTA\n>b\nGG\n")
    bad.write_text(">a\nMKTA\n>b\n")
    corpus = prepare(str(good), str(tmp_path / "c"), valid=0)
    with pytest.raises(UserError, match="overwrite"):
        prepare(str(good), str(tmp_path / "c"), valid=0)
    with pytest.raises(UserError, match="line 3"):
        prepare(str(bad), str(tmp_path / "c"), valid=0, overwrite=True)
    Corpus.open(tmp_path / "c").verify()
    assert Corpus.open(tmp_path / "c").digest == corpus.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.fasta", "c", "good.fasta"]
    with pytest.raises(UserError, match="no corpus folder"):
        prepare(str(good), str(good), overwrite=True)


def test_corpus_json_tells_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_text(">a\nMKTA\n")
    prepare(str(path), str(tmp_path / "c"), valid=0)
    info = json.loads((tmp_path / "c" / "corpus.json").read_text())
    assert info["alphabet"]["name"] == "protein"
    assert info["options"]["residues"] == "keep_as_x"
    assert len(info["sources"][0]["sha256"]) == 64


def test_a_split_column_is_obeyed_and_held_out_wins(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("sequence,fold\nAAAA,train\nCCCC,valid\nDDDD,test\nEEEE,train\neeee,valid\nGGGG,\n")
    corpus = prepare(str(path), str(tmp_path / "c"), split_column="fold")
    assert contents(corpus, "train") == ["AAAA"]
    assert sorted(contents(corpus, "valid")) == ["CCCC", "EEEE"]
    assert corpus.info["intake"]["dropped"] == {"neither train nor valid in the split column": 2}
    fasta = tmp_path / "x.fasta"
    fasta.write_text(">a\nMK\n")
    with pytest.raises(UserError, match="only a table"):
        prepare(str(fasta), str(tmp_path / "d"), split_column="fold")
