"""Speed of embedding proteins, beside what people use today.

Every contender takes the same real sequences as text and gives the mean of the last layer over residues, from the
same random weights of an ESM-2 shape; tokenisation, batching and pooling are inside the clock, loading is not. The
largest difference to transformers one by one stands beside each, so that no one is fast by computing less. Useful
work is 24 n d^2 + 4 n d L on each real token (start and end included; n layers, width d), and nothing on padding.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

import biometro
import common
from biometro.inference.embed import Embedder, Precision

Embed = Callable[[Sequence[str]], np.ndarray]
"""(N) sequences -> (N, D) means over residues, in the same order."""
Cut = Callable[[Sequence[str]], list[list[int]]]
"""(N) sequences -> the members of each batch."""

BUDGET = 4096  # tokens in a padded batch, of those who fill batches by tokens
MAX_LENGTH = 1022
NAIVE, SINGLE, SORTED, FAIR, OURS, INT8, BFLOAT16 = (
    "transformers, batch 16, file order", "transformers, one by one", f"transformers, sorted, {BUDGET:,} tokens",
    f"fair-esm extract.py, {BUDGET:,} tokens", "biometro float32", "biometro int8", "biometro bfloat16",
)  # fmt: skip
TARGETS = {NAIVE: (4.0, 5.5), SINGLE: (1.25, 1.6), SORTED: (1.4, 2.0), FAIR: (3.9, 5.0)}  # time in that of float32
INT8_TARGETS = {"8M": (1.2, 1.5), "35M": (1.35, 1.5)}  # time of float32 in that of int8
FRACTION_TARGET = (0.66, 0.85)  # of the matmul limit, 8M


def by_number(sequences: Sequence[str], size: int) -> list[list[int]]:
    return [list(range(i, min(i + size, len(sequences)))) for i in range(0, len(sequences), size)]


def by_tokens(sequences: Sequence[str]) -> list[list[int]]:
    """Batches of like length that hold at most BUDGET tokens, padding included."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        if batches[-1] and (len(sequences[i]) + 2) * (len(batches[-1]) + 1) > BUDGET:
            batches.append([])
        batches[-1].append(i)
    return batches


@torch.inference_mode()
def with_transformers(model: Any, tokenizer: Any, cut: Cut, sequences: Sequence[str]) -> np.ndarray:
    """EsmModel (without the vocabulary head) on padded batches."""
    vectors: list[Tensor] = [torch.empty(0)] * len(sequences)
    for members in cut(sequences):
        inputs = tokenizer([sequences[i] for i in members], padding=True, return_tensors="pt")
        for i, h_LD in zip(members, model(**inputs).last_hidden_state, strict=True):
            vectors[i] = h_LD[1 : len(sequences[i]) + 1].mean(0)
    return torch.stack(vectors).numpy()


@torch.inference_mode()
def with_fair_esm(model: Any, sequences: Sequence[str]) -> np.ndarray:
    """The loop of fair-esm's scripts/extract.py with --include mean, less the writing of files."""
    import esm

    dataset = esm.FastaBatchedDataset(range(len(sequences)), sequences)
    batches = dataset.get_batch_indices(BUDGET, extra_toks_per_seq=1)
    converter = model.alphabet.get_batch_converter(MAX_LENGTH)
    vectors: list[Tensor] = [torch.empty(0)] * len(sequences)
    for numbers, strings, tokens in torch.utils.data.DataLoader(dataset, collate_fn=converter, batch_sampler=batches):
        hidden = model(tokens, repr_layers=[model.num_layers])["representations"][model.num_layers]
        for i, string, h_LD in zip(numbers, strings, hidden, strict=True):
            vectors[i] = h_LD[1 : len(string) + 1].mean(0)
    return torch.stack(vectors).numpy()


def with_biometro(folder: str, precision: Precision) -> Embed:
    bundle = biometro.load(folder)
    embedder = Embedder(bundle, pooling="mean", precision=precision, device="cpu")
    return lambda sequences: np.stack(embedder.embed([bundle.alphabet.encode(s) for s in sequences]))


def contenders(shape: common.Shape, folder: str, seed: int) -> dict[str, Embed]:
    """All of them, on random weights that are large enough for every layer to matter."""
    model, tokenizer = common.lively_esm(shape, folder, seed)
    return {
        NAIVE: partial(with_transformers, model.esm, tokenizer, partial(by_number, size=16)),
        SINGLE: partial(with_transformers, model.esm, tokenizer, partial(by_number, size=1)),
        SORTED: partial(with_transformers, model.esm, tokenizer, by_tokens),
        FAIR: partial(with_fair_esm, common.fair_model(model, shape)),
        OURS: with_biometro(folder, "float32"),
        INT8: with_biometro(folder, "int8"),
        BFLOAT16: with_biometro(folder, "bfloat16"),
    }


def row(name: str, rounds: common.Rounds, lengths: np.ndarray, model: str) -> list[str]:
    """Speed, agreement with transformers one by one, and target of one contender."""
    depth, width, _ = common.SHAPES[model]
    flops = float((24 * depth * width**2 * (lengths + 2) + 4 * depth * width * (lengths + 2) ** 2).sum())
    ratios, fraction = rounds.ratios(name, OURS), rounds.fraction(name, flops)
    target = common.verdict(median(ratios), *TARGETS[name]) if name in TARGETS else "-"
    if name == OURS and model == "8M":
        target = f"fraction {common.verdict(fraction, *FRACTION_TARGET)}"
    elif name == INT8:
        faster = 1 / median(ratios)
        target = f"float32 / int8 {faster:.2f}: {common.verdict(faster, *INT8_TARGETS[model])}"
    vectors, reference = (rounds.results[who][0].astype(np.float64) for who in (name, SINGLE))
    cosine = (vectors * reference).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)
    return [
        name + (" (another precision)" if name in (INT8, BFLOAT16) else ""), f"{rounds.rate(name, lengths.sum()):,.0f}",
        common.spread(ratios), f"{fraction:.2f}", f"{np.abs(vectors - reference).max():.0e}", f"{cosine.min():.6f}",
        target,
    ]  # fmt: skip


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    sequences = [s.decode() for s in common.sample(options.data, options.sequences, options.seed, MAX_LENGTH)]
    lengths = np.array([len(s) for s in sequences])
    shape = common.SHAPES[options.model]
    with tempfile.TemporaryDirectory() as folder:
        embedders = contenders(shape, folder, options.seed)
        for embed in embedders.values():
            embed(sequences[:2])  # the first call sets things up
        runs = {name: partial(embed, sequences) for name, embed in embedders.items()}
        rounds = common.interleave(runs, options, shape.width, once=BFLOAT16)
    low, middle, high = np.percentile(lengths, [5, 50, 95]).astype(int)
    common.print_table(
        f"Embedding, ESM-2 {options.model} shape: {len(sequences)} real proteins, {lengths.sum():,} residues (5 % "
        f"below {low}, half below {middle}, 95 % below {high}), {options.rounds} rounds (bfloat16: one)",
        ["", "residues/s", "time / biometro float32 (range)", "of matmul limit", "max diff", "least cosine", "target"],
        [row(name, rounds, lengths, options.model) for name in runs],
    )
    common.print_environment(rounds, options.seed, "transformers", "fair-esm")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--model", choices=list(common.SHAPES), default="8M")
    main(parser.parse_args())
