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


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", FAULTS)
def test_fault(ground: Ground, tmp_path: Path, name: str) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    try:
        FAULTS[name](ground, tmp_path, random.Random(seed))
    except ImpossibleHereError as reason:
        pytest.skip(str(reason))
