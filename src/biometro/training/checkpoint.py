"""Checkpoints: safetensors with digests, written in one stroke, the newest few kept.

    checkpoints/step-00001000/{model.safetensors, optimizer.safetensors, state.json}

`state.json` holds the step, the totals so far, and the digest of the other two. A checkpoint that does not fit its
digests is passed over, said so, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from biometro.errors import UserError
from biometro.files import new_folder, sha256_of
from biometro.model.bundle import distinct_state

_PARTS = ("model.safetensors", "optimizer.safetensors")


@dataclass
class Progress:
    """How far a run has come: steps done, tokens read, floating-point operations and seconds spent on them."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0


def folders(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted((folder for folder in root.glob("step-*") if folder.name[5:].isdigit()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def save(root: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, keep: int) -> None:
    """Write a checkpoint and remove all but the newest `keep`. Raises UserError where the disk refuses.

    Checkpoints of later steps were found damaged when this run began, and are removed as well.
    """
    weights, _ = distinct_state({"objective": objective})
    moments: dict[str, Tensor] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            moments[f"{number}.{name}"] = value.detach().cpu().contiguous()
    with new_folder(root / f"step-{progress.step:08d}") as work:
        save_file(weights, work / _PARTS[0])
        save_file(moments, work / _PARTS[1])
        digests = {name: sha256_of(work / name) for name in _PARTS}
        state = {"progress": asdict(progress), "sha256": digests, "seal": _seal(asdict(progress), digests)}
        (work / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    sound = [folder for folder in folders(root) if _step(folder) <= progress.step]
    for old in {*folders(root)} - {*sound[-keep:]}:
        shutil.rmtree(old, ignore_errors=True)


def load(
    root: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, say: Callable[[str], None]
) -> Progress | None:
    """Restore the newest sound checkpoint, or give None where there is none at all.

    `say` hears of every checkpoint passed over. Raises UserError where checkpoints stand there but none is sound,
    or where one does not fit this model.
    """
    found = folders(root)
    for folder in reversed(found):
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            damaged = [name for name in _PARTS if sha256_of(folder / name) != state["sha256"][name]]
            if state["seal"] != _seal(state["progress"], state["sha256"]):
                damaged.append("state.json")
            progress = Progress(**state["progress"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            say(f"{folder.name}: damaged checkpoint passed over ({error})")
            continue
        if damaged:
            say(f"{folder.name}: damaged checkpoint passed over (digest of {', '.join(damaged)} differs)")
            continue
        _restore(folder, objective, optimizer)
        return progress
    if found:
        raise UserError(f"{root}: none of its {len(found)} checkpoints is sound; start again in another run folder")
    return None


def _seal(progress: dict[str, Any], digests: dict[str, str]) -> str:
    """Digest of what state.json says."""
    return hashlib.sha256(json.dumps([progress, digests], sort_keys=True).encode()).hexdigest()


def _restore(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    _, tied = distinct_state({"objective": objective})
    weights = load_file(folder / _PARTS[0])
    weights |= {alias: weights[name] for alias, name in tied.items() if name in weights}
    try:
        objective.load_state_dict({name.removeprefix("objective."): tensor for name, tensor in weights.items()})
    except RuntimeError as error:
        raise UserError(
            f"{folder}: this checkpoint is of another model ({str(error).splitlines()[-1].strip()})"
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / _PARTS[1]).items():
        number, _, kind = name.partition(".")
        state.setdefault(int(number), {})[kind] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
