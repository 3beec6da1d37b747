"""Many processes and many machines make the corpus that one process makes, or one clear error and nothing else."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biometro.data import fasta, sources, tables
from biometro.data.fill import Cleaning, fill
from biometro.errors import UserError
from biometro.jobs.prepare import prepare
from biometro.processes import Processes


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasta, "PIECE_BYTES", 2000)
    monkeypatch.setattr(tables, "_PIECE_ROWS", 50)


def sequences(count: int, seed: int) -> list[str]:
    """With duplicates, letters outside the standard ones, and some that are too short."""
    chance = random.Random(seed)
    found = ["".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=chance.randint(1, 90))) for _ in range(count)]
    found += chance.sample(found, count // 10)
    return [s + chance.choice(["", "", "", "X", "*", "-", "UB"]) for s in found]


def fasta_of(found: list[str], end: str = "\n") -> bytes:
    return "".join(
        f">s{i} of many{end}{s[:40]}{end}{s[40:] + end if s[40:] else ''}" for i, s in enumerate(found)
    ).encode()


def write_input(folder: Path) -> str:
    """One of every kind: plain, compressed, CRLF, tables, groups of rows. Gives a pattern."""
    folder.mkdir()
    (folder / "a.fasta").write_bytes(fasta_of(sequences(300, 0)))
    (folder / "b.fa.gz").write_bytes(gzip.compress(fasta_of(sequences(200, 1), "\r\n")))
    (folder / "c.fa.bz2").write_bytes(bz2.compress(b"\n\n" + fasta_of(sequences(50, 2))))
    (folder / "d.csv").write_text("id,sequence\n" + "".join(f"{i},{s}\n" for i, s in enumerate(sequences(60, 3))))
    table = pa.table({"sequence": sequences(200, 4)})
    pq.write_table(table, folder / "e.parquet", row_group_size=30)
    return f"{folder}/*"


OPTIONS: dict[str, Any] = {"residues": "drop_sequence", "valid": 0.2, "min_length": 5, "max_length": 85}


def content(folder: Path) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    info = json.loads((folder / "corpus.json").read_text())
    del info["created"]
    files = sorted(path for path in folder.iterdir() if path.name != "corpus.json")
    return [(path.name, path.read_bytes()) for path in files], info


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_makes_the_same_corpus(tmp_path: Path, workers: int) -> None:
    data = write_input(tmp_path / "in")
    prepare(data, str(tmp_path / "one"), **OPTIONS)
    prepare(data, str(tmp_path / "many"), workers=workers, **OPTIONS)
    one, many = content(tmp_path / "one"), content(tmp_path / "many")
    assert one == many
    assert json.dumps(one[1]) == json.dumps(many[1])  # in the same order as well
    assert [len(found) for found in one[1]["intake"]["dropped_examples"].values()] == [3, 3, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "many", "one"]


def test_many_files_are_read_whole_by_each_worker(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(9):
        (tmp_path / "in" / f"{i}.fa.gz").write_bytes(gzip.compress(fasta_of(sequences(40, i))))
    prepare(f"{tmp_path}/in/*", str(tmp_path / "one"), **OPTIONS)
    prepare(f"{tmp_path}/in/*", str(tmp_path / "many"), workers=2, **OPTIONS)
    assert content(tmp_path / "one") == content(tmp_path / "many")


def test_one_file_is_shared_out_to_all_workers(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(fasta_of(sequences(500, 0)))
    found = sources.expand(str(path))
    account = fill(tmp_path / "spools", found, Cleaning(sources.ReadOptions()), workers=3)
    assert account.read == found[0].records == 550
    spools = list((tmp_path / "spools").iterdir())
    assert len(spools) == 3 and all(any(spool.iterdir()) for spool in spools)


def wrong_at(place: int, wrong: bytes) -> bytes:
    lines = fasta_of(sequences(400, 5)).split(b"\n")
    lines[place] = wrong
    return b"\n".join(lines)


WRONG = [
    wrong_at(0, b"MK"),
    wrong_at(3, b"M1K"),
    wrong_at(700, b"M1K"),
    wrong_at(701, b">x\n>y"),
    wrong_at(500, b">\xff"),
    wrong_at(200, b"M1K").replace(b">s300 ", b">\xff"),
    fasta_of(sequences(400, 5)) + b">last",
    b">a\rMK\r>b\rMK\r",
    gzip.compress(fasta_of(sequences(4000, 5)))[:-2000],
    gzip.compress(wrong_at(90, b"M1K"))[:-2000],
    b"",
    b"\n\n",
]


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_errors_name_the_same_line_whoever_reads(tmp_path: Path, content: bytes) -> None:
    good, bad = tmp_path / "good.fasta", tmp_path / "bad.fasta"
    good.write_bytes(fasta_of(sequences(100, 6)))
    bad.write_bytes(content)
    said = []
    for workers in (1, 2):
        with pytest.raises(UserError) as error:
            prepare([str(good), str(bad), str(good)], str(tmp_path / "c"), workers=workers)
        said.append(str(error.value))
    assert said[0] == said[1] and "bad.fasta, " in said[0] and "line" in said[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.fasta", "good.fasta"]


class Echo:
    """Gives its tasks back; falls asleep, fails or dies where it is told to."""

    def __call__(self, task: Any) -> Any:
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "bug":
            raise KeyError("a bug")
        if isinstance(task, str) and task.startswith("wrong"):
            time.sleep(0.3 * task.endswith("slowly"))
            raise UserError(task)
        if task == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if isinstance(task, float):
            time.sleep(task)
        return task

    def finish(self) -> int:
        return os.getpid()


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_results_come_in_order_and_processes_go() -> None:
    with Processes([Echo, Echo]) as processes:
        tasks = [0.3, *range(50)]
        assert list(processes.run(tasks)) == tasks
        assert list(processes.run(tasks, ahead=2)) == tasks
        numbers = processes.finish()
    assert len(set(numbers)) == 2 and not any(map(running, numbers))


def test_the_first_error_in_order_wins() -> None:
    def tasks() -> Iterator[Any]:
        yield from (1, "wrong first, slowly", 3, "wrong second")
        raise UserError("wrong last")

    for _ in range(3):
        with Processes([Echo, Echo, Echo]) as processes, pytest.raises(UserError, match="wrong first"):
            list(processes.run(tasks()))
    with Processes([Echo]) as processes, pytest.raises(RuntimeError, match="KeyError: 'a bug'"):
        list(processes.run(["bug"]))
    with Processes([Echo]) as processes, pytest.raises(OSError, match="No space left on device"):
        list(processes.run([1, "full"]))


@pytest.mark.long
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    data = write_input(tmp_path / "in")
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); from biometro.cli import main"
    )
    for workers in (1, 2):
        options = ["prepare", f"--data={data}", f"--out={tmp_path / 'c'}", f"--workers={workers}"]
        command = [sys.executable, "-c", f"{limited}; from biometro.cli import main; sys.exit(main({options!r}))"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "could not be written" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.timeout(60)
def test_a_killed_worker_is_one_clear_error() -> None:
    with Processes([Echo, Echo]) as processes, pytest.raises(UserError, match="killed by SIGKILL, perhaps for want of"):
        list(processes.run([1, 2, "die", *range(1000)]))


def children(process: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def begun(tmp_path: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """`prepare` with two workers, at work on input that takes long, and its workers."""
    (tmp_path / "long.fasta").write_bytes(fasta_of(sequences(20000, 0)) * 80)
    options = [f"--data={tmp_path / 'long.fasta'}", f"--out={tmp_path / 'c'}", "--workers=2"]
    process = subprocess.Popen([sys.executable, "-m", "biometro", "prepare", *options], stderr=subprocess.PIPE)
    began = time.monotonic()
    while len(children(process.pid)) < 2 and time.monotonic() - began < 30:
        time.sleep(0.05)
    time.sleep(0.5)
    found = children(process.pid)
    assert len(found) == 2
    return process, found


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGTERM, 75, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted"), (signal.SIGKILL, -9, "")],
)
def test_stopped_from_outside_it_leaves_nothing(tmp_path: Path, number: int, status: int, message: str) -> None:
    process, workers = begun(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and message in errors.decode() and "Traceback" not in errors.decode()
    began = time.monotonic()
    while any(map(running, workers)) and time.monotonic() - began < 10:
        time.sleep(0.05)
    assert not any(map(running, workers))
    if number != signal.SIGKILL:
        assert [p.name for p in tmp_path.iterdir()] == ["long.fasta"]


@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_ends_the_job_with_one_line(tmp_path: Path) -> None:
    process, workers = begun(tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.decode().count("\n") == 1
    assert "worker processes was killed by SIGKILL" in errors.decode() and not any(map(running, workers))
    assert [p.name for p in tmp_path.iterdir()] == ["long.fasta"]
