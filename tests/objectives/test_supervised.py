"""Losses of labels against torch's own, halves against wholes, and that every kind of task can be learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from biometro.alphabet import PROTEIN
from biometro.data.examples import Examples, Sampler
from biometro.data.task import Task, TaskKind
from biometro.inference.predict import answers, outputs
from biometro.model import adapters
from biometro.model.adapters import LoraConfig
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import LabelHead, LabelHeadConfig
from biometro.objectives.objective import total_loss
from biometro.objectives.supervised import Supervised
from conftest import random_sequences

LENGTHS = [7, 3, 20, 12, 5]
KINDS: list[TaskKind] = [
    "classification", "multilabel", "regression", "residue_classification", "residue_regression"
]  # fmt: skip


def examples(kind: TaskKind, lengths: list[int] = LENGTHS, seed: int = 0) -> Examples:
    """Labels that the letters determine: the first residue's class, or each residue's."""
    random = np.random.default_rng(seed)
    tokens = random_sequences(lengths, seed)
    firsts = np.array([int(t[0]) % 3 for t in tokens])
    truth: Any
    if kind == "classification":
        truth = firsts
    elif kind == "multilabel":
        truth = np.eye(3, dtype=np.float32)[firsts]
        truth[random.random(truth.shape) < 0.1] = np.nan
    elif kind == "regression":
        truth = (100 + 10 * np.stack([firsts, -firsts, firsts**2], 1)).astype(np.float32)
    elif kind == "residue_classification":
        truth = [np.where(random.random(len(t)) < 0.1, -1, t.astype(np.int64) % 3) for t in tokens]
    else:
        truth = [np.where(random.random(len(t)) < 0.1, np.nan, t % 5).astype(np.float32) for t in tokens]
    names = ("x",) if kind == "residue_regression" else ("x", "y", "z")
    return Examples(Task(kind, names), truth, tokens, PROTEIN.begin_ids, PROTEIN.end_ids)


def objective(kind: TaskKind, weights: torch.Tensor | None = None, width: int = 32) -> Supervised:
    torch.manual_seed(0)
    task = examples(kind).task
    pooling: Any = "residues" if task.per_residue else "attention"
    head = LabelHead(LabelHeadConfig(width, task.outputs, pooling))
    encoder = Encoder(EncoderConfig(width=width, depth=2, head_size=16, init_std=0.1))
    return Supervised(task, head, encoder, (1, 1), weights)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_torchs(kind: TaskKind) -> None:
    goal, data = objective(kind), examples(kind)
    if not goal.task.discrete:
        goal.head.offset.fill_(3.0)
        goal.head.unit.fill_(2.0)
    batch = data.batch(np.arange(len(data)))
    out, label = goal(batch, outputs=True), batch.targets["label"]
    if kind.endswith("classification"):
        expected = F.cross_entropy(out, label, ignore_index=-1)
    else:
        known = label.isfinite()
        if kind == "multilabel":
            expected = F.binary_cross_entropy_with_logits(out[known], label[known])
        else:
            expected = F.mse_loss(out[known], (label[known] - 3) / 2)
    terms = goal(batch)
    torch.testing.assert_close(total_loss(terms, goal.counts(batch)), expected)


def test_class_weights_are_torchs() -> None:
    weights = torch.tensor([1.0, 5.0, 0.2])
    goal, batch = objective("classification", weights), examples("classification").batch(np.arange(5))
    expected = F.cross_entropy(goal(batch, outputs=True), batch.targets["label"], weight=weights)
    torch.testing.assert_close(total_loss(goal(batch), goal.counts(batch)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_have_the_gradient_of_the_whole(kind: TaskKind) -> None:
    goal, batch = objective(kind), examples(kind).batch(np.arange(5))
    goal.backward([batch])
    whole = [p.grad.clone() for p in goal.parameters() if p.grad is not None]
    goal.zero_grad()
    halves = goal.halves(batch)
    assert halves is not None and len(halves[0].sequence) + len(halves[1].sequence) == 5
    quarters = [part for half in halves for part in (goal.halves(half) or (half,))]
    goal.backward(quarters)
    for a, b in zip([p.grad for p in goal.parameters() if p.grad is not None], whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-6)
    single = examples(kind).batch(np.arange(1))
    assert goal.halves(single) is None


@pytest.mark.parametrize(
    ("kind", "depth"),
    [(kind, "full") for kind in KINDS] + [pytest.param(kind, "lora", marks=pytest.mark.long) for kind in KINDS[1:]]
    + [(KINDS[0], "lora")],
)  # fmt: skip
def test_a_toy_set_is_learnt(kind: TaskKind, depth: str) -> None:
    goal, data = objective(kind), examples(kind, [8] * 24, seed=1)
    if not goal.task.discrete:
        known = np.concatenate(data.truth)[:, None] if goal.task.per_residue else np.asarray(data.truth)
        goal.head.offset.copy_(torch.from_numpy(np.nanmean(known, 0)))
        goal.head.unit.copy_(torch.from_numpy(np.nanstd(known, 0)))
    if depth == "lora":
        assert goal.encoder is not None
        adapters.add(goal.encoder, LoraConfig(rank=8, dropout=0.0))
    before = {n: p.detach().clone() for n, p in goal.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in goal.parameters() if p.requires_grad], lr=0.01)
    batch = data.batch(np.arange(24))
    for _ in range(800 if depth == "lora" else 300):
        optimizer.zero_grad()
        terms = goal.backward([batch])
        optimizer.step()
    assert terms["label_loss"].mean < 0.1, terms["label_loss"].mean
    for name, parameter in goal.named_parameters():
        if name in before:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_do_not_depend_on_the_pack_and_come_in_order(kind: TaskKind) -> None:
    goal, data = objective(kind).eval(), examples(kind)
    together = outputs(lambda b: goal(b, outputs=True), data, 10_000, "cpu")
    alone = outputs(lambda b: goal(b, outputs=True), data, 1, "cpu")
    assert len(together) == len(data)
    for number in range(len(data)):
        np.testing.assert_allclose(together[number], alone[number], rtol=1e-4, atol=1e-5)
        batch = data.batch([number])
        expected = goal(batch, outputs=True).detach().numpy()
        np.testing.assert_allclose(
            together[number], expected if data.task.per_residue else expected[0], rtol=1e-4, atol=1e-5
        )


def test_a_pack_without_room_is_halved_and_the_answers_are_the_same() -> None:
    goal, data = objective("classification").eval(), examples("classification")

    def narrow(batch: Any) -> torch.Tensor:
        if len(batch.sequence) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        out: torch.Tensor = goal(batch, outputs=True)
        return out

    expected = outputs(lambda b: goal(b, outputs=True), data, 10_000, "cpu")
    np.testing.assert_allclose(outputs(narrow, data, 10_000, "cpu"), expected, rtol=1e-4, atol=1e-6)


def test_answers_are_probabilities() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3)) * 100
    none = np.zeros(3)
    exclusive = answers(Task("classification", ("a", "b", "c")), logits, none, none, 2.0)
    np.testing.assert_allclose(exclusive, torch.from_numpy(logits / 2).softmax(-1).numpy())
    several = answers(Task("multilabel", ("a", "b", "c")), logits, none, none, 2.0)
    np.testing.assert_allclose(several, torch.from_numpy(logits / 2).sigmoid().numpy(), atol=1e-12)
    numbers = answers(Task("regression", ("a", "b", "c")), logits, np.ones(3), np.full(3, 2.0))
    np.testing.assert_allclose(numbers, 2 * logits + 1)


@pytest.mark.parametrize("seed", range(5))
def test_an_epoch_reads_every_example_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 50, random.integers(1, 200))
    budget = int(random.integers(100, 400))
    sampler = Sampler(sizes, budget, seed)
    for epoch in (0, 3):
        packs = [sampler.members(epoch * sampler.batches_per_epoch + n) for n in range(sampler.batches_per_epoch)]
        assert sorted(np.concatenate(packs).tolist()) == list(range(len(sizes)))
        assert all(0 < sizes[pack].sum() <= budget for pack in packs)
    again = Sampler(sizes, budget, seed)
    np.testing.assert_array_equal(again.members(7), sampler.members(7))


def test_balanced_draws_even_out_classes() -> None:
    truth = np.array([0] * 180 + [1] * 20)
    weights = 1.0 / np.bincount(truth)[truth]
    sampler = Sampler(np.ones(200, dtype=np.int64), 10, 0, weights)
    drawn = np.concatenate([sampler.members(n) for n in range(20 * 20)])
    assert abs(truth[drawn].mean() - 0.5) < 0.05
    assert all(0 < len(sampler.members(n)) <= 10 for n in range(40))
