"""The short form: every fault, once. The long form: python tests/faults/run.py --trials 20"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import scenarios  # noqa: F401 (fills the table)
from harness import FAULTS, Ground, ImpossibleHereError


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    made.close()


LONG = {
    "a URL that stalls",
    "a worker of prepare is killed",
    "checkpoint bytes flipped",
    "checkpoint cut short",
    "disk full during a checkpoint",
    "disk full during a corpus build",
    "the clock moves by days, both ways",
    "a rank that stands still",
    "kill -9 of a rank on one of two nodes",
    "kill -9 of a rank, restarted by torchrun",
    "SIGUSR1 to one of two ranks, then one goes on alone",
    "SIGTERM during a save",
    "disk full during an embedding file",
    "corpus changed under a run",
    "permission taken away in mid-run",
    "two runs in one folder",
}
assert set(FAULTS) >= LONG


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in FAULTS])
def test_fault(ground: Ground, tmp_path: Path, name: str) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    try:
        FAULTS[name](ground, tmp_path, random.Random(seed))
    except ImpossibleHereError as reason:
        pytest.skip(str(reason))
