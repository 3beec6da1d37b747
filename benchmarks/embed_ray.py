"""Embedding by workers on Ray against one process: sequences a second, one thread each, the same vectors.

A run's first seconds start Ray and load torch in every worker; they are given apart, until the first part stands.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import torch

import biometro
import common
from biometro.inference import cluster
from biometro.jobs import embed as embed_job


def _watch(folder: Path) -> list[float]:
    """Fills in the moment at which the first part stands in the folder."""
    moment: list[float] = []

    def look() -> None:
        while not any(folder.glob("*/0*.parquet")):
            time.sleep(0.01)
        moment.append(time.perf_counter())

    threading.Thread(target=look, daemon=True).start()
    return moment


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    embed_job._CHUNK_SEQUENCES = options.chunk
    sequences = common.sample(options.data, options.sequences, options.seed, 1022)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common.esm(common.SHAPES["8M"], folder)[0].save_pretrained(folder / "model")
        data = folder / "x.fasta"
        data.write_text("".join(f">s{i}\n{s.decode()}\n" for i, s in enumerate(sequences)))
        content: set[bytes] = set()
        for workers in (None, 1, 2):
            out = folder / f"{workers}.parquet"
            began = time.perf_counter()
            if workers is None:
                biometro.embed(str(folder / "model"), str(data), str(out), device="cpu")
                whole = steady = time.perf_counter() - began
            else:
                with cluster.connect(workers, None, "cpu"):
                    moment = _watch(folder / f".{out.name}.parts")
                    biometro.embed(str(folder / "model"), str(data), str(out), device="cpu", workers=workers)
                    ended = time.perf_counter()
                whole, steady = time.perf_counter() - began, ended - moment[0]
            done = len(sequences) - (0 if workers is None else options.chunk)
            label = "this process" if workers is None else f"{workers} on Ray"
            rows.append([label, f"{len(sequences) / whole:.1f}", f"{done / steady:.1f}", f"{whole - steady:.0f}"])
            content.add(out.read_bytes())
    common.print_table(
        f"ESM-2 8M shape, {len(sequences)} real proteins, {sum(map(len, sequences)):,} residues, chunks of "
        f"{options.chunk}, one thread to a worker; files equal, byte for byte: {len(content) == 1}",
        ["", "sequences/s, whole command", "after the first part", "seconds until then"],
        rows,
    )


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--sequences", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=32)
    main(parser.parse_args())
