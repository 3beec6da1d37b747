"""Corpora of molecules: one vocabulary whoever read what, its report against a plain count, sides that do not mix."""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biometro.alphabet import MoleculeAlphabet, MoleculePolicy
from biometro.alphabet.molecule import Growing, canonical, chem, parse, random_forms, tokens_of
from biometro.data import tables
from biometro.data.corpus import Corpus
from biometro.data.spool import BUCKETS, Spool, Symbols, unique_sequences
from biometro.errors import UserError
from biometro.jobs.prepare import VocabularyConfig, prepare

pytest.importorskip("selfies")
pytest.importorskip("rdkit")
Chem = chem()

SIDE_CHAINS = ["C", "CC", "CO", "N", "F", "Cl", "CC(=O)", "CS(=O)(=O)", "N#C", "C[C@H](F)", "F/C=C/", "[O-]C(=O)"]
RINGS = [
    "c1ccccc1",
    "c1ccncc1",
    "C1CCCCC1",
    "c1ccc2[nH]ccc2c1",
    "C1CCNCC1",
    "c1ccsc1",
    "C1CC1",
    "c1ccc(C2CC2)cc1",
    "CC",
]
RARE = ["C[Se]C", "CCBr", "C[Si](C)C", "[Na+].[Cl-]", "CC[13CH3]", "*CC", "[NH3][Pt]([NH3])(Cl)Cl", "c1ccc"]
MOLECULES = [a + b for a, b in itertools.product(SIDE_CHAINS, RINGS)] + RARE


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PIECE_ROWS", 17)


def write(folder: Path, seed: int = 0, files: int = 4) -> list[str]:
    """The molecules in random order over some files, a third of them twice, written in another way."""
    folder.mkdir()
    chance, texts = random.Random(seed), list(MOLECULES)
    for text in chance.sample(texts, len(texts) // 3):
        mol = Chem.MolFromSmiles(text)
        texts.append(text if mol is None else Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed + 1)[0])
    chance.shuffle(texts)
    for number in range(files):
        with (folder / f"{number}.csv").open("w", newline="") as out:
            rows = csv.writer(out)
            rows.writerow(["smiles", "batch"])
            rows.writerows([text, f"b{len(text) % 7}"] for text in texts[number::files])
    return sorted(map(str, folder.iterdir()))


def make(data: list[str], out: Path, **options: Any) -> Corpus | None:
    vocabulary = VocabularyConfig(**options.pop("vocabulary", {}))
    molecules = MoleculePolicy(**options.pop("molecules", {}))
    options = {"valid": 0.3, "column": "smiles", **options}
    return prepare(data, str(out), kind="molecule", molecules=molecules, vocabulary=vocabulary, **options)


def content(folder: Path) -> tuple[dict[str, bytes], Any]:
    """Files, and what corpus.json says but for when and of which files."""
    info = json.loads((folder / "corpus.json").read_text())
    info["intake"].pop("dropped_examples")
    info["intake"]["dropped"] = Counter(info["intake"]["dropped"])
    for name in ("created", "sources"):
        del info[name]
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "corpus.json"}, info


def texts_of(corpus: Corpus) -> dict[str, list[str]]:
    """What each side holds, as SMILES."""
    alphabet, found = corpus.alphabet, {}
    assert isinstance(alphabet, MoleculeAlphabet)
    for name in ("train", "valid"):
        split = corpus.split(name)
        found[name] = [alphabet.smiles(np.asarray(split[i])) for i in range(len(split))]
    return found


def readable(notation: str) -> set[str]:
    """Canonical SMILES of the molecules that the notation can write."""
    known = {canonical(mol) for text in MOLECULES if (mol := parse(text)) is not None}
    return {s for s in known if notation == "smiles" or not re.search(r"\*|->", s)}


# The same corpus --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notation", ["selfies", "smiles"])
def test_the_order_of_files_workers_and_parts_change_nothing(tmp_path: Path, notation: str) -> None:
    options: dict[str, Any] = {"vocabulary": {"notation": notation, "least": 2}, "forms": 1}
    data = write(tmp_path / "in")
    make(data, tmp_path / "one", **options)
    files, info = content(tmp_path / "one")
    make(write(tmp_path / "other", seed=5, files=2), tmp_path / "shuffled", **options)
    shuffled = content(tmp_path / "shuffled")
    assert shuffled[0] == files and shuffled[1]["alphabet"] == info["alphabet"]
    assert shuffled[1]["vocabulary"] == info["vocabulary"] and shuffled[1]["splits"] == info["splits"]
    make(data[::-1], tmp_path / "backwards", **options)
    assert content(tmp_path / "backwards") == (files, info)
    make(data, tmp_path / "many", workers=3, **options)
    assert content(tmp_path / "many") == (files, info)
    for part in ("2/3", "3/3", "1/3"):
        found = make(data, tmp_path / "parts", part=part, workers=1 + (part == "3/3"), **options)
        assert (found is None) == (part != "1/3")
    assert content(tmp_path / "parts") == (files, info)


@pytest.mark.parametrize("notation", ["selfies", "smiles"])
def test_the_vocabulary_of_a_corpus_makes_the_same_corpus_again(tmp_path: Path, notation: str) -> None:
    data = write(tmp_path / "in")
    first = make(data, tmp_path / "one", vocabulary={"notation": notation})
    again = make(data, tmp_path / "two", vocabulary={"like": str(tmp_path / "one")})
    assert first is not None and again is not None
    assert content(tmp_path / "one")[0] == content(tmp_path / "two")[0]
    assert again.alphabet == first.alphabet and again.digest == first.digest


def test_a_spool_that_is_added_to_by_another_process_keeps_its_symbols(tmp_path: Path) -> None:
    for molecules in (["CCO", "CN"], ["FC", "NCO"]):
        spool = Spool(tmp_path / "s", Growing("smiles"))
        for one in molecules:
            spool.add(one.encode())
        spool.flush()
    symbols = Symbols([tmp_path / "s"])
    found = []
    for bucket in range(BUCKETS):
        entries, starts, numbers, _ = unique_sequences([tmp_path / "s"], bucket, symbols)
        found += ["".join(symbols.names[n] for n in numbers[a : a + e["length"]])
                  for a, e in zip(starts, entries, strict=True)]  # fmt: skip
    assert sorted(found) == ["CCO", "CN", "FC", "NCO"]


# What a vocabulary holds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notation", ["selfies", "smiles"])
@pytest.mark.parametrize(("least", "most"), [(1, 249), (3, 249), (1, 6), (20, 8)])
@pytest.mark.parametrize("unknown", ["drop", "unk"])
def test_the_report_is_that_of_a_plain_count(
    tmp_path: Path, notation: Any, least: int, most: int, unknown: str
) -> None:
    corpus = make(
        write(tmp_path / "in"), tmp_path / "c", vocabulary={"notation": notation, "least": least, "most": most},
        molecules={"unknown": unknown},
    )  # fmt: skip
    assert corpus is not None and isinstance(corpus.alphabet, MoleculeAlphabet)
    molecules = {smiles: tokens_of(smiles.encode(), notation) for smiles in readable(notation)}
    counts = Counter(token for tokens in molecules.values() for token in set(tokens))
    order = sorted(counts, key=lambda token: (-counts[token], token))
    expected = [token for token in order if counts[token] >= least][:most]
    assert list(corpus.alphabet.standard) == expected
    covered = {smiles for smiles, tokens in molecules.items() if set(tokens) <= set(expected)}
    report = corpus.info["vocabulary"]
    assert report["symbols"] == len(counts) and report["kept"] == len(expected)
    assert (report["molecules"], report["covered"]) == (len(molecules), len(covered))
    assert report["lacking"] == {token: counts[token] for token in order if token not in expected}
    assert len(report["examples"]) == min(3, len(molecules) - len(covered))
    written = {"".join(tokens) for smiles, tokens in molecules.items() if smiles not in covered}
    assert set(report["examples"]) <= written
    held = [text for texts in texts_of(corpus).values() for text in texts]
    number = np.array(corpus.info["splits"]["train"]["token_counts"]) + corpus.info["splits"]["valid"]["token_counts"]
    named = dict(zip(corpus.alphabet.tokens, number.tolist(), strict=True))
    if unknown == "drop":
        assert sorted(held) == sorted(covered)
        assert named["<unk>"] == 0
        assert Counter({t: n for t, n in named.items() if n}) == Counter(t for s in covered for t in molecules[s])
    else:
        assert len(held) == len(molecules) and covered <= set(held)
        assert named["<unk>"] == sum(token not in expected for tokens in molecules.values() for token in tokens)


def test_what_the_vocabulary_lacks_can_be_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "in")
    with pytest.raises(UserError, match=r"symbols are outside the vocabulary .*lower vocabulary\.least"):
        make(data, tmp_path / "c", vocabulary={"least": 5}, molecules={"unknown": "fail"})
    assert not (tmp_path / "c").exists()
    with pytest.raises(UserError, match="no molecule is left: each has a symbol that is outside the vocabulary"):
        make(data, tmp_path / "c", vocabulary={"least": 5000})
    with pytest.raises(UserError, match=r"vocabulary\.least is at least 1"):
        make(data, tmp_path / "c", vocabulary={"most": 250})


@pytest.mark.parametrize("unknown", ["drop", "unk", "fail"])
def test_policies_with_the_vocabulary_of_another_corpus(tmp_path: Path, unknown: str) -> None:
    (tmp_path / "small.csv").write_text("smiles\nCCO\nCC=O\nOCCO\n")
    (tmp_path / "large.csv").write_text("smiles\nCCO\nNCC\nCCF\nOCC\n")
    make([str(tmp_path / "small.csv")], tmp_path / "s", valid=0.0)
    options: dict[str, Any] = {
        "vocabulary": {"like": str(tmp_path / "s")}, "molecules": {"unknown": unknown}, "valid": 0.0
    }  # fmt: skip
    if unknown == "fail":
        with pytest.raises(UserError, match=r"large.csv, line 3: a token that the vocabulary lacks: '\[N\]'"):
            make([str(tmp_path / "large.csv")], tmp_path / "l", **options)
        return
    corpus = make([str(tmp_path / "large.csv")], tmp_path / "l", **options)
    assert corpus is not None
    alphabet = corpus.alphabet
    texts = {alphabet.decode(np.asarray(corpus.split("train")[i])) for i in range(len(corpus.split("train")))}
    assert texts == ({"[C][C][O]"} if unknown == "drop" else {"[C][C][O]", "[C][C]<unk>"})
    dropped = corpus.info["intake"]["dropped"]
    assert dropped == ({"a token that the vocabulary lacks": 2} if unknown == "drop" else {})


def test_forms_never_bring_a_token_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    (tmp_path / "small.csv").write_text("smiles\n" + "".join("C" * n + "O\n" for n in range(1, 9)))
    make([str(tmp_path / "small.csv")], tmp_path / "s", vocabulary={"notation": "smiles"}, valid=0.0)
    corpus = make([str(tmp_path / "small.csv")], tmp_path / "l", vocabulary={"like": str(tmp_path / "s")}, forms=6,
                  valid=0.0)  # fmt: skip
    assert corpus is not None
    assert corpus.info["splits"]["train"]["token_counts"][corpus.alphabet.id("<unk>")] == 0  # CC(O)... has branches
    texts = texts_of(corpus)["train"]
    assert len(texts) > 8 and set(texts) <= {text for n in range(1, 9) for text in ("C" * n + "O", "O" + "C" * n)}


# Sides ------------------------------------------------------------------------------------------------------------


def scaffold_of(smiles: str) -> str:
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return str(MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(smiles), includeChirality=False))


@pytest.mark.parametrize("notation", ["selfies", "smiles"])
@pytest.mark.parametrize("forms", [0, 3])
@pytest.mark.parametrize("split", ["hash", "scaffold", "group"])
def test_no_molecule_scaffold_or_group_is_on_both_sides(tmp_path: Path, notation: str, forms: int, split: Any) -> None:
    corpus = make(write(tmp_path / "in"), tmp_path / "c", vocabulary={"notation": notation}, forms=forms, split=split,
                  split_column="batch" if split == "group" else None, valid=0.4)  # fmt: skip
    assert corpus is not None
    sides = {name: [str(Chem.CanonSmiles(text)) for text in texts] for name, texts in texts_of(corpus).items()}
    assert len(sides["train"]) > 10 and len(sides["valid"]) > 10
    assert not set(sides["train"]) & set(sides["valid"])
    assert set(sides["train"]) | set(sides["valid"]) == readable(notation)
    written = [text for texts in texts_of(corpus).values() for text in texts]
    if notation == "smiles":
        assert len(written) == len(set(written))
        assert set(written) == {
            text for smiles in readable(notation) for text in (smiles, *random_forms(smiles, forms))
        }  # fmt: skip
    elif forms:
        assert len(written) > 2 * len(set(written))  # other orders of symbols, one SMILES
    if split == "scaffold":
        scaffolds = {name: set(map(scaffold_of, texts)) for name, texts in sides.items()}
        assert not scaffolds["train"] & scaffolds["valid"] and min(map(len, scaffolds.values())) > 1
    if split == "group":
        groups: dict[str, set[str]] = {}
        for path in (tmp_path / "in").iterdir():
            for row in csv.DictReader(path.open()):
                if (mol := parse(row["smiles"])) is not None:
                    groups.setdefault(row["batch"], set()).add(canonical(mol))
        held = set(sides["valid"])
        whole = [group for group in groups.values() if group & readable(notation) <= held]
        assert held == set().union(*whole) & readable(notation)  # groups that are held out, and nothing beside them


def test_what_is_dropped_is_counted_by_reason_with_places(tmp_path: Path) -> None:
    corpus = make(write(tmp_path / "in"), tmp_path / "c")
    assert corpus is not None
    texts = [row["smiles"] for path in (tmp_path / "in").iterdir() for row in csv.DictReader(path.open())]
    unread = sum(parse(text) is None for text in texts)
    known = readable("selfies")
    unwritten = sum(1 for text in texts if (mol := parse(text)) is not None and canonical(mol) not in known)
    intake = corpus.info["intake"]
    reasons = {"no SMILES that RDKit can read": unread, "a molecule that SELFIES cannot write": unwritten}
    assert intake["dropped"] == reasons
    assert intake["kept"] == len(texts) - unread - unwritten
    assert corpus.info["duplicates"] == intake["kept"] - len(known)
    examples = " ".join(intake["dropped_examples"]["a molecule that SELFIES cannot write"])
    assert re.search(r"csv, line \d+ \(\d+\): (a dative bond|a wildcard atom): ", examples)
