"""Test sequences in a training corpus: counted against plain sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.data.corpus import Corpus
from biometro.errors import UserError
from biometro.evaluation import overlap
from biometro.evaluation.overlap import Corpora, Trained
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig


def random_letters(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(PROTEIN.standard), size=n)) for n in random.integers(40, 90, count)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A corpus in several shards, and its letters before cleaning."""
    folder = tmp_path_factory.mktemp("overlap")
    letters = [*random_letters(300, 0), "MKUTAYIAKQRBZ"]
    (folder / "x.fasta").write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(letters)))
    command = ["prepare", f"--data={folder / 'x.fasta'}", f"--out={folder / 'corpus'}", "--valid=0.1"]
    assert cli.main([*command, "--shard_residues=2000"]) == 0
    return folder / "corpus", letters


def test_exact_copies_are_those_of_a_plain_set(small: tuple[Path, list[str]]) -> None:
    folder, letters = small
    corpus = Corpus.open(folder)
    side = corpus.split("train")
    there = {PROTEIN.decode(side[i]).encode() for i in range(len(side))}
    assert len(corpus.shards["train"]) > 3
    test = [text.encode() for text in (*letters[:50], *letters[:3], *random_letters(40, 1))]
    assert overlap.exact(test, corpus) == sum(text in there for text in test) > 20
    assert overlap.exact([], corpus) == 0


def test_sequences_are_compared_as_the_corpus_holds_them(small: tuple[Path, list[str]]) -> None:
    """Its policy turned U, B and Z into X; a test sequence that still has them is the same one."""
    corpus = Corpus.open(small[0])
    side = corpus.split("train")
    held = {PROTEIN.decode(side[i]) for i in range(len(side))}
    if "MKXTAYIAKQRXX" in held:  # else it fell into the validation side
        assert overlap.exact([b"MKUTAYIAKQRBZ"], corpus) == 1


@pytest.mark.long
def test_relatives_are_counted_too(small: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(small[0])
    side = corpus.split("train")
    near = bytearray(PROTEIN.decode(side[int(np.argmax(side.lengths))]).encode())
    near[::10] = b"W" * len(near[::10])
    test = [bytes(near), random_letters(1, 7)[0].encode()]
    said = overlap.describe(test, "protein", Trained(corpus.digest, None, False), Corpora([str(small[0])]), "homology")
    assert (said["exact"], said["relatives"], said["of"]) == (0, 1, 2)
    assert "1 (50.0 %) with a relative" in str(said["text"])
    monkeypatch.setattr(overlap, "_PIECE", 100)  # a corpus is searched piece by piece
    held = [PROTEIN.decode(side[number]).encode() for number in (0, 150, len(side) - 1)]
    assert overlap.relatives([*test, *held, held[0]], corpus) == 5


def test_a_corpus_is_found_by_its_digest_only(small: tuple[Path, list[str]], corpus: Path) -> None:
    digest = Corpus.open(small[0]).digest
    assert Corpora([str(small[0])]).find(Trained(digest, None, False)) is not None
    assert Corpora([str(small[0])]).find(Trained(digest[:16], None, False)) is not None
    assert Corpora().find(Trained(digest, str(small[0]), False)) is not None
    assert Corpora([str(corpus)]).find(Trained(digest, str(corpus), False)) is None  # another stands there now
    assert Corpora().find(Trained(digest, "https://example.org/corpus", False)) is None
    assert Corpora().find(Trained(None, str(small[0]), False)) is None
    with pytest.raises(UserError):
        Corpora([str(small[0] / "nothing")])


def test_what_is_said_where_nothing_can_be_counted() -> None:
    def text(trained: Trained, mode: overlap.Mode = "exact") -> object:
        return overlap.describe([b"MKT"], "protein", trained, Corpora(), mode)["text"]

    assert text(Trained(None, None, False)) == "training corpus not recorded"
    assert text(Trained("a" * 64, "/nowhere", False)) == "corpus aaaaaaaaaaaaaaaa not at hand"
    assert "tuned on are not counted" in str(text(Trained("a" * 64, None, True)))
    assert text(Trained("a" * 64, None, False), "none") == "not asked for"


def test_models_of_every_age_say_what_they_were_trained_on() -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=16, depth=1, head_size=8))

    def trained(facts: dict[str, str], recipe: dict[str, object]) -> Trained:
        return overlap.training_of(Bundle(PROTEIN, {"encoder": encoder}, recipe, facts))

    digest = "0123456789abcdef" * 4
    assert trained({overlap.DIGEST: digest}, {"data": "c"}) == Trained(digest, "c", False)
    older = {"training data": f"3 sequences, from x; corpus digest {digest[:16]}"}
    assert trained(older, {"data": "c"}) == Trained(digest[:16], "c", False)
    assert trained({overlap.DIGEST: digest}, {"data": "labels.csv", "labels": {}}) == Trained(digest, None, True)
    assert trained({}, {}) == Trained(None, None, False)
