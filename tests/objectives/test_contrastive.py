"""Losses of pairs against plain loops, and a step's gradient however it is cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from biometro.data.batch import Batch, frame
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.pairing import PairHead, PairHeadConfig, Projection, ProjectionConfig
from biometro.objectives import pair_losses
from biometro.objectives.contrastive import Contrastive, Known, Tower
from biometro.objectives.objective import Terms
from biometro.objectives.pair_losses import LossConfig

VIEWS = ("protein", "ligand")
D, P = 10, 6


def pack_of(lengths: list[int]) -> Any:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return frame(np.arange(int(starts[-1])) % 20 + 4, starts)


def batch_of(
    a: list[int], b: list[int], pairs: list[tuple[int, int]], random: np.random.Generator, **more: Any
) -> Batch:
    """Vectors of sequences a and b, which depend on their numbers alone, and pairs of places in these lists."""
    features = {
        f"{view}_features": torch.stack(
            [torch.randn(D, generator=torch.Generator().manual_seed(100 * k + i)) for i in ids]
        )
        for k, (view, ids) in enumerate(zip(VIEWS, (a, b), strict=True))
    }
    N = len(pairs)
    targets = {
        "a": torch.tensor(a), "b": torch.tensor(b), "left": torch.tensor([i for i, _ in pairs]),
        "right": torch.tensor([j for _, j in pairs]), "binds": torch.ones(N, dtype=torch.bool),
        "value": torch.from_numpy(random.normal(size=N).astype(np.float32)), "bound": torch.zeros(N, dtype=torch.int8),
    } | more  # fmt: skip
    views = {VIEWS[0]: pack_of([1] * len(a)), VIEWS[1]: pack_of([1] * len(b))}
    return Batch(views, targets | features)


def goal_of(losses: LossConfig, known: Known, dropout: float = 0.0, seed: int = 0) -> Contrastive:
    torch.manual_seed(seed)
    towers = {v: Tower(None, Projection(ProjectionConfig(D, P, dropout=dropout)), (0, 0)) for v in VIEWS}
    goal = Contrastive({v: v for v in VIEWS}, towers, PairHead(PairHeadConfig(P, 5)), known, losses)
    with torch.no_grad():
        goal.head.bias.fill_(-2.0)
        goal.head.slope.fill_(1.7)
        goal.head.log_scale.fill_(math.log(5.0))
    return goal


def parts(seed: int = 0) -> tuple[list[Batch], Known]:
    """Three micro-batches; sequences come again, one pair does not bind, some values are unknown, some are bounds."""
    random = np.random.default_rng(seed)
    batches = [
        batch_of([0, 1, 2], [0, 1, 2, 3], [(0, 0), (0, 1), (2, 2), (0, 3)], random),
        batch_of([3, 0], [4, 5], [(0, 0), (1, 1)], random, binds=torch.tensor([True, False])),
        batch_of([4, 5], [6, 0], [(0, 0), (1, 1)], random, bound=torch.tensor([-1, 1], dtype=torch.int8)),
    ]
    batches[0].targets["value"][1] = torch.nan
    a, b, binds, value = [], [], [], []
    for batch in batches:
        t = batch.targets
        a += t["a"][t["left"]].tolist()
        b += t["b"][t["right"]].tolist()
        binds += t["binds"].tolist()
        value += t["value"].tolist()
    a, b, binds, value = [*a, 3, 1], [*b, 3, 4], [*binds, True, True], [*value, math.nan, 0.5]  # pairs of other batches
    return batches, Known(np.array(a), np.array(b), np.array(binds), np.array(value), 7)


def gathered(goal: Contrastive, batches: list[Batch]) -> tuple[Tensor, Tensor, Any]:
    """Rows and pairs of all batches, for plain loops."""
    za, zb, ids_a, ids_b, pairs = [], [], [], [], []
    for batch in batches:
        t = batch.targets
        for left, right, binds, value, bound in zip(
            t["left"], t["right"], t["binds"], t["value"], t["bound"], strict=True
        ):
            pairs.append((int(left) + len(ids_a), int(right) + len(ids_b), bool(binds), float(value), int(bound)))
        a, b = goal(batch, vectors=True)
        za.append(a)
        zb.append(b)
        ids_a += t["a"].tolist()
        ids_b += t["b"].tolist()
    return torch.cat(za), torch.cat(zb), (ids_a, ids_b, pairs)


def by_loops(name: str, goal: Contrastive, batches: list[Batch], known: Known) -> Tensor:
    """The loss as its paper has it, one pair after another."""
    a, b, (ids_a, ids_b, pairs) = gathered(goal, batches)
    looked = {}
    for i, x in enumerate(ids_a):
        for j, y in enumerate(ids_b):
            partner, value = known(torch.tensor([x]), torch.tensor([y]))
            looked[i, j] = bool(partner), float(value)
    s = (a @ b.T) * goal.head.scale
    cosine = a @ b.T
    total: list[Tensor] = []
    if name in ("clip", "multiple_negatives", "triplet"):
        for i, j, binds, _, _ in pairs:
            if not binds:
                continue
            others = [k for k in range(len(b)) if not looked[i, k][0]]
            back = [k for k in range(len(a)) if not looked[k, j][0]]
            if name == "triplet":
                total += [F.relu(0.2 + max(cosine[i, k] for k in others) - cosine[i, j])]
                total += [F.relu(0.2 + max(cosine[k, j] for k in back) - cosine[i, j])]
                continue
            total.append(-(s[i, j] - torch.stack([s[i, j], *(s[i, k] for k in others)]).logsumexp(0)))
            if name == "clip":
                total.append(-(s[i, j] - torch.stack([s[i, j], *(s[k, j] for k in back)]).logsumexp(0)))
        return torch.stack(total).mean()
    if name == "siglip":
        for (i, j), (partner, _) in looked.items():
            total.append(F.softplus(-(1 if partner else -1) * (s[i, j] + goal.head.bias[0])))
        return torch.stack(total).sum() / len(a)
    if name == "soft":
        for values, logits in [
            ([[looked[i, j][1] for j in range(len(b))] for i in range(len(a))], s),
            ([[looked[i, j][1] for i in range(len(a))] for j in range(len(b))], s.T),
        ]:
            for row, own in zip(values, logits, strict=True):
                if any(math.isfinite(v) for v in row):
                    target = torch.tensor([v / 0.5 if math.isfinite(v) else -math.inf for v in row]).softmax(0)
                    total.append(-(target * own.log_softmax(0)).sum())
        return torch.stack(total).mean()
    measured = [(i, j, v, bound) for i, j, _, v, bound in pairs if math.isfinite(v)]
    if name in ("affinity", "cross"):
        for i, j, v, bound in measured:
            found = (
                goal.head.on_cosine(cosine[i, j]) if name == "affinity" else goal.head.cross(a[i : i + 1], b[j : j + 1])
            )
            error = found - v
            inside = (bound < 0 and float(error) < 0) or (bound > 0 and float(error) > 0)
            total.append(error.square().sum() * (0 if inside else 1))
        return torch.stack(total).mean()
    if name == "ranking":
        for i, j, v, bound in measured:
            for k, m, w, other in measured:
                if i == k and v > w and not bound and not other:
                    total.append(F.softplus(-(s[i, j] - s[k, m])))
        return torch.stack(total).mean()
    if name == "cosent":
        gaps = [20 * (cosine[k, m] - cosine[i, j]) for i, j, v, _ in measured for k, m, w, _ in measured if v > w]
        return torch.stack([torch.zeros(()), *gaps]).logsumexp(0)
    raise AssertionError(name)


@pytest.mark.parametrize("name", [n for n in pair_losses.LOSSES if n != "angle"])
def test_every_loss_is_what_plain_loops_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_losses, "BLOCK", 3)
    batches, known = parts()
    goal = goal_of(LossConfig(**{name: 1.0}), known)
    plain = by_loops(name, goal, batches, known)
    wanted = torch.autograd.grad(plain, list(goal.parameters()), allow_unused=True)
    goal.zero_grad()
    terms = goal.backward(batches)
    assert float(terms[f"{name}_loss"].mean) == pytest.approx(plain.item(), rel=1e-4)
    for (key, parameter), gradient in zip(goal.named_parameters(), wanted, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5, msg=key)


def test_clip_of_distinct_pairs_is_that_of_the_paper() -> None:
    """Figure 3 of Radford et al.: the mean of two cross-entropies over the diagonal."""
    batch = batch_of([*range(5)], [*range(5)], [(i, i) for i in range(5)], np.random.default_rng(0))
    known = Known(np.arange(5), np.arange(5), np.ones(5, bool), np.full(5, np.nan), 5)
    goal = goal_of(LossConfig(clip=1), known)
    a, b = goal(batch, vectors=True)
    logits, labels = goal.head.scale * a @ b.T, torch.arange(5)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    terms: Terms = goal(batch)
    assert float(terms["clip_loss"].mean) == pytest.approx(float(expected), rel=1e-5)
    assert float(terms["clip_over_chance"].mean) == pytest.approx(float(expected) - math.log(5), rel=1e-4)


def test_angles_are_those_of_sentence_transformers() -> None:
    util = pytest.importorskip("sentence_transformers.util")
    a, b = torch.randn(7, 12), torch.randn(7, 12)
    torch.testing.assert_close(pair_losses.angles(a, b), util.pairwise_angle_sim(a, b), rtol=1e-4, atol=1e-5)
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    value, similarity = torch.rand(7), torch.rand(7)
    loss = CoSENTLoss.__new__(CoSENTLoss)
    torch.nn.Module.__init__(loss)
    loss.scale, loss.similarity_fct = 20.0, lambda x, y: similarity
    theirs = loss.compute_loss_from_embeddings([a, b], value)
    torch.testing.assert_close(pair_losses.ordered(value, similarity), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("losses", [{"clip": 1.0}, {"clip": 0.5, "affinity": 1.0, "cross": 0.3, "ranking": 0.1}])
def test_a_step_has_one_gradient_however_it_is_cut(losses: dict[str, float]) -> None:
    """Real encoders; the reference holds everything in memory at once, as GradCache need not."""
    random = np.random.default_rng(0)
    batches = []
    for start in range(0, 12, 4):
        t = batch_of([*range(start, start + 4)], [*range(start, start + 4)], [(i, i) for i in range(4)], random).targets
        packs = [pack_of(random.integers(3, 9, 4).tolist()) for _ in VIEWS]
        batches.append(Batch(dict(zip(VIEWS, packs, strict=True)), t))
    known = Known(np.arange(12), np.arange(12), np.ones(12, bool), np.full(12, np.nan), 12)

    def fresh() -> Contrastive:
        torch.manual_seed(0)
        towers = {}
        for view in VIEWS:
            encoder = Encoder(EncoderConfig(width=16, depth=1, head_size=8, dropout=0.1))
            towers[view] = Tower(encoder, Projection(ProjectionConfig(16, P, hidden=7, dropout=0.2)), (1, 1))
        return Contrastive(
            {v: v for v in VIEWS}, towers, PairHead(PairHeadConfig(P, 5)), known, LossConfig(**losses)
        ).train()

    goal = fresh()
    read = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        read.append(goal(batch, vectors=True))
    from biometro.objectives.contrastive import _join, _step

    terms = goal(_join([_step(b, z) for b, z in zip(batches, read, strict=True)], batches[0], read[0]))
    # the terms are detached: take the gradient of the blocks as they come
    collected: list[Tensor] = []
    step = _join([_step(b, z) for b, z in zip(batches, read, strict=True)], batches[0], read[0])
    goal._terms(step, collected.append)
    torch.stack([c.reshape(()) for c in collected]).sum().backward()
    other = fresh()
    found = other.backward(batches, before=lambda number: torch.manual_seed(number) and None)
    for name, term in terms.items():
        assert float(found[name].mean) == pytest.approx(float(term.mean), rel=1e-4), name
    for (key, one), two in zip(goal.named_parameters(), other.parameters(), strict=True):
        if one.grad is None:
            assert two.grad is None or float(two.grad.abs().max()) == 0, key
        else:
            assert two.grad is not None
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-6, msg=key)
    third = fresh()  # idle micro-batches leave no trace
    third.backward([*batches, batches[0]], 1, before=lambda number: torch.manual_seed(number) and None)
    for one, two in zip(other.parameters(), third.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-7)


def test_partners_are_looked_up_both_ways_and_a_sequence_is_no_negative_of_itself() -> None:
    known = Known(np.array([0, 1]), np.array([2, 3]), np.array([True, False]), np.array([1.0, -1.0]), 4, same=True)
    partner, value = known(torch.arange(4), torch.arange(4))
    expected = np.eye(4, dtype=bool)
    expected[0, 2] = expected[2, 0] = True
    assert np.array_equal(partner.numpy(), expected)
    assert value[3, 1] == -1 and value[2, 0] == 1 and math.isnan(float(value[0, 1]))
    classes = Known(np.array([0]), np.array([1]), np.array([True]), np.array([np.nan]), 4, np.array([0, 1, 0, 1]))
    partner, _ = classes(torch.arange(4), torch.arange(4))
    assert partner.numpy().astype(int).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]] * 2 or partner[0, 1]


@pytest.mark.parametrize("losses", [{"clip": 1.0}, {"siglip": 1.0}, {"triplet": 1.0}, {"multiple_negatives": 1.0}])
def test_a_toy_set_is_learnt(losses: dict[str, float]) -> None:
    batch = batch_of([*range(16)], [*range(16)], [(i, i) for i in range(16)], np.random.default_rng(0))
    known = Known(np.arange(16), np.arange(16), np.ones(16, bool), np.full(16, np.nan), 16)
    goal = goal_of(LossConfig(**losses), known)
    optimizer = torch.optim.Adam(goal.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        goal.backward([batch])
        optimizer.step()
    a, b = goal(batch, vectors=True)
    assert ((a @ b.T).argmax(1) == torch.arange(16)).float().mean() >= 0.9
