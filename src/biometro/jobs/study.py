"""`biometro study`: objectives at equal compute, each at its own best learning rate, judged by tasks, over seeds.

corpora x arms ─▶ rate of each, at the smallest size ─▶ x sizes x budgets x seeds: pretrain ─▶ evaluate ─▶ study.md
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from biometro.errors import UserError
from biometro.evaluation import study_report
from biometro.evaluation.study_report import About
from biometro.evaluation.study_results import Measured, Trained
from biometro.files import new_folder, write_file
from biometro.jobs.study_options import (
    METRICS,
    StudyCorpus,
    check,
    check_runs,
    command_of,
    folder_of,
    keep_rates,
    options_of,
    read_from,
    same,
)  # fmt: skip
from biometro.jobs.study_published import Model, Published, published
from biometro.jobs.tune import tune
from biometro.processes import threads_each
from biometro.training import search
from biometro.training.signals import StopRequest
from biometro.training.tracking import read_metrics
from biometro.untrusted import read_json

_UNTRAINED = "untrained"


@dataclass(frozen=True)
class Studied:
    """How it ended. `stopped` says why it ended early; rows are those of study.csv."""

    rows: list[Measured]
    stopped: str | None = None


@dataclass(frozen=True)
class _Run:
    """One model to train; of no FLOPs, one that is examined as it starts."""

    corpus: str
    size: str
    flops: float
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return folder_of(f"{self.size}-{self.flops:g}-{self.arm}-{self.seed}")

    @property
    def model(self) -> Model:
        """As the tables name it."""
        return self.corpus, self.size, self.flops, self.arm if self.flops else _UNTRAINED, self.seed

    @property
    def said(self) -> str:
        return f"{self.arm} on {self.corpus}, {self.size}, {self.flops:.3g} FLOPs, seed {self.seed}"


class _StoppedError(Exception):
    """A signal or the time limit ended a run in the middle; the same command goes on."""


def study(
    run: str,
    corpora: dict[str, StudyCorpus],
    arms: dict[str, dict[str, Any]],
    sizes: dict[str, dict[str, Any]],
    flops: list[float],
    rates: dict[str, Any] | None = None,
    tune_flops: float | None = None,
    metrics: dict[str, str] | None = None,
    reference: str | None = None,
    seeds: int = 3,
    data: str | None = None,
    out: str | None = None,
    known: str | None = None,
    workers: int = 1,
    max_minutes: float | None = None,
    seed: int = 0,
    title: str = "Objectives at equal compute",
) -> Studied:
    """Compare ways to pretrain at equal training FLOPs; the same command goes on where it stopped, over days.

    The learning rate of each arm is searched on each corpus at the first size, and carried to the others by muP. Then
    every arm is trained at every size, budget and seed, the smallest budgets first, and all models are examined by the
    corpus' tasks, beside baselines and models of each size that nothing has trained (weights as `reference` starts).
    Leaves in the run folder a folder for each corpus (rates/, runs, evaluation/), study.csv (a row for
    each model and task), study-runs.csv (what each run read and learnt) and study.md with its pictures: tables, curves
    and what follows from them, so far.

    Args:
        run: folder; made, or gone on with.
        corpora: by name.
        arms: what is compared, by name: options of `pretrain`, by dotted name; {corpus} and {seed} in one are the run's
            (of the search of rates the first seed).
            `spent` is no option but FLOPs that went into an arm before, such as those of its pretrained auxiliary: they
            are taken off every budget.
        sizes: by name, the smallest first: options of `pretrain`, such as {encoder.width: 128}.
        flops: budgets of training, auxiliary and heads included. Each is a run of its own, with its whole schedule.
        rates: of the learning rate, as in a space of `tune`: {low: 5e-4, high: 3e-2, log: true, points: 7}. Left out,
            there is no search: rates are those of recipes and options.
        tune_flops: budget of a run of the search.
        metrics: held-out figure by which an arm's rate is chosen, by arm; default loss.
        reference: the arm that others are compared with; default the first.
        seeds: of each model.
        data: folder of the tasks' data; default $BIOMETRO_DATA.
        out: Markdown file to write, too, such as docs/study.md; pictures, tables of every seed and run and the options
            (study.yaml) beside it.
        known: options that a study of these has published with `out`, here or on another machine, such as
            docs/study.yaml; runs and rates that stand in the tables beside them are not made again.
        workers: runs at once on this machine, which share its cores.
        max_minutes: stop after this time, with exit status 75.
        seed: the first.
        title: of the page.

    Raises UserError for options that make no sense, and for what the jobs refuse.
    """
    reference = reference or next(iter(arms), "")
    check(corpora, arms, sizes, flops, seeds, workers, rates, tune_flops, reference, metrics or {})
    if out and Path(out).resolve().parent == Path(run).resolve():
        raise UserError(f"{out}: the run folder has its own study.md; name a place outside of it")
    folder, console = Path(run), Console(stderr=True)
    folder.mkdir(parents=True, exist_ok=True)
    read, entropy = {}, {}
    for name, corpus in corpora.items():
        read[name], entropy[name] = read_from(corpus)
    check_runs(corpora, arms, sizes, min(flops), seed)
    options = {"corpora": {k: vars(c) for k, c in corpora.items()}, "arms": arms, "sizes": sizes, "rates": rates,
               "tune_flops": tune_flops, "metrics": metrics or {}, "seed": seed, "read": read}  # fmt: skip
    before = published(known, options) if known else Published()
    same(folder, options)
    with StopRequest(max_minutes) as request:
        chosen, stopped = _rates(
            folder, corpora, arms, sizes, rates, tune_flops, metrics or {}, workers, seed, request, before.rates
        )
        keep_rates(folder, chosen)
        every = list(_rounds(corpora, arms, sizes, flops, seeds, seed, reference))
        left = [[one for one in group if not before.has(one.model)] for group in every]
        rounds = [group for group in left if group]

        def write(done: list[_Run], rows: list[Measured], complete: bool) -> str:
            about = About(title, reference, arms, sizes, chosen, entropy, _diverged(folder, rounds), complete)
            made = {(o.corpus, o.size, o.flops, o.arm, o.seed): o for o in (*before.runs, *_trained(folder, done))}
            trained = [made[one.model] for group in every for one in group if one.model in made]
            return study_report.write(folder, about, rows, trained)

        def with_known(rows: list[Measured]) -> list[Measured]:
            return before.rows_with(rows, (one.model for group in every for one in group))

        rows = with_known(_examined(folder, corpora, rounds))
        commands = []
        for group in rounds if stopped is None else ():
            for one in group:
                if one.flops and (one.size, one.flops, one.seed) == (next(iter(sizes)), tune_flops, seed):
                    _take_trial(folder, one, chosen[one.corpus, one.arm])
            commands.append({one: _command(one, corpora, arms, sizes, chosen) for one in group})
        try:
            for done, found in _run_all(folder, corpora, commands, data, workers, request, console):
                rows = with_known(found)
                write(done, rows, False)
        except _StoppedError:
            stopped = request.check() or "a signal"
            rows = with_known(_examined(folder, corpora, rounds))
        stopped = stopped or request.check()
    text = write([one for group in rounds for one in group], rows, stopped is None)
    if out:
        study_report.publish(folder, Path(out))
    console.print(text, markup=False, highlight=False)
    return Studied(rows, stopped)


def _rates(
    folder: Path, corpora: Mapping[str, StudyCorpus], arms: Mapping[str, dict[str, Any]],
    sizes: Mapping[str, dict[str, Any]], rates: dict[str, Any] | None, flops: float | None,
    metrics: Mapping[str, str], workers: int, seed: int, request: StopRequest,
    known: Mapping[tuple[str, str], float],
) -> tuple[dict[tuple[str, str], float], str | None]:  # fmt: skip
    """The best learning rate of each corpus and arm at the first size, some of them `known`; and why it was stopped
    before it had all."""
    asked = [(name, arm) for name in corpora for arm in arms]
    chosen = {which: known[which] for which in asked if which in known}  # all, also where the search is stopped
    if rates is None or flops is None:
        return {}, None
    smallest = next(iter(sizes.values()))
    for name, corpus in corpora.items():
        for arm, options in arms.items():
            if (name, arm) in known:
                continue
            if request.check() is not None:
                return chosen, request.check()
            found = tune(
                "pretrain", corpus.recipe, str(folder / name / "rates" / folder_of(arm)),
                {"training.optimizer.lr": rates}, metrics.get(arm, "loss"),
                options_of(name, corpus, options, smallest, flops, seed), sampler="grid", workers=workers,
                max_minutes=request.minutes_left(), seed=seed,
            )  # fmt: skip
            if found.stopped is not None:
                return chosen, found.stopped
            chosen[name, arm] = float(found.best["training.optimizer.lr"])  # type: ignore[arg-type]
    return chosen, None


def _rounds(
    corpora: Mapping[str, Any], arms: Mapping[str, Any], sizes: Mapping[str, Any], flops: list[float], seeds: int,
    seed: int, reference: str,
) -> Iterator[list[_Run]]:  # fmt: skip
    """Runs of one budget and seed, the cheapest first, so that every state of a study compares all arms. With the first
    budget go the models of each seed that nothing has trained."""
    for budget in sorted(flops):
        for number in range(seed, seed + seeds):
            made = [(budget, arm) for arm in arms]
            made = [(0.0, reference), *made] if budget == min(flops) else made
            yield [_Run(corpus, size, *one, number) for corpus in corpora for size in sizes for one in made]


def _command(
    one: _Run, corpora: Mapping[str, StudyCorpus], arms: Mapping[str, dict[str, Any]],
    sizes: Mapping[str, dict[str, Any]], rates: Mapping[tuple[str, str], float],
) -> list[str]:  # fmt: skip
    """Options of `pretrain`."""
    corpus = corpora[one.corpus]
    options = options_of(one.corpus, corpus, arms[one.arm], sizes[one.size], one.flops, one.seed)
    if (one.corpus, one.arm) in rates:
        options["training.optimizer.lr"] = rates[one.corpus, one.arm]
    if not one.flops:  # a step at this rate leaves the weights where they start
        options |= {"training.flops": None, "training.steps": 1, "training.optimizer.lr": 1e-12}
    return command_of(corpus, options, one.seed)


def _take_trial(folder: Path, one: _Run, rate: float) -> None:
    """A run that the search of rates has made: its best trial is the same run, with the same seed."""
    point = search.name_of({"training.optimizer.lr": rate})
    trial = folder / one.corpus / "rates" / folder_of(one.arm) / "trials" / point / f"seed-{one.seed}"
    place = folder / one.corpus / one.name
    if _is_done(trial) and not place.exists():
        with new_folder(place) as work:
            shutil.copytree(trial, work, dirs_exist_ok=True)


def _run_all(
    folder: Path, corpora: Mapping[str, StudyCorpus], rounds: list[dict[_Run, list[str]]], data: str | None,
    workers: int, request: StopRequest, console: Console,
) -> Iterator[tuple[list[_Run], list[Measured]]]:  # fmt: skip
    """Train and examine, `workers` processes at once: after each round, the models so far, and all their figures.

    Jobs begin in the order in which they are handed in. The models of a corpus are examined, which takes one core,
    after the runs of the next corpus or round have begun: nobody waits for the last of its own.
    Raises UserError where a job refuses, and where it is stopped; then the others are stopped too, and go on from their
    checkpoints.
    """
    failed: list[BaseException] = []
    threads = threads_each(workers)

    def stop() -> str | None:
        return "another job failed" if failed else request.check()

    def guarded(what: str, job: Callable[[], Any]) -> Any:
        try:
            return job()
        except (UserError, _StoppedError) as error:
            failed.append(error)
        except OSError as error:  # the log, the folder
            failed.append(UserError(f"{folder / what}: cannot be used ({error.strerror or error})"))
        return None

    def train(one: _Run, command: list[str]) -> bool:
        return bool(guarded(one.corpus, lambda: _train(folder, one, command, threads, stop, console)))

    def judge(number: int, name: str) -> list[Measured]:
        runs = [one for commands in rounds[: number + 1] for one in commands if one.corpus == name]
        done = [one for one in runs if training[one].result()]
        if number:
            judging[number - 1, name].result()  # it holds the same folder
        return guarded(name, lambda: _judged(folder, name, corpora[name], done, data, stop, threads)) or []

    training: dict[_Run, Future[bool]] = {}
    judging: dict[tuple[int, str], Future[list[Measured]]] = {}
    steps = [(number, name) for number in range(len(rounds)) for name in corpora]
    with ThreadPoolExecutor(workers) as pool:
        try:
            for step, before in zip([*steps, None], [None, *steps], strict=True):
                if step is not None:
                    number, name = step
                    runs = {one: command for one, command in rounds[number].items() if one.corpus == name}
                    training |= {one: pool.submit(train, one, command) for one, command in runs.items()}
                if before is not None:
                    judging[before] = pool.submit(judge, *before)
            for number in range(len(rounds)):
                rows = [row for name in corpora for row in judging[number, name].result()]
                if failed:  # a mistake before a stop, which it made
                    raise min(failed, key=lambda error: isinstance(error, _StoppedError))
                through = [one for commands in rounds[: number + 1] for one in commands]
                yield [one for one in through if training[one].result()], rows
        except BaseException as error:  # also of who takes the figures: what is under way stops, the rest never begins
            failed.append(error)
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _train(
    folder: Path, one: _Run, command: list[str], threads: int | None, stop: Callable[[], str | None], console: Console
) -> bool:
    """Whether the model is there: trained now, or before; a run that diverges is none. Raises UserError where the job
    refuses it, and where it is stopped."""
    place = folder / one.corpus / one.name
    if _is_done(place):
        return True
    failed = _mark_of(place)
    if failed.exists():
        return False
    if stop() is not None:
        raise _StoppedError
    console.print(f"{one.corpus}: {one.name}", highlight=False)
    ended = search.run_job("pretrain", place, command, "loss", stop, threads=threads)
    if ended.status == 0:
        return True
    if search.was_stopped(ended.status) or stop() is not None:
        raise _StoppedError
    if "not finite" not in ended.problem:
        raise UserError(f"a run of pretrain failed: {ended.problem} (its log: {place}.log)")
    write_file(failed, ended.problem + "\n")
    return False


def _mark_of(place: Path) -> Path:
    """The file that says that a run diverged, and how."""
    return place.with_name(f"{place.name}.failed")


def _diverged(folder: Path, rounds: Iterable[Iterable[_Run]]) -> list[str]:
    """Runs that came to no model, in words."""
    return [one.said for group in rounds for one in group if _mark_of(folder / one.corpus / one.name).exists()]


def _trained(folder: Path, runs: Iterable[_Run]) -> list[Trained]:
    """What the runs that are done came to."""
    found = []
    for one in (one for one in runs if one.flops):
        place = folder / one.corpus / one.name
        rows = read_metrics(place / METRICS)
        train = [row for row in rows if row.get("split") == "train"]
        valid = [row for row in rows if row.get("split") == "valid"]
        if _is_done(place) and train:
            figures = {name: float(v) for name, v in (valid[-1] if valid else {}).items() if isinstance(v, float)}
            steps, tokens = int(train[-1]["step"]), int(train[-1]["tokens"])
            found.append(Trained(one.corpus, one.size, one.flops, one.arm, one.seed, steps, tokens, figures))
    return found


def _is_done(place: Path) -> bool:
    status = place / "exit-status"
    return status.exists() and status.read_text().strip() == "0"


def _judged(
    folder: Path, name: str, corpus: StudyCorpus, runs: list[_Run], data: str | None, stop: Callable[[], str | None],
    threads: int | None,
) -> list[Measured]:  # fmt: skip
    """Figures of all models of a corpus on its tasks; those known from before are not computed again. Raises UserError
    where they cannot be had, and where it is stopped."""
    if stop() is not None:
        raise _StoppedError
    if runs:
        models = [str(folder / name / one.name / "model") for one in runs]
        options = [f"--tasks={json.dumps(corpus.tasks)}", f"--model={json.dumps(models)}", "--report=false"]
        options += [] if data is None else [f"--data={data}"]
        log = folder / name / "evaluation.log"
        status = search.run_process(
            ["evaluate", f"--out={folder / name / 'evaluation'}", *options], log,
            lambda: stop() is not None, threads,
        )  # fmt: skip
        if search.was_stopped(status) or stop() is not None:
            raise _StoppedError
        if status:
            how = f"; {search.killed(status)}" if status < 0 else ""
            raise UserError(f"evaluate failed{how} (its log: {log})")
    return _read(folder, name, runs)


def _examined(folder: Path, corpora: Mapping[str, StudyCorpus], rounds: list[list[_Run]]) -> list[Measured]:
    """Figures of models that were examined before."""
    runs = [one for group in rounds for one in group]
    return [row for name in corpora for row in _read(folder, name, [one for one in runs if one.corpus == name])]


def _read(folder: Path, name: str, runs: list[_Run]) -> list[Measured]:
    path = folder / name / "evaluation" / "results.json"
    if not path.exists():
        return []
    known = {one.name: one for one in runs}
    found = []
    for task in read_json(path)["tasks"]:
        for method, score in task["methods"].items():
            if score["value"] is None:  # such as the correlation of a model that says one number to all
                continue
            one = known.get(score["model"])
            what = (task["task"], task["metric"], float(score["value"]), bool(task["larger_is_better"]))
            if score["model"] is None:
                found.append(Measured(name, "", 0.0, method, 0, *what, baseline=True))
            elif one is not None and task["main"][score["model"]] == method:
                found.append(Measured(*one.model, *what, baseline=not one.flops))
    return found
