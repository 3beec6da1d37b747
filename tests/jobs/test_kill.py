"""kill -9 at random moments: the run, started again and again, ends with the weights of one never stopped."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from biometro.jobs.prepare import prepare

STEPS = 60


def command(corpus: Path, run: Path) -> list[str]:
    options = {
        "data": corpus, "run": run, "encoder.width": 32, "encoder.depth": 2, "encoder.head_size": 16,
        "packing.batch_tokens": 2048, "packing.crop": 100, "training.steps": STEPS, "training.checkpoint_every": 5,
        "training.valid_every": 20, "training.log_every": 1, "report": "false", "device": "cpu",
    }  # fmt: skip
    return [sys.executable, "-m", "biometro", "pretrain", *(f"--{k}={v}" for k, v in options.items())]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_weights_are_bit_identical_after_kill_nine(tmp_path: Path) -> None:
    prepare("example:families", str(tmp_path / "corpus"), valid=0.1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(tmp_path / "corpus", whole), check=True, capture_output=True, timeout=120)
    chance = random.Random(time.time_ns())
    kills = 0
    while kills < 4:
        process = subprocess.Popen(command(tmp_path / "corpus", broken), stderr=subprocess.PIPE)
        # Wait for its first new step, so that every kill falls into training, and then a random while.
        metrics = broken / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < 60:
            if metrics.exists() and metrics.stat().st_size != size:
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -9, errors.decode()
        kills += 1
    assert kills >= 2, "the run was too short to be killed"
    subprocess.run(command(tmp_path / "corpus", broken), check=True, capture_output=True, timeout=120)
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("model/model.safetensors", f"{last}/shard-00001-model-00001-of-00001.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
