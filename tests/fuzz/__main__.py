"""A long run: `python -m tests.fuzz fasta --minutes 5`, or several readers, or all of them in turn.

Guided by coverage where atheris is installed (`pip install 'biometro[fuzz]'`), by chance otherwise. What is found is
kept under tests/fuzz/cases, where the ordinary tests replay it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from .registry import CASES, CPU_SECONDS

_INSTRUMENTED = ["biometro", "yaml", "json", "csv", "zipfile", "numpy.lib", "jsonargparse",
                 "torch._weights_only_unpickler", "torch.serialization", "fsspec"]  # fmt: skip


def kind(finding: str) -> str:
    """What makes two findings the same."""
    return re.sub(r"\d+", "#", finding.partition(": ")[0])


def keep(name: str, data: bytes, finding: str) -> None:
    path = CASES / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(f"FOUND {name}: {finding} -> {path}", flush=True)


def by_chance(name: str, seconds: float, seed: int) -> int:
    """Random mutations in a worker; gives how many cases ran."""
    from .mutate import mutated
    from .readers import READERS
    from .worker import Worker

    random, known, runs = Random(f"{name} {seed}"), set[str](), 0
    with tempfile.TemporaryDirectory() as folder, Worker() as worker:
        seeds = [*READERS[name].seeds(Path(folder)), *(case.read_bytes() for case in READERS[name].cases)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = mutated(random, seeds)
            finding = worker.check(name, data)
            runs += 1
            if finding is not None and kind(finding) not in known:
                known.add(kind(finding))
                keep(name, data, finding)
    return runs


def by_coverage(name: str, seconds: float, seed: int) -> int:
    """libFuzzer in a child process, started again after a crash or a hang until the time is up."""
    end, runs = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while (left := end - time.monotonic()) > 2:
            child = subprocess.run(
                [sys.executable, "-m", __spec__.parent, "--child", folder, "--minutes", str(left / 60),
                 "--seed", str(seed + runs), name],
                capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
            done = [int(count) for count in re.findall(r"^#(\d+)\s", child.stderr, re.MULTILINE)]
            runs += max(done, default=0)
            print(*(line for line in child.stdout.splitlines() if line.startswith("FOUND")), sep="\n", end="\n")
            for path in Path(folder).glob("artifact-*"):
                what = "a hang" if "timeout" in path.name else "a crash of the process"
                keep(name, path.read_bytes(), f"{what} ({' '.join(child.stderr.splitlines()[-3:])[-200:]})")
                path.unlink()
            if not done:
                print(child.stderr[-2000:])
                break
    return runs


def _child(name: str, folder: Path, seconds: float, seed: int) -> None:
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from .mutate import mutated
        from .readers import READERS
    from .worker import limit_memory

    reader, known = READERS[name], set[str]()
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = [*reader.seeds(folder / "place"), *(case.read_bytes() for case in reader.cases)]
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
        reader.judge(data, folder / "place")
    limit_memory()

    def one(data: bytes) -> None:
        finding = reader.judge(data, folder / "place")
        if finding is not None and kind(finding) not in known:
            known.add(kind(finding))
            keep(name, data, finding)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.4:
            return atheris.Mutate(data, most)
        return mutated(random, [data, data, *seeds])[:most]

    atheris.Setup(
        [sys.argv[0], f"-max_total_time={max(1, int(seconds))}", f"-timeout={4 * CPU_SECONDS}", "-rss_limit_mb=6000",
         f"-artifact_prefix={folder}/artifact-", f"-seed={seed + 1}", "-max_len=65536", "-verbosity=1", str(corpus)],
        one, custom_mutator=mutate,
    )  # fmt: skip
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help="names, or their beginnings; none means all")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--by-chance", action="store_true", help="random mutation even where atheris is installed")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        return _child(given.readers[0], given.child, 60 * given.minutes, given.seed)

    from .readers import READERS

    names = [name for name in READERS if not given.readers or name.startswith(tuple(given.readers))]
    if not names:
        parser.error(f"no reader of that name; there are: {', '.join(READERS)}")
    guided = importlib.util.find_spec("atheris") is not None and not given.by_chance
    print("guided by coverage (atheris)" if guided else "by chance: atheris is not installed or not wanted", flush=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in names:
        began = time.monotonic()
        runs = (by_coverage if guided else by_chance)(name, 60 * given.minutes, given.seed)
        print(f"{name}: {runs:,} cases in {time.monotonic() - began:.0f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
