"""Speed of embedding proteins, beside what people use today.

Every contender takes the same real sequences as text and gives the mean of the last layer over residues, from the
same random weights of an ESM-2 shape; tokenisation, batching and pooling are inside the clock, loading is not. The
largest difference to transformers one by one stands beside each, so that no one is fast by computing less. Useful
work is counted on real tokens (start and end included), never on padding.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import biometro
from biometro.inference.embed import Embedder, Precision
from common import (
    SHAPES,
    Rounds,
    Shape,
    arguments,
    environment,
    esm_config,
    esm_tokenizer,
    forward_flops,
    interleave,
    print_table,
    sample,
    verdict,
)

Embed = Callable[[Sequence[str]], np.ndarray]
"""(N) sequences -> (N, D) means over residues, in the same order."""

BUDGET = 4096  # tokens in a padded batch, of those who fill batches by tokens
MAX_LENGTH = 1022
REFERENCE, OURS = "transformers, one by one", "biometro float32"

# (must, aim) of the time in units of biometro float32; of int8 by model.
TARGETS = {
    "transformers, batch 16, file order": (4.0, 5.5),
    REFERENCE: (1.25, 1.6),
    f"transformers, sorted, {BUDGET:,} tokens": (1.4, 2.0),
    f"fair-esm extract.py, {BUDGET:,} tokens": (3.9, 5.0),
}
INT8_TARGETS = {"8M": (1.2, 1.5), "35M": (1.35, 1.5)}  # biometro float32 in units of int8
FRACTION_TARGET = (0.66, 0.85)  # of the matmul limit, 8M


def random_model(shape: Shape, seed: int) -> Any:
    """An EsmForMaskedLM whose random weights are large enough that every layer matters to the result."""
    import transformers

    torch.manual_seed(seed)
    model = transformers.EsmForMaskedLM(esm_config(shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif parameter.ndim == 2:
                parameter.normal_(std=0.06)
    return model


def by_tokens(lengths: Sequence[int]) -> list[list[int]]:
    """Members of batches of like length that hold at most BUDGET tokens, padding included."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches[-1] and (lengths[i] + 2) * (len(batches[-1]) + 1) > BUDGET:
            batches.append([])
        batches[-1].append(i)
    return batches


def with_transformers(model: Any, tokenizer: Any, cut: Callable[[Sequence[str]], list[list[int]]]) -> Embed:
    """EsmModel on padded batches, whose members `cut` decides."""

    @torch.inference_mode()
    def embed(sequences: Sequence[str]) -> np.ndarray:
        vectors: list[Tensor] = [torch.empty(0)] * len(sequences)
        for members in cut(sequences):
            inputs = tokenizer([sequences[i] for i in members], padding=True, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state
            for i, h_LD in zip(members, hidden, strict=True):
                vectors[i] = h_LD[1 : len(sequences[i]) + 1].mean(0)
        return torch.stack(vectors).numpy()

    return embed


def fair_model(theirs: Any, shape: Shape) -> Any:
    """esm.ESM2 with the weights of an EsmForMaskedLM."""
    import esm

    model = esm.ESM2(num_layers=shape.depth, embed_dim=shape.width, attention_heads=shape.heads)
    names = {
        "esm.embeddings.word_embeddings": "embed_tokens", "esm.contact_head": "contact_head",
        "esm.encoder.emb_layer_norm_after": "emb_layer_norm_after", "esm.encoder.layer": "layers",
        "attention.self.query": "self_attn.q_proj", "attention.self.key": "self_attn.k_proj",
        "attention.self.value": "self_attn.v_proj", "attention.output.dense": "self_attn.out_proj",
        "attention.LayerNorm": "self_attn_layer_norm", "intermediate.dense": "fc1", "output.dense": "fc2",
        ".LayerNorm": ".final_layer_norm",
    }  # fmt: skip
    state = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = tensor
    missing, _ = model.load_state_dict(state, strict=False)
    wrong = [name for name in missing if not name.endswith(("rot_emb.inv_freq", "lm_head.weight"))]
    if wrong:
        raise ValueError(f"fair-esm did not get {wrong}")
    return model.eval()


def with_fair_esm(model: Any) -> Embed:
    """The loop of fair-esm's scripts/extract.py with --include mean, less the writing of files."""
    import esm

    @torch.inference_mode()
    def embed(sequences: Sequence[str]) -> np.ndarray:
        dataset = esm.FastaBatchedDataset([str(i) for i in range(len(sequences))], sequences)
        batches = dataset.get_batch_indices(BUDGET, extra_toks_per_seq=1)
        converter = model.alphabet.get_batch_converter(MAX_LENGTH)
        vectors: list[Tensor] = [torch.empty(0)] * len(sequences)
        for labels, strings, tokens in torch.utils.data.DataLoader(
            dataset, collate_fn=converter, batch_sampler=batches
        ):
            hidden = model(tokens, repr_layers=[model.num_layers])["representations"][model.num_layers]
            for label, string, h_LD in zip(labels, strings, hidden, strict=True):
                vectors[int(label)] = h_LD[1 : len(string) + 1].mean(0)
        return torch.stack(vectors).numpy()

    return embed


def with_biometro(folder: Path, precision: Precision) -> Embed:
    bundle = biometro.load(folder)
    embedder = Embedder(bundle, pooling="mean", precision=precision, device="cpu")
    return lambda sequences: np.stack(embedder.embed([bundle.alphabet.encode(s) for s in sequences]))


def contenders(shape: Shape, folder: Path, seed: int) -> dict[str, Embed]:
    """All of them, on one set of weights. transformers runs EsmModel, which leaves out the vocabulary head."""
    model = random_model(shape, seed)
    model.save_pretrained(folder)
    tokenizer = esm_tokenizer(folder)
    naive, one, filled, fair = TARGETS

    def every(size: int) -> Callable[[Sequence[str]], list[list[int]]]:
        return lambda s: [list(range(i, min(i + size, len(s)))) for i in range(0, len(s), size)]

    return {
        naive: with_transformers(model.esm, tokenizer, every(16)),
        one: with_transformers(model.esm, tokenizer, every(1)),
        filled: with_transformers(model.esm, tokenizer, lambda s: by_tokens([len(x) for x in s])),
        fair: with_fair_esm(fair_model(model, shape)),
        OURS: with_biometro(folder, "float32"),
        "biometro int8": with_biometro(folder, "int8"),
        "biometro bfloat16": with_biometro(folder, "bfloat16"),
    }


def table(rounds: Rounds, lengths: Sequence[int], model: str) -> list[list[str]]:
    """One row for each contender."""
    flops = forward_flops([length + 2 for length in lengths], SHAPES[model])
    reference, rows = rounds.results[REFERENCE][0], []
    for name, results in rounds.results.items():
        ratio, fraction = rounds.ratio(name, OURS), rounds.fraction(name, flops)
        target = verdict(ratio.median, *TARGETS[name]) if name in TARGETS else "-"
        if name == OURS and model == "8M":
            target = f"fraction {verdict(fraction, *FRACTION_TARGET)}"
        elif name == "biometro int8":
            speedup = 1 / ratio.median
            target = f"float32/int8 = {speedup:.2f}: {verdict(speedup, *INT8_TARGETS[model])}"
        vectors = results[0].astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = ((vectors * reference).sum(1) / norms).min()
        rows.append([
            name + (" (another precision)" if name.endswith(("int8", "bfloat16")) else ""),
            f"{rounds.rate(name, sum(lengths)):,.0f}", str(ratio), f"{fraction:.2f}",
            f"{np.abs(vectors - reference).max():.1e}", f"{1 - cosine:.0e}", target,
        ])  # fmt: skip
    return rows


def main(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    shape = SHAPES[options.model]
    sequences = [s.decode() for s in sample(options.data, options.sequences, options.seed, MAX_LENGTH)]
    lengths = [len(s) for s in sequences]
    with tempfile.TemporaryDirectory() as folder:
        embedders = contenders(shape, Path(folder), options.seed)
        for embed in embedders.values():
            embed(sequences[:2])
        runs = {name: lambda e=embed: e(sequences) for name, embed in embedders.items()}
        rounds = interleave(runs, options.rounds, shape.width, options.seed, once=["biometro bfloat16"])
    low, median, high = np.percentile(lengths, [5, 50, 95]).astype(int)
    rounds.results = {name: rounds.results[name] for name in runs}
    print_table(
        f"Embedding, ESM-2 {options.model} shape: {len(sequences)} real proteins, {sum(lengths):,} residues (lengths "
        f"{low} / {median} / {high} at 5 / 50 / 95 %), {options.rounds} rounds (bfloat16 one)",
        ["", "residues/s", "time / biometro float32 (range)", "fraction of matmul limit", "max diff", "1 - cosine",
         "target: must / aim"],
        table(rounds, lengths, options.model),
    )  # fmt: skip
    print(environment(rounds, options.seed, "transformers", "fair-esm"))


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--model", choices=list(SHAPES), default="8M")
    main(parser.parse_args())
