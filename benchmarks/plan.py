"""`biometro plan` against measured steps on a CPU: time of a step, and what a process grows by while it runs one.

Each shape trains in a process of its own on simulated families, on one thread; steps are timed in seconds of that
process (CPU time), so that a busy machine disturbs little. Before and after, the planner measures the matmul rate;
planned time is the planned operations at `planner.CPU_MFU` of the mean of the two, so `measured / planned` also holds
how far that share is from this shape's. Growth is resident memory at its peak over that before the steps, which are
preceded by one small one that sets things up; planned is what is kept, what comes and goes, and the gradients. It is
taken once as it is and once with every tensor mapped on its own (glibc's MALLOC_MMAP_THRESHOLD_), which shows what
the arithmetic is answerable for and what the allocator adds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn.utils import clip_grad_norm_

import biometro
import common
from biometro.data.corpus import Corpus
from biometro.data.loader import Loader, PackingConfig
from biometro.model.encoder import EncoderConfig
from biometro.objectives.corruption import generator_for
from biometro.objectives.metro import Metro
from biometro.objectives.mlm import MLM
from biometro.objectives.objective import Objective
from biometro.training import optimizer as optim
from biometro.training import planner
from biometro.training.trainer import TrainingConfig

SHAPES = {
    "3 x 128": EncoderConfig(width=128, depth=3, head_size=32),
    "8M (6 x 320)": EncoderConfig(width=320, depth=6, head_size=16),
    "8M, ALiBi, swiglu, rmsnorm": EncoderConfig(
        width=320, depth=6, head_size=16, positions="alibi", ffn="swiglu", norm="rmsnorm"
    ),
    "35M (12 x 480)": EncoderConfig(width=480, depth=12, head_size=24),
}  # fmt: skip


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(job: tuple[str, str, str, int, int]) -> tuple[list[str], float]:
    """The beginning of a row, and bytes grown in units of those planned."""
    shape, name, data, tokens, steps = job
    torch.set_num_threads(1)
    config, packing = SHAPES[shape], PackingConfig(batch_tokens=tokens, crop=512)
    corpus = Corpus.open(data)
    goal: Objective = Metro(config, corpus.alphabet) if name == "metro" else MLM(config, corpus.alphabet)
    optimizer = optim.build(goal.train(), optim.OptimizerConfig())
    loader = Loader(corpus.split("train"), corpus.alphabet, packing)
    small = Loader(corpus.split("train"), corpus.alphabet, PackingConfig(batch_tokens=1100, crop=512))

    def step(source: Loader, number: int) -> None:
        batch = source.batch(number)
        goal.backward([goal.prepare(batch, generator_for(torch.device("cpu"), 0, number))])
        clip_grad_norm_(goal.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(small, 0)
    gc.collect()
    rates = [planner.matmul_rate(config.width, clock=time.process_time)]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    seconds = []
    for number in range(steps):
        began = time.process_time()
        step(loader, number)
        seconds.append(time.process_time() - began)
    grown = resident("VmHWM") - before
    rates.append(planner.matmul_rate(config.width, clock=time.process_time))
    with contextlib.redirect_stdout(io.StringIO()):
        plan = biometro.plan(
            data=data, gpu="cpu", encoder=config, packing=packing, objective=name,  # type: ignore[arg-type]
            training=TrainingConfig(steps=steps), peak_tflops=sum(rates) / 2e12,
        )  # fmt: skip
    memory = plan.layouts[0].memory
    planned = memory.activations + memory.working + memory.gradients + memory.batches
    taken = median(seconds)
    return [
        f"{name}, {shape}", f"{rates[0] / 1e9:.0f}, {rates[1] / 1e9:.0f}",
        f"{plan.tokens_per_second:,.0f}", f"{plan.tokens_per_step / taken:,.0f}",
        f"{taken / plan.step_seconds:.2f}", f"{plan.mfu * plan.step_seconds / taken:.2f}",
        f"{planned / 2**20:,.0f}", f"{grown / planned:.2f}",
    ], grown / planned  # fmt: skip


def each_alone(jobs: list[tuple[str, str, str, int, int]]) -> list[tuple[list[str], float]]:
    """Measure every job in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return list(pool.imap(measure, jobs))


def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "families")
        with contextlib.redirect_stderr(io.StringIO()):
            biometro.prepare("example:families", data)
        jobs = [(shape, name, data, options.tokens, options.steps) for shape in SHAPES for name in ("mlm", "metro")]
        rows = [row for row, _ in each_alone(jobs)]
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        for row, (_, grown) in zip(rows, each_alone(jobs), strict=True):
            row.append(f"{grown:.2f}")
    common.print_table(
        f"A step of {options.tokens:,} tokens at most, float32, one thread, median of {options.steps}",
        [
            "", "GFLOP/s before, after", "tokens/s planned", "measured", "time: measured / planned",
            "of matmul rate", "MiB planned", "grown / planned", "without the allocator",
        ],
        rows,
    )  # fmt: skip
    print(f"\n{common.processor()}; torch {torch.__version__}, Python {platform.python_version()}")
    print(time.strftime("%Y-%m-%d %H:%M %Z"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3)
    main(parser.parse_args())
