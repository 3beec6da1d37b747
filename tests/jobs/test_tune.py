"""`biometro tune`: a study of real runs that can be stopped, goes on, and is shared."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from biometro import cli
from biometro.errors import UserError
from biometro.jobs import tune as tune_job
from biometro.training import search
from biometro.training.search import points_of, read_space
from conftest import recipes_of


def test_a_space_of_every_kind() -> None:
    space = read_space(
        {
            "lr": {"low": 1e-4, "high": 1e-2, "log": True, "points": 3},
            "depth": {"low": 2, "high": 8, "points": 3},
            "objective": ["metro", "mlm"],
        }
    )
    assert space["lr"].grid == (1e-4, 1e-3, 1e-2) and space["depth"].grid == (2, 5, 8)
    assert len(points_of(space)) == 18 and points_of(space)[1] == {"lr": 1e-4, "depth": 2, "objective": "mlm"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "space names no option"), ({"lr": []}, "is no list of plain values"), ({"lr": [[1]]}, "plain values"),
        ({"lr": 3}, "give a list"), ({"lr": {"low": 1}}, "give a list"), ({"lr": {"low": 2, "high": 1}}, "below high"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "above 0"), ({"lr": {"low": "a", "high": 1}}, "below high"),
        ({"lr": {"low": 1, "high": 2, "points": 1}}, "from 2"), ({"lr": {"low": 1, "high": 2, "by": 1}}, "give a list"),
    ],
)  # fmt: skip
def test_what_is_no_space(said: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_space(said)


def test_a_grid_needs_to_know_how_many() -> None:
    with pytest.raises(UserError, match="`points` beside low and high"):
        points_of(read_space({"lr": {"low": 1e-4, "high": 1e-2}}))


@pytest.mark.parametrize("path", recipes_of("tune"), ids=lambda p: p.stem)
def test_a_recipe_says_points_that_the_job_takes(path: Path) -> None:
    _, options = cli.parse(["tune", str(path)])
    point = points_of(read_space(options["space"]))[-1]
    said = {**options["options"], **point}
    given = [search.as_option(key, value) for key, value in said.items()]
    recipe = path.parent.parent / options["recipe"]
    job, found = cli.parse([options["job"], f"--config={recipe}", *given])
    assert job == "pretrain" and found["encoder"].width == said["encoder.width"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    assert cli.main(["prepare", "--data=example:families", f"--out={folder / 'corpus'}"]) == 0
    options = {
        "data": str(folder / "corpus"), "run": "x", "objective": "mlm", "device": "cpu",
        "encoder": {"width": 16, "depth": 1, "head_size": 8, "mup": True, "base_width": 16, "base_depth": 1},
        "packing": {"batch_tokens": 512, "crop": 60},
        "training": {"steps": 6, "valid_every": 2, "valid_batches": 1, "optimizer": {"warmup": 2}},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(options))
    return folder / "recipe.yaml"


def arguments(recipe: Path, run: Path, *more: str) -> list[str]:
    space = "{training.optimizer.lr: [0.003, 1.0e-9]}"
    return ["tune", "--job=pretrain", f"--recipe={recipe}", f"--run={run}", f"--space={space}", "--metric=mlm_loss",
            "--sampler=grid", *more]  # fmt: skip


@pytest.mark.long
def test_a_study_that_is_killed_goes_on_and_a_finished_one_is_not_run_again(
    recipe: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wider_fails(*_: Any) -> Any:
        raise UserError("the wider model failed: loss is not finite")

    run = tmp_path / "run"
    more = ["--transfer=32"]
    process = subprocess.Popen([sys.executable, "-m", "biometro", *arguments(recipe, run, *more)])
    deadline = time.monotonic() + 120
    while not list(run.glob("trials/*/seed-0/metrics.jsonl")):  # the first run is under way
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert cli.main(arguments(recipe, run, *more)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "at width 32 muP keeps training.optimizer.lr 0.003; predicted mlm_loss: at most" in said
    rows = list(csv.DictReader((run / "table.csv").open()))
    assert [row["training.optimizer.lr"] for row in rows] == ["0.003", "1e-09"]
    assert float(rows[0]["mean"]) < float(rows[1]["mean"])
    assert yaml.safe_load((run / "best.yaml").read_text()) == {"training": {"optimizer": {"lr": 0.003}}}
    assert (run / "tune.html").exists() and len(list(run.glob("trials/*/point.yaml"))) == 2
    before = {path: path.stat().st_mtime_ns for path in run.glob("trials/*/*/metrics.jsonl")}
    assert cli.main(arguments(recipe, run)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in run.glob("trials/*/*/metrics.jsonl")}
    (run / "table.csv").unlink()
    monkeypatch.setattr(tune_job, "_transfer", wider_fails)
    assert cli.main(arguments(recipe, run, "--transfer=48")) == 1
    assert "the wider model failed" in capsys.readouterr().err and (run / "table.csv").exists()
    assert cli.main(arguments(recipe, run, "--seeds=2")) == 1
    assert "was begun with another seeds" in capsys.readouterr().err


def test_mistakes_are_said(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    for more, message in {
        "--options={objective: mlmm}": "objective",
        "--options={training.stepz: 3}": "training.stepz",  # the job's own words
        "--options={training.optimizer.lr: 3}": "in space and in options",
        "--options={seed: 3}": "seed is tune's own",
        "--storage=nonsense://x": "no study can be kept there",
        "--seeds=0": "at least 1",
        "--recipe=/nowhere.yaml": "nowhere.yaml",
        "--space={encoder.positions: [rotary, alabi]}": "encoder.positions alabi: pretrain refuses it",
        "--space={training.steps: {low: -2, high: 9}}": "training.steps -2: pretrain refuses it",
        "--transfer=44": "encoder.width 44: pretrain refuses it",
    }.items():
        assert cli.main(arguments(recipe, tmp_path / "run", more)) == 1, more
        assert message in capsys.readouterr().err, more
    assert not (tmp_path / "run" / "trials").exists()


@pytest.mark.parametrize(
    "more",
    [["--options={encoder.ffn_width: 64}", "--transfer=32"],
     ["--space={encoder.width: [16, 32], encoder.ffn_width: [64, 128]}"]],
)  # fmt: skip
def test_parts_that_do_not_grow_with_the_width_are_refused(
    more: list[str], recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    assert cli.main(arguments(recipe, tmp_path / "run", *more)) == 1
    assert "encoder.ffn_width is" in capsys.readouterr().err


def test_the_metric_is_named_where_it_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "split": "valid", "mlm_loss": 3.0}\n')
    assert search.figure("pretrain", tmp_path, "mlm_loss") == 3.0
    with pytest.raises(UserError, match="metric is 'auroc', and the run tells of held-out data: mlm_loss"):
        search.figure("pretrain", tmp_path, "auroc")


def test_a_figure_that_is_not_finite_is_not_the_one_before(tmp_path: Path) -> None:
    rows = [{"step": 1, "split": "valid", "loss": 2.0}, {"step": 2, "split": "valid", "loss": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert math.isnan(search.figure("pretrain", tmp_path, "loss"))
    fit = {"valid": {"spearman": None, "rmse": 1.0}}
    (tmp_path / "results.json").write_text(json.dumps({"splits": {"0": {"methods": {"probe": {"runs": [fit]}}}}}))
    assert math.isnan(search.figure("finetune", tmp_path, "spearman"))
    assert search.figure("finetune", tmp_path, "rmse") == 1.0
    with pytest.raises(UserError, match="held-out data: spearman, rmse"):
        search.figure("finetune", tmp_path, "auroc")


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_another_start_tries_other_points_and_the_same_seed_the_same(tmp_path: Path, sampler: Any) -> None:
    space = read_space({"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "decay": {"low": 0.0, "high": 1.0}})

    def drawn(name: str, starts: int, seed: int = 0) -> list[Any]:
        found = []
        for _ in range(starts):
            study = search.open_study(f"sqlite:///{tmp_path / name}", "s", "minimize", sampler, "none", seed, 0)
            for _ in range(6 // starts):
                trial = study.ask()
                point = search.suggest(trial, space)
                study.tell(trial, point["lr"])
                found.append(tuple(point.values()))
        return found

    once = drawn("a.db", 1)
    assert len({*once}) == 6 and len({x for point in once for x in point}) == 12
    assert drawn("b.db", 3) == once and drawn("c.db", 1, seed=1) != once


@pytest.mark.parametrize("signal_, stopped", [(signal.SIGKILL, False), (signal.SIGSEGV, False), (signal.SIGTERM, True)])
def test_a_run_that_is_killed_was_not_stopped(
    signal_: signal.Signals, stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "run_process", lambda *_: -signal_)
    ended = search.run_job("pretrain", tmp_path / "r", [], "loss", lambda: None)
    assert search.was_stopped(ended.status) is stopped and signal_.name in ended.problem
    assert ("memory" in ended.problem) is (signal_ == signal.SIGKILL)


def _dead() -> str:
    """A process of this machine that is gone, as a trial names it."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return f"{search.here().split()[0]} {done.pid}"


def test_a_trial_of_a_dead_process_is_tried_again(tmp_path: Path) -> None:
    space = read_space({"lr": [1, 2]})
    study = search.open_study(f"sqlite:///{tmp_path / 's.db'}", "s", "minimize", "random", "none", 0, 0)
    trial, other, early = study.ask(), study.ask(), study.ask()
    point = search.suggest(trial, space)
    for each, process in ((trial, _dead()), (other, search.here()), (early, _dead())):  # the last drew nothing yet
        each.set_user_attr("process", process)
    assert search.clear_interrupted(study, space) == 2
    again = study.ask()
    assert search.suggest(again, space) == point


def test_points_of_a_grid_are_shared_out_once(tmp_path: Path) -> None:
    """Trials of several machines; one that died gives its point back, one that ended or failed does not."""
    space = read_space({"lr": [1, 2, 3]})
    points = points_of(space)
    study = search.open_study(f"sqlite:///{tmp_path / 's.db'}", "s", "minimize", "grid", "none", 0, 0)
    trials = [study.ask() for _ in range(3)]
    assert [search.next_of(trial, study, points) for trial in trials] == points
    late = study.ask()
    assert search.next_of(late, study, points) is None
    study.tell(trials[0], 1.0)
    trials[1].set_user_attr("process", _dead())
    trials[2].set_user_attr("problem", "the gradient is not finite")
    study.tell(trials[2], state=optuna.trial.TrialState.FAIL)
    study.tell(late, state=optuna.trial.TrialState.FAIL)
    assert search.clear_interrupted(study, space) == 1
    assert search.next_of(study.ask(), study, points) == points[1]


def test_workers_never_take_one_point_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial with the lower number looks first and says what it takes last."""
    points = points_of(read_space({"lr": [1, 2]}))
    study = search.open_study(f"sqlite:///{tmp_path / 's.db'}", "s", "minimize", "grid", "none", 0, 0)
    low, high = study.ask(), study.ask()
    held, looked = search._held, threading.Event()

    def slowly(study: Any) -> Any:
        found = held(study)
        if not looked.is_set():
            looked.set()
            time.sleep(0.3)
        return found

    monkeypatch.setattr(search, "_held", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(search.next_of, low, study, points)
        looked.wait()
        assert search.next_of(high, study, points) == {"lr": 2} and first.result() == {"lr": 1}


def test_what_another_process_writes_is_not_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(options: Sequence[str], log: Path, *more: Any) -> int:
        log.write_text("biometro: r is in use by process 3 on here\nmodel: r/model\n")
        return 1

    monkeypatch.setattr(search, "run_process", refused)
    ended = search.run_job("pretrain", tmp_path / "r", [], "loss", lambda: None)
    assert ended.problem == "biometro: r is in use by process 3 on here"


@pytest.mark.long
def test_runs_that_are_worse_are_ended_early_and_several_go_on_at_once(recipe: Path, tmp_path: Path) -> None:
    """Two at a time; after four points the fifth, which learns nothing, ends at its first validation."""
    run = tmp_path / "run"
    space = "{training.optimizer.lr: [0.003, 0.004, 0.005, 0.006, 1.0e-9]}"
    study = search.open_study(
        f"sqlite:///{tmp_path / 's.db'}", "run", "minimize", "random", "median", 0, 0
    )  # fmt: skip
    for place in range(5):
        study.enqueue_trial({"training.optimizer.lr": place})
    options = ["--trials=5", "--sampler=random", "--pruner=median", "--workers=2", "--options={training.steps: 40}",
               f"--storage=sqlite:///{tmp_path / 's.db'}", "--report=false"]  # fmt: skip
    assert (
        cli.main([*(a for a in arguments(recipe, run) if not a.startswith("--space")), f"--space={space}", *options])
        == 0
    )
    rows = {row["training.optimizer.lr"]: row["state"] for row in csv.DictReader((run / "table.csv").open())}
    assert rows.pop("1e-09") == "pruned" and set(rows.values()) == {"complete"} and len(rows) == 4
