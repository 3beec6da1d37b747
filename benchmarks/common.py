"""What the benchmarks share: real sequences, the shapes of ESM-2, interleaved clocks, one table.

A rate alone says little on a shared machine, so every figure is a ratio taken inside one round. In a round each
contender does the same work once, in an order drawn anew, and the fp32 matmul rate is measured before each of them.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from biometro.alphabet import protein
from biometro.data.intake import Account, clean
from biometro.data.sources import ReadOptions, expand


@dataclass(frozen=True)
class Shape:
    """Layers, width and heads of an ESM-2 model."""

    depth: int
    width: int
    heads: int = 20


SHAPES = {"8M": Shape(6, 320), "35M": Shape(12, 480)}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("BIOMETRO_DATA")
    path = None if folder is None else str(Path(folder) / "protein" / "proteins.parquet")
    parser.add_argument("--data", default=path, required=path is None, help="FASTA or table with a column `sequence`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def sample(data: str, count: int, seed: int, max_length: int | None = None) -> list[bytes]:
    """`count` sequences of standard residues, drawn without replacement; their order is random, as of a user's file."""
    account = Account()
    kept = [s for _, s in clean(expand(data), ReadOptions(), "drop_sequence", account, max_length=max_length)]
    chosen = np.random.default_rng(seed).permutation(len(kept))[:count]
    return [kept[i] for i in chosen]


def esm_config(shape: Shape) -> Any:
    """transformers' configuration of an ESM-2 model, as the released ones have it (no dropout)."""
    import transformers

    return transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=shape.width, num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads, intermediate_size=4 * shape.width, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=1026, position_embedding_type="rotary",
        token_dropout=True, layer_norm_eps=1e-5,
    )  # fmt: skip


def esm_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of ESM-2, from a vocabulary written into `folder`."""
    import transformers

    (folder / "vocab.txt").write_text("\n".join(protein.PROTEIN.tokens), encoding="utf-8")
    return transformers.EsmTokenizer(str(folder / "vocab.txt"))


def matmul_rate(width: int, seconds: float = 0.2) -> float:
    """FLOP/s of fp32 (2048, width) x (width, 4 width): the machine's limit at this minute, for this shape."""
    a, b = torch.randn(2048, width), torch.randn(width, 4 * width)
    out = a @ b
    began, times = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        torch.mm(a, b, out=out)
        times += 1
    return times * 2 * a.numel() * 4 * width / elapsed


@dataclass(frozen=True)
class Spread:
    """Median and range of one figure over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass
class Rounds:
    """Of every contender, by round: seconds and what it gave; and the matmul rate of each round in FLOP/s."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    results: dict[str, dict[int, Any]] = field(default_factory=dict)
    matmul: list[float] = field(default_factory=list)

    def ratio(self, name: str, to: str) -> Spread:
        """Time of one contender in units of another's, within rounds."""
        ours, theirs = self.seconds[name], self.seconds[to]
        return Spread.of([ours[r] / theirs[r] for r in ours if r in theirs])

    def rate(self, name: str, work: float) -> float:
        """Median of work per second."""
        return statistics.median(work / s for s in self.seconds[name].values())

    def fraction(self, name: str, flops: float) -> float:
        """Median share of the matmul limit of the same round."""
        return statistics.median(flops / s / self.matmul[r] for r, s in self.seconds[name].items())


def interleave(
    contenders: dict[str, Callable[[], Any]], rounds: int, width: int, seed: int, once: Sequence[str] = ()
) -> Rounds:
    """Run all contenders in every round, in a new random order; those in `once` in the first round only."""
    found, shuffle = Rounds(), random.Random(seed)
    for number in track(range(rounds), "rounds", transient=True):
        names = [name for name in contenders if number == 0 or name not in once]
        shuffle.shuffle(names)
        limits = []
        for name in names:
            limits.append(matmul_rate(width))
            began = time.perf_counter()
            result = contenders[name]()
            found.seconds.setdefault(name, {})[number] = time.perf_counter() - began
            found.results.setdefault(name, {})[number] = result
        found.matmul.append(statistics.median(limits))
    return found


def verdict(value: float, must: float, aim: float) -> str:
    """`must / aim` of a target, and which is met; where aim is the smaller number, less is better."""
    sign = 1 if aim > must else -1
    met = "aim met" if sign * value >= sign * aim else "must met" if sign * value >= sign * must else "MISSED"
    return f"{must:g} / {aim:g}, {met}"


def environment(rounds: Rounds, seed: int, *libraries: str) -> str:
    """Where, when and with what a table was measured."""
    matmul = Spread.of([rate / 1e9 for rate in rounds.matmul])
    versions = ", ".join(f"{name} {_version(name)}" for name in ("biometro", "torch", "numpy", *libraries))
    return "\n".join([
        f"fp32 matmul in these rounds: {matmul.median:.0f} GFLOP/s ({matmul.low:.0f}-{matmul.high:.0f}), "
        f"{torch.get_num_threads()} of {os.cpu_count()} threads",
        f"{_processor()} ({torch.backends.cpu.get_cpu_capability()}), load {os.getloadavg()[0]:.1f}; seed {seed}",
        f"Python {platform.python_version()}, {versions}; commit {_commit()}; {time.strftime('%Y-%m-%d %H:%M %Z')}",
    ])  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        print(f"| {' | '.join(cells)} |")
    print()


def forward_flops(lengths: Sequence[int], shape: Shape) -> float:
    """Useful work of one pass: 24 n d^2 + 4 n d L for each of a sequence's L tokens (n layers, width d)."""
    linear, pairs = sum(lengths), math.fsum(length**2 for length in lengths)
    return 24 * shape.depth * shape.width**2 * linear + 4 * shape.depth * shape.width * pairs
