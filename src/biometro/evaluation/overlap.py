"""How many of a task's test sequences stand in the corpus that a model was trained on.

    model folder ─▶ digest of its corpus ─▶ corpus at hand? ─▶ look each test sequence up ─▶ a sentence for the table

A corpus stands in the order of its sequences' digests, so that a sequence is looked up in some twenty steps, whatever
the size of the corpus. Relatives need a search by MMseqs2, which takes as long as the corpus is large.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from biometro.alphabet import AlphabetError, protein
from biometro.data import mmseqs
from biometro.data.corpus import Corpus, Split
from biometro.data.remote import is_url
from biometro.data.spool import DIGEST_BYTES
from biometro.errors import UserError
from biometro.model.bundle import Bundle

Mode = Literal["exact", "homology", "none"]
IDENTITY, COVERAGE = 0.5, 0.8
"""Of an alignment from which a sequence counts as a relative; coverage is that of the shorter one."""
_PIECE = 1_000_000  # sequences of a corpus that are searched, and in memory, at once
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


def describe(test: Sequence[bytes], trained: Trained, corpora: Corpora, mode: Mode) -> dict[str, object]:
    """What is said of one model and task: `text`, and where it was counted `exact` and `relatives`, of `of`.

    Args:
        test: the task's test sequences.
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
    count, of = exact(test, corpus), max(1, len(test))
    said: dict[str, object] = {"exact": count, "of": len(test)}
    text = f"{count:,} of {len(test):,} ({100 * count / of:.1f} %) in its training corpus"
    if mode == "homology":
        near = relatives(test, corpus)
        said["relatives"] = near
        text += f"; {near:,} ({100 * near / of:.1f} %) with a relative there from {100 * IDENTITY:.0f} % identity"
    return said | {"text": text + also}


def exact(test: Sequence[bytes], corpus: Corpus) -> int:
    """How many of the sequences stand in the corpus' training side as they are, under its policy for residues."""
    there = standing(test, corpus)
    return sum(letters in there for letters in test)


def standing(test: Sequence[bytes], corpus: Corpus) -> set[bytes]:
    """Those of the sequences that stand in the corpus' training side, as `exact` counts them."""
    side = corpus.split("train")
    if not len(side):
        return set()
    digests = _Digests(side, corpus)
    found: set[bytes] = set()
    for letters in sorted({*test}, key=_digest):
        cleaned = _cleaned(letters, corpus)
        if cleaned is not None:
            digest = _digest(cleaned)
            place = bisect.bisect_left(digests, digest)
            if place < len(digests) and digests[place] == digest:
                found.add(letters)
    return found


def relatives(test: Sequence[bytes], corpus: Corpus) -> int:
    """How many of the sequences have a relative in the corpus' training side, themselves among them.

    Raises UserError where MMseqs2 is missing or fails.
    """
    side = corpus.split("train")
    left = list(test)
    for start in range(0, len(side), _PIECE):
        if not left:
            break
        part = range(start, min(start + _PIECE, len(side)))
        letters = [corpus.alphabet.decode(side[number]).encode() for number in part]
        found = {*mmseqs.search(left, letters, identity=IDENTITY, coverage=COVERAGE).query.tolist()}
        left = [sequence for number, sequence in enumerate(left) if number not in found]
    return len(test) - len(left)


class _Digests(Sequence[bytes]):
    """The digests of a split's sequences, which ascend; each is made when it is asked for."""

    def __init__(self, side: Split, corpus: Corpus):
        self._side, self._corpus = side, corpus

    def __len__(self) -> int:
        return len(self._side)

    def __getitem__(self, number: int) -> bytes:  # type: ignore[override]
        return _digest(self._corpus.alphabet.decode(self._side[number]).encode())


def _digest(letters: bytes) -> bytes:
    return hashlib.blake2b(letters, digest_size=DIGEST_BYTES).digest()


def _cleaned(letters: bytes, corpus: Corpus) -> bytes | None:
    """The sequence as the corpus would hold it; None where it would hold none such."""
    if not corpus.alphabet.letter_is_token:
        return corpus.alphabet.written(letters)
    options = corpus.info.get("options")
    policy = options.get("residues", "keep_as_x") if isinstance(options, dict) else "keep_as_x"
    if not protein.count_nonstandard(letters):
        return letters
    try:
        return protein.apply_policy(letters, policy)  # type: ignore[arg-type]
    except AlphabetError:
        return None
