"""What several ranks and asynchronous checkpoints cost: tokens/s, memory, strong scaling, the price of a save.

Every contender is a process of its own (or two, under torchrun) that trains the same model by the real trainer on the
same micro-batches, four to a step. Two ranks of one thread each stand beside one process of one thread (what a second
worker gives: strong scaling) and beside one process of two threads (what the processor gives). Checkpoints are
measured in one process: how long a save holds training up, and how much longer the steps around it take.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import common
from biometro.alphabet import PROTEIN
from biometro.data.corpus import Shard, Split
from biometro.data.loader import Loader, PackingConfig
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro
from biometro.training.checkpoint import Checkpoints, Progress
from biometro.training.parallel import ParallelConfig, join
from biometro.training.tracking import read_metrics
from biometro.training.trainer import TrainingConfig, train

ONE, TWO_THREADS, REPLICATE, SHARD, SAVING = (
    "1 rank, 1 thread", "1 rank, 2 threads", "2 ranks x 1 thread, replicate", "2 ranks x 1 thread, shard",
    "1 rank, 2 threads, saving",
)  # fmt: skip
MICRO_BATCHES, WARM_UP, SAVE_EVERY = 4, 3, 4
OFTEN = 500  # steps between checkpoints by default


def work(options: argparse.Namespace) -> None:
    """One rank of one contender; rank 0 prints what it saw."""
    torch.set_num_threads(options.threads)
    shape = common.SHAPES[options.shape]
    lengths = np.random.default_rng(options.seed).lognormal(np.log(280), 0.65, 4000).clip(30, 510).astype(np.int64)
    letters = np.random.default_rng(options.seed).choice(list(PROTEIN.standard_ids), int(lengths.sum()))
    split = Split.of(Shard(letters.astype(np.uint8), np.concatenate([[0], np.cumsum(lengths)])))
    loader = Loader(split, PROTEIN, PackingConfig(options.tokens, 510), options.seed)
    torch.manual_seed(options.seed)
    goal = Metro(EncoderConfig(width=shape.width, depth=shape.depth, head_size=shape.width // shape.heads), PROTEIN)
    config = TrainingConfig(
        steps=options.steps, accumulate=MICRO_BATCHES, log_every=1, valid_every=10**6, track=[],
        checkpoint_every=SAVE_EVERY if options.saving else 10**6,
        parallel=ParallelConfig(sharding=options.sharding),
    )  # fmt: skip
    holds: list[float] = []
    save = Checkpoints.save

    def timed(self: Checkpoints, progress: Progress) -> None:
        self.finish()  # what waits here is no cost of this save
        began = time.perf_counter()
        save(self, progress)
        holds.append(time.perf_counter() - began)

    Checkpoints.save = timed  # type: ignore[method-assign]
    with join("cpu") as world:
        train(goal, loader.batch, config, options.worker, world=world, quiet=True)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        memories = world.gather(memory)
    if world.leads:
        rows = [row for row in read_metrics(options.worker / "metrics.jsonl") if row["split"] == "train"]
        ends = [row["seconds"] for row in rows]
        steps = [b - a for a, b in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
        saved = list(options.worker.glob("checkpoints/*/*.safetensors"))
        print(json.dumps({
            "steps": steps, "tokens": (rows[-1]["tokens"] - rows[WARM_UP - 1]["tokens"]) / len(steps),
            "memory": max(memories), "holds": holds,
            "size": sum(file.stat().st_size for file in saved) / max(1, len(saved)),
            "parameters": sum(p.numel() for p in goal.parameters()),
        }))  # fmt: skip


def launch(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one contender."""
    ranks = 2 if name in (REPLICATE, SHARD) else 1
    threads = 2 if name in (TWO_THREADS, SAVING) else 1
    sharding = "shard" if name == SHARD else "replicate"
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with tempfile.TemporaryDirectory(dir=options.folder) as run:
        command += [
            __file__, "--worker", run, "--threads", str(threads), "--sharding", sharding, "--shape", options.shape,
            "--steps", str(options.steps), "--tokens", str(options.tokens), "--seed", str(options.seed),
        ]  # fmt: skip
        command += ["--saving"] if name == SAVING else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(options: argparse.Namespace) -> None:
    names = [ONE, TWO_THREADS, REPLICATE, SHARD, SAVING]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    shuffle = random.Random(options.seed)
    rounds = common.Rounds()
    for _ in range(options.rounds):
        shuffle.shuffle(names)
        shares = []
        for name in names:
            before, began = common.others(), time.perf_counter()
            busy = resource.getrusage(resource.RUSAGE_CHILDREN)
            found[name].append(launch(name, options))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            children = after.ru_utime + after.ru_stime - busy.ru_utime - busy.ru_stime
            seconds = (time.perf_counter() - began) * (os.cpu_count() or 1)
            shares.append(max(0.0, (common.others() - before - children) / seconds))
        rounds.matmul.append(common.matmul_rates(common.SHAPES[options.shape].width))
        rounds.disturbed.append(max(shares))

    def step(run: dict[str, Any]) -> float:
        return median(run["steps"])

    rows = []
    for name in (ONE, TWO_THREADS, REPLICATE, SHARD):
        rates = [run["tokens"] / step(run) for run in found[name]]
        times = [[step(a) / step(b) for a, b in zip(found[to], found[name], strict=True)] for to in (ONE, TWO_THREADS)]
        memory = max(run["memory"] for run in found[name])
        rows.append([name, f"{median(rates):,.0f}", *map(common.spread, times), f"{memory:,.0f}"])
    parameters = found[ONE][0]["parameters"]
    common.print_table(
        f"METRO, {options.shape} shape ({parameters:,} parameters), {MICRO_BATCHES} micro-batches of at most "
        f"{options.tokens:,} tokens a step, {options.steps - WARM_UP} steps measured, {options.rounds} rounds",
        ["", "tokens/s", f"speed / {ONE}", f"speed / {TWO_THREADS}", "MB of a rank, most"],
        rows,
    )
    plain = median(step(run) for run in found[TWO_THREADS])
    holds = [hold for run in found[SAVING] for hold in run["holds"]]
    longer = [
        (sum(a["steps"]) - len(a["steps"]) * step(b)) / (len(a["steps"]) / SAVE_EVERY)
        for a, b in zip(found[SAVING], found[TWO_THREADS], strict=True)
    ]
    each = median(longer)
    size = median(run["size"] for run in found[SAVING]) / 1e6
    print()
    common.print_table(
        f"Saving {size:,.0f} MB while training goes on; a step takes {plain:.2f} s",
        ["", "ms", "of a step", f"of all time, every {OFTEN} steps"],
        [
            ["training stands still", f"{1e3 * median(holds):.0f}", f"{median(holds) / plain:.2%}",
             f"{median(holds) / plain / OFTEN:.4%}"],
            ["steps take longer, in all", f"{1e3 * each:.0f} ({1e3 * min(longer):.0f} to {1e3 * max(longer):.0f})",
             f"{each / plain:.2%}", f"{each / plain / OFTEN:.4%}"],
        ],
    )  # fmt: skip
    common.print_environment(rounds, options.seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(common.SHAPES), default="8M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=2048, help="of a micro-batch, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for checkpoints; default: where temporary files go")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--sharding", default="replicate", help=argparse.SUPPRESS)
    parser.add_argument("--saving", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    work(chosen) if chosen.worker else main(chosen)
