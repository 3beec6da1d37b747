"""What the harness asks of every kind of task, and what it gets: figures, with the resamples they vary over.

    task file ─▶ Task.read ─▶ Exam ─┬─▶ baselines()    {method: Score}
                                    └─▶ model(Subject)  {method: Score}

All methods of one exam are resampled by the same draws, so that the difference of two is the difference of their
replicates, draw by draw.

Shapes: S resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from biometro.alphabet import SequenceKind, TokenizerAlphabet, kind_of
from biometro.alphabet.immune import MARKS
from biometro.errors import UserError
from biometro.inference.embed import Embedder, Pooling
from biometro.inference.features import Features
from biometro.inference.likelihood import FloatPrecision
from biometro.model.bundle import Bundle

RESAMPLES = 1000
WINDOW = 1022
"""Residues that are read at once."""


class NotAtHandError(UserError):
    """What a task needs is not at hand here (its data, a program): it is left out, and the others go on."""


@dataclass(frozen=True)
class Score:
    """What one method reaches on one task.

    Fields:
        figures: all figures by name; the task's metric is among them.
        replicates: (S,) float64 of the metric over resamples of the test set; NaN where it is undefined there.
        seconds: of computing, without what is shared by all methods.
        details: ready for JSON. Under `parts`, of each part of the task by name (an assay): `value` of the metric,
            `facts` about it, and `beside`, published figures by name.
        note: what must stand beside the figure; empty where there is nothing to say.
    """

    figures: Mapping[str, float]
    replicates: np.ndarray
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass
class Subject:
    """A model under examination. `features` keeps vectors, so that tasks that share sequences read them once."""

    name: str
    path: str
    bundle: Bundle
    fingerprint: str
    device: torch.device
    precision: FloatPrecision = "auto"
    batch_tokens: int | None = None
    """Tokens read at once; vectors do not depend on it."""

    def features(self, pooling: Pooling) -> Features:
        """The store of this model's vectors; sequences beyond 1,022 residues, or as many as the model has positions
        for, are read in windows."""
        longest = self.bundle.longest
        window = WINDOW if longest is None else min(WINDOW, longest)

        def embedder() -> Embedder:
            return Embedder(
                self.bundle, pooling=pooling, long="window", max_length=window, precision=self.precision,
                device=self.device, batch_tokens=self.batch_tokens,
            )  # fmt: skip

        return Features(embedder, f"{self.fingerprint} {pooling} window {self.precision} {self.device.type}")

    def reads(self, letters: Sequence[bytes], kind: SequenceKind) -> list[bytes]:
        """An exam's sequences as this model reads them: one of proteins reads a chain alone, without its mark.

        Raises UserError where it is a model of another kind, or reads no chains together.
        """
        alphabet = self.bundle.alphabet
        kind_of(alphabet, kind, self.name)
        if kind not in ("antibody", "tcr") or alphabet.name != "protein":
            return list(letters)
        chains = [sequence.strip(b"|") for sequence in letters]
        several = next((chain for chain in chains if not MARKS.isdisjoint(chain.decode())), None)
        if several is not None:
            raise UserError(
                f"{self.name}: is a model of proteins, which reads chains one by one; here parts stand together "
                f"({several[:40].decode()})"
            )
        return chains

    def note(self, letters: Sequence[bytes]) -> str:
        """What must be said of sequences with tokens that this model does not know; empty where it knows all."""
        alphabet = self.bundle.alphabet
        if isinstance(alphabet, TokenizerAlphabet):  # it does not say
            return ""
        count = sum(bool(alphabet.unknowns(sequence)) for sequence in letters)
        return f"{count:,} of {len(letters):,} molecules hold a token that this model does not know" if count else ""


class Exam(Protocol):
    """One task with its data read, ready to be given to models."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What the report says of the data: counts, what was left out."""
        ...

    @property
    def sequences(self) -> SequenceKind:
        """What kind of sequence is examined."""
        ...

    @property
    def test(self) -> Sequence[bytes]:
        """Sequences that are examined, whose overlap with a model's training corpus is stated."""
        ...

    def baselines(self) -> dict[str, Score]: ...

    def model(self, subject: Subject, say: Callable[[str], None]) -> dict[str, Score]:
        """Raises UserError where this model cannot be examined so (no head over tokens, say)."""
        ...
