"""Speed and memory of `biometro prepare` from one million sequences to ten, by one process and by several.

Proteins of random residues go to a FASTA file, a tenth of them a copy of another, so that duplicates must be found
across the whole file. Each run is a command of its own. Its memory is what the kernel says of it while it runs: the
largest resident set of the first process and of its workers, which together bound what a machine must have. Files were
just written, so the page cache holds them: this measures the code and not the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import common

LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
BLOCK = 100_000  # sequences
HEADER = 14  # bytes: > and twelve digits, end of line
LINE = 60  # residues to a line, as UniProt has them


def fasta_of(numbers: np.ndarray, letters: np.ndarray, lengths: np.ndarray) -> bytes:
    """FASTA of sequences that stand end to end in `letters` (T,), with `lengths` (N,) and `numbers` (N,) for names."""
    sizes = HEADER + lengths + -(-lengths // LINE)
    begins = np.cumsum(sizes) - sizes
    text = np.full(int(sizes.sum()), ord("\n"), dtype=np.uint8)
    text[begins] = ord(">")
    for place in range(12):
        text[begins + 12 - place] = ord("0") + numbers // 10**place % 10
    within = np.arange(len(letters)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    text[np.repeat(begins + HEADER, lengths) + within + within // LINE] = letters
    return text.tobytes()


def write(path: Path, count: int, mean: float, seed: int) -> int:
    """A FASTA file of `count` sequences, nine tenths of them distinct; gives the number of residues."""
    random = np.random.default_rng(seed)
    residues, first, ends = 0, np.empty(0, np.uint8), np.empty(0, np.int64)
    with path.open("wb") as out:
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            fresh = size - size // 10
            lengths = 25 + random.gamma(2, (mean - 25) / 2, fresh).astype(np.int64)  # skewed, as proteins are
            letters = LETTERS[random.integers(0, 20, int(lengths.sum()), dtype=np.uint8)]
            if start == 0:
                first, ends = letters, np.cumsum(lengths)
            copied = random.integers(0, len(ends), size - fresh)
            copies = [first[ends[i - 1] if i else 0 : ends[i]] for i in copied]
            letters = np.concatenate([letters, *copies])
            lengths = np.concatenate([lengths, [len(copy) for copy in copies]]).astype(np.int64)
            out.write(fasta_of(np.arange(start, start + size), letters, lengths))
            residues += len(letters)
    return residues


class Run(NamedTuple):
    seconds: float
    cpu: float  # seconds, of all processes
    first: int  # bytes of the largest resident set, of the first process
    worker: int  # of the largest worker
    together: int  # of all at one time, pages shared between them counted once for each


def status(process: int) -> tuple[int, int]:
    """(largest resident set so far, resident set now) in bytes; zeros where the process has gone."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return tuple(int(lines[name].split()[0]) << 10 for name in ("VmHWM", "VmRSS"))  # type: ignore[return-value]
    except (OSError, KeyError):
        return 0, 0


def prepare(path: Path, out: Path, workers: int) -> Run:
    """Run the command and watch it."""
    command = [sys.executable, "-m", "biometro", "prepare", f"--data={path}", f"--out={out}", f"--workers={workers}"]
    before, began = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    first = worker = together = 0
    while process.poll() is None:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        except OSError:
            children = []
        peak, total = status(process.pid)
        first = max(first, peak)
        for child in children:
            peak, now = status(int(child))
            worker, total = max(worker, peak), total + now
        together = max(together, total)
        time.sleep(0.05)
    seconds, after = time.perf_counter() - began, os.times()
    if process.returncode:
        raise SystemExit(process.stderr.read().decode() if process.stderr else "prepare failed")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu, first, worker, together)


def main(options: argparse.Namespace) -> None:
    rows, digests = [], set()
    for count in options.sequences:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            path = Path(name) / "x.fasta"
            residues = write(path, count, options.mean, options.seed)
            size = path.stat().st_size
            for workers in options.workers:
                out = Path(name) / f"corpus-{workers}"
                run = prepare(path, out, workers)
                info = json.loads((out / "corpus.json").read_text())
                digests.add((count, info["digests"]["corpus"]))
                megabytes = [f"{n / 1e6:,.0f}" if n else "-" for n in (run.first, run.worker, run.together)]
                speed = [f"{size / 1e6 / run.seconds:.0f}", f"{count / run.seconds:,.0f}", f"{info['duplicates']:,}"]
                times = [f"{run.seconds:.1f}", f"{run.cpu:.1f}"]
                rows.append([f"{count / 1e6:g} M, workers {workers}", *times, *speed, *megabytes])
                for file in sorted(out.iterdir()):
                    file.unlink()
            print(f"{count:,} sequences, {residues:,} residues, {size / 1e6:,.0f} MB", file=sys.stderr)
    header = ["", "seconds", "CPU seconds", "MB/s", "sequences/s", "duplicates", "first, MB", "worker, MB", "all, MB"]
    common.print_table(
        f"prepare: random proteins of {options.mean:g} residues in the mean, 10 % duplicates", header, rows
    )
    alike = (
        "the same corpus for any number" if len(digests) == len(options.sequences) else "CORPORA DIFFER between numbers"
    )
    print(f"\n{alike} of workers; {os.cpu_count()} cores, seed {options.seed}, Python {platform.python_version()}, "
          f"{time.strftime('%Y-%m-%d %H:%M %Z')}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--mean", type=float, default=100, help="residues")
    parser.add_argument("--folder", help="where to write; a few GB for the default")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
