"""`biometro tune`: a training job, and options that may vary -> a study, a table and plots, and the best point.

recipe, space ─▶ points ─▶ runs of the job, a process each ─▶ held-out figure ─▶ study.db ─▶ table.csv, tune.html
                                                                          └─▶ best.yaml ─▶ a wider model, by muP
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from rich.console import Console

from biometro.errors import UserError
from biometro.evaluation import search_results
from biometro.evaluation.search_report import write_search_report
from biometro.evaluation.search_results import Ranked, Tried
from biometro.files import write_file
from biometro.model import mup
from biometro.processes import threads_each
from biometro.training import search
from biometro.training.search import Axis, Ended, Point, Pruner, Sampler, Value
from biometro.training.signals import StopRequest
from biometro.untrusted import read_yaml

if TYPE_CHECKING:
    import optuna

_SMALLER = ("loss", "over_chance", "rmse", "mse", "mae", "ece", "brier", "median_rank")
_WIDTH = "encoder.width"
_WAIT = 5.0  # seconds before it is looked again whether another process is done


class _StoppedError(Exception):
    """A run was stopped in the middle; its point is tried first next time."""


@dataclass(frozen=True)
class Tuned:
    """How it ended. `stopped` says why it ended early. best: options of the best point. ranked: all, best first."""

    best: Point
    ranked: list[Ranked]
    stopped: str | None = None


@dataclass(frozen=True)
class _Work:
    """What all trials have in common."""

    job: str
    recipe: str
    run: Path
    options: Mapping[str, Value]
    metric: str
    smaller: bool
    seeds: int
    seed: int
    threads: int | None

    def command(self, point: Mapping[str, Value], number: int) -> list[str]:
        found = [f"--config={self.recipe}"]
        found += [search.as_option(key, value) for key, value in {**self.options, **point}.items()]
        found += [f"--seed={self.seed + number}", "--report=false"]
        return found if self.job == "pretrain" else [*found, "--seeds=1"]


def tune(
    job: Literal["pretrain", "finetune", "align"],
    recipe: str,
    run: str,
    space: dict[str, Any],
    metric: str = "loss",
    options: dict[str, Any] | None = None,
    direction: Literal["auto", "minimize", "maximize"] = "auto",
    trials: int | None = None,
    seeds: int = 1,
    sampler: Sampler = "tpe",
    pruner: Pruner = "none",
    prune_from: int = 0,
    storage: str | None = None,
    study: str | None = None,
    workers: int = 1,
    transfer: int | None = None,
    max_minutes: float | None = None,
    seed: int = 0,
    report: bool = True,
) -> Tuned:
    """Look for the options with which a training job does best on held-out data; the same command goes on.

    Leaves in the run folder: study.db, a run folder for each point and seed under trials/, table.csv (every seed's
    figure), best.yaml (options of the job, to be given as a second --config), tune.html. Machines that share the run
    folder and the database (`storage`) share one study: start the same command on each.

    Args:
        job: which is tuned.
        recipe: its YAML file.
        run: folder; made, or gone on with.
        space: what may vary, by option: a list of values, or {low: 1e-4, high: 1e-2, log: true}; whole numbers where
            both are whole. For a grid also how many `points`.
        metric: held-out figure that decides: of pretrain a column of the rows with `split: valid` in metrics.jsonl, at
            the last step (loss, mlm_masked_loss). Parts of METRO's loss mislead: rtd_gain is largest where the
            auxiliary is worst. Of finetune and align a validation figure.
        options: further options of the job, the same in every run, as in {training.steps: 500}.
        direction: auto minimizes losses and errors and maximizes all else.
        trials: points to try, over all machines. Default 20; of a grid all.
        seeds: runs of each point; the mean decides.
        sampler: tpe (Bergstra et al. 2011), random, or grid.
        pruner: none; median (ends a run that is worse than the median of the others at the same step) or halving
            (Li et al. 2018). Of pretrain, whose validations are watched.
        prune_from: a step before which no run is ended early.
        storage: URL of the study's database. Default: study.db in the run folder (SQLite).
        study: its name there. Default: the run folder's.
        workers: runs at once on this machine, which share its cores.
        transfer: then train the best point at this width, by muP, and compare it with what was predicted.
        max_minutes: stop after this time, with exit status 75.
        seed: of the sampler, and the first of the runs'.
        report: write tune.html.

    Raises UserError for options that make no sense, a job that refuses them, and where no point could be run.
    """
    axes = search.read_space(space)
    smaller = _smaller(metric, direction)
    _check(job, recipe, options or {}, axes, trials, seeds, workers, pruner)
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(job, recipe, folder, options or {}, metric, smaller, seeds, seed, threads_each(workers))
    wide = None if transfer is None else _width_of(work, axes, transfer)
    if job == "pretrain":
        mup.check_growth(
            _all_options(work) | dict.fromkeys(axes, "of the space, the same"),
            {*axes, *([] if wide is None else [_WIDTH])},
        )
    _check_points(work, axes, wide)
    console = Console(stderr=True)
    kept = search.open_study(
        storage or f"sqlite:///{folder / 'study.db'}", study or folder.name, "minimize" if smaller else "maximize",
        sampler, pruner, seed, prune_from,
    )  # fmt: skip
    _same_options(kept, work, axes)
    points = search.points_of(axes) if sampler == "grid" else None
    wanted = trials or 20 if points is None else min(trials or len(points), len(points))
    with StopRequest(max_minutes) as request:
        again = search.clear_interrupted(kept, axes)
        if again:
            console.print(f"{again} interrupted trials go on", highlight=False)
        stopped = _search(kept, work, axes, points, wanted, workers, request, console)
        ranked = search_results.rank(_once(_tried(kept)), smaller)
        best = ranked[0].tried.point if ranked and ranked[0].tried.state == "complete" else None
        if best is None and stopped is None:
            raise UserError(f"no point could be run; what they said is in {folder / 'trials'}")
        note = ""
        if best is not None and stopped is None and wide is not None:
            try:
                stopped, note = _transfer(work, ranked, wide, request, console)
            except UserError as error:  # the search stands
                _leave(work, ranked, str(error), report, console)
                raise
    _leave(work, ranked, note, report, console)
    return Tuned(dict(best or {}), ranked, stopped)


def _smaller(metric: str, direction: str) -> bool:
    return metric.endswith(_SMALLER) if direction == "auto" else direction == "minimize"


def _check(
    job: str, recipe: str, options: Mapping[str, Any], axes: Mapping[str, Axis], trials: int | None, seeds: int,
    workers: int, pruner: str,
) -> None:  # fmt: skip
    """Raises UserError for options that make no sense together."""
    try:
        found = read_yaml(Path(recipe))
    except OSError as error:
        raise UserError(f"{recipe}: cannot be read ({error.strerror or error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{recipe}: is no recipe of {job}: it holds no options")
    if min(seeds, workers, 1 if trials is None else trials) < 1:
        raise UserError("trials, seeds and workers must be at least 1")
    if pruner != "none" and job != "pretrain":
        raise UserError("pruner goes with pretrain: other jobs end their fits early themselves (training.patience)")
    for key in ("run", "seed", "seeds", "report", "config"):
        if key in options or key in axes:
            raise UserError(f"{key} is tune's own; take it out of space and options")
    both = sorted({*options} & {*axes})
    if both:
        raise UserError(f"{both[0]} stands in space and in options; it is one or the other")
    for key, value in options.items():
        if not isinstance(value, bool | int | float | str | list | dict | None):
            raise UserError(f"options.{key}: {value!r} is no plain value")


def _check_points(work: _Work, axes: Mapping[str, Axis], wide: int | None) -> None:
    """Raises UserError where the job would refuse a value of the space, or the wider model, whose turn may come hours
    later."""
    import biometro
    from biometro import options  # sets what jsonargparse reads for the whole process, which may be somebody's own

    first = {key: axis.ends[0] for key, axis in axes.items()}
    varied = [(key, value) for key, axis in axes.items() for value in axis.ends]
    for key, value in varied if wide is None else [*varied, (_WIDTH, wide)]:
        given = [*work.command({**first, key: value}, 0), "--run=x"]
        options.check(work.job, getattr(biometro, work.job), given, f"{key} {value}")


def _same_options(study: optuna.Study, work: _Work, axes: Mapping[str, Axis]) -> None:
    """Raises UserError where the study was begun with others, under which its trials cannot be compared."""
    said = {
        "job": work.job, "recipe": read_yaml(Path(work.recipe)), "options": dict(work.options), "metric": work.metric,
        "seeds": work.seeds, "seed": work.seed,
        "space": {key: [list(axis.values), axis.low, axis.high, axis.log, axis.points] for key, axis in axes.items()},
    }  # fmt: skip
    parts = {name: hashlib.sha256(json.dumps(one, sort_keys=True, default=str).encode()).hexdigest()[:16]
             for name, one in said.items()}  # fmt: skip
    before = study.user_attrs.get("begun with")
    alive = any(trial.state.name in ("RUNNING", "WAITING") for trial in study.get_trials(deepcopy=False))
    if before is None or not (alive or _tried(study)):  # a first run that failed for a wrong option has begun nothing
        study.set_user_attr("begun with", parts)
        return
    differ = [name for name in parts if before.get(name) != parts[name]]
    if differ:
        raise UserError(f"study {study.study_name!r} was begun with another {', '.join(differ)}; name another run")


def _search(
    study: optuna.Study, work: _Work, axes: Mapping[str, Axis], points: list[Point] | None, wanted: int, workers: int,
    request: StopRequest, console: Console,
) -> str | None:  # fmt: skip
    """Run trials until there are as many as wanted, all of `points` where it is a grid; gives why it was stopped
    before, or None."""
    gridded = points is not None
    ended: list[UserError | _StoppedError] = []  # of threads, whose errors Optuna passes on only now and then

    def enough(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if ended or _finished(study, gridded) >= wanted or request.check() is not None:
            study.stop()

    def one(trial: optuna.Trial) -> float:
        trial.set_user_attr("process", search.here())
        point = search.suggest(trial, axes) if points is None else search.next_of(trial, study, points)
        if point is None:
            raise _NotNowError
        trial.set_user_attr("point", point)
        known = next((t for t in _tried(study) if t.point == point and t.state == "complete"), None)
        try:
            values = list(known.values) if known is not None else _run_seeds(work, point, trial, study, request)
        except (UserError, _StoppedError) as error:
            ended.append(error)
            raise
        trial.set_user_attr("values", values)
        mean = sum(values) / len(values)
        shown = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in point.items())  # fmt: skip
        console.print(f"trial {trial.number}: {shown}: {work.metric} {mean:.4f}", highlight=False, soft_wrap=True)
        return mean

    while request.check() is None and _finished(study, gridded) < wanted:
        study.optimize(one, n_trials=wanted - _finished(study, gridded), n_jobs=workers, callbacks=[enough],
                       catch=(_FailedError, _NotNowError, UserError, _StoppedError))  # fmt: skip
        mistake = next((error for error in ended if isinstance(error, UserError)), None)
        if mistake is not None:
            raise mistake
        if ended:
            return request.check() or "a signal"
        if gridded and _finished(study, True) < wanted:
            time.sleep(_WAIT)  # what is left is under way elsewhere
    return request.check() if _finished(study, gridded) < wanted else None


class _FailedError(Exception):
    """A run diverged: the point counts as tried."""


class _NotNowError(Exception):
    """Another process is at it: the trial counts for nothing."""


def _run_seeds(
    work: _Work, point: Point, trial: optuna.Trial, study: optuna.Study, request: StopRequest
) -> list[float]:
    """The figure of every seed. Raises what ends a trial: pruned, diverged, stopped, busy; UserError for anything else
    that a run refuses, which no other point would mend."""
    optuna = search.require()
    values: list[float] = []

    def judge(step: int, value: float) -> bool:
        trial.report(value, step)
        return bool(trial.should_prune())

    for number in range(work.seeds):
        folder = work.run / "trials" / search.name_of(point) / f"seed-{work.seed + number}"
        ended = _run(work, folder, point, number, request, judge if number == 0 else lambda step, value: False)
        if ended.pruned:
            raise optuna.TrialPruned
        if ended.value is not None:
            values.append(ended.value)
        elif "not finite" in ended.problem:
            trial.set_user_attr("problem", ended.problem)
            raise _FailedError
        elif search.was_stopped(ended.status) or request.check() is not None:
            if trial.params:
                study.enqueue_trial(trial.params)
            raise _StoppedError
        elif "is in use by" in ended.problem:
            time.sleep(_WAIT)
            raise _NotNowError
        else:
            raise UserError(f"a run of {work.job} failed: {ended.problem} (its log: {folder}.log)")
    return values


def _run(
    work: _Work, folder: Path, point: Mapping[str, Value], number: int, request: StopRequest,
    judge: Any = lambda step, value: False,
) -> Ended:  # fmt: skip
    write_point(folder.parent, point)
    return search.run_job(
        work.job, folder, work.command(point, number), work.metric, request.check, judge, work.threads
    )  # fmt: skip


def write_point(folder: Path, point: Mapping[str, Value]) -> None:
    """Say in a point's folder, whose name is a digest, which point it is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "point.yaml"
    if not path.exists():
        write_file(path, yaml.safe_dump(dict(point), sort_keys=False))


def _finished(study: optuna.Study, gridded: bool) -> int:
    """Trials that count: those that have a figure, were ended early, or failed by themselves; of a grid its points."""
    found = _tried(study)
    return len({search.name_of(one.point) for one in found}) if gridded else len(found)


def _tried(study: optuna.Study) -> list[Tried]:
    """Points of ended trials, without those that were interrupted."""
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    found = []
    for trial in study.get_trials(deepcopy=False):
        state, attributes = states.get(trial.state.name), trial.user_attrs
        if state is None or "point" not in attributes or (state == "failed" and "problem" not in attributes):
            continue
        found.append(
            Tried(attributes["point"], attributes.get("values", []), state, attributes.get("problem", ""), trial.number)
        )
    return found


def _once(tried: list[Tried]) -> list[Tried]:
    """Every point once: a sampler may come to one again, and a point that was ended early may be run to its end."""
    found: dict[str, Tried] = {}
    for one in sorted(tried, key=lambda one: one.state != "complete"):
        found.setdefault(search.name_of(one.point), one)
    return sorted(found.values(), key=lambda one: one.number)


# A wider model -------------------------------------------------------------------------------------------------------


def _width_of(work: _Work, axes: Mapping[str, Axis], width: int) -> int:
    """Raises UserError where muP carries nothing over."""
    if work.job != "pretrain":
        raise UserError("transfer is for pretrain")
    if _all_options(work).get("encoder.mup") is not True:
        raise UserError("transfer needs muP: say encoder.mup: true in the recipe, or in options, and search with it")
    if "encoder.mup" in axes or width < 1:
        raise UserError("transfer: encoder.mup does not vary, and the width is above 0")
    return width


def _all_options(work: _Work) -> dict[str, Any]:
    """Of recipe and command, by dotted name."""
    return search.flat(read_yaml(Path(work.recipe))) | search.flat(work.options)


def _transfer(
    work: _Work, ranked: list[Ranked], width: int, request: StopRequest, console: Console
) -> tuple[str | None, str]:
    """Train the best point at another width; gives why it was stopped, and what was predicted and found."""
    best = ranked[0].tried
    tried = [one.tried for one in ranked]
    predicted = search_results.predict(tried, best, _WIDTH, width, work.smaller)
    point = {**best.point, _WIDTH: width}
    kept = ", ".join(f"{key} {value}" for key, value in best.point.items() if key != _WIDTH)
    said = f"at width {width} muP keeps {kept}; predicted {work.metric}: {predicted.said}"
    console.print(said, highlight=False, soft_wrap=True)
    values = []
    for number in range(work.seeds):
        folder = work.run / "transfer" / f"width-{width}" / search.name_of(best.point) / f"seed-{work.seed + number}"
        ended = _run(work, folder, point, number, request)
        if ended.value is None:
            if search.was_stopped(ended.status) or request.check() is not None:
                return request.check() or "a signal", said
            raise UserError(f"the wider model failed: {ended.problem} (its log: {folder}.log)")
        values.append(ended.value)
    found = dataclasses.replace(best, values=values)
    text = f"{found.mean:.4g}" + (f" ± {found.deviation:.2g}" if len(values) > 1 else "")
    said += f"; found: {text}"
    console.print(f"found: {text}", highlight=False)
    return None, said


def _leave(work: _Work, ranked: list[Ranked], note: str, report: bool, console: Console) -> None:
    """Write the table, the best options and the page."""
    folder = work.run
    write_file(folder / "table.csv", search_results.table(ranked, work.metric))
    whole = [one for one in ranked if one.tried.state == "complete"]
    if whole:
        best = whole[0].tried
        write_file(folder / "best.yaml", yaml.safe_dump(_nested({**work.options, **best.point}), sort_keys=False))
        figure = f"{best.mean:.4f}" + (f" ± {best.deviation:.4f}" if len(best.values) > 1 else "")
        console.print(f"best {work.metric}: {figure}; its options: {folder / 'best.yaml'}", highlight=False,
                      soft_wrap=True)  # fmt: skip
    if report:
        facts = {
            "job": f"{work.job}, {Path(work.recipe).name}", "figure": work.metric,
            "points": f"{len(whole):,} complete, {len(ranked) - len(whole):,} pruned or failed",
            "seeds": str(work.seeds),
        }  # fmt: skip
        facts |= {f"option: {key}": str(value) for key, value in work.options.items()}
        write_search_report(
            folder / "tune.html", f"{folder.name}: search", facts, ranked, work.metric, work.smaller, note
        )
        console.print(f"page: {folder / 'tune.html'}", highlight=False, soft_wrap=True)


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as the sections of a recipe."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        *sections, last = key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return found
