"""The loop: resuming is continuing, micro-batches are one batch, faults are found and said."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from biometro.alphabet import PROTEIN
from biometro.data.batch import Batch
from biometro.data.corpus import Shard, Split
from biometro.data.loader import Loader, PackingConfig
from biometro.errors import UserError
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.mlm import MLM
from biometro.objectives.objective import Objective, Terms
from biometro.training import checkpoint
from biometro.training.optimizer import OptimizerConfig, build, learning_rate
from biometro.training.parallel import World
from biometro.training.tracking import read_metrics
from biometro.training.trainer import Outcome, TrainingConfig, train

ENCODER = EncoderConfig(width=32, depth=3, head_size=16, dropout=0.1)
FILE = "shard-00001-model-00001-of-00001.safetensors"
CONFIG = TrainingConfig(
    steps=20, accumulate=2, checkpoint_every=5, valid_every=10, track=[], optimizer=OptimizerConfig(lr=3e-3, warmup=5)
)


def loader() -> Loader:
    random = np.random.default_rng(0)
    lengths = random.integers(5, 40, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.choice(PROTEIN.standard_ids, size=int(offsets[-1])).astype(np.uint8)
    return Loader(Split.of(Shard(tokens, offsets)), PROTEIN, PackingConfig(200, 30, reverse=0.2), 0)


def fresh(kind: str = "metro") -> Objective:
    torch.manual_seed(0)
    if kind == "mup":
        return MLM(replace(ENCODER, mup=True, base_width=16, base_depth=1), PROTEIN)
    options = MetroConfig(embeddings="disentangled" if kind == "disentangled" else "tied")
    return MLM(ENCODER, PROTEIN) if kind == "mlm" else Metro(ENCODER, PROTEIN, options)


def run_to(folder: Path, config: TrainingConfig, kind: str = "metro", objective: Objective | None = None) -> Outcome:
    folder.mkdir(exist_ok=True)
    source = loader()
    return train(objective or fresh(kind), source.batch, config, folder, validation=[source.batch(0)], quiet=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.folders(folder / "checkpoints")[-1] / FILE)


def restored(root: Path, say: Callable[[str], None]) -> checkpoint.Progress | None:
    objective = fresh()
    return checkpoint.Checkpoints(root, objective, build(objective, CONFIG.optimizer), World(), 2).load(say)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["mlm", "metro", "disentangled", "mup"])
def test_twenty_steps_are_ten_a_stop_and_ten(tmp_path: Path, kind: str) -> None:
    """The one of muP by Muon."""
    config = replace(CONFIG, optimizer=replace(CONFIG.optimizer, name="muon")) if kind == "mup" else CONFIG
    run_to(tmp_path / "whole", config, kind)
    source = loader()

    def interrupted(number: int) -> Batch:
        if number == 2 * 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return source.batch(number)

    (tmp_path / "cut").mkdir()
    outcome = train(fresh(kind), interrupted, config, tmp_path / "cut", validation=[source.batch(0)], quiet=True)
    assert outcome.stopped == "SIGTERM" and outcome.progress.step == 10
    outcome = run_to(tmp_path / "cut", config, kind)
    assert outcome.stopped is None and outcome.progress.step == 20
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    for one, two in zip(*rows, strict=True):
        timing = ("seconds", "tokens_per_s")
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in two.items() if k not in timing}
    assert [r["step"] for r in rows[0] if r["split"] == "train"] == list(range(1, 21))
    assert [r["step"] for r in rows[0] if r["split"] == "valid"] == [10, 20]


def test_an_objective_is_told_how_far_training_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it goes on."""
    goal, told = fresh(), []
    monkeypatch.setattr(goal, "at", told.append)
    run_to(tmp_path / "r", replace(CONFIG, steps=10), objective=goal)
    assert told == pytest.approx([step / 10 for step in range(10)])
    shutil.rmtree(checkpoint.folders(tmp_path / "r" / "checkpoints")[-1])
    again = fresh()
    monkeypatch.setattr(again, "at", told.append)
    run_to(tmp_path / "r", replace(CONFIG, steps=10), objective=again)
    assert told[10:] == pytest.approx([step / 10 for step in range(5, 10)])


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(tmp_path: Path) -> None:
    run_to(tmp_path / "whole", CONFIG)
    shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
    newest = checkpoint.folders(tmp_path / "hurt" / "checkpoints")
    assert [f.name for f in newest] == ["step-00000015", "step-00000020"]
    path = newest[-1] / FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 255
    path.write_bytes(bytes(data))
    said: list[str] = []
    progress = restored(newest[-1].parent, said.append)
    assert progress is not None and progress.step == 15
    assert said == [f"step-00000020: damaged checkpoint passed over (digest of {FILE} differs)"]
    run_to(tmp_path / "hurt", CONFIG)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "hurt"))
    for folder in checkpoint.folders(tmp_path / "hurt" / "checkpoints"):
        (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match="none of its 2 checkpoints is sound"):
        run_to(tmp_path / "hurt", CONFIG)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run_to(tmp_path / "r", replace(CONFIG, steps=5))
    with pytest.raises(UserError, match="is of another model"):
        run_to(tmp_path / "r", CONFIG, "mlm")


def test_a_disk_that_refuses_leaves_the_checkpoints_before_it(tmp_path: Path) -> None:
    """The system itself refuses: no file may grow beyond 20 kB, so safetensors' own writer meets the limit."""
    run_to(tmp_path / "r", replace(CONFIG, steps=10))
    before = weights(tmp_path / "r")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(UserError, match=r"could not be written.*[Ff]ile too large"):
            run_to(tmp_path / "r", CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert same(before, weights(tmp_path / "r"))
    assert not list((tmp_path / "r" / "checkpoints").glob(".*"))


def test_retention_never_keeps_a_damaged_checkpoint_in_place_of_a_sound_one(tmp_path: Path) -> None:
    run_to(tmp_path / "r", replace(CONFIG, steps=10))
    root = tmp_path / "r" / "checkpoints"
    (checkpoint.folders(root)[-1] / FILE).write_bytes(b"")
    run_to(tmp_path / "r", replace(CONFIG, steps=8, checkpoint_every=4, keep=1))
    assert [folder.name for folder in checkpoint.folders(root)] == ["step-00000008"]
    progress = restored(root, pytest.fail)
    assert progress is not None and progress.step == 8


def test_a_step_number_changed_by_hand_is_damage(tmp_path: Path) -> None:
    run_to(tmp_path / "r", replace(CONFIG, steps=10))
    newest = checkpoint.folders(tmp_path / "r" / "checkpoints")[-1]
    state = json.loads((newest / "state.json").read_text())
    state["progress"]["step"] = 17
    (newest / "state.json").write_text(json.dumps(state))
    said: list[str] = []
    progress = restored(newest.parent, said.append)
    assert progress is not None and progress.step == 5 and "state.json" in said[0]


def test_flops_are_three_forward_passes_of_every_micro_batch(tmp_path: Path) -> None:
    outcome = run_to(tmp_path / "r", replace(CONFIG, steps=3))
    objective, source = fresh(), loader()
    assert outcome.progress.flops == 3 * sum(objective.flops(source.batch(n)) for n in range(6))
    assert outcome.progress.tokens == sum(source.batch(n).tokens for n in range(6))


@pytest.mark.gpu
def test_training_on_cuda_goes_on_and_is_near_the_cpu(tmp_path: Path) -> None:
    config = replace(CONFIG, precision="float32", compile="no")
    source = loader()
    for name, device in (("cpu", "cpu"), ("gpu", "cuda")):
        (tmp_path / name).mkdir()
        train(
            fresh("mlm"),
            source.batch,
            replace(config, steps=10),
            tmp_path / name,
            world=World(device=torch.device(device)),
            quiet=True,
        )
        train(fresh("mlm"), source.batch, config, tmp_path / name, world=World(device=torch.device(device)), quiet=True)
    rows = read_metrics(tmp_path / "gpu" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["mlm", "metro", "disentangled"])
def test_bfloat16_and_compiled_training_on_cuda(tmp_path: Path, kind: str) -> None:
    (tmp_path / "r").mkdir()
    source = loader()
    train(
        fresh(kind),
        source.batch,
        CONFIG,
        tmp_path / "r",
        world=World(device=torch.device("cuda")),
        validation=[source.batch(0)],
        quiet=True,
    )
    rows = [row for row in read_metrics(tmp_path / "r" / "metrics.jsonl") if row["split"] == "train"]
    assert len(rows) == 20 and rows[-1]["loss"] < rows[0]["loss"]


def test_the_time_limit_stops_with_a_checkpoint(tmp_path: Path) -> None:
    outcome = run_to(tmp_path / "r", replace(CONFIG, steps=10**6, max_minutes=0.02))
    assert outcome.stopped == "the limit of 0.02 minutes"
    assert checkpoint.folders(tmp_path / "r" / "checkpoints")[-1].name == f"step-{outcome.progress.step:08d}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_finish_the_step_and_handlers_are_restored(tmp_path: Path, number: signal.Signals) -> None:
    before, source = signal.getsignal(number), loader()

    def batch(place: int) -> Batch:
        if place == 2 * 3:  # in the fourth step
            os.kill(os.getpid(), number)
        return source.batch(place)

    (tmp_path / "r").mkdir()
    outcome = train(fresh(), batch, replace(CONFIG, steps=10**6), tmp_path / "r", quiet=True)
    assert outcome.stopped == number.name and outcome.progress.step == 4
    assert signal.getsignal(number) is before


class Poisoned(MLM):
    """An MLM whose loss is not a number in some of its forward passes."""

    def __init__(self, bad: set[int]):
        torch.manual_seed(0)
        super().__init__(replace(ENCODER, dropout=0.0), PROTEIN)
        self.bad, self.passes = bad, 0

    def forward(self, batch: Batch) -> Terms:
        terms: Terms = super().forward(batch)
        if self.training:
            self.passes += 1
            if self.passes - 1 in self.bad:
                terms["mlm_loss"] = replace(terms["mlm_loss"], sum=terms["mlm_loss"].sum * math.nan)
        return terms


@pytest.mark.parametrize("policy", ["skip", "back_off"])
def test_a_gradient_that_is_not_finite_is_passed_over(
    tmp_path: Path, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biometro.training.trainer._SOUND_STEPS", 4)
    schedule = OptimizerConfig(lr=1e-3, warmup=0, schedule="warmup_stable_decay", decay=0.01)
    config = replace(CONFIG, checkpoint_every=1, keep=100, not_finite=policy, optimizer=schedule)
    outcome = run_to(tmp_path / "r", config, objective=Poisoned({2 * 7 + 1}))  # the second micro-batch of step 8
    assert outcome.progress.step == 20 and outcome.progress.skipped == 1
    saved = [load_file(folder / FILE) for folder in checkpoint.folders(tmp_path / "r" / "checkpoints")]
    assert same(saved[6], saved[7]) and not same(saved[7], saved[8])
    assert all(tensor.isfinite().all() for tensor in saved[-1].values())
    rows = [row for row in read_metrics(tmp_path / "r" / "metrics.jsonl") if row["split"] == "train"]
    assert rows[7]["loss"] is None and rows[7]["grad_norm"] is None and math.isfinite(rows[8]["loss"])
    rates = [row["lr"] for row in rows[:19]]
    assert rates == ([1e-3] * 19 if policy == "skip" else [1e-3] * 8 + [5e-4] * 4 + [1e-3] * 7)
    kept = load_file(tmp_path / "r" / "not-finite-step-00000008.safetensors")
    for number in (14, 15):
        assert torch.equal(kept[f"{number}.sequence.tokens"], loader().batch(number).sequence.tokens)


def test_going_on_after_a_skipped_step_is_not_having_stopped(tmp_path: Path) -> None:
    config = replace(CONFIG, not_finite="skip", checkpoint_every=10)
    run_to(tmp_path / "whole", config, objective=Poisoned({3}))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(checkpoint.folders(tmp_path / "cut" / "checkpoints")[-1])
    assert run_to(tmp_path / "cut", config, objective=Poisoned(set())).progress.skipped == 1
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_twenty_such_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=60, not_finite="skip", log_every=1)
    with pytest.raises(UserError, match=r"not finite at step 25 .*lower optimizer\.lr"):
        run_to(tmp_path / "r", config, objective=Poisoned(set(range(10, 1000))))
    assert len(list((tmp_path / "r").glob("not-finite-step-*"))) == 5
    assert checkpoint.folders(tmp_path / "r" / "checkpoints")[-1].name == "step-00000020"


def test_lines_cut_by_a_crash_do_not_stop_a_run(tmp_path: Path) -> None:
    run_to(tmp_path / "r", replace(CONFIG, steps=10))
    with (tmp_path / "r" / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 11, "split": "tr')
    run_to(tmp_path / "r", CONFIG)
    rows = read_metrics(tmp_path / "r" / "metrics.jsonl")
    assert [r["step"] for r in rows if r["split"] == "train"] == list(range(1, 21))


def test_logged_figures(tmp_path: Path) -> None:
    run_to(tmp_path / "r", CONFIG)
    row = read_metrics(tmp_path / "r" / "metrics.jsonl")[3]
    losses = ["loss", "aux_loss", "rtd_loss", "clm_loss", "clm_masked_loss", "rtd_gain"]
    accuracies = ["aux_accuracy", "replaced", "rtd_ap", "clm_accuracy_replaced", "clm_accuracy_kept"]
    for name in [*losses, *accuracies, "tokens_per_s", "flops", "grad_norm", "lr", "tokens", "seconds"]:
        assert math.isfinite(row[name]), name
    total = row["aux_loss"] + MetroConfig().rtd_weight * row["rtd_loss"] + row["clm_loss"]
    assert row["loss"] == pytest.approx(total, rel=1e-6)


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_to(tmp_path / "r", replace(CONFIG, track=["tensorboard"]))
    events = accumulator.EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/rtd_loss")] == list(range(1, 21))
    assert len(events.Scalars("valid/loss")) == 2


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup_stable_decay"])
def test_schedules(schedule: Any) -> None:
    config = OptimizerConfig(lr=2.0, schedule=schedule, warmup=10, decay=0.2, final=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(rates) == 2.0 and rates[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    if schedule == "linear":
        assert rates[54] == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    if schedule == "cosine":
        assert rates[54] == pytest.approx(2 * (0.1 + 0.9 * 0.5))
        assert rates[20] > 1.9
    share = replace(config, warmup=0.1)
    assert rates == [learning_rate(share, step, 100) for step in range(100)]
    with pytest.raises(UserError, match=r"warmup is 1\.5"):
        replace(config, warmup=1.5)
    if schedule == "warmup_stable_decay":
        assert rates[10:80] == [2.0] * 70 and rates[89] == pytest.approx(2 * (0.1 + 0.9 * 0.5))


def test_adamw_is_that_of_its_paper() -> None:
    """Three steps against the formulae with bias correction; decay on matrices only."""
    torch.manual_seed(0)
    module = Objective()
    module.layer = torch.nn.Linear(3, 2)
    expected = [p.detach().clone().double() for p in module.parameters()]
    config = OptimizerConfig(lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.98, eps=1e-6)
    optimizer = build(module, config)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected]
    for step in range(1, 4):
        gradients = [torch.randn_like(p) for p in module.parameters()]
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        for p, g, (m, v) in zip(expected, gradients, moments, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.98).add_(0.02 * g.double() ** 2)
            p.mul_(1 - 0.01 * (0.1 if p.ndim == 2 else 0.0))
            p.sub_(0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.98**step)).sqrt() + 1e-6))
    for parameter, reference in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), reference, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: TrainingConfig(steps=0), r"training\.steps"),
        (lambda: OptimizerConfig(lr=0), r"optimizer\.lr"),
        (lambda: OptimizerConfig(decay=0), r"optimizer\.decay"),
        (lambda: OptimizerConfig(warmup=math.inf), r"optimizer\.warmup"),
        (lambda: OptimizerConfig(weight_decay=math.nan), r"weight_decay"),
    ],
)
def test_impossible_settings_are_refused(make: Any, key: str) -> None:
    with pytest.raises(UserError, match=key):
        make()
