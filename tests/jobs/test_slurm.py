"""docs/slurm.sh, with SLURM's commands and torchrun replaced by scripts that note how they were called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm.sh"
TORCHRUN = """#!/bin/bash
echo "$@" > "$NOTES/torchrun"
kill -USR1 $$  # what the wall limit's signal does to a launcher
[ -n "$STATUS_FILE" ] && echo "$STATUS_FILE" > "$NOTES/run/exit-status"
exit "$LAUNCHER_STATUS"
"""


@pytest.mark.parametrize(
    ("launcher", "file", "status", "requeued"),
    [(0, "75", 75, True), (0, "0", 0, False), (1, "", 1, False), (1, "75", 1, False)],
)
def test_a_stopped_run_is_queued_again(tmp_path: Path, launcher: int, file: str, status: int, requeued: bool) -> None:
    notes = tmp_path / "notes"
    (notes / "run").mkdir(parents=True)
    commands = {
        "torchrun": TORCHRUN,
        "srun": '#!/bin/bash\nshift 2\nexec env --default-signal=USR1 "$@"\n',  # as slurmstepd does
        "scontrol": '#!/bin/bash\n[ "$1" = show ] && echo node1 || echo "$@" > "$NOTES/scontrol"\n',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes), "STATUS_FILE": file,
        "LAUNCHER_STATUS": str(launcher), "SLURM_JOB_ID": "7", "SLURM_NNODES": "4", "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "32", "SLURM_JOB_NODELIST": "node[1-4]",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(SCRIPT), "recipe.yaml", str(notes / "run"), "--training.steps", "5"],
        env=environment,
        check=False,
    )
    assert done.returncode == status
    called = (notes / "torchrun").read_text()
    assert "--nnodes 4 --nproc-per-node 8" in called and "--rdzv-endpoint node1:29500" in called
    assert called.endswith(f"-m -- biometro pretrain --config recipe.yaml --run {notes / 'run'} --training.steps 5\n")
    assert (notes / "scontrol").exists() == requeued
    if requeued:
        assert (notes / "scontrol").read_text() == "requeue 7\n"
