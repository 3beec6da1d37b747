"""Vectors of sequences: an encoder run over packs of sequences of like length, results in input order.

    token arrays ─▶ sorted by length ─▶ packs ─▶ encoder ─▶ mean over residues | first token | every residue

Shape letters: T tokens of a pack, D width, L residues of one sequence, N sequences.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from biometro.data.batch import pack
from biometro.errors import UserError
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder
from biometro.model.huggingface import HuggingFaceEncoder

Pooling = Literal["mean", "cls", "residues"]
Precision = Literal["auto", "float32", "bfloat16", "int8"]


Long = Literal["full", "window", "first"]


def windows(length: int, size: int) -> list[tuple[int, int]]:
    """(start, end) of windows of `size` residues that cover `length`, each sharing at least half with the next."""
    if length <= size:
        return [(0, length)]
    count = -(-(length - size) // (size - size // 2)) + 1
    return [(start, start + size) for start in np.linspace(0, length - size, count).round().astype(int).tolist()]


class Embedder:
    """A bundle's encoder on a device, ready to embed. Deterministic; a sequence's vectors do not depend on others.

    Args:
        bundle: the model.
        pooling: mean over residues (start and end tokens left out), cls (the start token's vector), or residues
            (one vector each).
        long: what to do beyond `max_length`: full (read whole: where positions are relative there is no limit but
            memory; a model with a table of positions refuses what is longer), window (overlapping windows, averaged
            where they overlap) or first (the first max_length tokens alone).
        max_length: residues; where `long` begins to matter.
        precision: auto is bfloat16 on CUDA and float32 elsewhere; int8 quantises linear layers (CPU).
        device: where to run.
        batch_tokens: tokens read at once; results do not depend on it. Default 2,048 on a CPU, 65,536 on CUDA.

    Raises UserError where the options do not go together.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        pooling: Pooling = "mean",
        long: Long = "full",
        max_length: int = 1022,
        precision: Precision = "auto",
        device: torch.device | str = "cpu",
        batch_tokens: int | None = None,
    ):
        if max_length < 2:
            raise UserError(f"max_length is {max_length}; it must be at least 2 residues")
        if batch_tokens is not None and batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        _check_fit(bundle, pooling, long, max_length, precision)
        self.device = torch.device(device)
        self.pooling, self.long, self.max_length = pooling, long, max_length
        self.alphabet, self.width = bundle.alphabet, bundle.encoder.config.width
        if precision == "auto":
            precision = "bfloat16" if self.device.type == "cuda" else "float32"
        self.encoder: torch.nn.Module = bundle.encoder.to(self.device).eval()
        if precision == "int8":
            assert isinstance(bundle.encoder, Encoder)
            self.encoder = quantise(bundle.encoder, self.device)
        self._begin, self._end = self.alphabet.begin_ids, self.alphabet.end_ids
        self._longest = bundle.longest
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        self._budget = batch_tokens or (65536 if self.device.type == "cuda" else 2048)

    def embed(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Token arrays without specials -> float32 vectors in the same order: (D,) each, or (L, D) for residues.

        Raises UserError under long: full for a sequence that the model has no positions for.
        """
        if self.long == "first":
            sequences = [sequence[: self.max_length] for sequence in sequences]
        self.check_lengths([len(sequence) for sequence in sequences])
        pieces: list[np.ndarray] = []
        owners: list[tuple[int, int, int]] = []  # sequence, start, end of each piece
        for number, sequence in enumerate(sequences):
            size = len(sequence) if self.long != "window" else self.max_length
            for start, end in windows(len(sequence), size):
                pieces.append(sequence[start:end])
                owners.append((number, start, end))
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        results: list[Tensor] = [torch.empty(0)] * len(pieces)
        for chunk in self._chunks([len(pieces[i]) + len(self._begin) + len(self._end) for i in order]):
            members = order[chunk]
            for i, vectors in zip(members, self._run([pieces[i] for i in members]), strict=True):
                results[i] = vectors
        return self._join(sequences, owners, results)

    def check_lengths(self, lengths: Sequence[int], names: Sequence[str] | None = None) -> None:
        """Raises UserError, with its name, for the first length that is more than the model can read at once."""
        if self._longest is None or self.long == "window":
            return
        for number, length in enumerate(lengths):
            if length > self._longest:
                raise UserError(
                    f"sequence {names[number] if names else number + 1}: {length} residues, more than the "
                    f"{self._longest} that this model has positions for; "
                    f"choose long: window with max_length up to {self._longest}"
                )

    def _chunks(self, lengths: list[int]) -> Iterator[slice]:
        start = total = 0
        for place, length in enumerate(lengths):
            if total + length > self._budget and place > start:
                yield slice(start, place)
                start, total = place, 0
            total += length
        if lengths:
            yield slice(start, len(lengths))

    @torch.inference_mode()
    def _run(self, pieces: list[np.ndarray]) -> list[Tensor]:
        """One pack: of every piece its residues' (L, D) float32 vectors, or their mean or its first token's (D,)."""
        packed = pack(pieces, self._begin, self._end)
        with self._autocast:
            h_TD = self.encoder(packed.to(self.device)).float()
        if self.pooling == "cls":
            return list(h_TD[packed.cu_seqlens[:-1].to(self.device)].cpu())
        first, last = len(self._begin), len(self._end)
        framed = h_TD.split([first + len(piece) + last for piece in pieces])
        parts = [part[first : len(part) - last] for part in framed]
        if self.pooling == "mean" and self.long != "window":
            return list(torch.stack([part.mean(0) for part in parts]).cpu())
        return [part.cpu() for part in parts]

    def _join(
        self, sequences: Sequence[np.ndarray], owners: list[tuple[int, int, int]], results: list[Tensor]
    ) -> list[np.ndarray]:
        pooling = self.pooling
        if self.long != "window":
            return [result.numpy() for result in results]
        if pooling == "cls":  # the mean of the windows' start tokens
            sums = np.zeros((len(sequences), self.width), dtype=np.float64)
            counts = np.zeros(len(sequences))
            for (number, _, _), result in zip(owners, results, strict=True):
                sums[number] += result.numpy()
                counts[number] += 1
            return list((sums / counts[:, None]).astype(np.float32))
        joined = []
        cursor = 0
        for number, sequence in enumerate(sequences):
            total = np.zeros((len(sequence), self.width), dtype=np.float32)
            cover = np.zeros((len(sequence), 1), dtype=np.float32)
            while cursor < len(owners) and owners[cursor][0] == number:
                _, start, end = owners[cursor]
                total[start:end] += results[cursor].numpy()
                cover[start:end] += 1
                cursor += 1
            vectors = total / cover
            joined.append(vectors.mean(0) if pooling == "mean" else vectors)
        return joined


def _check_fit(bundle: Bundle, pooling: Pooling, long: Long, max_length: int, precision: Precision) -> None:
    """Raises UserError where the model cannot do what the options ask."""
    if pooling == "cls" and not bundle.alphabet.begin_ids:
        raise UserError("pooling is cls, but this model's tokenizer puts no token before a sequence; choose mean")
    if pooling == "residues" and not bundle.alphabet.letter_is_token:
        raise UserError("pooling is residues, but this model's tokens are not single letters; choose mean or cls")
    if precision == "int8" and isinstance(bundle.encoder, HuggingFaceEncoder):
        raise UserError("precision int8 is for encoders of our own; of transformers' models use float32 or bfloat16")
    if long == "window" and bundle.longest is not None and max_length > bundle.longest:
        raise UserError(
            f"max_length is {max_length}, but this model has positions for {bundle.longest} residues; "
            f"choose max_length up to {bundle.longest}"
        )


class Int8Linear(torch.nn.Module):
    """A linear layer in int8: one scale for each output of the weight, and one for each token of the input.

    A scale per token, not per pack, so that a token's result does not depend on what else is in the pack.
    Dettmers et al. 2022 (arXiv 2208.07339), section 3.1, without its outlier path.
    """

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        weight_OI = linear.weight.detach()
        self.scale_O = (weight_OI.abs().amax(1) / 127).clamp(min=1e-12)
        # (I, O) as a view of (O, I) memory: the layout in which the product is fast
        self.weight_IO = (weight_OI / self.scale_O[:, None]).round().to(torch.int8).t()
        self.bias = linear.bias

    def forward(self, x_TI: Tensor) -> Tensor:
        scale_T1 = (x_TI.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
        x_int8 = (x_TI / scale_T1).round().to(torch.int8)
        out = torch._int_mm(x_int8, self.weight_IO).float().mul_(scale_T1).mul_(self.scale_O)
        return out if self.bias is None else out.add_(self.bias)


def quantise(encoder: Encoder, device: torch.device) -> torch.nn.Module:
    """A copy of the encoder with its linear layers in int8. Raises UserError elsewhere than on a CPU."""
    if device.type != "cpu":
        raise UserError(f"precision int8 runs on a CPU only, not on {device.type}; use bfloat16")
    quantised = copy.deepcopy(encoder)
    for parent in list(quantised.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, Int8Linear(child))
    return quantised


def quantisation_cosine(bundle: Bundle, sequences: Sequence[np.ndarray]) -> float:
    """The smallest cosine between the int8 and the float32 vectors of the given sequences."""
    exact = Embedder(bundle, pooling="mean", precision="float32")
    approximate = Embedder(bundle, pooling="mean", precision="int8")
    pairs = zip(exact.embed(sequences), approximate.embed(sequences), strict=True)
    return min(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs)
