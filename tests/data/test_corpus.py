"""Corpora: a set of sequences, in whatever order they came; damage is noticed, a good one is never lost."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biometro.alphabet import PROTEIN
from biometro.data import builder
from biometro.data.corpus import Corpus
from biometro.data.loader import Loader, PackingConfig
from biometro.data.splits import by_hash
from biometro.data.spool import Spool
from biometro.errors import UserError
from biometro.files import new_folder
from biometro.jobs.prepare import prepare

SEQUENCES = st.lists(st.text("ACDEFGHIKLMNPQRSTVWYX", min_size=1, max_size=30), min_size=1, max_size=60)


def build(
    folder: Path,
    sequences: list[str],
    valid: float = 0.3,
    buffer_bytes: int = 1 << 20,
    spools: int = 1,
    shard_residues: int = 1 << 30,
) -> Corpus:
    parts = [Spool(folder.parent / f"{folder.name}-{i}", PROTEIN, buffer_bytes=buffer_bytes) for i in range(spools)]
    for number, sequence in enumerate(sequences):
        parts[number % spools].add(sequence.encode())
    for part in parts:
        part.flush()
    with new_folder(folder) as work:
        builder.build(
            work,
            [part.folder for part in parts],
            PROTEIN,
            lambda digests: by_hash(digests, valid),
            {},
            shard_residues=shard_residues,
        )
    return Corpus.open(folder)


def assert_shards_are_full(corpus: Corpus, shard_residues: int) -> None:
    """None is above the limit but one of a single sequence, and none ends before it must; histograms are right."""
    for name, infos in corpus.shards.items():
        split = corpus.split(name)
        shards = [split.shard(i) for i in range(len(infos))]
        for shard, info, histogram in zip(shards, infos, split.histograms, strict=True):
            assert (len(shard), len(shard.tokens)) == (info.sequences, info.residues)
            assert info.residues <= shard_residues or info.sequences == 1
            assert Counter(dict(histogram.tolist())) == Counter(len(shard[i]) for i in range(len(shard)))
        for one, two in pairwise(shards):
            assert len(one.tokens) + len(two[0]) > shard_residues


def contents(corpus: Corpus, name: str) -> list[str]:
    split = corpus.split(name)
    return [PROTEIN.decode(split[i]) for i in range(len(split))]


@settings(max_examples=25)
@given(SEQUENCES, st.integers(0, 100), st.integers(1, 200))
def test_a_corpus_is_the_set_of_its_sequences(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[str], seed: int, shard_residues: int
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
    pieces = build(folder / "three", shuffled, spools=2, shard_residues=shard_residues)
    pieces.verify()
    assert (train, valid) == (contents(pieces, "train"), contents(pieces, "valid"))
    again = build(folder / "four", sequences, shard_residues=shard_residues)
    for file in sorted((folder / "three").iterdir()):
        if file.suffix != ".json":
            assert file.read_bytes() == (folder / "four" / file.name).read_bytes()
    assert again.digest == pieces.digest
    assert (again.digest == one.digest) == (pieces.shards == one.shards)
    assert_shards_are_full(pieces, shard_residues)
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
    path = tmp_path / "c" / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"train-00000\.bin: damaged"):
        Corpus.open(tmp_path / "c").verify()
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(UserError, match=r"train-00000\.bin: damaged corpus \(11 bytes; by corpus\.json, 12\)"):
        Corpus.open(tmp_path / "c")
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.bin: damaged corpus \(No such file"):
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


def test_a_split_by_homology_holds_out_whole_families(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    ancestors = drawn.choice(letters, (12, 120))
    family_of: dict[str, int] = {}
    for number in range(12):
        for _ in range(2 + number % 4):
            member = np.where(drawn.random(120) < 0.15, drawn.choice(letters, 120), ancestors[number])
            family_of[bytes(member).decode()] = number
    lines = [f">{number}\n{text}\n" for number, text in enumerate(family_of)]
    (tmp_path / "a.fasta").write_text("".join(lines))
    (tmp_path / "b.fasta").write_text("".join(lines[::-1]))
    options: dict[str, Any] = {"split": "homology", "valid": 0.25}
    one, other = (prepare(str(tmp_path / f"{n}.fasta"), str(tmp_path / n), **options) for n in "ab")
    assert one is not None and other is not None and one.digest == other.digest
    sides = [[one.alphabet.decode(tokens) for tokens in one.split(name)] for name in ("train", "valid")]
    assert sorted(sides[0] + sides[1]) == sorted(family_of) and 0.15 < len(sides[1]) / len(family_of) <= 0.35
    assert not {family_of[text] for text in sides[0]} & {family_of[text] for text in sides[1]}
    held = Counter(family_of[text] for text in sides[1])
    assert one.info["families"] == {"train": 12 - len(held), "valid": len(held), "largest_valid": max(held.values())}
    assert len(held) > 1
    assert one.info["options"]["split"] == "homology" and one.info["options"]["split_identity"] == 0.4
    strict = prepare(str(tmp_path / "a.fasta"), str(tmp_path / "c"), split_identity=1.0, **options)
    assert strict is not None and strict.digest != one.digest  # each sequence is a family of its own
    none = prepare(str(tmp_path / "a.fasta"), str(tmp_path / "d"), split="homology", valid=0)
    assert none is not None and not len(none.split("valid"))
    for more, message in (
        ({"split_identity": 0}, "are shares"), ({"split_coverage": 1.5}, "are shares"),
        ({"kind": "tcr"}, "for proteins"),
        ({"split_column": "x"}, "go together"),
        ({"split": "hash", "split_identity": 0.3}, "are for split: homology"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            prepare(str(tmp_path / "a.fasta"), str(tmp_path / "e"), **{**options, **more})
    assert not (tmp_path / "e").exists()


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


def test_a_shard_is_a_random_sample(tmp_path: Path) -> None:
    """Files sorted by length: each shard still has long and short ones in proportion."""
    random.seed(1)
    sequences = ["".join(random.choices(PROTEIN.standard, k=10 + i // 100)) for i in range(6000)]
    corpus = build(tmp_path / "c", sequences, valid=0, shard_residues=60_000)
    split = corpus.split("train")
    means = [split.shard(i).lengths.mean() for i in range(len(split.histograms))]
    assert len(means) == 4 and max(abs(mean - 39.5) for mean in means[:-1]) < 2


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(format=1), r"corpus format 1; this version reads 2: prepare it again"),
        (lambda info: info.update(format="x"), "corpus format"),
        (lambda info: info["splits"]["train"]["shards"][0].update(residues=-5), "damaged corpus .*-5 where a number"),
        (lambda info: info["splits"]["train"]["shards"][0].update(residues=True), "damaged corpus .*True where"),
        (lambda info: info["splits"]["train"]["shards"][0].update(sequences=10**30), "damaged corpus .*where a number"),
        (lambda info: info["splits"]["train"]["shards"][0].update(sequences=2), "sequences of train are not those"),
        (lambda info: info["splits"]["train"]["shards"][0]["sha256"].update(bin="../../x"), "is no sha256"),
        (lambda info: info["splits"]["train"]["shards"].append("../../etc/passwd"), "damaged corpus"),
        (lambda info: info["splits"]["train"].update(shards=None), "damaged corpus"),
        (lambda info: info["splits"]["train"].update(token_counts=[1]), "token_counts of train make no sense"),
        (lambda info: info.update(length_rows=10**9), "more lengths than sequences"),
        (lambda info: info.update(length_rows=0), "lengths.npy is not as it was"),
        (lambda info: info["digests"].update(corpus="0" * 64), "changed by hand"),
        (lambda info: info.update(sources=[{}]), "damaged corpus"),
        (lambda info: info.pop("splits"), "damaged corpus"),
    ],
)
def test_nothing_that_corpus_json_says_is_believed(tmp_path: Path, change: Change, message: str) -> None:
    build(tmp_path / "c", ["MKTA", "GGGG", "WWWWW"], valid=0.0)
    path = tmp_path / "c" / "corpus.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=message) as error:
        Corpus.open(tmp_path / "c")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["corpus.json", "lengths.npy", "train-00000.bin", "train-00000.npy"])
def test_no_bytes_crash_a_corpus(tmp_path: Path, name: str) -> None:
    build(tmp_path / "c", ["MKTA", "GGGG", "WWWWW"], valid=0.0)
    path = tmp_path / "c" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            corpus = Corpus.open(tmp_path / "c")
            assert all(corpus.split("train")[i].dtype == np.uint8 for i in range(3))
        except UserError:
            continue
        if name != "corpus.json":  # of which not every word matters
            with pytest.raises(UserError):
                corpus.verify()


@pytest.mark.parametrize("how", ["rewritten", "swapped", "gone", "prepared again"])
def test_a_corpus_that_changes_under_a_run_is_noticed(tmp_path: Path, how: str) -> None:
    sequences = ["MKTAYIAKQR" * 2, "GGGG", "WWWWW", "ACDEF"]
    corpus = build(tmp_path / "c", sequences, valid=0.0, shard_residues=20)
    corpus.check_unchanged()
    loader = Loader(corpus.split("train"), PROTEIN, PackingConfig(100, 50), 0)
    loader.batch(0)
    path = tmp_path / "c" / "train-00001.bin"
    if how == "rewritten":
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, ns=(0, 0))
    elif how == "swapped":
        shutil.copy2(path, tmp_path / "copy")
        (tmp_path / "copy").rename(path)
    elif how == "gone":
        path.unlink()
    else:
        build(tmp_path / "c", sequences, valid=0.0, shard_residues=20)
    with pytest.raises(UserError, match=r"changed under the run"):
        corpus.check_unchanged()
    with pytest.raises(UserError, match=r"changed under the run"):
        loader.batch(1)


def test_batches_of_one_shard_notice_a_change_in_time(tmp_path: Path) -> None:
    corpus = build(tmp_path / "c", ["MKTA", "GGGG", "WWWWW"], valid=0.0)
    loader = Loader(corpus.split("train"), PROTEIN, PackingConfig(100, 50), 0)
    loader.batch(0)
    (tmp_path / "c" / "train-00000.npy").touch()
    with pytest.raises(UserError, match=r"train-00000\.npy: changed under the run"):
        for _ in range(1000):
            loader.batch(0)
