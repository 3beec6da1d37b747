"""Masked residues as a task: how well does a model fill one in, and what is a longer context worth to it?

    sequences ─▶ places, drawn ─▶ at each length the window around a place ─▶ mask ─▶ -log p(the residue that was there)

No labels, no training: pseudo-perplexity (Salazar et al. 2020, arXiv 1910.14659) of a sample of places, each masked
alone. The places are the same for all lengths and models, so that their differences are those of the models; a length
beyond those of training says how positions extrapolate (Press et al. 2022, arXiv 2108.12409). Of a METRO model it is
the auxiliary that reads masks, and is examined.

Shapes: P places, A residues, S resamples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from biometro.alphabet import Reading, SequenceKind
from biometro.alphabet.amino_acids import BACKGROUND, ORDER
from biometro.data.corpus import Corpus
from biometro.data.intake import Account, clean_records
from biometro.data.sources import TABLES, ReadOptions, expand
from biometro.data.sources import read as read_records
from biometro.data.task import says
from biometro.errors import UserError
from biometro.evaluation import resampling
from biometro.evaluation.protocol import RESAMPLES, WINDOW, Score, Subject
from biometro.inference.likelihood import Likelihood

FIGURES = ("loss", "perplexity", "accuracy")
_WEIGHT = 20.0  # residues that the background counts for beside a sequence's own


@dataclass(frozen=True)
class MaskedConfig:
    """What the file of a task of masked residues says beside what all files say. Figures are named by the length:
    loss/256 (nats), perplexity/256 (its exponential), accuracy/256 (the likeliest residue is the right one).

    Args:
        lengths: of the contexts, in residues. A shorter sequence is read whole.
        places: most residues of each sequence that are masked, one at a time.
        most: most sequences that are examined, drawn under the seed.
        shortest: residues; shorter sequences are left out.
        where: of tables, take only rows in which each of these columns says this, or one of these.
        sequences: what the data hold: protein, antibody, tcr.
        column: of tables, the one that holds the sequence; of receptors, columns by part (`ReadOptions.column`).
        id_column: of tables, the one that holds the identifier.
    """

    lengths: list[int] = field(default_factory=lambda: [WINDOW])
    places: int = 10
    most: int = 200
    shortest: int = 2
    where: dict[str, str | list[str]] | None = None
    sequences: SequenceKind = "protein"
    column: str | dict[str, str] = "sequence"
    id_column: str | None = None

    def __post_init__(self) -> None:
        if not self.lengths or not all(isinstance(n, int) and n >= 2 for n in self.lengths):
            raise UserError(f"lengths is {self.lengths!r}; it is a list of whole numbers from 2")
        if min(self.places, self.most, self.shortest - 1) < 1:
            raise UserError("places and most must be at least 1, and shortest at least 2")
        if self.sequences not in ("protein", "antibody", "tcr"):
            raise UserError(f"a task of masked residues has no {self.sequences} sequences")


def read(
    kind: str, data: Sequence[str], config: MaskedConfig, metric: str, *, seed: int = 0, resamples: int = RESAMPLES,
    keep: Path | None = None,
) -> MaskedExam:  # fmt: skip
    """The exam of a task of masked residues; arguments and errors as for `probes.read`, but that data may also be
    folders of corpora, of which the held-out side is read."""
    names = [f"{figure}/{length}" for length in config.lengths for figure in FIGURES]
    if metric not in names:
        raise UserError(f"a {kind} task of these lengths has no figure {metric!r}; choose from {', '.join(names)}")
    where = config.where or {}
    options = ReadOptions("auto", config.column, config.id_column, kind=config.sequences, fields=tuple(where))
    account = Account()
    letters: dict[bytes, None] = {}
    corpora = [name for name in data if (Path(name) / "corpus.json").is_file()]
    for name in corpora:
        letters |= dict.fromkeys(_held_out(name, config))
    for source in (source for name in data if name not in corpora for source in expand(name, options)):
        if where and source.format not in TABLES:
            raise UserError(f"{source.name}: `where` chooses rows of a table, and this is none")
        rows = (r for r in read_records(source, options) if all(map(says, r.fields, where.values())))
        found = clean_records(rows, Reading(config.sequences), account, min_length=config.shortest)
        letters |= dict.fromkeys(sequence for _, sequence in found)
    return MaskedExam(list(letters), config, metric, seed, resamples, dict(account.dropped))


def _held_out(folder: str, config: MaskedConfig) -> list[bytes]:
    """The held-out sequences of a corpus, but for those that are too short."""
    corpus = Corpus.open(folder)
    if corpus.alphabet.name != config.sequences:
        raise UserError(f"{folder}: holds {corpus.alphabet.name} sequences, and the task says {config.sequences}")
    if config.where:
        raise UserError(f"{folder}: `where` chooses rows of a table, and this is a corpus")
    side = corpus.split("valid")
    if not len(side):
        raise UserError(f"{folder}: has no held-out sequences; prepare it with a share of them (valid)")
    found = [corpus.alphabet.decode(side[number]).encode() for number in range(len(side))]
    return [letters for letters in found if len(letters) >= config.shortest]


class MaskedExam:
    """Places of sequences, to be filled in; see `protocol.Exam`. Resamples draw whole sequences.

    Args:
        letters: of the sequences, each once.
        config: see there.
        metric: one of its figures.
        seed: of sequences, places and resamples.
        resamples: S.
        dropped: records that were left out, by reason.

    Raises UserError where no sequence has a standard residue.
    """

    def __init__(
        self, letters: Sequence[bytes], config: MaskedConfig, metric: str, seed: int, resamples: int,
        dropped: dict[str, int] | None = None,
    ):  # fmt: skip
        random = np.random.default_rng(seed)
        standard = [[place for place, letter in enumerate(one) if chr(letter) in ORDER] for one in letters]
        usable = [number for number, places in enumerate(standard) if places]
        if not usable:
            raise UserError("no sequence has a standard residue that could be masked")
        chosen = sorted(random.permutation(usable)[: config.most].tolist())
        self.config, self.metric, self.seed, self.resamples = config, metric, seed, resamples
        self.sequences: SequenceKind = config.sequences
        self.test = [letters[number] for number in chosen]
        self.places = [
            sorted(random.choice(standard[n], min(config.places, len(standard[n])), replace=False).tolist())
            for n in chosen
        ]
        self.truth_P = np.array(
            [
                ORDER.index(chr(one[place]))
                for one, places in zip(self.test, self.places, strict=True)
                for place in places
            ]
        )
        self.unit_P = np.repeat(np.arange(len(self.test)), [len(places) for places in self.places])
        lengths = [len(one) for one in self.test]
        self.facts = {
            "sequences": f"{len(self.test):,} of {len(letters):,}, of {min(lengths):,} to {max(lengths):,} letters",
            "masked": f"{len(self.truth_P):,} residues, one at a time",
            "contexts": ", ".join(f"{length:,}" for length in config.lengths) + " residues",
            "longer than the longest context": f"{sum(n > max(config.lengths) for n in lengths):,}",
            "resampled": "sequences",
        }
        for reason, count in (dropped or {}).items():
            self.facts[f"left out ({reason})"] = f"{count:,}"

    def baselines(self) -> dict[str, Score]:
        """The background frequencies of BLOSUM62, and with them the composition of the rest of the sequence."""
        began = time.perf_counter()
        background_A = np.log(BACKGROUND / BACKGROUND.sum())
        rows = []
        for one, places in zip(self.test, self.places, strict=True):
            count_A = np.array([one.count(residue.encode()) for residue in ORDER], dtype=np.float64)
            for place in places:
                rest_A = count_A - (np.arange(len(ORDER)) == ORDER.index(chr(one[place])))
                weight_A = rest_A + _WEIGHT * np.exp(background_A)
                rows.append(np.log(weight_A / weight_A.sum()))
        plain_PA = np.broadcast_to(background_A, (len(self.truth_P), len(ORDER)))
        return {
            "background": self._score(dict.fromkeys(self.config.lengths, plain_PA), began),
            "composition": self._score(dict.fromkeys(self.config.lengths, np.array(rows)), began),
        }

    def model(self, subject: Subject, say: Callable[[str], None]) -> dict[str, Score]:
        """Raises UserError for a model without a head over tokens, and one that reads no context so long."""
        began = time.perf_counter()
        own = subject.reads(self.test, self.sequences)
        longest = subject.bundle.longest
        if longest is not None and longest < max(self.config.lengths):
            raise UserError(f"{subject.name}: reads at most {longest:,} residues at once")
        # of a model that reads chains alone, the mark in front is gone
        shift = [len(theirs) - len(theirs.lstrip(b"|")) if theirs != ours else 0
                 for ours, theirs in zip(own, self.test, strict=True)]  # fmt: skip
        places = [[place - by for place in some] for some, by in zip(self.places, shift, strict=True)]
        found = {}
        for length in self.config.lengths:
            say(f"contexts of {length:,} residues")
            asked = Likelihood(
                subject.bundle, device=subject.device, precision=subject.precision, max_length=length,
                batch_tokens=subject.batch_tokens,
            )  # fmt: skip
            columns = [asked.letters.index(residue) for residue in ORDER]
            found[length] = np.concatenate(asked.masked(own, places))[:, columns]
        return {"masked one at a time": self._score(found, began)}

    def _score(self, said: dict[int, np.ndarray], began: float) -> Score:
        """Of log-probabilities (P, A) for each length."""
        figures: dict[str, float] = {}
        per_place: dict[str, np.ndarray] = {}
        for length, log_PA in said.items():
            loss_P = -log_PA[np.arange(len(self.truth_P)), self.truth_P].astype(np.float64)
            right_P = (log_PA.argmax(1) == self.truth_P).astype(np.float64)
            per_place |= {f"loss/{length}": loss_P, f"perplexity/{length}": loss_P, f"accuracy/{length}": right_P}
            loss = float(loss_P.mean())
            figures |= {f"loss/{length}": loss, f"perplexity/{length}": float(np.exp(loss)),
                        f"accuracy/{length}": float(right_P.mean())}  # fmt: skip
        mean = resampling.means({self.metric: (per_place[self.metric], self.unit_P)}, len(self.test))
        blocks = resampling.draws(len(self.test), self.resamples, self.seed)
        drawn_S = np.concatenate([mean.values(weights_SG)[self.metric] for weights_SG in blocks])
        drawn_S = np.exp(drawn_S) if self.metric.startswith("perplexity/") else drawn_S
        return Score(figures, drawn_S, time.perf_counter() - began)
