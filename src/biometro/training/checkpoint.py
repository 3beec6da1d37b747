"""Checkpoints by torch.distributed.checkpoint: safetensors with digests, each rank its share, the newest few kept.

    checkpoints/step-00001000/{shard-00001-model-00001-of-00001.safetensors, ..., state.json}

Any number of ranks reads what any other number wrote. Saving copies the tensors and training goes on; a thread writes
them. The folder takes its name when all its files are on the disk, `state.json` among them: the step, the totals so
far, and the digests of the other files. A checkpoint that does not fit its digests is passed over, said so, and the
one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from biometro.errors import EchoedError, UserError
from biometro.files import clear_leftovers, put_in_place, saying, sha256_of
from biometro.model.weights import distinct_state
from biometro.training.optimizer import Joined, begin_state
from biometro.training.parallel import World
from biometro.untrusted import read_json

_PATIENCE = 10.0  # seconds between signs of life while a checkpoint is being written


@dataclass
class Progress:
    """How far a run has come: steps done, tokens read, floating-point operations and seconds spent on them.

    `skipped` counts the steps whose gradient was not finite; `backoff` is what the learning rate is multiplied by, and
    `sound` the finite steps since that last changed. Where the best weights are kept: `best` is the figure of the best
    validation, at `best_step`; `stale` counts the validations since; stage number `stage` began at step `stage_began`,
    when the optimizer had made `updates` updates; `done` says that training ended before its last step.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    backoff: float = 1.0
    sound: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    stage: int = 0
    stage_began: int = 0
    updates: int = 0
    done: bool = False

    def check(self) -> None:
        """Raises ValueError where these cannot be totals of a run."""
        if not isinstance(self.done, bool) or not (self.best is None or isinstance(self.best, int | float)):
            raise ValueError(f"done is {self.done!r} and best {self.best!r}")
        for name, value in asdict(self).items():
            if name in ("best", "done"):
                continue
            whole = name not in ("flops", "seconds", "backoff")
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else int | float)
                or not 0 <= value < 2**90
            ):
                raise ValueError(f"{name} is {value!r}")
        if max(self.skipped, self.best_step, self.stage_began, self.updates) > self.step or self.step >= 2**40:
            raise ValueError(f"{self.skipped} of {self.step} steps skipped, or the best of a step to come")


def folders(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted((folder for folder in root.glob("step-*") if folder.name[5:].isdigit()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


class Checkpoints:
    """The checkpoints of one run.

    Args:
        root: folder that holds them.
        objective: laid out over the world, on its device.
        optimizer: over its parameters.
        world: all of its ranks call every method together.
        keep: how many to keep.
        waiting: is called now and then while a checkpoint under way is waited for.
        more: further tensors by name, kept and restored with the rest.

    Weights that are not trained are not in a checkpoint: they are where they came from.
    """

    def __init__(
        self, root: Path, objective: nn.Module, optimizer: Joined, world: World, keep: int,
        waiting: Callable[[], None] = lambda: None, more: Mapping[str, Tensor] | None = None,
    ):  # fmt: skip
        self.waiting, self.more = waiting, more or {}
        self.root, self.world, self.keep = root, world, keep
        self.objective, self.optimizer = objective, optimizer
        self._names = _name_parameters(objective)
        self._under_way: Future[None] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        begin_state(optimizer)

    def _tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name; writing into them changes the model and the optimizer."""
        weights = trained_state(self.objective)
        moments = {
            f"{moment}.{self._names[parameter]}": state[moment]
            for parameter, state in self.optimizer.state.items()
            for moment in state
            if moment != "step"
        }
        return {name: tensor.detach() for name, tensor in (weights | moments | {**self.more}).items()}

    def save(self, progress: Progress) -> None:
        """Copy everything and let a thread write it. Waits for the checkpoint before it, raising its error.

        All but the newest `keep` are removed. Checkpoints of later steps were found damaged when this run began, and
        are removed as well.
        """
        self.finish()
        folder = self.root / f"step-{progress.step:08d}"
        work = Path(self.world.first(lambda: str(self._begin(folder))))
        blind = [name for name in self.world.gather("" if work.is_dir() else socket.gethostname()) if name]
        if blind:
            raise UserError(f"{work} is not seen on {blind[0]}: the run folder must lie where all ranks can reach it")
        written = dcp.async_save(
            self._tensors(),
            storage_writer=HuggingFaceStorageWriter(str(work), save_distributed=True),
            process_group=self.world.background,
            no_dist=self.world.size == 1,
        )
        assert isinstance(written, Future)
        self._under_way = self._worker.submit(self._complete, written, work, folder, asdict(progress))

    @property
    def failed(self) -> bool:
        """Whether the checkpoint under way is known to have failed; `finish` then raises."""
        return self._under_way is not None and self._under_way.done() and self._under_way.exception() is not None

    def finish(self) -> None:
        """Wait for the checkpoint under way. Raises UserError, on every rank, where it could not be written."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        while not wait([under_way], timeout=_PATIENCE).done:
            self.waiting()
        problem = under_way.exception()
        if problem is not None and not isinstance(problem, UserError):
            raise problem
        found = next((text for text in self.world.gather(None if problem is None else str(problem)) if text), None)
        if found is not None:
            raise UserError(found) if self.world.leads else EchoedError(found)

    def _begin(self, folder: Path) -> Path:
        with saying(folder):
            self.root.mkdir(parents=True, exist_ok=True)
            clear_leftovers(folder)
            work = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
        return work

    def _complete(self, written: Future[Any], work: Path, folder: Path, progress: dict[str, Any]) -> None:
        """In the thread: wait for all ranks' files, and on rank 0 seal them and give the folder its name."""
        try:
            with saying(folder):
                try:
                    written.result()
                except dcp.CheckpointException as error:
                    raise _cause(error) from error
                if not self.world.leads:
                    return
                digests = {path.name: sha256_of(path) for path in sorted(work.iterdir())}
                state = {"progress": progress, "sha256": digests, "seal": _seal(progress, digests)}
                (work / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
                put_in_place(work, folder)
        finally:
            if self.world.leads:
                shutil.rmtree(work, ignore_errors=True)
        found = folders(self.root)
        sound = [other for other in found if _step(other) <= _step(folder)]
        for old in {*found} - {*sound[-self.keep :]}:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, say: Callable[[str], None]) -> Progress | None:
        """Restore the newest sound checkpoint, or give None where there is none at all.

        `say` hears of every checkpoint passed over. Raises UserError where checkpoints stand there but none is sound,
        or where one does not fit this model.
        """
        found = self.world.first(lambda: self._newest(say))
        if found is None:
            return None
        folder, progress = found
        tensors = self._tensors()
        with _reading(folder):
            stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        for name in sorted({*tensors, *stored}):
            if name not in tensors or name not in stored or stored[name].size != tensors[name].shape:  # type: ignore[union-attr]
                raise UserError(
                    f"{folder}: this checkpoint is of another model ({name}: "
                    f"{_shape(stored.get(name), 'size')} there, {_shape(tensors.get(name), 'shape')} here)"
                )
        with _reading(folder):
            dcp.load(
                tensors, storage_reader=HuggingFaceStorageReader(str(folder)),
                process_group=self.world.background, no_dist=self.world.size == 1,
            )  # fmt: skip
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"].fill_(progress.step - progress.skipped - progress.updates)
        return progress

    def _newest(self, say: Callable[[str], None]) -> tuple[Path, Progress] | None:
        with saying(self.root):
            for begun in self.root.glob(".step-*.writing-*"):  # by a run that was killed: this one holds the folder
                shutil.rmtree(begun, ignore_errors=True)
        return newest_sound(self.root, say)

    def close(self) -> None:
        """Let the thread end; what is under way is finished first."""
        self._worker.shutdown(wait=True)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """What the reader of shards makes of files that fit their digests and still make no sense, as an error to read."""
    try:
        yield
    except (Exception, dcp.CheckpointException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: this checkpoint cannot be read ({type(error).__name__}: {error})") from error


def trained_state(objective: nn.Module, prefix: str = "weights") -> dict[str, Tensor]:
    """The weights and buffers of an objective by name, without those that are frozen; each once."""
    weights, _ = distinct_state({prefix: objective})
    frozen = {f"{prefix}.{name}" for name, p in objective.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in weights.items() if name not in frozen}


def _name_parameters(objective: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in objective.named_parameters()}


def _shape(entry: Any, attribute: str) -> str:
    return "nothing" if entry is None else str(tuple(getattr(entry, attribute)))


def _cause(error: dcp.CheckpointException) -> Exception:
    """What went wrong on the first rank that failed."""
    rank, (problem, _) = min(error.failures.items())
    if isinstance(problem, OSError):
        return OSError(problem.errno, f"{problem.strerror}, on rank {rank}")
    return OSError(f"{problem}, on rank {rank}")


def newest_sound(root: Path, say: Callable[[str], None]) -> tuple[Path, Progress] | None:
    """The newest checkpoint that fits its digests, and how far it had come; None where there is no checkpoint.

    `say` hears of every one passed over. Raises UserError where none is sound.
    """
    found = folders(root)
    for folder in reversed(found):
        try:
            state = read_json(folder / "state.json")
            digests = state["sha256"]
            present = {path.name for path in folder.iterdir()} - {"state.json"}
            damaged = sorted(present ^ {*digests}) + sorted(
                name for name in present & {*digests} if sha256_of(folder / name) != digests[name]
            )
            if state["seal"] != _seal(state["progress"], digests):
                damaged.append("state.json")
            progress = Progress(**state["progress"])
            progress.check()
        except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError) as error:
            say(f"{folder.name}: damaged checkpoint passed over ({error})")
            continue
        if damaged:
            say(f"{folder.name}: damaged checkpoint passed over (digest of {', '.join(damaged)} differs)")
            continue
        return folder, progress
    if found:
        raise UserError(f"{root}: none of its {len(found)} checkpoints is sound; start again in another run folder")
    return None


def read_weights(folder: Path, objective: nn.Module, which: Literal["weights", "best"] = "weights") -> None:
    """Give an objective of one process the weights of a checkpoint, whatever number of ranks wrote it.

    `best` are those of the best validation, where they were kept. They are read into place; nothing else is held.
    Raises UserError where the checkpoint is of another model.
    """
    weights = trained_state(objective, which)
    with _reading(folder):
        dcp.load({**weights}, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def _seal(progress: dict[str, Any], digests: dict[str, str]) -> str:
    """Digest of what state.json says."""
    return hashlib.sha256(json.dumps([progress, digests], sort_keys=True).encode()).hexdigest()
