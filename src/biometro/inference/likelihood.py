"""What a model holds for likely: log-probabilities of letters in their places, in packs of like length.

    letters ─▶ (places masked) ─▶ windows ─▶ packs ─▶ encoder ─▶ head over tokens ─▶ log p(letter | the others)

A METRO model has two readers. Its auxiliary has learnt to read sequences with masks; its main model, the one that is
kept, has never seen a mask and reads letters. So what is masked goes to the auxiliary, and all else to the main model,
unless `part` says otherwise. A masked language model reads both itself.

A sequence beyond `max_length` residues is read in windows of that many. What is masked is read in the window that has
its place in the middle, as far as the ends allow; what is read as it stands is read in windows that share at least half
with the next, and every place is taken from the one whose middle it is nearest to.

Shape letters: L letters of a sequence, P places asked for, A letters of the alphabet that can be predicted, V
vocabulary, T tokens of a pack, B pieces in it, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from biometro.alphabet import Alphabet
from biometro.data.batch import pack
from biometro.errors import UserError
from biometro.inference.embed import windows
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder
from biometro.model.heads import TokenHead, VocabularyHead

Part = Literal["auto", "main", "auxiliary"]
FloatPrecision = Literal["auto", "float32", "bfloat16"]
Read = Callable[[Encoder, Tensor], Tensor]
Sequences = Sequence[bytes | np.ndarray]
"""Letters, or token numbers (L,)."""


@dataclass(frozen=True)
class _Piece:
    """What is read at once: letters [start, end) of a sequence, `masked` among them, and the places that are told."""

    sequence: int
    start: int
    end: int
    masked: tuple[int, ...]
    places: tuple[int, ...]
    rows: tuple[int, ...]
    """Which rows of the sequence's table these places are."""


class Likelihood:
    """A bundle's heads on a device, ready to be asked. Deterministic; an answer does not depend on what else is asked.

    Args:
        bundle: the model.
        device: where to run.
        precision: of the encoder; auto is bfloat16 on CUDA and float32 elsewhere. Heads answer in float32.
        max_length: residues that are read at once; None reads all, however many.
        batch_tokens: tokens read at once; results do not depend on it. Default 2,048 on a CPU, 65,536 on CUDA.
        part: which of a METRO model's two readers is asked: main, auxiliary, or, with auto, the one that has learnt to
            read such input.
        tokens: sequences are given as token numbers, (L,) uint8, and not as letters: so of molecules, whose tokens are
            no letters. A place is a token then, and a table's columns are the alphabet's `standard`.
        say: hears, pack by pack, how many letters it had.

    Raises UserError for a model that has no head over tokens, and for one of molecules that is to be given letters.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | str = "cpu",
        precision: FloatPrecision = "auto",
        max_length: int | None = 1022,
        batch_tokens: int | None = None,
        part: Part = "auto",
        tokens: bool = False,
        say: Callable[[int], None] = lambda letters: None,
    ):
        if max_length is not None and max_length < 2:
            raise UserError(f"max_length is {max_length}; it must be at least 2 residues")
        if batch_tokens is not None and batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        if not isinstance(bundle.alphabet, Alphabet) or not (
            {"vocabulary", "auxiliary_vocabulary"} & {*bundle.modules}
        ):
            raise UserError(
                "this model has no head over tokens, so it holds nothing for likely; models that `pretrain` leaves and "
                "ESM-2 have one"
            )
        self.device = torch.device(device)
        self.bundle = bundle.to(self.device).eval()
        self.alphabet: Alphabet = bundle.alphabet
        if not self.alphabet.letter_is_token and not tokens:
            raise UserError("this model reads molecules: its tokens are no residues that could be replaced")
        self.letters = "".join(self.alphabet.standard)
        """The columns of every table, where tokens are letters."""
        self.max_length, self.part, self.say = max_length, part, say
        half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half)
        self._budget = batch_tokens or (65536 if self.device.type == "cuda" else 2048)
        self._columns = torch.tensor([self.alphabet.id(token) for token in self.alphabet.standard], device=self.device)
        if part == "auxiliary" and not self.has_auxiliary:
            raise UserError("part is auxiliary, but this model has none; models pretrained with METRO do")

    @property
    def has_auxiliary(self) -> bool:
        """Whether the folder holds the model that proposed replacements."""
        return "auxiliary_vocabulary" in self.bundle.modules

    @property
    def has_detector(self) -> bool:
        """Whether the model can say which residues were replaced."""
        return "rtd" in self.bundle.modules

    @property
    def has_restorer(self) -> bool:
        """Whether the model was trained, by METRO, to restore what was replaced: it reads letters, not masks."""
        return self.has_auxiliary and "vocabulary" in self.bundle.modules

    def seen(self, sequences: Sequences, places: Sequence[Sequence[int]] | None = None) -> list[np.ndarray]:
        """log p(letter | the whole sequence as it stands), in nats, of one pass: (P, A) float32; default: all places.

        The letter that stands in a place is seen. Normalised over the whole vocabulary.
        """
        return self._ask(sequences, self._unmasked(sequences, places), len(self._columns), self._letters(False))

    def masked(
        self, sequences: Sequences, places: Sequence[Sequence[int]] | None = None, together: bool = False
    ) -> list[np.ndarray]:
        """log p(letter | the others), in nats: (P, A) float32 at the places of each sequence, by default all.

        Places are masked one at a time, a pass for each, or all in one pass (`together`). Normalised over the whole
        vocabulary.
        """
        wanted = _all(sequences) if places is None else places
        pieces: list[_Piece] = []
        for number, (letters, some) in enumerate(zip(sequences, wanted, strict=True)):
            _check_places(some, len(letters))
            whole = self.max_length is None or len(letters) <= self.max_length
            if together and whole and len(some):
                pieces.append(_Piece(number, 0, len(letters), tuple(some), tuple(some), tuple(range(len(some)))))
                continue
            for row, place in enumerate(some):
                start, end = self._around(place, len(letters))
                inside = tuple(p for p in some if start <= p < end) if together else (place,)
                pieces.append(_Piece(number, start, end, inside, (place,), (row,)))
        return self._ask(sequences, pieces, len(self._columns), self._letters(True))

    def detected(self, sequences: Sequences, places: Sequence[Sequence[int]] | None = None) -> list[np.ndarray]:
        """Logit of "this residue was replaced": (P,) float32, by default of all places.

        Raises UserError for a model without a detector.
        """
        if not self.has_detector:
            raise UserError("this model has no detector of replaced residues; models pretrained with METRO do")
        encoder, head = self.bundle.modules["encoder"], self.bundle.modules["rtd"]
        assert isinstance(encoder, Encoder) and isinstance(head, TokenHead)
        tables = self._ask(sequences, self._unmasked(sequences, places), 1, (encoder, head))
        return [table[:, 0] for table in tables]

    def _letters(self, masking: bool) -> tuple[Encoder, Callable[[Tensor], Tensor]]:
        """The encoder that reads, and what makes log-probabilities of its vectors."""
        auxiliary = self.part == "auxiliary" or (self.part == "auto" and masking and self.has_auxiliary)
        roles = ("auxiliary", "auxiliary_vocabulary") if auxiliary else ("encoder", "vocabulary")
        if roles[1] not in self.bundle.modules:
            raise UserError(
                "this model's main part restores nothing (metro.clm_weight was 0); ask its auxiliary, or its detector"
            )
        encoder, head = (self.bundle.modules[role] for role in roles)
        assert isinstance(encoder, Encoder) and isinstance(head, VocabularyHead)
        return encoder, partial(self._log_probabilities, encoder, head)

    def _log_probabilities(self, encoder: Encoder, head: VocabularyHead, h_PD: Tensor) -> Tensor:
        return head(h_PD, encoder.embedding.weight).log_softmax(-1)[:, self._columns]

    def _unmasked(self, sequences: Sequences, places: Sequence[Sequence[int]] | None) -> list[_Piece]:
        wanted = _all(sequences) if places is None else places
        pieces = []
        for number, (letters, some) in enumerate(zip(sequences, wanted, strict=True)):
            _check_places(some, len(letters))
            spans = windows(len(letters), self.max_length or max(len(letters), 1))
            middles = np.array([(start + end - 1) / 2 for start, end in spans])
            nearest = [int(np.abs(middles - place).argmin()) for place in some]
            for span in dict.fromkeys(nearest):
                rows = tuple(row for row, found in enumerate(nearest) if found == span)
                pieces.append(_Piece(number, *spans[span], (), tuple(some[row] for row in rows), rows))
        return pieces

    def _around(self, place: int, length: int) -> tuple[int, int]:
        """The window with a place in its middle, as far as the ends allow."""
        if self.max_length is None or length <= self.max_length:
            return 0, length
        start = min(max(0, place - self.max_length // 2), length - self.max_length)
        return start, start + self.max_length

    def _ask(
        self, sequences: Sequences, pieces: list[_Piece], columns: int,
        reader: tuple[Encoder, Callable[[Tensor], Tensor]],
    ) -> list[np.ndarray]:  # fmt: skip
        """(P, columns) float32 of each sequence."""
        sizes = [0] * len(sequences)
        for piece in pieces:
            sizes[piece.sequence] += len(piece.rows)
        tables = [np.empty((size, columns), dtype=np.float32) for size in sizes]
        tokens = [one if isinstance(one, np.ndarray) else self.alphabet.encode(one) for one in sequences]
        pieces = sorted(pieces, key=lambda piece: piece.end - piece.start)
        for chunk in self._chunks(pieces):
            told = self._run(tokens, chunk, *reader)
            for piece, rows in zip(chunk, told.split([len(piece.rows) for piece in chunk]), strict=True):
                tables[piece.sequence][list(piece.rows)] = rows.numpy()
            self.say(sum(piece.end - piece.start for piece in chunk))
        return tables

    def _chunks(self, pieces: list[_Piece]) -> Iterator[list[_Piece]]:
        chunk: list[_Piece] = []
        total = 0
        framed = len(self.alphabet.begin_ids) + len(self.alphabet.end_ids)
        for piece in pieces:
            size = piece.end - piece.start + framed
            if chunk and total + size > self._budget:
                yield chunk
                chunk, total = [], 0
            chunk.append(piece)
            total += size
        if chunk:
            yield chunk

    @torch.inference_mode()
    def _run(
        self, tokens: list[np.ndarray], chunk: list[_Piece], encoder: Encoder, head: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One pack: what is told of all its places, in order, on the CPU."""
        first = len(self.alphabet.begin_ids)
        mask = self.alphabet.id(self.alphabet.mask)
        cut = []
        for piece in chunk:
            letters = tokens[piece.sequence][piece.start : piece.end]
            if piece.masked:
                letters = letters.copy()
                letters[[place - piece.start for place in piece.masked]] = mask
            cut.append(letters)
        packed = pack(cut, self.alphabet.begin_ids, self.alphabet.end_ids)
        starts = packed.cu_seqlens[:-1].tolist()
        at = [
            start + first + place - piece.start
            for start, piece in zip(starts, chunk, strict=True) for place in piece.places
        ]  # fmt: skip
        at_P = torch.tensor(at, device=self.device)
        with self._autocast:
            single = len(at) == len(chunk) and all(len(piece.places) == 1 for piece in chunk)
            h_PD = encoder(packed.to(self.device), at_P) if single else encoder(packed.to(self.device))[at_P]
        # bfloat16 has steps of 1/16 between logits of 8 and 16, and scores are differences of these
        return head(h_PD.float()).cpu()


def _all(sequences: Sequences) -> list[range]:
    return [range(len(letters)) for letters in sequences]


def _check_places(places: Sequence[int], length: int) -> None:
    if len(places) and (min(places) < 0 or max(places) >= length):
        raise ValueError(f"places {min(places)} to {max(places)} of a sequence of {length} letters")
