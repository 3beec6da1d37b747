"""`biometro study`: objectives at equal compute, each at its own best learning rate, judged by tasks, over seeds.

corpora x arms ─▶ rate of each, at the smallest size ─▶ x sizes x budgets x seeds: pretrain ─▶ evaluate ─▶ study.md
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from biometro.data.corpus import Corpus
from biometro.errors import UserError
from biometro.evaluation import study_results
from biometro.evaluation.study_results import About, Measured, Trained
from biometro.files import new_folder, write_file
from biometro.jobs.tune import tune
from biometro.model import mup
from biometro.processes import cores
from biometro.training import search
from biometro.training.search import Value
from biometro.training.signals import StopRequest
from biometro.training.tracking import read_metrics
from biometro.untrusted import read_json, read_yaml

_GROW = ("corpora", "arms", "sizes")  # entries may be added to these
_METRICS = "metrics.jsonl"  # of a run that has begun to train
_TRIALS = f"rates/*/trials/*/*/{_METRICS}"


@dataclass(frozen=True)
class StudyCorpus:
    """What a study trains on and judges by.

    Args:
        recipe: of `pretrain`; its data are the corpus.
        tasks: of `evaluate`: suites, tasks, or files of your own.
        options: further options of `pretrain`, by dotted name.
    """

    recipe: str
    tasks: list[str]
    options: dict[str, Any] = field(default_factory=dict)


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
        return _folder(f"{self.size}-{self.flops:g}-{self.arm}-{self.seed}")

    @property
    def said(self) -> str:
        return f"{self.arm} on {self.corpus}, {self.size}, {self.flops:.3g} FLOPs, seed {self.seed}"


def _folder(name: str) -> str:
    return name.replace(" ", "_")


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
        out: Markdown file to write, too, such as docs/study.md; pictures and the table of every seed beside it.
        workers: runs at once on this machine, which share its cores.
        max_minutes: stop after this time, with exit status 75.
        seed: the first.
        title: of the page.

    Raises UserError for options that make no sense, and for what the jobs refuse.
    """
    reference = reference or next(iter(arms), "")
    _check(corpora, arms, sizes, flops, seeds, workers, rates, tune_flops, reference, metrics or {})
    if out is not None and Path(out).resolve().parent == Path(run).resolve():
        raise UserError(f"{out}: the run folder has its own study.md; name a place outside of it")
    folder, console = Path(run), Console(stderr=True)
    folder.mkdir(parents=True, exist_ok=True)
    read, entropy = {}, {}
    for name, corpus in corpora.items():
        read[name], entropy[name] = _read_from(corpus)
    _check_growth(corpora, arms, sizes)
    _same(folder, {"corpora": {k: vars(c) for k, c in corpora.items()}, "arms": arms, "sizes": sizes, "rates": rates,
                   "tune_flops": tune_flops, "metrics": metrics or {}, "seed": seed, "read": read})  # fmt: skip
    with StopRequest(max_minutes) as request:
        chosen, stopped = _rates(folder, corpora, arms, sizes, rates, tune_flops, metrics or {}, workers, seed, request)

        def about(complete: bool) -> About:
            return About(title, reference, arms, sizes, chosen, entropy, _diverged(folder, rounds), complete)

        rounds = list(_rounds(corpora, arms, sizes, flops, seeds, seed, reference))
        rows = _known(folder, corpora, rounds)
        commands = []
        for group in rounds if stopped is None else ():
            for one in group:
                if one.flops and (one.size, one.flops, one.seed) == (next(iter(sizes)), tune_flops, seed):
                    _take_trial(folder, one, chosen[one.corpus, one.arm])
            commands.append({one: _command(one, corpora, arms, sizes, chosen) for one in group})
        try:
            for done, rows in _run_all(folder, corpora, commands, data, workers, request, console):
                study_results.write(folder, about(False), rows, _trained(folder, done))
        except _StoppedError:
            stopped = request.check() or "a signal"
            rows = _known(folder, corpora, rounds)
        stopped = stopped or request.check()
    trained = _trained(folder, [one for group in rounds for one in group])
    text = study_results.write(folder, about(stopped is None), rows, trained)
    if out is not None:
        study_results.publish(folder, Path(out))
    console.print(text, markup=False, highlight=False)
    return Studied(rows, stopped)


def _rates(
    folder: Path, corpora: Mapping[str, StudyCorpus], arms: Mapping[str, dict[str, Any]],
    sizes: Mapping[str, dict[str, Any]], rates: dict[str, Any] | None, flops: float | None,
    metrics: Mapping[str, str], workers: int, seed: int, request: StopRequest,
) -> tuple[dict[tuple[str, str], float], str | None]:  # fmt: skip
    """The best learning rate of each corpus and arm at the first size; and why it was stopped before it had all."""
    chosen: dict[tuple[str, str], float] = {}
    if rates is None or flops is None:
        return chosen, None
    smallest = next(iter(sizes.values()))
    for name, corpus in corpora.items():
        for arm, options in arms.items():
            if request.check() is not None:
                return chosen, request.check()
            found = tune(
                "pretrain", corpus.recipe, str(folder / name / "rates" / _folder(arm)),
                {"training.optimizer.lr": rates}, metrics.get(arm, "loss"),
                _options(name, corpus, options, smallest, flops, seed), sampler="grid", workers=workers,
                max_minutes=request.minutes_left(), seed=seed,
            )  # fmt: skip
            if found.stopped is not None:
                return chosen, found.stopped
            chosen[name, arm] = float(found.best["training.optimizer.lr"])  # type: ignore[arg-type]
    return chosen, None


def _check(
    corpora: Mapping[str, StudyCorpus], arms: Mapping[str, Any], sizes: Mapping[str, Any], flops: list[float],
    seeds: int, workers: int, rates: dict[str, Any] | None, tune_flops: float | None, reference: str,
    metrics: Mapping[str, str],
) -> None:  # fmt: skip
    """Raises UserError for options that make no sense."""
    for what, named in (("corpora", corpora), ("arms", arms), ("sizes", sizes), ("flops", flops)):
        if not named:
            raise UserError(f"{what} is empty; a study needs one or more")
    for name in (*corpora, *arms, *sizes):
        if not name or not name.isprintable() or "/" in name or name.startswith("."):
            raise UserError(f"{name!r} is no name of a folder")
    for names in ([*arms], [*sizes], [f"{budget:g}" for budget in flops]):
        if len({_folder(name) for name in names}) < len(names):
            raise UserError(f"{', '.join(names)}: two of these have one folder's name; name them apart")
    if (rates is None) != (tune_flops is None):
        raise UserError("rates and tune_flops belong together: a search has both, none has neither")
    budgets = [*flops, *([] if tune_flops is None else [tune_flops])]
    if min(seeds, workers) < 1 or not all(0 < budget < math.inf for budget in budgets):
        raise UserError("seeds and workers must be at least 1, and budgets (flops, tune_flops) above 0")
    for name, options in arms.items():
        spent = options.get("spent", 0.0)
        if not isinstance(spent, int | float) or not 0 <= spent < min(budgets):
            raise UserError(f"arms.{name}.spent is {spent!r}; it must be FLOPs below every budget")
    for name in (reference, *metrics):
        if name not in arms:
            raise UserError(f"there is no arm {name!r}; there are {', '.join(arms)}")


def _read_from(corpus: StudyCorpus) -> tuple[str, float]:
    """A digest of the recipe and of the corpus that it reads, and the unigram entropy of what is held out.

    Raises UserError where these cannot be read.
    """
    try:
        recipe = read_yaml(Path(corpus.recipe))
    except OSError as error:
        raise UserError(f"{corpus.recipe}: cannot be read ({error.strerror or error})") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{corpus.recipe}: is no recipe of pretrain: it holds no options")
    place = {**recipe, **corpus.options}.get("data")
    if not isinstance(place, str):
        raise UserError(f"{corpus.recipe}: names no corpus; say data in it, or in the study's options of this corpus")
    data = Corpus.open(place)
    said = json.dumps([recipe, data.digest], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16], data.unigram_entropy("valid")


def _check_growth(
    corpora: Mapping[str, StudyCorpus], arms: Mapping[str, dict[str, Any]], sizes: Mapping[str, dict[str, Any]]
) -> None:
    """Raises UserError where muP would scale a part that does not grow from size to size."""
    every = [search.flat(size) for size in sizes.values()]
    varied = {key for size in every for key in size if len({str(other.get(key)) for other in every}) > 1}
    for name, corpus in corpora.items():
        for arm in arms.values():
            options = search.flat(read_yaml(Path(corpus.recipe))) | _options(name, corpus, arm, {}, math.inf, 0)
            mup.check_growth({key: value for key, value in options.items() if key not in varied}, varied)


def _same(folder: Path, options: Mapping[str, Any]) -> None:
    """Keep the options; raises UserError where the folder holds a study of others. Seeds, budgets and the place of the
    tasks' data may change, and corpora, arms and sizes be added: they add runs. Those without a run, such as one whose
    options were refused, may change too, or be left out."""
    path = folder / "study.yaml"
    now = json.loads(json.dumps(options))
    if path.exists():
        before = read_yaml(path)
        if not isinstance(before, dict) or not all(isinstance(before.get(name), dict) for name in _GROW):
            raise UserError(f"{path}: is damaged; name another run")
        before.setdefault("read", now["read"])  # of a study from before this was kept
        differ = [name for name in now if name not in (*_GROW, "read") and now[name] != before.get(name)]
        first = next(iter(before["sizes"]), None)
        ran = _ran(folder, before)
        searched = any(folder.glob(f"*/{_TRIALS}"))
        for name in _GROW:
            held = ran[name] | ({first} if name == "sizes" and searched else set())
            differ += [f"{name}.{entry}" for entry, said in before[name].items()
                       if entry in held and now[name].get(entry) != said]  # fmt: skip
        for corpus in ran["corpora"] & {*now["corpora"]}:
            if before["read"].get(corpus) != now["read"][corpus]:
                raise UserError(f"{folder}: the recipe or the data of {corpus!r} are not those it began with; "
                                "name another run")  # fmt: skip
        if differ:
            raise UserError(f"{folder}: holds a study with another {', '.join(differ)}; name another run")
        if searched and now["rates"] is not None and next(iter(now["sizes"])) != first:
            raise UserError(f"{folder}: its rates were searched at the size {first!r}; name it first")
    write_file(path, yaml.safe_dump(now, sort_keys=False))


def _ran(folder: Path, kept: Mapping[str, Any]) -> dict[str, set[str]]:
    """Of each of corpora, arms and sizes, which have a run, or a trial of the search, that has begun to train."""
    arms, sizes = ({_folder(name): name for name in kept[what]} for what in ("arms", "sizes"))
    size, arm = ("|".join(map(re.escape, names)) for names in (sizes, arms))
    run = re.compile(rf"(?P<size>{size})-[\d.e+-]+-(?P<arm>{arm})-\d+")
    found: dict[str, set[str]] = {name: set() for name in _GROW}
    for corpus in kept["corpora"]:
        trials = {path.parents[3].name for path in (folder / corpus).glob(_TRIALS)} & {*arms}
        names = [run.fullmatch(path.parent.name) for path in (folder / corpus).glob(f"*/{_METRICS}")]
        runs = [one for one in names if one]
        found["corpora"] |= {corpus} if trials or runs else set()
        found["arms"] |= {arms[name] for name in (*trials, *(one["arm"] for one in runs))}
        found["sizes"] |= {sizes[one["size"]] for one in runs}
    return found


def _options(
    name: str, corpus: StudyCorpus, arm: Mapping[str, Any], size: Mapping[str, Any], flops: float, seed: int
) -> dict[str, Value]:
    """Of `pretrain`, for an arm on a corpus of this name."""

    def filled(value: Any) -> Any:
        return value.replace("{corpus}", name).replace("{seed}", str(seed)) if isinstance(value, str) else value

    left = flops - float(arm.get("spent", 0.0))
    own = {key: filled(value) for key, value in arm.items() if key != "spent"}
    return {"encoder.mup": True, **corpus.options, **size, **own, "training.flops": left}


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
    options = _options(one.corpus, corpus, arms[one.arm], sizes[one.size], one.flops, one.seed)
    if (one.corpus, one.arm) in rates:
        options["training.optimizer.lr"] = rates[one.corpus, one.arm]
    if not one.flops:  # a step at this rate leaves the weights where they start
        options |= {"training.flops": None, "training.steps": 1, "training.optimizer.lr": 1e-12}
    given = [f"--config={corpus.recipe}", *(search.as_option(key, value) for key, value in options.items())]
    return [*given, f"--seed={one.seed}", "--report=false"]


def _take_trial(folder: Path, one: _Run, rate: float) -> None:
    """A run that the search of rates has made: its best trial is the same run, with the same seed."""
    point = search.name_of({"training.optimizer.lr": rate})
    trial = folder / one.corpus / "rates" / _folder(one.arm) / "trials" / point / f"seed-{one.seed}"
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
    threads = max(1, cores() // workers) if workers > 1 else None

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
        rows = read_metrics(place / _METRICS)
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


def _known(folder: Path, corpora: Mapping[str, StudyCorpus], rounds: list[list[_Run]]) -> list[Measured]:
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
                arm = one.arm if one.flops else "untrained"
                found.append(Measured(name, one.size, one.flops, arm, one.seed, *what, baseline=not one.flops))
    return found
