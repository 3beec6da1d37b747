"""What the benchmarks share: real sequences, the shapes of ESM-2, interleaved clocks, one table.

A rate alone says little on a shared machine, so every figure is a ratio taken inside one round. In a round each
contender does the same work once, in an order drawn anew, and the fp32 matmul rate is taken before each of them.
A run during which other processes took more than 5 % of the machine is repeated, while patience lasts.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from biometro.alphabet import PROTEIN, Reading
from biometro.data.intake import Account, clean
from biometro.data.sources import ReadOptions, expand


class Shape(NamedTuple):
    """Layers, width and heads of an ESM-2 model."""

    depth: int
    width: int
    heads: int = 20


SHAPES = {"8M": Shape(6, 320), "35M": Shape(12, 480)}
DATA = Path(os.environ.get("BIOMETRO_DATA", "data"))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA / "protein" / "proteins.parquet"), help="FASTA, or table (sequence)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=120, help="seconds to spend on repeating disturbed runs")
    return parser


def sample(data: str, count: int, seed: int, max_length: int | None = None) -> list[bytes]:
    """`count` sequences of standard residues, drawn without replacement; their order is random, as of a user's file."""
    kept = [
        s
        for _, s in clean(
            expand(data), ReadOptions(), Reading(residues="drop_sequence"), Account(), max_length=max_length
        )
    ]
    return [kept[i] for i in np.random.default_rng(seed).permutation(len(kept))[:count]]


def esm(shape: Shape, folder: str | Path) -> tuple[Any, Any]:
    """EsmForMaskedLM with fresh weights, configured as the released ones, and its tokenizer, both saved to `folder`."""
    import transformers

    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=shape.width, num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads, intermediate_size=4 * shape.width, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=1026, position_embedding_type="rotary",
        token_dropout=True, layer_norm_eps=1e-5,
    )  # fmt: skip
    (Path(folder) / "vocab.txt").write_text("\n".join(PROTEIN.tokens), encoding="utf-8")
    return transformers.EsmForMaskedLM(config), transformers.EsmTokenizer(str(Path(folder) / "vocab.txt"))


def lively_esm(shape: Shape, folder: str | Path, seed: int) -> tuple[Any, Any]:
    """The same with weights that are large enough for every layer to matter; the model is saved to `folder` too."""
    torch.manual_seed(seed)
    model, tokenizer = esm(shape, folder)
    with torch.no_grad():
        for name, parameter in model.eval().named_parameters():
            if name.endswith("bias") or parameter.ndim == 2:
                parameter.normal_(std=0.1 if name.endswith("bias") else 0.06)
    model.save_pretrained(folder)
    return model, tokenizer


def fair_model(theirs: Any, shape: Shape) -> Any:
    """esm.ESM2 with the weights of an EsmForMaskedLM."""
    import esm

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
    model = esm.ESM2(num_layers=shape.depth, embed_dim=shape.width, attention_heads=shape.heads)
    model.load_state_dict(state, strict=False)  # what is missing would show in the differences
    return model.eval()


def matmul_rates(width: int, seconds: float = 0.1) -> tuple[float, float]:
    """FLOP/s of fp32 (2048, width) x (width, 4 width) by torch.mm (MKL) and by oneDNN, which torch carries as well.

    The faster one is the machine's limit at this minute, for this shape; which one that is depends on the processor.
    """
    x, weight = torch.randn(2048, width), torch.randn(4 * width, width)
    transposed, out = weight.t().contiguous(), torch.empty(2048, 4 * width)
    products: list[Callable[[], Any]] = [lambda: torch.mm(x, transposed, out=out)]
    if torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))
    rates = []
    for product in products:
        product()
        times, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            product()
            times += 1
        rates.append(times * 2 * x.numel() * 4 * width / elapsed)
    return rates[0], rates[-1]


def others() -> float:
    """CPU seconds that processes other than this one have used since the machine started (0 where it does not say)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, stat.read_text().split(None, 11)[1:11])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system


@dataclass
class Rounds:
    """Of every contender, by round: seconds and what it gave.

    Of each round: the two matmul rates, and the largest share of the machine that others took in a run.
    """

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    results: dict[str, dict[int, Any]] = field(default_factory=dict)
    matmul: list[tuple[float, float]] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)

    def ratios(self, name: str, to: str) -> list[float]:
        """Time of one contender in units of another's, in each round that has both."""
        ours, theirs = self.seconds[name], self.seconds[to]
        return [ours[r] / theirs[r] for r in ours if r in theirs]

    def rate(self, name: str, work: float) -> float:
        """Median of work per second."""
        return median(work / s for s in self.seconds[name].values())

    def fraction(self, name: str, flops: float) -> float:
        """Median share of the matmul limit of the same round."""
        return median(flops / s / max(self.matmul[r]) for r, s in self.seconds[name].items())


def interleave(
    contenders: Mapping[str, Callable[[], Any]], options: argparse.Namespace, width: int, once: str = ""
) -> Rounds:
    """Run all contenders in every round, in a new random order; the one named `once` in the first round only."""
    shuffle, patience = random.Random(options.seed), options.patience
    found = Rounds({name: {} for name in contenders}, {name: {} for name in contenders})
    for number in range(options.rounds):
        names = [name for name in contenders if number == 0 or name != once]
        shuffle.shuffle(names)
        limits, shares = [], []
        for name in names:
            while True:
                limit, before, began = matmul_rates(width), others(), time.perf_counter()
                result = contenders[name]()
                seconds = time.perf_counter() - began
                share = (others() - before) / seconds / (os.cpu_count() or 1)
                if share < 0.05 or patience <= 0:
                    break
                patience -= seconds
            found.results[name][number], found.seconds[name][number] = result, seconds
            limits.append(limit)
            shares.append(share)
        found.matmul.append((median(mkl for mkl, _ in limits), median(onednn for _, onednn in limits)))
        found.disturbed.append(max(shares))
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def verdict(value: float, must: float, aim: float) -> str:
    """`must / aim` of a target, and which is met; where aim is the smaller number, less is better."""
    sign = 1 if aim > must else -1
    met = "aim met" if sign * value >= sign * aim else "must met" if sign * value >= sign * must else "MISSED"
    return f"{must:g} / {aim:g}, {met}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join([row[0].ljust(widths[0]), *cells[1:]])} |")


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return models[0].split(": ")[1] if models else platform.machine()


def print_environment(rounds: Rounds, seed: int, *libraries: str) -> None:
    """Where, when and with what a table was measured."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("biometro", "torch", "numpy", *libraries))
    mkl, onednn = ([rate / 1e9 for rate in rates] for rates in zip(*rounds.matmul, strict=True))
    print(
        f"\nfp32 matmul in these rounds, GFLOP/s: torch.mm {spread(mkl, 0)}, oneDNN {spread(onednn, 0)}; "
        f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} of {os.cpu_count()} threads, "
        f"others took at most {max(rounds.disturbed):.0%}; seed {seed}; Python "
        f"{platform.python_version()}, {versions}; {time.strftime('%Y-%m-%d %H:%M %Z')}"
    )
