"""The best weights are kept, stages begin from them, training ends early, and what does not fit is halved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biometro.data.batch import Batch
from biometro.data.examples import Examples, Sampler
from biometro.data.task import Task
from biometro.device import out_of_memory
from biometro.errors import UserError
from biometro.model.heads import LabelHead, LabelHeadConfig
from biometro.objectives.supervised import Supervised
from biometro.training import optimizer as optim
from biometro.training.optimizer import OptimizerConfig
from biometro.training.selection import Selection
from biometro.training.signals import StopRequest
from biometro.training.trainer import Outcome, TrainingConfig, train

TASK = Task("classification", ("a", "b", "c"))
STAGED = OptimizerConfig(schedule="staged", stages=3, lr=0.03, warmup=0)


def examples(count: int = 120, seed: int = 0) -> Examples:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, 8))
    truth = random.integers(0, 3, count)
    return Examples(TASK, truth, features=(centres[truth] + random.normal(size=(count, 8))).astype(np.float32))


def objective(cls: type[Supervised] = Supervised) -> Supervised:
    torch.manual_seed(0)
    return cls(TASK, LabelHead(LabelHeadConfig(8, 3, hidden=16)), None, (0, 0))


def run(
    folder: Path, goal: Supervised, scores: Callable[[int], float] | None = None, selection: Selection | None = None,
    request: StopRequest | None = None, **options: Any,
) -> Outcome:  # fmt: skip
    """30 steps, validated every 5; `scores` gives the figure of validation 1, 2, ..."""
    folder.mkdir(exist_ok=True)
    data, valid = examples(), examples(60, seed=1)
    sampler = Sampler(data.sizes, 12, seed=0)
    calls = 0

    def score() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if scores is not None:
            return {"figure": scores(calls)}
        goal.eval()
        with torch.no_grad():
            answer = goal(valid.batch(np.arange(60)), outputs=True).argmax(1).numpy()
        goal.train()
        return {"figure": float((answer == valid.truth).mean())}

    settings = TrainingConfig(steps=30, valid_every=5, checkpoint_every=5, log_every=1, track=[], optimizer=STAGED)
    return train(
        goal, lambda n: data.batch(sampler.members(n)), replace(settings, **options), folder, score=score,
        selection=selection or Selection("figure", True, stages=3), request=request, quiet=True,
    )  # fmt: skip


def weights(goal: Supervised) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in goal.head.parameters()])


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for line in lines if (row := json.loads(line))["split"] == split]


def test_training_ends_with_the_best_weights(tmp_path: Path) -> None:
    """The second validation is the best: as if training had ended there."""
    best, worst = objective(), objective()
    outcome = run(tmp_path / "a", best, lambda n: {2: 1.0}.get(n, 0.5), Selection("figure", True, stages=3))
    assert outcome.progress.best_step == 10 and outcome.progress.best == 1.0 and outcome.progress.step == 30
    assert not torch.equal(weights(best), weights(objective()))
    smaller = run(tmp_path / "c", worst, lambda n: {2: -1.0}.get(n, 0.5), Selection("figure", False, stages=3))
    assert smaller.progress.best_step == 10
    torch.testing.assert_close(weights(worst), weights(best), rtol=0, atol=0)


def test_a_stage_begins_from_the_best_weights_at_a_tenth_of_the_rate(tmp_path: Path) -> None:
    goal = objective()
    outcome = run(tmp_path, goal, lambda n: {1: 0.9}.get(n, 0.5))
    rates = [row["lr"] for row in rows(tmp_path, "train")]
    np.testing.assert_allclose(rates, [0.03] * 10 + [0.003] * 10 + [0.0003] * 10)
    assert outcome.progress.best_step == 5


def test_a_stage_forgets_the_weights_and_moments_of_the_one_before(tmp_path: Path) -> None:
    """The best of stage 1 is at step 5, the best of all at step 20: five steps by hand, from the first to the other."""
    goal, plain = objective(), objective()
    staged = replace(STAGED, stages=2)
    scores = {1: 0.5, 4: 0.9}
    outcome = run(
        tmp_path / "a", goal, lambda n: scores.get(n, 0.1), Selection("figure", True, stages=2), optimizer=staged
    )
    assert outcome.progress.best_step == 20
    run(tmp_path / "b", plain, lambda n: n, Selection("figure", True), steps=5, optimizer=OptimizerConfig(
        schedule="constant", lr=0.03, warmup=0))  # fmt: skip
    data = examples()
    sampler = Sampler(data.sizes, 12, seed=0)
    optimizer = optim.build(plain, staged)
    for number in range(15, 20):
        plain.backward([data.batch(sampler.members(number))])
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), staged.clip)
        optim.apply(optimizer, 0.003, norm)
    torch.testing.assert_close(weights(goal), weights(plain), rtol=1e-5, atol=1e-7)


def test_a_stage_without_progress_ends_early_and_the_last_one_ends_training(tmp_path: Path) -> None:
    outcome = run(tmp_path, objective(), lambda n: 1.0 / n, Selection("figure", True, patience=1, stages=3))
    assert outcome.stopped is None and outcome.progress.done
    # the first validation is the best of all: stages end at the second, third and fourth
    assert outcome.progress.step == 20 and outcome.progress.best_step == 5 and outcome.progress.stage == 2


def test_validations_that_are_not_numbers_are_never_the_best(tmp_path: Path) -> None:
    outcome = run(tmp_path, objective(), lambda n: float("nan") if n != 4 else 0.1)
    assert outcome.progress.best_step == 20


@pytest.mark.parametrize("stop_after", [1, 7, 10, 12, 23])
def test_a_run_that_was_stopped_chooses_what_it_would_have_chosen(tmp_path: Path, stop_after: int) -> None:
    whole, first, second = objective(), objective(), objective()
    expected = run(tmp_path / "whole", whole)
    request = StopRequest(None)
    seen = 0

    def check() -> str | None:
        nonlocal seen
        seen += 1
        return "test" if seen > stop_after else None

    request.check = check  # type: ignore[method-assign]
    stopped = run(tmp_path / "cut", first, request=request)
    assert stopped.stopped == "test" and 0 < stopped.progress.step < 30
    ended = run(tmp_path / "cut", second)
    assert ended.progress.best == expected.progress.best and ended.progress.best_step == expected.progress.best_step
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=0)


def test_frozen_weights_are_not_in_checkpoints(tmp_path: Path) -> None:
    goal = objective()
    assert goal.head.dense is not None
    goal.head.dense.requires_grad_(False)
    before = goal.head.dense.weight.detach().clone()
    run(tmp_path, goal)
    saved = b"".join(p.read_bytes() for p in tmp_path.rglob("*.safetensors"))
    assert b"head.out.weight" in saved and b"head.dense.weight" not in saved
    torch.testing.assert_close(goal.head.dense.weight, before, rtol=0, atol=0)


def test_staged_needs_a_selection(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="staged is for fine-tuning"):
        run(tmp_path, objective(), selection=Selection("figure", True, stages=1))


class Narrow(Supervised):
    """Has memory for five sequences."""

    def outputs(self, batch: Batch) -> torch.Tensor:
        if len(batch.sequence) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().outputs(batch)


def test_a_batch_that_does_not_fit_is_halved_with_the_same_result(tmp_path: Path, capsys: Any) -> None:
    wide, narrow = objective(), objective(Narrow)
    run(tmp_path / "a", wide, lambda n: n)
    data = examples()
    sampler = Sampler(data.sizes, 12, seed=0)
    config = TrainingConfig(steps=30, valid_every=5, checkpoint_every=5, log_every=1, track=[], optimizer=STAGED)
    (tmp_path / "b").mkdir()
    train(
        narrow, lambda n: data.batch(sampler.members(n)), config, tmp_path / "b", score=iter_scores(),
        selection=Selection("figure", True, stages=3),
    )  # fmt: skip
    torch.testing.assert_close(weights(narrow), weights(wide), rtol=1e-5, atol=1e-6)
    said = capsys.readouterr().err
    assert said.count("does not fit in memory; from now on") == 2  # twelve, six, three
    a, b = ([row["label_loss"] for row in rows(tmp_path / name, "train")] for name in "ab")
    np.testing.assert_allclose(a, b, rtol=1e-5)


def iter_scores() -> Callable[[], dict[str, float]]:
    numbers = iter(range(1, 1000))
    return lambda: {"figure": float(next(numbers))}


def test_one_sequence_that_does_not_fit_is_one_clear_line(tmp_path: Path) -> None:
    class Nothing(Supervised):
        def outputs(self, batch: Batch) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(UserError, match="does not fit in memory"):
        run(tmp_path, objective(Nothing))


def test_the_memory_of_a_cpu_runs_out_as_that_of_a_gpu() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 58)
    assert out_of_memory(error.value) and not out_of_memory(RuntimeError("shapes do not match"))
