"""Data order and epoch time at the size of UniRef90, without its 60 GB.

Shards are virtual: their lengths are drawn anew, from the shard's number, whenever the loader opens one, and no token
is stored (every residue is alanine). What is measured is the loader itself, on one core: planning an epoch from the
histograms alone, planning each shard, finding the members of every pack of an epoch, and the memory of all that. The
members are counted, sequence by sequence. Lengths are log-normal around the mean of UniRef90 (about 340 residues);
median and spread are an assumption, and matter for the number of tokens after cropping alone. Times are the
processor's, so that other work on the machine does not show in them.
"""

from __future__ import annotations

import argparse
import resource
import time
from statistics import mean

import numpy as np

import common
from biometro.alphabet import PROTEIN
from biometro.data.corpus import Shard, Split
from biometro.data.loader import Loader, PackingConfig

LONGEST = 36_000  # residues, about that of titin
RATES = (100_000, 1_000_000, 10_000_000)  # tokens a second, of training


class Virtual:
    """Shards of lengths drawn from (seed, shard). `seconds` went into drawing them, and are not the loader's."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.seconds = options, 0.0
        residues = options.sequences * options.mean
        self.shards = -(-residues // options.shard_residues)
        self.each = -(-options.sequences // self.shards)

    def lengths(self, shard: int) -> np.ndarray:
        count = min(self.each, self.options.sequences - shard * self.each)
        random = np.random.Generator(np.random.Philox(key=[self.options.seed, shard]))
        sigma = self.options.sigma
        drawn = random.standard_normal(count, dtype=np.float32) * sigma + np.log(self.options.mean) - sigma**2 / 2
        return np.clip(np.exp(drawn), 11, LONGEST).astype(np.int64)

    def histogram(self, shard: int) -> np.ndarray:
        counts = np.bincount(self.lengths(shard))
        found = np.flatnonzero(counts)
        return np.stack([found, counts[found]], axis=1)

    def open(self, shard: int) -> Shard:
        began = time.process_time()
        offsets = np.concatenate([[0], np.cumsum(self.lengths(shard))])
        self.seconds += time.process_time() - began
        alanine = np.uint8(PROTEIN.id("A"))
        return Shard(np.broadcast_to(alanine, (int(offsets[-1]),)), offsets, f"shard {shard}")


def peak() -> float:
    """MB of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def walk(loader: Loader, virtual: Virtual, numbers: range) -> tuple[list[int], list[float], list[float]]:
    """Every micro-batch's members, in order: tokens of each, seconds of each shard's plan, of each other look-up.

    Raises AssertionError unless each sequence of each shard comes exactly once.
    """
    crop = loader.config.crop
    tokens, plans, looks = [], [], []
    seen, current, offsets, covered = np.zeros(0, dtype=np.uint8), -1, np.zeros(0), 0
    for number in numbers:
        drawing, began = virtual.seconds, time.process_time()
        shard, chosen = loader.members(number)
        seconds = time.process_time() - began - (virtual.seconds - drawing)
        if shard != current:
            assert (seen == 1).all()
            plan = loader._plans[next(reversed(loader._plans))]
            current, offsets, seen = shard, plan.shard.offsets, np.zeros(len(plan.shard), dtype=np.uint8)
            plans.append(seconds)
        else:
            looks.append(seconds)
        seen[chosen] += 1
        covered += len(chosen)
        tokens.append(int((np.minimum(offsets[chosen + 1] - offsets[chosen], crop) + 2).sum()))
    assert (seen == 1).all() and covered == len(loader.split)
    return tokens, plans, looks


def main(options: argparse.Namespace) -> None:
    virtual = Virtual(options)
    before = peak()
    began = time.process_time()
    histograms = [virtual.histogram(shard) for shard in range(virtual.shards)]
    drawn = time.process_time() - began
    split = Split(histograms, virtual.open)
    began = time.process_time()
    loader = Loader(split, PROTEIN, PackingConfig(options.batch_tokens, options.crop), options.seed)
    loader._epoch(0)
    planned = time.process_time() - began
    epoch, began = options.epoch, time.process_time()
    numbers = range(epoch * loader.batches_per_epoch, (epoch + 1) * loader.batches_per_epoch)
    tokens, plans, looks = walk(loader, virtual, numbers)
    walked = time.process_time() - began - virtual.seconds
    assert max(tokens) <= options.batch_tokens and sum(tokens) == loader.tokens_per_epoch
    residues = sum(int(h.prod(axis=1).sum()) for h in histograms)
    fills = np.array(tokens) / options.batch_tokens
    rows = [
        ["sequences; residues", f"{len(split):,}; {residues:,}"],
        [f"tokens of an epoch (crop {options.crop})", f"{loader.tokens_per_epoch:,}"],
        ["shards; sequences of one", f"{virtual.shards}; {virtual.each:,}"],
        ["lengths.npy", f"{12 * sum(map(len, histograms)) / 1e6:.1f} MB"],
        [f"micro-batches of an epoch (budget {options.batch_tokens:,})", f"{loader.batches_per_epoch:,}"],
        ["fill (tokens / budget): mean; least", f"{100 * fills.mean():.1f} %; {100 * fills.min():.1f} %"],
        ["sequences read in the epoch", f"{len(split):,}, each exactly once"],
        ["plan of the epoch, from the histograms", f"{1e3 * planned:.0f} ms"],
        ["plan of a shard: mean; longest", f"{1e3 * mean(plans):.0f} ms; {1e3 * max(plans):.0f} ms"],
        ["members of a micro-batch: mean", f"{1e6 * mean(looks):.0f} µs"],
        ["order of the whole epoch, and the count", f"{walked:.0f} s (and {drawn + virtual.seconds:.0f} s of drawing)"],
        ["peak memory; of that Python and libraries", f"{peak():,.0f} MB; {before:,.0f} MB"],
        *[
            [f"epoch at {rate:,} tokens/s", f"{loader.tokens_per_epoch / rate / 3600:,.1f} h"]
            for rate in RATES
        ],
    ]  # fmt: skip
    title = f"Data order of {len(split):,} sequences, log-normal lengths (mean {options.mean}, sigma {options.sigma})"
    common.print_table(f"{title}, epoch {epoch}, seed {options.seed}", ["quantity", "value"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=180_000_000)
    parser.add_argument("--mean", type=int, default=340, help="residues")
    parser.add_argument("--sigma", type=float, default=0.75, help="of the logarithm of the length")
    parser.add_argument("--shard-residues", type=int, default=1 << 30)
    parser.add_argument("--batch-tokens", type=int, default=65536)
    parser.add_argument("--crop", type=int, default=1022)
    parser.add_argument("--epoch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
