"""No bytes make a reader crash, hang, or take the machine's memory: a little of it in every run of the tests.

`python -m tests.fuzz` goes on for longer; what it finds is replayed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .mutate import mutated
from .readers import READERS
from .registry import CASES
from .worker import Worker

FOUND = [(name, case) for name, reader in READERS.items() for case in reader.cases]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as found:
        yield found


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    return {name: reader.seeds(tmp_path_factory.mktemp("seeds") / "x") for name, reader in READERS.items()}


@pytest.mark.parametrize("name", READERS)
def test_valid_input_is_read(name: str, tmp_path: Path) -> None:
    """Else the seeds would only ever try the first lines of a reader."""
    reader = READERS[name]
    for number, seed in enumerate(reader.seeds(tmp_path / "seeds")):
        place = tmp_path / str(number)
        place.mkdir()
        if reader.build is not None:
            reader.build(place)
        (place / reader.file).write_bytes(seed)
        reader.run(place if reader.build is not None else place / reader.file)


@pytest.mark.parametrize("name", READERS)
def test_no_bytes_break_a_reader(name: str, worker: Worker, seeds: dict[str, list[bytes]]) -> None:
    @settings(max_examples=15, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=300), st.integers(0, 2**32).map(lambda n: mutated(Random(n), seeds[name]))))
    def check(data: bytes) -> None:
        assert worker.check(name, data) is None

    check()


@pytest.mark.parametrize(("name", "case"), FOUND, ids=[str(case.relative_to(CASES)) for _, case in FOUND])
def test_what_was_found_stays_mended(name: str, case: Path, worker: Worker) -> None:
    assert worker.check(name, case.read_bytes()) is None


@pytest.mark.long
def test_a_worker_reports_crashes_hangs_and_memory() -> None:
    """The judge itself: readers that do what none may."""
    with Worker() as worker:
        assert worker.check("self-test", b"return") is None
        assert "ValueError" in str(worker.check("self-test", b"raise"))
        assert "SIGSEGV" in str(worker.check("self-test", b"crash"))
        assert "CPU" in str(worker.check("self-test", b"loop"))
        assert "memory" in str(worker.check("self-test", b"memory"))
        assert worker.check("self-test", b"return") is None
