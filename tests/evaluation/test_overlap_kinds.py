"""Test molecules and receptors in training corpora: counted against plain sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biometro import cli
from biometro.alphabet import MoleculePolicy, molecule
from biometro.data.corpus import Corpus
from biometro.evaluation import overlap
from biometro.evaluation.overlap import Corpora, Trained


def letters_of(smiles: str, **policy: Any) -> bytes:
    return molecule.clean(smiles.encode(), MoleculePolicy(**policy)).letters


def prepared(folder: Path, rows: list[str], *options: str) -> Corpus:
    (folder / "x.csv").write_text("\n".join(["sequence", *rows]) + "\n")
    command = ["prepare", f"--data={folder / 'x.csv'}", f"--out={folder / 'corpus'}", "--valid=0.2", *options]
    assert cli.main(command) == 0
    return Corpus.open(folder / "corpus")


def alkyls(count: int, seed: int) -> list[str]:
    """Different molecules of few tokens, some with a rare one."""
    random = np.random.default_rng(seed)
    ends = ["O", "N", "Cl", "C(=O)O", "c1ccccc1", "[Si](C)C", "[Se]C", "B(O)O"]
    found: dict[str, None] = {}
    while len(found) < count:
        body = "".join(random.choice(["C", "C", "N", "O", "C(C)", "C(F)"], random.integers(3, 9)))
        found[body + "C" + ends[random.integers(len(ends))]] = None
    return list(found)


@pytest.mark.parametrize(
    ("unknown", "notation"),
    [
        ("unk", "selfies"), *(pytest.param(*each, marks=pytest.mark.long) for each in
                              (("drop", "selfies"), ("drop", "smiles"), ("unk", "smiles"))),
    ],
)  # fmt: skip
def test_molecules_are_looked_up_as_the_corpus_holds_them(tmp_path: Path, notation: str, unknown: str) -> None:
    rows = alkyls(240, 0)
    corpus = prepared(
        tmp_path, rows, "--kind=molecule", f"--vocabulary.notation={notation}", "--vocabulary.least=60",
        f"--molecules.unknown={unknown}",
    )  # fmt: skip
    side = corpus.split("train")
    there = {side[number].tobytes() for number in range(len(side))}
    test = sorted({letters_of(text) for text in (*rows, *alkyls(120, 1))})
    known = [text for text in test if unknown == "unk" or not corpus.alphabet.unknowns(text)]
    expected = sum(corpus.alphabet.encode(text).tobytes() in there for text in known)
    # of molecules that are one but for tokens the vocabulary lacks, those elsewhere in the order are not looked for
    found = overlap.exact(test, corpus)
    with_all = [text for text in known if not corpus.alphabet.unknowns(text)]
    assert overlap.exact(with_all, corpus) == sum(corpus.alphabet.encode(text).tobytes() in there for text in with_all)
    own = [text for text in test if text in {letters_of(row) for row in rows}]
    lacking = sum(bool(corpus.alphabet.unknowns(text)) for text in own)
    assert lacking > 50 and overlap.exact(with_all, corpus) > 20
    if unknown == "unk":
        held = {corpus.alphabet.encode(text).tobytes() for text in own} & there
        assert overlap.exact(own, corpus) >= 0.95 * sum(corpus.alphabet.encode(text).tobytes() in held for text in own)
    assert found <= expected


def test_salts_and_stereo_go_by_the_corpus_policy(tmp_path: Path) -> None:
    rows = [f"{'C' * n}[C@H](F)O.[Na+].[Cl-]" for n in range(2, 40)]
    corpus = prepared(tmp_path, rows, "--kind=molecule", "--molecules.fragments=largest", "--molecules.stereo=drop")
    side = corpus.split("train")
    other = [f"{'C' * n}[C@@H](F)O.[K+].[Br-]" for n in range(2, 40)]
    assert overlap.exact([letters_of(text) for text in other], corpus) == len(side) > 20
    assert overlap.exact([letters_of(f"{'C' * n}S") for n in range(2, 40)], corpus) == 0


def test_a_vocabulary_of_another_corpus(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    prepared(tmp_path / "a", alkyls(100, 3), "--kind=molecule", "--vocabulary.most=8", "--molecules.unknown=unk")
    rows = alkyls(200, 4)
    corpus = prepared(
        tmp_path / "b", rows, "--kind=molecule", f"--vocabulary.like={tmp_path / 'a' / 'corpus'}",
        "--molecules.unknown=unk",
    )  # fmt: skip
    side = corpus.split("train")
    there = {side[number].tobytes() for number in range(len(side))}
    test = [letters_of(row) for row in rows]
    assert overlap.exact(test, corpus) == sum(corpus.alphabet.encode(text).tobytes() in there for text in test) > 100


def test_receptors_count_with_or_without_peptide_and_mark(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    chains = ["CASS" + "".join(random.choice(list("ADEFGHIKLMN"), 6)) + "YF" for _ in range(200)]
    rows = [*(f"|{chain}" for chain in chains[:100]), *chains[100:150], *(f"CAV{c}|{c}" for c in chains[150:])]
    corpus = prepared(tmp_path, rows, "--kind=tcr")
    side = corpus.split("train")
    there = {corpus.alphabet.decode(side[number]) for number in range(len(side))}
    bare = {text.strip("|") for text in there if "|" not in text.strip("|")}

    def expected(text: str) -> bool:
        receptor = text.partition(":")[0]
        return receptor in there or receptor.strip("|") in bare

    test = [
        *(f"|{chain}" for chain in chains), *chains, *(f"|{chain}:GILGFVFTL" for chain in chains),
        *(f"CAV{chain}|{chain}:NLV" for chain in chains),
    ]  # fmt: skip
    found = overlap.exact([text.encode() for text in test], corpus)
    assert found == sum(map(expected, test)) > 300
    said = overlap.describe(
        [b"|CASSF"], "tcr", Trained(corpus.digest, None, False), Corpora([str(corpus.folder)]), "homology"
    )
    assert "relatives" not in said and "relatives are not searched for among T-cell receptors" in str(said["text"])
    other = overlap.describe(
        [b"CCO"], "molecule", Trained(corpus.digest, None, False), Corpora([str(corpus.folder)]), "exact"
    )
    assert other == {"text": "its training corpus holds T-cell receptors"}
