"""Memory of contrastive steps by their number of pairs: read in parts (GradCache), and all at once.

Two towers are trained in full on random proteins and ligands, in processes that each read the same pairs, in steps of
64, ..., 4,096 pairs; what is compared is the most memory that each process had. Steps that are read in parts of 64
pairs should hardly need more for 4,096 pairs than for 64: what grows is the vectors of the common space, and a block of
their products. A single small step would be no measure: every part has a shape of its own, and what the C library
keeps of freed memory grows with the shapes that have passed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch

import common
from biometro.alphabet import PROTEIN
from biometro.data.batch import Batch, pack
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.pairing import PairHead, PairHeadConfig, Projection, ProjectionConfig
from biometro.objectives.contrastive import Contrastive, Known, Tower
from biometro.objectives.pair_losses import LossConfig

VIEWS = {"protein": "protein", "ligand": "ligand"}
PART = 64
MUST = 1.3


def step(pairs: int, part: int, options: argparse.Namespace) -> dict[str, float]:
    """Steps of so many pairs, read in parts; seconds, the last loss, and MB of memory before and at most."""
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    towers = {}
    for view in VIEWS:
        encoder = Encoder(EncoderConfig(width=options.width, depth=options.depth, head_size=16))
        projection = Projection(ProjectionConfig(options.width, 128, hidden=256))
        towers[view] = Tower(encoder, projection, (1, 1))
    every = np.arange(pairs)
    known = Known(every, every, np.ones(pairs, bool), np.full(pairs, np.nan), pairs)
    goal = Contrastive(VIEWS, towers, PairHead(PairHeadConfig(128)), known, LossConfig(clip=1.0)).train()
    starts = range(0, pairs, part)
    before = memory()
    began = time.perf_counter()
    for _ in range(max(1, max(options.pairs) // pairs)):
        terms = goal.backward([batch(np.arange(at, min(at + part, pairs)), random, options) for at in starts])
        goal.zero_grad()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "loss": float(terms["clip_loss"].mean), "before": before, "peak": memory()}


def batch(numbers: np.ndarray, random: np.random.Generator, options: argparse.Namespace) -> Batch:
    """Random sequences of these pairs."""
    views = {}
    for view, mean in (("protein", options.protein), ("ligand", options.ligand)):
        lengths = np.sort(random.integers(mean // 2, mean * 3 // 2, len(numbers)))
        tokens = [random.integers(4, 24, length).astype(np.uint8) for length in lengths]
        views[view] = pack(tokens, PROTEIN.begin_ids, PROTEIN.end_ids)
    ids, own = torch.from_numpy(numbers), torch.arange(len(numbers))
    return Batch(views, {
        "a": ids, "b": ids, "left": own, "right": own, "binds": torch.ones(len(numbers), dtype=torch.bool),
        "value": torch.full((len(numbers),), torch.nan), "bound": torch.zeros(len(numbers), dtype=torch.int8),
    })  # fmt: skip


def memory() -> float:
    """MB that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--protein", type=int, default=200, help="residues, in the mean")
    parser.add_argument("--ligand", type=int, default=40, help="tokens, in the mean")
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--plain", type=int, nargs="*", default=[512], help="pairs that are read all at once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(*options.one, options)))
        return
    found: dict[tuple[int, int], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for pairs, part in [*((n, PART) for n in options.pairs), *((n, n) for n in options.plain)]:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--one", str(pairs), str(part)], capture_output=True,
                text=True, check=True,
            )  # fmt: skip
            found.setdefault((pairs, part), []).append(json.loads(done.stdout.splitlines()[-1]))
    base = found[(options.pairs[0], PART)]
    rows = []
    for (pairs, part), runs in found.items():
        ratio = [run["peak"] / one["peak"] for run, one in zip(runs, base, strict=True)]
        met = "-" if part != PART or pairs == options.pairs[0] else "met" if max(ratio) <= MUST else "missed"
        rows.append([
            f"{pairs:,} pairs, {'all at once' if part == pairs and part != PART else f'parts of {part}'}",
            f"{np.median([run['peak'] for run in runs]):,.0f}",
            f"{np.median([run['peak'] - run['before'] for run in runs]):,.0f}", common.spread(ratio), f"{MUST}: {met}",
            common.spread([run["seconds"] for run in runs]),
        ])  # fmt: skip
    print_title = f"CLIP, two towers of {options.depth} layers, width {options.width}, {options.rounds} rounds"
    head = ["", "most memory, MB", "of which in the steps", f"ratio to {options.pairs[0]} pairs", "must", "seconds"]
    common.print_table(print_title, head, rows)
    print(
        f"{common.processor()}, {torch.get_num_threads()} threads; seed {options.seed}; biometro "
        f"{version('biometro')}, torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


if __name__ == "__main__":
    main()
