"""Speed of the input side on one core: reading FASTA, preparing a corpus, and giving micro-batches.

A corpus is prepared from real proteins and another from real CDR3s (about 15 residues, where the cost of each sequence
shows). Batches are taken in order from the first epoch for a few seconds; planning the epoch is timed apart and
shared out over its tokens, as training would. Files were just written, so the page cache holds them: this measures the
code and not the disk. The matmul rate is printed only to tell how busy the machine was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import common
from biometro.alphabet.protein import count_nonstandard
from biometro.data.corpus import Corpus
from biometro.data.loader import Loader, PackingConfig
from biometro.data.sources import expand, read
from biometro.jobs.prepare import prepare

TARGET = (5.0, 50.0)  # million tokens a second
SETTINGS = list(itertools.product((16384, 262144), (0.0, 0.5)))  # batch_tokens, reverse
CROP = 1022


def cdr3s(data: str, column: str, count: int, seed: int) -> list[bytes]:
    """Cells drawn without replacement, less those with anything but standard letters."""
    cells = pq.read_table(data, columns=[column]).column(column)
    chosen = cells.take(np.random.default_rng(seed).permutation(len(cells))[:count])
    letters = (cell.encode() for cell in chosen.to_pylist() if cell)
    return [s for s in letters if not count_nonstandard(s)]


def write_fasta(path: Path, sequences: Sequence[bytes]) -> None:
    """Lines of 60 residues, as UniProt has them."""
    with path.open("wb") as out:
        for number, sequence in enumerate(sequences):
            lines = [sequence[i : i + 60] for i in range(0, len(sequence), 60)]
            out.write(b"\n".join([b">sequence%d" % number, *lines, b""]))


def read_fasta(path: Path) -> int:
    """The number of records, by the project's reader."""
    return sum(1 for source in expand(str(path)) for _ in read(source))


def prepare_quietly(path: Path, out: Path) -> None:
    """Read, clean, remove duplicates, split, write, digest."""
    with contextlib.redirect_stderr(io.StringIO()):
        prepare(str(path), str(out), overwrite=True)


def batches(corpus: Path, config: PackingConfig, seconds: float, seed: int) -> tuple[float, float]:
    """Micro-batches for some seconds, or one epoch: (tokens/s with the plan shared out, seconds of the plan)."""
    opened = Corpus.open(corpus)
    loader = Loader(opened.split("train"), opened.alphabet, config, seed)
    began = time.perf_counter()
    loader.members(0)  # plans the epoch
    planned = now = time.perf_counter()
    tokens = 0
    for number in range(loader.batches_per_epoch):
        tokens += loader.batch(number).tokens
        if (now := time.perf_counter()) - planned > seconds:
            break
    share = (planned - began) * tokens / loader.tokens_per_epoch
    return tokens / (now - planned + share), planned - began


def contenders(kind: str, sequences: Sequence[bytes], folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """What is timed on one kind of sequences."""
    fasta, corpus = folder / f"{kind}.fasta", folder / kind
    write_fasta(fasta, sequences)
    prepare_quietly(fasta, corpus)
    runs: dict[str, Callable[[], Any]] = {
        f"{kind}: read FASTA": partial(read_fasta, fasta),
        f"{kind}: prepare": partial(prepare_quietly, fasta, corpus),
    }
    for size, reverse in SETTINGS:
        config = PackingConfig(size, CROP, reverse)
        runs[f"{kind}: batches of {size:,}, reverse {reverse:g}"] = partial(batches, corpus, config, seconds, seed)
    return runs


def row(name: str, rounds: common.Rounds, sequences: Sequence[bytes], size: int) -> list[str]:
    """Rates in millions a second; of a file, also in sequences and MB."""
    results = [found for found in rounds.results[name].values() if isinstance(found, tuple)]
    if results:
        rates = [tokens / 1e6 for tokens, _ in results]
        plan = 1e3 * median(seconds for _, seconds in results)
        return [name, common.spread(rates, 1), "-", "-", f"{plan:.1f}", common.verdict(median(rates), *TARGET)]
    work = (sum(map(len, sequences)), len(sequences), size)
    residues, records, megabytes = (rounds.rate(name, amount) / 1e6 for amount in work)
    return [name, f"{residues:.1f}", f"{records:.2f}", f"{megabytes:.0f}", "-", "-"]


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    kinds = {
        "proteins": common.sample(options.data, options.sequences, options.seed),
        "CDR3": cdr3s(options.cdr3, options.cdr3_column, options.cdr3_sequences, options.seed),
    }
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), dict[str, Any]()
        for kind, sequences in kinds.items():
            runs |= contenders(kind, sequences, folder, options.seconds, options.seed)
        rounds = common.interleave(runs, options, 320)
        sizes = {kind: (folder / f"{kind}.fasta").stat().st_size for kind in kinds}
    about = "; ".join(f"{len(s):,} {kind}, {sum(map(len, s)):,} residues" for kind, s in kinds.items())
    common.print_table(
        f"The input side on one core: {about}; crop {CROP}; {options.rounds} rounds",
        ["", "M residues or tokens/s", "M sequences/s", "MB/s", "plan of an epoch, ms", "target"],
        [row(run, rounds, kinds[kind], sizes[kind]) for run in runs for kind in [run.split(":")[0]]],
    )
    common.print_environment(rounds, options.seed, "pyarrow")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--sequences", type=int, default=100_000, help="proteins in the corpus")
    parser.add_argument("--cdr3", default=str(common.DATA / "tcr" / "tcrdb_cdr3.parquet"), help="a Parquet file")
    parser.add_argument("--cdr3-column", default="cdr3")
    parser.add_argument("--cdr3-sequences", type=int, default=500_000)
    parser.add_argument("--seconds", type=float, default=3, help="of batches, at most, for each setting and round")
    main(parser.parse_args())
