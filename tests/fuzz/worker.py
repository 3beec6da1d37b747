"""Cases run in a process of their own, kept from case to case, so that a crash of native code is a finding too."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from .registry import CPU_SECONDS, MEMORY_BYTES, Reader

_WALL_SECONDS = 60.0  # a machine may be busy: what counts is CPU time; this is for a reader that waits
_ADDRESS_SPACE = 4 << 30  # beyond what the process maps at its start


class Worker:
    """`check` gives what is wrong with the way a reader takes bytes, or None."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def check(self, name: str, data: bytes) -> str | None:
        if self._process is None:
            package = __name__.rpartition(".")[0]
            root = Path(__file__).parents[package.count(".") + 1]
            paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{package}.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        process = self._process
        assert process.stdin and process.stdout
        try:
            process.stdin.write(f"{name}\n{len(data)}\n".encode() + data)
            process.stdin.flush()
            ready = select.select([process.stdout], [], [], _WALL_SECONDS)[0]
            answer = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, answer = [process.stdout], b""
        if answer:
            return answer.decode().strip() or None
        if not ready:
            process.kill()
        code = process.wait()
        self._process = None
        if code == -signal.SIGXCPU:
            return f"took more than {CPU_SECONDS} s of CPU time"
        if not ready:
            return f"did not come back in {_WALL_SECONDS:.0f} s"
        return f"the process died: {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"


def _status(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0


def limit_memory() -> None:
    """Let an absurd allocation fail instead of taking the machine along."""
    most = _status("VmSize") + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _misbehave(path: Path) -> None:
    """What no reader may do, to test that it is noticed."""
    what = path.read_bytes()
    if what == b"raise":
        raise ValueError("raised")
    if what == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == b"memory":
        bytearray(MEMORY_BYTES + (64 << 20))
    while what == b"loop":
        pass


def _serve() -> None:
    from .readers import READERS

    READERS["self-test"] = Reader("self-test", "input", _misbehave, given=[b"return"])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a reader prints is no answer
    with tempfile.TemporaryDirectory() as folder:
        limit_memory()
        while name := sys.stdin.buffer.readline().decode().strip():
            data = sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
            reader, place = READERS[name], Path(folder) / name.replace("/", "--")
            if not place.exists():  # the first call imports and builds; only the case itself is measured
                for seed in reader.seeds(place):
                    reader.judge(seed, place)
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            used = resource.getrusage(resource.RUSAGE_SELF)
            resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1, -1))
            finding = reader.judge(data, place)
            resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))
            grown = _status("VmHWM") - before
            if finding is None and grown > MEMORY_BYTES:
                finding = f"took {grown >> 20} MiB of memory"
            answers.write(" ".join((finding or "").split()).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    _serve()
