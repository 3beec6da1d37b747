"""A search over the options of a training job: what may vary, the study that says what to try, and one trial.

    space ─▶ point (key: value) ─▶ a run of the job for each seed, a process of its own ─▶ held-out figure ─▶ study

The study is Optuna's (Akiba et al. 2019, arXiv 1907.10902), in a database that many machines may share. A point's runs
lie in a folder named by the point, so that one that was interrupted goes on, and none is run twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from biometro.errors import UserError
from biometro.files import alive
from biometro.training.tracking import read_metrics
from biometro.untrusted import read_json

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["none", "median", "halving"]
Value = bool | int | float | str | None
Point = dict[str, Value]
_POLL = 0.5  # seconds between looks at a run
_HEARTBEAT = 60  # seconds between a trial's signs of life in the database
_STOPPED = (75, 130, -signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1)  # the latter while it was still starting
_CHOOSING = threading.Lock()


@dataclass(frozen=True)
class Axis:
    """What one option may be: one of `values`, or a number from `low` to `high`, of which a grid takes `points`."""

    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    points: int | None = None

    @property
    def grid(self) -> tuple[Value, ...]:
        if self.values:
            return self.values
        assert self.points is not None
        spaced = np.geomspace if self.log else np.linspace
        found = [float(f"{value:.12g}") for value in spaced(self.low, self.high, self.points)]
        return tuple(dict.fromkeys(round(v) for v in found)) if self.whole else tuple(found)

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of a list, or the least and the largest number."""
        return self.values or tuple(int(v) if self.whole else v for v in (self.low, self.high))


def read_space(space: Mapping[str, Any]) -> dict[str, Axis]:
    """Axes by option. Raises UserError for what is none."""
    if not space:
        raise UserError("space names no option to vary, as in space: {training.optimizer.lr: {low: 1e-4, high: 1e-2}}")
    return {key: _axis(key, said) for key, said in space.items()}


def _axis(key: str, said: Any) -> Axis:
    form = f"space.{key}: give a list of values, or {{low: 1e-4, high: 1e-2, log: true, points: 5}}"
    if isinstance(said, list):
        if not said or not all(isinstance(v, bool | int | float | str | None) for v in said):
            raise UserError(f"{form}; {said!r} is no list of plain values")
        return Axis(values=tuple(dict.fromkeys(said)))
    if not isinstance(said, Mapping) or not {"low", "high"} <= {*said} <= {"low", "high", "log", "points"}:
        raise UserError(f"{form}, not {said!r}")
    low, high, log, points = (said.get(name) for name in ("low", "high", "log", "points"))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high))
    if not numbers or not low < high or (log and low <= 0) or log not in (None, True, False):  # type: ignore[operator]
        raise UserError(f"{form}; low must lie below high, and above 0 where log is true")
    if points is not None and (isinstance(points, bool) or not isinstance(points, int) or points < 2):
        raise UserError(f"space.{key}: points is {points!r}; it must be a whole number from 2")
    whole = isinstance(low, int) and isinstance(high, int)
    return Axis((), float(low), float(high), bool(log), whole, points)  # type: ignore[arg-type]


def grid_of(space: Mapping[str, Axis]) -> dict[str, tuple[Value, ...]]:
    """Values by option. Raises UserError for a range that does not say how many."""
    for key, axis in space.items():
        if not axis.values and axis.points is None:
            raise UserError(f"space.{key}: a grid needs values: a list, or `points` beside low and high")
    return {key: axis.grid for key, axis in space.items()}


def points_of(space: Mapping[str, Axis]) -> list[Point]:
    """All points of a grid."""
    values = grid_of(space)
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def suggest(trial: optuna.Trial, space: Mapping[str, Axis]) -> Point:
    """The trial's point, by the study's sampler. Choices are numbered, as databases hold plain categories only."""
    found: Point = {}
    for key, axis in space.items():
        if axis.values:
            found[key] = axis.values[trial.suggest_categorical(key, list(range(len(axis.values))))]
        elif axis.whole:
            found[key] = trial.suggest_int(key, int(axis.low), int(axis.high), log=axis.log)
        else:
            found[key] = trial.suggest_float(key, axis.low, axis.high, log=axis.log)
    return found


def next_of(trial: optuna.Trial, study: optuna.Study, points: Sequence[Point]) -> Point | None:
    """The first point of a grid that no other trial has tried or is at, which from now on is this trial's; None where
    there is none. Of two machines that take one at once, the trial with the lower number keeps it; where that one was
    the later to say so, both go on, and the lock of the run folder decides."""
    left = list(points)
    with _CHOOSING:  # workers of this process never take one at once
        while True:
            taken = {name_of(other["point"]) for number, other in _held(study) if number != trial.number}
            left = [point for point in left if name_of(point) not in taken]
            if not left:
                return None
            trial.set_user_attr("point", left[0])
            name = name_of(left[0])
            if not any(number < trial.number and name_of(other["point"]) == name for number, other in _held(study)):
                return left[0]


def _held(study: optuna.Study) -> list[tuple[int, dict[str, Any]]]:
    """Numbers and attributes of trials whose point is tried, or under way."""
    return [
        (trial.number, trial.user_attrs)
        for trial in study.get_trials(deepcopy=False)
        if "point" in trial.user_attrs and (trial.state.name != "FAIL" or "problem" in trial.user_attrs)
    ]


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The sections of a recipe as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def as_option(key: str, value: Any) -> str:
    """On the command line, where text stands as it is."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def name_of(point: Mapping[str, Value]) -> str:
    """A folder's name: short, and the same for the same point on any machine."""
    return hashlib.sha256(json.dumps(dict(sorted(point.items()))).encode()).hexdigest()[:12]


def require() -> Any:
    """Optuna. Raises UserError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("tune needs Optuna: pip install 'biometro[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what fails is told by the job itself
    return optuna


def open_study(
    storage: str, name: str, direction: str, sampler: Sampler, pruner: Pruner, seed: int, warmup: int
) -> optuna.Study:
    """The study of this name, made where it is not there.

    Args:
        storage: URL of a database, such as sqlite:///study.db or postgresql://...
        name: of the study in it.
        direction: minimize or maximize.
        sampler: how points are chosen.
        pruner: which runs are ended early.
        seed: of the sampler.
        warmup: steps of a run before which it is not ended early.

    Raises UserError where the database cannot be used.
    """
    library = require()
    import warnings

    warnings.filterwarnings("ignore", category=library.exceptions.ExperimentalWarning)
    try:
        from sqlalchemy.exc import SQLAlchemyError

        database = library.storages.RDBStorage(storage, heartbeat_interval=_HEARTBEAT, grace_period=3 * _HEARTBEAT)

        def made(seed: int) -> optuna.samplers.BaseSampler:
            if sampler == "tpe":
                found: optuna.samplers.BaseSampler = library.samplers.TPESampler(
                    seed=seed, multivariate=True, constant_liar=True
                )
                return found
            return library.samplers.RandomSampler(seed=seed)  # of a grid it is not asked

        pruners = {
            "none": library.pruners.NopPruner,
            "median": lambda: library.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=warmup),
            "halving": lambda: library.pruners.SuccessiveHalvingPruner(min_resource=max(1, warmup)),
        }
        study: optuna.Study = library.create_study(
            storage=database, sampler=_by_number(made, seed), pruner=pruners[pruner](), study_name=name,
            direction=direction, load_if_exists=True,
        )  # fmt: skip
    except (SQLAlchemyError, ValueError, ImportError, OSError) as error:
        raise UserError(f"{_without_password(storage)}: no study can be kept there ({error})") from error
    if study.direction.name.lower() != direction:
        raise UserError(f"study {name!r} is to {study.direction.name.lower()}, not to {direction}; name another run")
    return study


def _by_number(make: Callable[[int], optuna.samplers.BaseSampler], seed: int) -> optuna.samplers.BaseSampler:
    """A sampler that draws by the seed and the trial's number in the study: a sampler of Optuna's begins its sequence
    again wherever it is made, so that every start and every machine would try the same points."""
    from optuna.samplers import BaseSampler

    class ByNumber(BaseSampler):
        def __init__(self) -> None:
            self._under_way: dict[int, BaseSampler] = {}

        def _of(self, trial: optuna.trial.FrozenTrial) -> BaseSampler:
            if trial.number not in self._under_way:
                drawn = np.random.SeedSequence([seed, trial.number]).generate_state(1)[0]
                self._under_way[trial.number] = make(int(drawn))
            return self._under_way[trial.number]

        def infer_relative_search_space(self, study: Any, trial: optuna.trial.FrozenTrial) -> Any:
            return self._of(trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: optuna.trial.FrozenTrial, search_space: Any) -> Any:
            return self._of(trial).sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: optuna.trial.FrozenTrial, *which: Any) -> Any:
            return self._of(trial).sample_independent(study, trial, *which)

        def after_trial(self, study: Any, trial: optuna.trial.FrozenTrial, *ended: Any) -> None:
            self._of(trial).after_trial(study, trial, *ended)
            self._under_way.pop(trial.number, None)

    return ByNumber()


def _without_password(url: str) -> str:
    """A URL that may be shown."""
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://...@{tail}" if at else url


def here() -> str:
    """This process, in the words in which a trial says who runs it."""
    return f"{socket.gethostname()} {os.getpid()}"


def clear_interrupted(study: optuna.Study, space: Mapping[str, Axis]) -> int:
    """Trials of this machine whose process is gone are no longer under way, and their points are tried again, first of
    all (those of a grid as its next); how many."""
    optuna = require()
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        host, _, process = str(trial.user_attrs.get("process", "")).partition(" ")
        if host == socket.gethostname() and not alive(int(process)):
            if {*trial.params} == {*space}:
                study.enqueue_trial(trial.params)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            count += 1
    return count


# One run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a run ended: its figure; or why there is none; or that it was stopped and can go on, or ended early."""

    value: float | None = None
    problem: str = ""
    status: int = 0
    pruned: bool = False


def run_job(
    job: str, folder: Path, options: Sequence[str], metric: str, stop: Callable[[], str | None],
    judge: Callable[[int, float], bool] = lambda step, value: False, threads: int | None = None,
) -> Ended:  # fmt: skip
    """One run of a job in a process of its own.

    Args:
        job: its name.
        folder: its run folder, beside which `<folder>.log` holds what it says.
        options: of the command line, without --run.
        metric: the held-out figure.
        stop: why to stop, or None; asked now and then.
        judge: whether to end the run early, by step and figure of each validation.
        threads: of the process; None leaves it to itself.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    began = log.stat().st_size if log.exists() else 0
    seen, pruned = 0, False

    def end() -> bool:
        nonlocal seen, pruned
        rows = list(held_out(folder, metric))
        for step, value in rows[seen:]:
            pruned = pruned or judge(step, value)
        seen = len(rows)
        return pruned or stop() is not None

    status = run_process([job, *options, f"--run={folder}"], log, end, threads)
    if pruned:
        return Ended(pruned=True, status=status)
    if status < 0:
        return Ended(problem=killed(status), status=status)
    if status:
        with log.open("rb") as said:
            said.seek(began)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()
        said_last = lines[-1] if lines else f"status {status}"
        # another process that holds the run folder writes into the same log
        problem = next((line for line in reversed(lines) if line.startswith("biometro: ")), said_last)
        return Ended(problem=problem, status=status)
    value = figure(job, folder, metric)
    return Ended(value) if math.isfinite(value) else Ended(problem=f"{metric} is not finite", status=1)


def was_stopped(status: int) -> bool:
    """Whether a job of this exit status was asked to stop, and goes on when it is started again."""
    return status in _STOPPED


def killed(status: int) -> str:
    """In words, how a process of a negative exit status ended."""
    return f"it was killed by {signal.Signals(-status).name}" + (
        "; perhaps memory ran out: fewer workers take less" if status == -signal.SIGKILL else ""
    )


def run_process(options: Sequence[str], log: Path, end: Callable[[], bool], threads: int | None = None) -> int:
    """A command of ours in a process of its own, which is asked to stop as soon as `end` says so; its exit status."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "biometro", *options], stdout=output, stderr=output,
            env=os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(_POLL)
                if end():
                    process.send_signal(signal.SIGTERM)
                    process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode


def held_out(folder: Path, metric: str) -> Iterator[tuple[int, float]]:
    """Of a run whose metrics lie in its folder, the figure of each validation by step."""
    for row in read_metrics(folder / "metrics.jsonl"):
        value = row.get(metric)
        if row.get("split") == "valid" and isinstance(value, int | float):
            yield int(row["step"]), float(value)


def figure(job: str, folder: Path, metric: str) -> float:
    """The held-out figure of a finished run: of pretraining that of the last validation; of others that of the weights
    that were kept, in the first split. NaN where it was not finite. Raises UserError where there is none of that
    name."""
    if job == "pretrain":
        rows = [row for row in read_metrics(folder / "metrics.jsonl") if row.get("split") == "valid"]
        last = rows[-1] if rows else {}
    else:
        said = read_json(folder / "results.json")
        split = next(iter(said["splits"].values()))
        fits = [run for method in split["methods"].values() for run in method["runs"] if "valid" in run]
        if len(fits) != 1:
            raise UserError(f"{folder}: a trial is one fit, and this job made {len(fits)}: name one depth or one loss")
        last = fits[0]["valid"]
    if metric in last and metric != "split":
        value = last[metric]
        return float(value) if isinstance(value, int | float) else math.nan
    names = ", ".join(name for name in last if name not in ("step", "split"))
    raise UserError(f"metric is {metric!r}, and the run tells of held-out data: {names or 'nothing'}")
