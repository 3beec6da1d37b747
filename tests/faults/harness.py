"""What the faults share: real runs as processes of their own, and what must be true of them afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

STEPS, EVERY = 40, 5
PATIENCE = 180.0  # seconds that anything may take

OPTIONS: dict[str, Any] = {
    "encoder.width": 32, "encoder.depth": 2, "encoder.head_size": 16, "encoder.dropout": 0.1,
    "packing.batch_tokens": 1024, "packing.crop": 60, "training.steps": STEPS, "training.accumulate": 2,
    "training.checkpoint_every": EVERY, "training.valid_every": 20, "training.log_every": 1, "training.track": "[]",
    "report": "false", "device": "cpu",
}  # fmt: skip


class ImpossibleHereError(Exception):
    """This machine cannot make the fault happen; the text says why."""


@dataclass
class Trial:
    """What one fault did: training steps done again (None where no run was hurt), and a word on it."""

    lost: int | None = None
    said: str = ""


Scenario = Callable[["Ground", Path, random.Random], Trial]
FAULTS: dict[str, Scenario] = {}


def fault(name: str) -> Callable[[Scenario], Scenario]:
    """Adds a scenario to the table under this name."""

    def add(scenario: Scenario) -> Scenario:
        FAULTS[name] = scenario
        return scenario

    return add


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


@dataclass
class Process:
    """A command under way, with all it prints in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"hung for {PATIENCE:.0f} s:\n{self.output[-2000:]}") from None

    def ends(self, *statuses: int) -> str:
        """Wait for one of these exit statuses; gives the output, in which there is no traceback of ours."""
        status = self.wait()
        assert status in statuses, f"status {status} instead of {statuses}:\n{self.output[-3000:]}"
        assert "Traceback" not in ours(self.output), self.output[-3000:]
        return self.output

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def ours(output: str) -> str:
    """Without what torchrun says at its own end."""
    return re.sub(r"(?m)^Traceback \(most recent call last\):\n(?:.*\n)*?torch\.distributed\.elastic\..*\n", "", output)


@dataclass
class Ground:
    """Where faults happen: one corpus, and the runs that nothing happened to."""

    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="faults-")))

    def start(self, *arguments: str, before: tuple[str, ...] = (), **more: str) -> Process:
        log = self.root / f"log-{time.monotonic_ns()}"
        with log.open("wb") as handle:
            command = [*before, sys.executable, "-m", "biometro", *arguments]
            process = subprocess.Popen(
                command, stdout=handle, stderr=subprocess.STDOUT, env=environment(**more), start_new_session=True
            )
        return Process(process, log)

    @cached_property
    def corpus(self) -> Path:
        folder = self.root / "corpus"
        self.start("prepare", "--data=example:families", "--valid=0.1", f"--out={folder}").ends(0)
        return folder

    def pretrain(
        self,
        run: Path,
        *,
        ranks: int = 1,
        restarts: int = 0,
        meeting: str = "",
        data: Path | None = None,
        **options: Any,
    ) -> Process:
        """Start (or go on with) a run; with several ranks, under torchrun."""
        before = tuple(options.pop("before", ()))
        more = options.pop("environment", {})
        chosen = {"data": data or self.corpus, "run": run, **OPTIONS}
        chosen |= {name.replace("__", "."): value for name, value in options.items()}
        arguments = ["pretrain", *(f"--{name}={value}" for name, value in chosen.items())]
        if ranks == 1 and not meeting:
            return self.start(*arguments, before=before, **more)
        # USR1 is ignored by torchrun and its parents, as the launch script has it; ranks set their own handlers.
        launcher = f"trap '' USR1; exec {sys.executable} -m torch.distributed.run {meeting or '--standalone'}"
        line = f'{launcher} --nproc-per-node {ranks} --max-restarts {restarts} -m -- biometro "$@"'
        log = self.root / f"log-{time.monotonic_ns()}"
        with log.open("wb") as handle:
            process = subprocess.Popen(
                ["bash", "-c", line, "bash", *arguments], stdout=handle, stderr=subprocess.STDOUT,
                env=environment(**more), start_new_session=True,
            )  # fmt: skip
        return Process(process, log)

    def under_way(self, run: Path, chance: random.Random, **options: Any) -> tuple[Process, int]:
        """A run that has just done a step drawn at random, and that step; some are left."""
        process, at = self.pretrain(run, **options), chance.randrange(1, STEPS - 10)
        until(lambda: step_of(run) >= at, process)
        return process, at

    @cached_property
    def reference(self) -> Path:
        """A finished run of one process that nothing happened to."""
        self.pretrain(self.root / "reference").ends(0)
        return self.root / "reference"

    def finish(self, run: Path, **options: Any) -> None:
        """The same command until it says that it is done."""
        for _ in range(5):
            process = self.pretrain(run, **options)
            process.ends(0, 75)
            if (run / "exit-status").read_text() == "0\n":
                return
        raise AssertionError("the run does not come to its end")

    def same_bytes(self, run: Path) -> None:
        """The run's weights, moments and model are those of the reference, bit for bit."""
        last = f"checkpoints/step-{STEPS:08d}"
        for name in ("model/model.safetensors", f"{last}/shard-00001-model-00001-of-00001.safetensors"):
            assert contents(run / name) == contents(self.reference / name), f"{name} differs"

    def same_losses(self, run: Path) -> None:
        """The run's losses are those of the reference, within rounding (another number of ranks)."""
        one, two = rows(self.reference), rows(run)
        assert [row["step"] for row in one] == [row["step"] for row in two]
        for a, b in zip(one, two, strict=True):
            assert abs(a["loss"] - b["loss"]) < 1e-5 * abs(a["loss"]), (a["step"], a["loss"], b["loss"])

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor (the writer's header has no fixed order)."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        found[name] = (entry["dtype"], entry["shape"], data[end + low : end + high])
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # being written
            break
    return found


def step_of(run: Path) -> int:
    return max((row["step"] for row in rows(run)), default=0)


def saved_step(run: Path) -> int:
    return max((int(folder.name[5:]) for folder in (run / "checkpoints").glob("step-*")), default=0)


def lost_steps(run: Path) -> int:
    """Steps that must be done again; no more than those since the last checkpoint, and those while one was written."""
    lost = max(0, step_of(run) - saved_step(run))
    assert lost <= 2 * EVERY, f"{lost} steps lost, with a checkpoint every {EVERY}"
    return lost


def until(condition: Callable[[], bool], process: Process | None = None, patience: float = PATIENCE) -> None:
    """Wait for a condition, or for the process to end."""
    end = time.monotonic() + patience
    while not condition() and (process is None or process.process.poll() is None):
        assert time.monotonic() < end, f"waited {patience:.0f} s in vain"
        time.sleep(0.005)


def ranks_of(run: Path) -> list[int]:
    """Process numbers of the ranks that train into a folder (not of torchrun)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"--run={run}".encode() in words and b"biometro" in words and b"torch.distributed.run" not in words:
                found.append(int(entry.name))
    return sorted(found)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of this size at `folder`; gives a function that changes the size."""
    folder.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        raise ImpossibleHereError(f"no file system can be mounted ({made.stderr.decode().strip()})")

    def resize(new: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={new}", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def without_privilege() -> tuple[str, ...]:
    """Words that go before a command so that file permissions bind it, even if it is root's."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        raise ImpossibleHereError("setpriv is not installed, and root may write anywhere")
    dropped = ",".join(f"-{name}" for name in ("dac_override", "dac_read_search", "fowner", "chown"))
    return ("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}")
