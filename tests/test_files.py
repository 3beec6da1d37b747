"""Files that appear whole, folders that one process holds, weights written one by one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from biometro.errors import UserError
from biometro.files import locked
from biometro.model.weights import write_safetensors

HOLD = """
import sys, time
from pathlib import Path
from biometro.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    expected = rf"is in use by process {holder.pid} on {os.uname().nodename}, since \d{{4}}-"
    with pytest.raises(UserError, match=expected), locked(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""


def test_without_locks_the_note_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    note = {"host": "node7", "process": 1, "since": "2026-11-21 10:00:00"}
    (tmp_path / ".lock").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"process 1 on node7.*remove .*\.lock"), locked(tmp_path):
        pass
    (tmp_path / ".lock").write_text(json.dumps({**note, "host": os.uname().nodename}))
    with pytest.raises(UserError, match="in use by process 1"), locked(tmp_path):  # alive: it is the first of all
        pass
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / ".lock").write_text(json.dumps({**note, "host": os.uname().nodename, "process": gone.pid}))
    with locked(tmp_path):
        pass


def test_weights_written_one_by_one_are_those_that_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5).t(), "a": torch.arange(7), "half": torch.randn(4).bfloat16(), "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
    }  # fmt: skip
    write_safetensors(tmp_path / "w.safetensors", tensors)
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


def test_writing_weights_takes_no_second_model_in_memory(tmp_path: Path) -> None:
    script = f"""
import resource, torch
from pathlib import Path
from biometro.model.weights import write_safetensors
tensors = {{str(i): torch.ones(1 << 20) for i in range(100)}}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_safetensors(Path({str(tmp_path)!r}) / "w.safetensors", tensors)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout)
    assert grown < 20_000, "of the 400,000 KiB that the weights take"
