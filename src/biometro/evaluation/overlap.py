"""How many of a task's test sequences stand in the corpus that a model was trained on.

    model folder ─▶ digest of its corpus ─▶ corpus at hand? ─▶ look each test sequence up ─▶ a sentence for the table

A corpus stands in the order of its sequences' digests, so that a sequence is looked up in some twenty steps, whatever
the size of the corpus. It is looked up as the corpus holds it: under the corpus' policies, a molecule in its notation,
a receptor with its peptide and MHC or without, a chain alone with its mark or without. Relatives need a search by
MMseqs2, which takes as long as the corpus is large, and is for what aligns: proteins and antibodies.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from biometro.alphabet import AlphabetError, MoleculeAlphabet, MoleculePolicy, Reading, SequenceKind
from biometro.alphabet.kinds import PLURALS
from biometro.alphabet.molecule import Growing
from biometro.data import mmseqs
from biometro.data.corpus import Corpus, Split
from biometro.data.likeness import unmarked
from biometro.data.remote import is_url
from biometro.data.spool import DIGEST_BYTES
from biometro.errors import UserError
from biometro.model.bundle import Bundle

Mode = Literal["exact", "homology", "none"]
IDENTITY, COVERAGE = 0.5, 0.8
"""Of an alignment from which a sequence counts as a relative; coverage is that of the shorter one."""
_ALIGNED = ("protein", "antibody")
_PIECE = 1_000_000  # sequences of a corpus that are searched, and in memory, at once
_REMEMBERED = 1 << 18  # digests
DIGEST = "corpus digest"
"""The fact of a model folder that holds its corpus' digest."""
_IN_WORDS = re.compile(r"corpus digest ([0-9a-f]{16})")


@dataclass(frozen=True)
class Trained:
    """What a model folder says of its training data.

    digest: of the corpus, 64 hexadecimal digits, or their first 16; None where nothing is recorded. folder: where the
    corpus was. tuned: whether labelled sequences were trained on after it, which are not recorded.
    """

    digest: str | None
    folder: str | None
    tuned: bool


def training_of(bundle: Bundle) -> Trained:
    """What is recorded; a folder of others' making records nothing."""
    digest = bundle.facts.get(DIGEST)
    if digest is None:
        found = _IN_WORDS.search(bundle.facts.get("training data", ""))
        digest = found[1] if found else None
    tuned = bundle.answers is not None or "labels" in bundle.recipe
    data = bundle.recipe.get("data")
    return Trained(digest, data if isinstance(data, str) and not tuned else None, tuned)


class Corpora:
    """Corpora by digest: those that are named, and those that models were trained on, where they still are.

    Args:
        folders: of corpora, or URLs.

    Raises UserError where one is no corpus.
    """

    def __init__(self, folders: Sequence[str] = ()):
        self._known = [Corpus.open(folder) for folder in folders]

    def find(self, trained: Trained) -> Corpus | None:
        """The corpus of that digest; None where it is not at hand."""
        if not trained.digest:
            return None
        for corpus in self._known:
            if corpus.digest.startswith(trained.digest):
                return corpus
        folder = trained.folder
        if folder is None or is_url(folder) or not (Path(folder) / "corpus.json").is_file():
            return None
        try:
            corpus = Corpus.open(folder)
        except UserError:  # something else stands there now, which is as good as nothing
            return None
        if not corpus.digest.startswith(trained.digest):
            return None
        self._known.append(corpus)
        return corpus


def describe(
    test: Sequence[bytes], kind: SequenceKind, trained: Trained, corpora: Corpora, mode: Mode
) -> dict[str, object]:
    """What is said of one model and task: `text`, and where it was counted `exact` and `relatives`, of `of`.

    Args:
        test: the task's test sequences.
        kind: what they are.
        trained: what the model's folder records.
        corpora: where to look.
        mode: exact copies, or relatives too, or nothing at all.
    """
    also = "; the labelled sequences it was tuned on are not counted" if trained.tuned else ""
    if mode == "none":
        return {"text": "not asked for"}
    if trained.digest is None:
        return {"text": f"training corpus not recorded{also}"}
    corpus = corpora.find(trained)
    if corpus is None:
        return {"text": f"corpus {trained.digest[:16]} not at hand{also}"}
    held = corpus.alphabet.name
    if (held == "molecule") != (kind == "molecule"):
        return {"text": f"its training corpus holds {PLURALS.get(held, held)}{also}"}
    count, of = exact(test, corpus), max(1, len(test))
    said: dict[str, object] = {"exact": count, "of": len(test)}
    text = f"{count:,} of {len(test):,} ({100 * count / of:.1f} %) in its training corpus"
    if mode == "homology" and {kind, held} <= set(_ALIGNED):
        near = relatives(test, corpus)
        said["relatives"] = near
        text += f"; {near:,} ({100 * near / of:.1f} %) with a relative there from {100 * IDENTITY:.0f} % identity"
    elif mode == "homology":
        text += f"; relatives are not searched for among {PLURALS.get(held, held)}"
    return said | {"text": text + also}


def exact(test: Sequence[bytes], corpus: Corpus) -> int:
    """How many of the sequences stand in the corpus' training side, as it would hold them."""
    there = standing(test, corpus)
    return sum(letters in there for letters in test)


def standing(test: Sequence[bytes], corpus: Corpus) -> set[bytes]:
    """Those of the sequences that stand in the corpus' training side, as `exact` counts them."""
    side = corpus.split("train")
    if not len(side):
        return set()
    held, forms, written = _Held(side, corpus), _maker(corpus), _writer(corpus)
    wanted = [(_digest(written(form)), form, letters) for letters in {*test} for form in forms(letters)]
    # in the order of the corpus, so that one from afar is fetched piece by piece
    return {letters for digest, form, letters in sorted(wanted) if held.has(form, digest)}


def relatives(test: Sequence[bytes], corpus: Corpus) -> int:
    """How many of the sequences have a relative in the corpus' training side, themselves among them.

    Raises UserError where MMseqs2 is missing or fails.
    """
    side = corpus.split("train")
    left = unmarked(test)
    for start in range(0, len(side), _PIECE):
        if not left:
            break
        part = range(start, min(start + _PIECE, len(side)))
        letters = unmarked([corpus.alphabet.decode(side[number]).encode() for number in part])
        found = {*mmseqs.search(left, letters, identity=IDENTITY, coverage=COVERAGE).query.tolist()}
        left = [sequence for number, sequence in enumerate(left) if number not in found]
    return len(test) - len(left)


class _Held:
    """A split's sequences, whose digests ascend; each digest is made when it is asked for."""

    def __init__(self, side: Split, corpus: Corpus):
        self._side, self._alphabet = side, corpus.alphabet
        learnt = corpus.info.get("vocabulary")
        lacking = isinstance(learnt, dict) and learnt.get("covered") != learnt.get("molecules")
        self._unknown = self._alphabet.id(self._alphabet.unknown) if lacking else None
        self._digests: dict[int, bytes] = {}

    def has(self, letters: bytes, wanted: bytes) -> bool:
        """Whether a sequence of that digest is among them.

        A molecule with a token that the vocabulary lacks stands where its whole text has its digest, which can no
        longer be read off it; steps pass over such, and those at the place itself are compared token by token.
        """
        low, high = 0, len(self._side)
        while low < high:
            middle = (low + high) // 2
            place = next((at for at in range(middle, high) if self._at(at)), None)
            if place is None:
                high = middle
            elif self._at(place) < wanted:
                low = place + 1
            else:
                high = middle
        tokens = self._alphabet.encode(letters)
        for place in range(low, len(self._side)):
            if np.array_equal(self._side[place], tokens):
                return True
            if self._at(place):
                break
        return False

    def _at(self, place: int) -> bytes:
        """The digest of a sequence; empty where it can no longer be read off it."""
        if place not in self._digests:
            if len(self._digests) >= _REMEMBERED:
                self._digests.clear()
            tokens = self._side[place]
            lost = self._unknown is not None and self._unknown in tokens
            self._digests[place] = b"" if lost else _digest(self._alphabet.decode(tokens).encode())
        return self._digests[place]


def _digest(letters: bytes) -> bytes:
    return hashlib.blake2b(letters, digest_size=DIGEST_BYTES).digest()


def _maker(corpus: Corpus) -> Callable[[bytes], list[bytes]]:
    """Letters -> the forms in which the corpus may hold such a sequence; none where it would hold none such."""
    said = corpus.info.get("options")
    options = said if isinstance(said, dict) else {}
    kind: Any = corpus.alphabet.name
    if kind == "molecule":
        try:
            policy = MoleculePolicy(**{**options.get("molecules", {}), "invalid": "drop", "unknown": "unk"})
        except TypeError as error:
            raise UserError(f"{corpus.folder}: options.molecules are not those of a corpus of molecules") from error
        clean = Reading(kind, molecules=policy).cleaner(corpus.alphabet)
    else:
        clean = Reading(kind, options.get("residues", "keep_as_x")).cleaner()

    def forms(letters: bytes) -> list[bytes]:
        found = []
        for form in [letters] if kind == "molecule" else _chains(letters, kind):
            try:
                found.append(clean(form).letters)
            except AlphabetError:
                continue
        return [form for form in dict.fromkeys(found) if form]

    return forms


def _chains(letters: bytes, kind: SequenceKind) -> list[bytes]:
    """A sequence, and the same without peptide and MHC; of a chain alone with its mark and without."""
    bare = re.split(rb"[:@]", letters)[0]
    found = [letters, bare] if bare else [letters]
    alone = bare.strip(b"|")
    if b"|" not in alone:
        found += [alone, *([] if kind == "protein" else [alone + b"|", b"|" + alone])]
    return found


def _writer(corpus: Corpus) -> Callable[[bytes], bytes]:
    """Letters -> the text by whose digest the corpus is ordered."""
    alphabet = corpus.alphabet
    vocabulary = corpus.info.get("vocabulary")
    if isinstance(alphabet, MoleculeAlphabet) and vocabulary:  # learnt after the order was made
        return Growing(alphabet.notation).written
    return alphabet.written
