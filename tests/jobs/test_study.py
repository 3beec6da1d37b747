"""`biometro study`: rates, runs at equal compute, tasks, a page; it goes on where it was."""

from __future__ import annotations

import csv
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from biometro import cli
from biometro.errors import UserError
from biometro.evaluation.study_results import Measured
from biometro.jobs import study as jobs_study
from biometro.jobs.study import _command, _read, _rounds, _Run, _run_all, _StoppedError, study
from biometro.jobs.study_options import StudyCorpus, check_runs, options_of, read_from, same
from biometro.training.signals import StopRequest
from conftest import recipes_of


@pytest.mark.parametrize("path", recipes_of("study"), ids=lambda p: p.stem)
def test_recipes_name_options_and_tasks_that_there_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, said = cli.parse(["study", str(path)])
    monkeypatch.chdir(path.parent.parent)
    check_runs(said["corpora"], said["arms"], said["sizes"], min(said["flops"]), 0)
    assert {*(said["metrics"] or {}), said["reference"]} <= {*said["arms"]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert cli.main(["prepare", "--data=example:families", f"--out={folder / 'corpus'}", "--valid=0.1"]) == 0
    options = {
        "data": str(folder / "corpus"), "run": "x", "device": "cpu",
        "encoder": {"width": 16, "depth": 1, "head_size": 8, "base_width": 16, "base_depth": 1},
        "packing": {"batch_tokens": 512, "crop": 60}, "training": {"valid_batches": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(options))
    return folder / "recipe.yaml"


def options(recipe: Path, run: Path, **more: Any) -> dict[str, Any]:
    return {
        "run": str(run), "corpora": {"families": StudyCorpus(str(recipe), ["family"])},
        "arms": {"mlm": {"objective": "mlm"}, "rtd": {"objective": "metro", "metro.clm_weight": 0}},
        "sizes": {"S": {"encoder.width": 16}}, "flops": [1e8], "rates": {"low": 1e-3, "high": 1e-2, "points": 2},
        "tune_flops": 5e7, "metrics": {"rtd": "rtd_gain"}, "seeds": 1, **more,
    }  # fmt: skip


@pytest.mark.long
def test_a_study_from_rates_to_its_page(recipe: Path, tmp_path: Path) -> None:
    done = study(**options(recipe, tmp_path / "s", out=str(tmp_path / "docs" / "study.md")))
    assert done.stopped is None and {row.arm for row in done.rows if not row.baseline} == {"mlm", "rtd"}
    rows = list(csv.DictReader((tmp_path / "docs" / "study.csv").open()))
    assert {row["size"] for row in rows if row["baseline"] == "False"} == {"S"}
    page = (tmp_path / "docs" / "study.md").read_text()
    assert "2 of 2 comparisons on one corpus have too few seeds" in page and "under way" not in page
    assert [(row["arm"], row["size"]) for row in rows if row["baseline"] == "True"][-1] == ("untrained", "S")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("families/*/metrics.jsonl")}
    assert len(before) == 3  # and the one that nothing has trained
    same = study(**options(recipe, tmp_path / "t", flops=[5e7]))  # the budget of the search
    for arm in ("mlm", "rtd"):
        trials = (tmp_path / "t" / "families" / "rates" / arm / "trials").glob("*/seed-0/metrics.jsonl")
        taken = (tmp_path / "t" / "families" / f"S-5e+07-{arm}-0" / "metrics.jsonl").read_text()
        assert taken in [trial.read_text() for trial in trials]
        assert not (tmp_path / "t" / "families" / f"S-5e+07-{arm}-0.log").exists()  # no run of its own
    assert {row.arm for row in same.rows if not row.baseline} == {"mlm", "rtd"}
    again = study(**options(recipe, tmp_path / "s", seeds=2, workers=2))
    assert {row.seed for row in again.rows if not row.baseline} == {0, 1}
    assert all(p.stat().st_mtime_ns == when for p, when in before.items())


def test_what_was_published_is_not_run_again(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Run] = []
    searched: list[str] = []

    def train(folder: Path, one: _Run, *_: Any) -> bool:
        made.append(one)
        place = folder / one.corpus / one.name
        place.mkdir(parents=True, exist_ok=True)
        (place / "exit-status").write_text("0\n")
        rows = [{"split": "train", "step": 7, "tokens": 70}, {"split": "valid", "step": 7, "loss": 2.0 + one.seed}]
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return True

    def judged(folder: Path, name: str, corpus: Any, runs: list[_Run], *_: Any) -> list[Measured]:
        models = [Measured(*one.model, "family", "accuracy", 0.1 + one.seed, baseline=not one.flops) for one in runs]
        return [Measured(name, "", 0.0, "k-mers", 0, "family", "accuracy", 0.9, baseline=True), *models] if runs else []

    def tuned(job: str, recipe: str, run: str, *_: Any, **__: Any) -> Any:
        searched.append(Path(run).name)
        return SimpleNamespace(stopped=None, best={"training.optimizer.lr": 1 / 3})

    monkeypatch.setattr(jobs_study, "_train", train)
    monkeypatch.setattr(jobs_study, "_judged", judged)
    monkeypatch.setattr(jobs_study, "tune", tuned)
    page = tmp_path / "docs" / "study.md"
    budget = 123456789.0  # of more digits than tables show
    first = study(**options(recipe, tmp_path / "s", flops=[budget], out=str(page)))
    assert len(made) == 3 and len(searched) == 2
    more = {"flops": [budget], "known": str(page.with_suffix(".yaml"))}
    again = study(**options(recipe, tmp_path / "t", **more))
    assert len(made) == 3 and len(searched) == 2 and again.rows == first.rows
    for name in ("study.csv", "study-runs.csv", "study.md", "study.yaml"):
        assert (tmp_path / "t" / name).read_text() == (page.parent / name).read_text()
    arms = options(recipe, tmp_path)["arms"] | {"rtd all": {"objective": "metro"}}
    study(**options(recipe, tmp_path / "t", **more, seeds=2, arms=arms, out=str(page)))
    fresh = {(one.arm, one.seed) for one in made[3:] if one.flops}
    assert fresh == {("rtd all", 0), ("mlm", 1), ("rtd", 1), ("rtd all", 1)} and searched[2:] == ["rtd_all"]
    assert [one.seed for one in made[3:] if not one.flops] == [1]
    table = page.with_suffix(".csv").read_text().splitlines()
    assert len(table) == 1 + 1 + 2 + 2 * 3 and table[1].startswith("families,,0,k-mers")
    assert len(page.with_name("study-runs.csv").read_text().splitlines()) == 1 + 2 * 3
    fewer = study(**options(recipe, tmp_path / "u", **more))  # of a table with more
    assert fewer.rows == first.rows and len(made) == 3 + 5

    # stopped in the search of an arm's rate, it publishes all that it knew
    monkeypatch.setattr(jobs_study, "tune", lambda *_, **__: SimpleNamespace(stopped="time", best={}))
    newest = {"new": {"objective": "mlm"}, **arms}
    stopped = study(**options(recipe, tmp_path / "w", **more, arms=newest, seeds=2, out=str(tmp_path / "w.md")))
    assert stopped.stopped and len(stopped.rows) == len(table) - 1 and len(made) == 3 + 5
    for name in ("chosen", "arms"):
        kept = [yaml.safe_load(place.read_text())[name] for place in (tmp_path / "w.yaml", page.with_suffix(".yaml"))]
        assert kept[0] == kept[1] if name == "chosen" else kept[0].keys() > kept[1].keys()

    for wrong, message in (
        ({"arms": {"mlm": {"objective": "mlm", "mlm.mask_rate": 0.2}, "rtd": arms["rtd"]}}, "another arms.mlm; leave"),
        ({"tune_flops": 6e7}, "another tune_flops"), ({"known": str(tmp_path / "none.yaml")}, "none.yaml: cannot be"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            study(**options(recipe, tmp_path / "v", **(more | wrong)))
    kept = page.with_suffix(".yaml").read_text()
    page.with_suffix(".yaml").write_text(kept.replace("0.33333", "many"))
    with pytest.raises(UserError, match=r"study\.yaml: chosen: must be a rate"):
        study(**options(recipe, tmp_path / "v", **more))
    page.with_suffix(".yaml").write_text(kept)
    for broken, message in (
        ("\n".join([*table[:2], table[2].replace("0.1", "x")]), r"study\.csv, line 3: .*'x'"),
        ("\n".join([*table[:2], table[2].replace("0.1", "nan")]), "line 3: .*nan is no figure"),
        ("corpus,size\nfamilies,S\n", "line 2: .*no column 'flops'"), ("\n".join([*table, "families"]), "line 11"),
    ):  # fmt: skip
        page.with_suffix(".csv").write_text(broken)
        with pytest.raises(UserError, match=message):
            study(**options(recipe, tmp_path / "v", **more))
    assert not (tmp_path / "v" / "study.yaml").exists()


def rounds_of(corpora: list[str], seeds: int) -> list[dict[_Run, list[str]]]:
    return [{_Run(name, "S", 1e9, arm, seed): [] for name in corpora for arm in ("a", "b")} for seed in range(seeds)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("corpora", [["x"], ["x", "y"]])
def test_models_are_examined_once_trained_beside_the_next_runs(
    corpora: list[str], workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, Any]] = []
    trained, busy = set(), set()

    def train(folder: Path, one: _Run, *_: Any) -> bool:
        log.append(("train", one))
        trained.add(one)
        return one != diverged

    def judged(folder: Path, name: str, corpus: Any, runs: list[_Run], *_: Any) -> list[Any]:
        assert name not in busy and trained >= {*runs} and diverged not in runs
        busy.add(name)
        time.sleep(0.02)
        busy.remove(name)
        log.append(("judge", name))
        return [("figure", one) for one in runs]

    diverged = _Run("x", "S", 1e9, "b", 0)
    monkeypatch.setattr(jobs_study, "_train", train)
    monkeypatch.setattr(jobs_study, "_judged", judged)
    rounds = rounds_of(corpora, 3)
    with StopRequest(None) as request:
        found = list(_run_all(tmp_path, dict.fromkeys(corpora), rounds, None, workers, request, Console()))  # type: ignore[arg-type]
    for number, (done, rows) in enumerate(found):
        expected = [one for commands in rounds[: number + 1] for one in commands if one != diverged]
        assert done == expected and {row[1] for row in rows} == {*expected}  # type: ignore[index]
    second = rounds[1] if len(corpora) == 1 else [one for one in rounds[0] if one.corpus == "y"]
    assert log.index(("train", next(iter(second)))) < log.index(("judge", "x"))


def test_a_job_that_fails_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[_Run] = []

    def train(folder: Path, one: _Run, command: list[str], threads: int, stop: Any, *_: Any) -> bool:
        if stop() is not None:
            raise _StoppedError
        begun.append(one)
        if len(begun) == 3:
            raise UserError("no such option")
        return True

    monkeypatch.setattr(jobs_study, "_train", train)
    monkeypatch.setattr(jobs_study, "_judged", lambda *_: [])
    with StopRequest(None) as request, pytest.raises(UserError, match="no such option"):
        list(_run_all(tmp_path, {"x": None, "y": None}, rounds_of(["x", "y"], 3), None, 1, request, Console()))  # type: ignore[dict-item]
    assert len(begun) == 3


def test_what_nobody_foresaw_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[_Run] = []
    monkeypatch.setattr(jobs_study, "_train", lambda folder, one, *_: not time.sleep(0.02) and not begun.append(one))  # type: ignore[func-returns-value]
    monkeypatch.setattr(jobs_study, "_judged", lambda *_: [])
    with StopRequest(None) as request, pytest.raises(OSError, match="disk is full"):
        for _ in _run_all(tmp_path, {"x": None}, rounds_of(["x"], 20), None, 1, request, Console()):  # type: ignore[dict-item]
            raise OSError("disk is full")  # as the table is written
    assert len(begun) < 10


def test_options_of_an_arm_know_the_corpus_and_what_was_spent() -> None:
    arm = {"metro.auxiliary": "runs/{corpus}-{seed}/model", "spent": 2e11, "metro.mask_rate": 0.2}
    corpus = StudyCorpus("r.yaml", ["bace"], {"encoder.base_width": 64})
    assert options_of("tcr", corpus, arm, {"encoder.width": 128}, 1e12, 3) == {
        "encoder.mup": True, "encoder.base_width": 64, "encoder.width": 128, "metro.auxiliary": "runs/tcr-3/model",
        "metro.mask_rate": 0.2, "training.flops": 8e11,
    }  # fmt: skip


def test_mistakes_are_said(recipe: Path, tmp_path: Path) -> None:
    for more, message in (
        ({"flops": []}, "flops is empty"), ({"reference": "clm"}, "there is no arm 'clm'; there are mlm, rtd"),
        ({"metrics": {"x": "loss"}}, "there is no arm 'x'"), ({"seeds": 0}, "at least 1"),
        ({"sizes": {"a/b": {}}}, "no name of a folder"), ({"flops": [1e9, 1e9]}, "one folder's name"),
        ({"out": str(tmp_path / "s" / "study.md")}, "has its own study.md"), ({"tune_flops": 0.0}, "above 0"),
        ({"rates": None}, "belong together"), ({"arms": {"mlm": {"spent": 1e8}}}, "below every budget"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            study(**options(recipe, tmp_path / "s", **more))
    names = {_Run("c", "S", flops, arm, 0).name for flops in (1e12, 1.4e12) for arm in ("a b", "c")}
    assert len(names) == 4
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "study.yaml").write_text("arms: {}\n")
    with pytest.raises(UserError, match="is damaged"):
        study(**options(recipe, tmp_path / "t"))


def test_what_has_runs_stays_as_it_is(tmp_path: Path) -> None:
    begun: dict[str, Any] = {"corpora": {"c": {}}, "arms": {"a": {"x": 1}}, "sizes": {"S": {}}, "rates": {}, "seed": 0,
                             "read": {"c": "1"}}  # fmt: skip
    same(tmp_path, begun)
    for wrong in ({"arms": {"a": {"y": 1}}}, {"corpora": {"d": {}}}, {"sizes": {"M": {}}}):
        same(tmp_path, begun | wrong)  # its first job was refused: nothing has run
    same(tmp_path, begun)
    trial = tmp_path / "c" / "rates" / "a" / "trials" / "0123" / "seed-0" / "metrics.jsonl"
    run = tmp_path / "c" / _Run("c", "S", 1e9, "a", 0).name / "metrics.jsonl"
    for made in (trial, run):
        made.parent.mkdir(parents=True)
        made.write_text("{}\n")
        more = begun | {"arms": {"b": {}, "a": {"x": 1}, "a-b": {}}, "sizes": {"S": {}, "M": {}}}
        same(tmp_path, more)
        with pytest.raises(UserError, match="the recipe or the data of 'c'"):
            same(tmp_path, more | {"read": {"c": "2"}})
        same(tmp_path, more | {"arms": {"a": {"x": 1}, "b": {"x": 2}}})
        for changed, what in (
            ({"arms": {"a": {"x": 2}, "b": {}}}, "another arms.a"), ({"arms": {"b": {}}}, "another arms.a"),
            ({"sizes": {"S": {"w": 1}}}, "another sizes.S"), ({"corpora": {}}, "another corpora.c"),
            ({"seed": 1}, "another seed"), ({"arms": {"a": {"x": 2}, "a-b": {}, "b": {}}}, "another arms.a;"),
        ):  # fmt: skip
            with pytest.raises(UserError, match=what):
                same(tmp_path, more | changed)
        if made is trial:
            with pytest.raises(UserError, match="searched at the size 'S'"):
                same(tmp_path, more | {"sizes": {"M": {}, "S": {}}})
            made.unlink()
            other = tmp_path / "c" / _Run("c", "S", 1e9, "a-b", 0).name / "metrics.jsonl"  # no run of `b`
            other.parent.mkdir()
            other.write_text("{}\n")
            same(tmp_path, more | {"arms": {**more["arms"], "b": {"x": 3}}})
            same(tmp_path, more)
            shutil.rmtree(other.parent)


def test_an_edited_recipe_and_another_corpus_are_told(recipe: Path, tmp_path: Path) -> None:
    def digest(**options: Any) -> str:
        found, entropy = read_from(StudyCorpus(str(tmp_path / "r.yaml"), [], options))
        assert 2.5 < entropy < 3.0
        return found

    shutil.copy(recipe, tmp_path / "r.yaml")
    assert cli.main(["prepare", "--data=example:families", f"--out={tmp_path / 'other'}", "--valid=0.2"]) == 0
    first = digest()
    assert digest() == first != digest(data=str(tmp_path / "other"))
    (tmp_path / "r.yaml").write_text(recipe.read_text().replace("depth: 1", "depth: 2"))
    assert digest() != first


def test_parts_that_do_not_grow_from_size_to_size_are_refused(recipe: Path, tmp_path: Path) -> None:
    grown = {"metro.auxiliary_width": 16, "encoder.width": 16}, {"metro.auxiliary_width": 32, "encoder.width": 32}
    corpora = {"c": StudyCorpus(str(recipe), ["family"])}
    check_runs(corpora, {"a": {}}, dict(zip("SM", grown, strict=True)), 1e9, 0)
    check_runs(corpora, {"a": {"metro.auxiliary_width": 16}}, {"S": {"encoder.width": 16}}, 1e9, 0)
    with pytest.raises(UserError, match=r"auxiliary_width is 16 at every encoder\.width"):
        sizes = {"S": {"encoder.width": 16}, "M": {"encoder.width": 32}}
        study(**options(recipe, tmp_path / "s", arms={"mlm": {"metro.auxiliary_width": 16}}, sizes=sizes, metrics={}))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"arms": {"mlm": {}, "far": {"encoder.positions": "alabi"}}}, "far on families, S: .*alabi"),
        ({"arms": {"mlm": {}, "far": {"training.stepz": 3}}}, "far on families, S: .*stepz"),
        ({"sizes": {"S": {}, "M": {"encoder.width": "wide"}}}, "mlm on families, M: .*wide"),
        ({"arms": {"mlm": {}, "far": {"run": "elsewhere"}}}, "arms.far: run is the study's own"),
        ({"sizes": {"S": {"training": {"flops": 1e9}}}}, r"sizes.S: training\.flops is the study's own"),
        ({"corpora": {"families": ["family"], "more": ["familly"]}}, "no task or suite 'familly'"),
    ],
)
def test_options_of_the_last_run_are_read_before_the_first(
    more: dict[str, Any], message: str, recipe: Path, tmp_path: Path
) -> None:
    if "corpora" in more:
        more = {"corpora": {name: StudyCorpus(str(recipe), tasks) for name, tasks in more["corpora"].items()}}
    with pytest.raises(UserError, match=message):
        study(**options(recipe, tmp_path / "s", **{"metrics": {}, **more}))
    assert not any((tmp_path / "s").glob("*"))
    study(**options(recipe, tmp_path / "s", max_minutes=0))  # the folder is free for what was meant


def test_figures_that_are_undefined_are_left_out(tmp_path: Path) -> None:
    one = _Run("c", "S", 1e9, "a", 0)
    methods = {"k-mers": {"model": None, "value": None}, "alignment": {"model": None, "value": 0.5},
               "probe": {"model": one.name, "value": None}}  # fmt: skip
    task = {
        "task": "t",
        "metric": "spearman",
        "larger_is_better": True,
        "methods": methods,
        "main": {one.name: "probe"},
    }
    (tmp_path / "c" / "evaluation").mkdir(parents=True)
    (tmp_path / "c" / "evaluation" / "results.json").write_text(json.dumps({"tasks": [task]}))
    assert [(row.arm, row.value) for row in _read(tmp_path, "c", [one])] == [("alignment", 0.5)]


def test_models_that_nothing_trains() -> None:
    corpora = {"c": StudyCorpus("recipe.yaml", [], {"training.flops": 1e9})}
    arms: dict[str, dict[str, Any]] = {"mlm": {}, "rtd": {}}
    rounds = list(_rounds(corpora, arms, {"S": {}, "M": {}}, [2e9, 1e9], 2, 0, "rtd"))
    assert [len(group) for group in rounds] == [6, 6, 4, 4]
    first = rounds[0][0]
    assert (first.arm, first.flops, first.name) == ("rtd", 0.0, "S-0-rtd-0")
    said = _command(first, corpora, arms, {"S": {}}, {("c", "rtd"): 1e-3})
    assert {"--training.flops=null", "--training.steps=1", "--training.optimizer.lr=1e-12"} <= {*said}


@pytest.mark.parametrize("more", [[], ["--out="]])
def test_a_study_needs_no_place_but_its_run_folder(more: list[str], tmp_path: Path, capsys: Any) -> None:
    said = {"run": str(tmp_path / "run"), "arms": {"mlm": {}}, "sizes": {"S": {}}, "flops": [1e9],
            "corpora": {"c": {"recipe": str(tmp_path / "none.yaml"), "tasks": ["family"]}}}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said))
    assert cli.main(["study", str(tmp_path / "mine.yaml"), *more]) == 1
    assert "none.yaml: cannot be read" in capsys.readouterr().err
