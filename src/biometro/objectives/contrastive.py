"""Contrastive learning of pairs: two towers, one space, losses over all rows of a step.

    micro-batches ─▶ towers, no gradient ─▶ rows of all micro-batches and ranks ─▶ losses ─▶ gradients of rows
                └─▶ towers again, one micro-batch at a time ◀─────────────────────────────────────┘

A loss over all pairs of rows is no sum over micro-batches. So its gradient is taken with respect to the vectors, which
are small, and carried through the towers one micro-batch at a time (GradCache; Gao et al. 2021, arXiv 2101.06983): a
step of thousands of pairs takes the memory of one micro-batch, and its gradient is that of the whole.

Shape letters: A, B sequences of the sides, P dimensions, N pairs, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from biometro.data.batch import Batch
from biometro.model.pairing import PairHead, Projection
from biometro.objectives import pair_losses
from biometro.objectives.objective import Objective, Term, Terms
from biometro.objectives.pair_losses import LossConfig, Rows

TARGETS = ("left", "right", "binds", "value", "bound")
"""Of each pair, beside the numbers `a` and `b` of the sequences of the two views."""


class Known(nn.Module):
    """What the training set knows of any pair, looked up by the numbers of its sequences.

    Args:
        a, b: (K,) int64, sequences of known pairs.
        binds: (K,) bool.
        value: (K,) float32 in standardised units, NaN unknown.
        count: sequences of side b.
        classes: (sequences,) int64 where all pairs of one class are partners; both sides then have the same numbers.
        same: whether both sides have the same numbers, so that a sequence is never its own negative, and a pair holds
            both ways.
    """

    def __init__(
        self, a: np.ndarray, b: np.ndarray, binds: np.ndarray, value: np.ndarray, count: int,
        classes: np.ndarray | None = None, same: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.count, self.same = count, same or classes is not None
        key = a.astype(np.int64) * count + b
        if self.same:
            key = np.concatenate([key, b.astype(np.int64) * count + a])
            binds, value = np.concatenate([binds, binds]), np.concatenate([value, value])
        # of what is known twice, what binds, and then what was measured, comes first
        order = np.lexsort((np.isnan(value), ~binds, key))
        first = np.ones(len(order), bool)
        first[1:] = key[order][1:] != key[order][:-1]
        kept = order[first]
        self.key: Tensor
        self.binds: Tensor
        self.value: Tensor
        self.classes: Tensor | None
        self.register_buffer("key", torch.from_numpy(key[kept]), persistent=False)
        self.register_buffer("binds", torch.from_numpy(binds[kept].astype(bool)), persistent=False)
        self.register_buffer("value", torch.from_numpy(value[kept].astype(np.float32)), persistent=False)
        found = None if classes is None else torch.from_numpy(classes.astype(np.int64))
        self.register_buffer("classes", found, persistent=False)

    def forward(self, a_Q: Tensor, b_R: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each couple are partners, or the same sequence, (Q, R) bool, and what was measured, (Q, R)."""
        wanted = a_Q[:, None] * self.count + b_R[None]
        if len(self.key):
            place = torch.searchsorted(self.key, wanted).clamp(max=len(self.key) - 1)
            there = self.key[place] == wanted
            partner, value = there & self.binds[place], torch.where(there, self.value[place], torch.nan)
        else:
            partner, value = torch.zeros_like(wanted, dtype=torch.bool), torch.full(wanted.shape, torch.nan)
        if self.classes is not None:
            partner = self.classes[a_Q][:, None] == self.classes[b_R][None]
        if self.same:
            partner = partner | (a_Q[:, None] == b_R[None])
        return partner, value.to(a_Q.device)


class Tower(NamedTuple):
    """How one view is read. encoder: None where the batch brings pooled vectors, as the target `<view>_features`."""

    encoder: nn.Module | None
    projection: Projection
    margins: tuple[int, int]


@dataclass(frozen=True)
class Step:
    """The rows of a step, of all its micro-batches: z of the two sides, and the numbers and targets as a batch has
    them, with `left` and `right` as rows of the whole step."""

    z: tuple[Tensor, Tensor]
    ids: tuple[Tensor, Tensor]
    targets: dict[str, Tensor]


class Contrastive(Objective):
    """Learning of pairs.

    Reports each loss of `LossConfig` as `<name>_loss`, and of those that pick a partner out of a batch
    `<name>_over_chance`: the loss minus the mean log of the number of candidates. That is what batches of different
    size can be compared by (chance is 0, better is below); the loss itself falls with the batch for no better model.

    Args:
        views: names of the two sides, and which tower reads each; one tower may read both.
        towers: by name.
        head: of pairs.
        known: what the training set knows of any pair.
        losses: their weights.
        encoder_rate: encoders learn at this share of the learning rate; LoRA's new weights at all of it.
    """

    def __init__(
        self, views: Mapping[str, str], towers: Mapping[str, Tower], head: PairHead, known: Known, losses: LossConfig,
        encoder_rate: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        first, second = views
        self.views, self.tower_of = (first, second), dict(views)
        self.losses, self.encoder_rate = losses, encoder_rate
        self.margins = {name: tower.margins for name, tower in towers.items()}
        self.encoders = nn.ModuleDict({name: t.encoder for name, t in towers.items() if t.encoder is not None})
        self.projections = nn.ModuleDict({name: tower.projection for name, tower in towers.items()})
        self.head, self.known = head, known

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return batch

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {name: term.count for name, term in self(batch).items() if term.weight is not None}

    # Vectors ---------------------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self, batch: Batch | Step, vectors: bool | str = False
    ) -> Terms | Tensor | tuple[Tensor, Tensor]:
        """Terms of a batch, or of the rows of a step; or the batch's vectors, (A, P) and (B, P), or those of one view
        alone, (sequences, P). All through the same call, since hooks fire on calls."""
        if isinstance(batch, Step):
            return self._terms(batch, lambda loss: None)
        if isinstance(vectors, str):
            return self._read(batch, vectors)
        z = self._read(batch, self.views[0]), self._read(batch, self.views[1])
        return z if vectors else self._terms(_step(batch, z), lambda loss: None)

    def _read(self, batch: Batch, view: str) -> Tensor:
        name = self.tower_of[view]
        projection = self.projections[name]
        assert isinstance(projection, Projection)
        if name not in self.encoders:
            pooled_BD = batch.targets[f"{view}_features"]
        else:
            packed = batch.views[view]
            pooled_BD = projection.pool(self.encoders[name](packed), packed, self.margins[name])
        z_BP: Tensor = projection(pooled_BD)
        return z_BP

    # Losses ----------------------------------------------------------------------------------------------------------

    def _terms(self, step: Step, each: Callable[[Tensor], None]) -> Terms:
        """All losses. `each` is called with the weighted, divided loss of every block as it is computed; when it
        takes the gradient, nothing of a block is kept."""
        rows, head = self._rows(step), self.head
        terms: Terms = {}

        def add(name: str, parts: Iterable[tuple[Tensor, ...]], count: float, weight: float | None = None) -> None:
            share = self.losses.weights[name] if weight is None else weight
            for total, *chance, counted in parts:
                each(share * total / max(count, 1.0))
                found = {f"{name}_loss": Term(total.detach(), counted.detach(), share)}
                if chance:
                    found[f"{name}_over_chance"] = Term(total.detach() - chance[0].detach(), counted.detach())
                for key, term in found.items():
                    terms[key] = terms[key] + term if key in terms else term

        binding, N = float(rows.binds.sum()), float(rows.value.isfinite().sum())
        for name in self.losses.weights:
            if name == "clip":
                for side in (rows, rows.swapped()):
                    add(name, pair_losses.info_nce(side, head), 2 * binding)
            elif name == "multiple_negatives":
                add(name, pair_losses.info_nce(rows, head), binding)
            elif name == "siglip":
                add(name, pair_losses.siglip(rows, head), len(rows.a))
            elif name == "triplet":
                for side in (rows, rows.swapped()):
                    add(name, pair_losses.triplet(side, self.losses.margin), 2 * binding)
            elif name == "soft":
                measured = pair_losses.anchors_measured(rows) + pair_losses.anchors_measured(rows.swapped())
                for side in (rows, rows.swapped()):
                    add(name, pair_losses.soft(side, head, self.losses.softness), measured)
            else:
                add(name, [self._of_pairs(name, rows)], N if name in ("affinity", "cross") else 0.0)
        return terms

    def _of_pairs(self, name: str, rows: Rows) -> tuple[Tensor, Tensor]:
        """Losses of the pairs themselves, not of all rows."""
        a_NP, b_NP = rows.a[rows.left], rows.b[rows.right]
        if name == "cross":
            return pair_losses.squared_error(rows, self.head.cross(a_NP, b_NP))
        if name == "angle":
            one = torch.ones((), device=a_NP.device)
            return pair_losses.ordered(rows.value, pair_losses.angles(a_NP, b_NP)), one
        cosine_N = (a_NP * b_NP).sum(-1)
        if name == "affinity":
            return pair_losses.squared_error(rows, self.head.on_cosine(cosine_N))
        if name == "cosent":
            return pair_losses.ordered(rows.value, cosine_N), torch.ones((), device=a_NP.device)
        total, count = pair_losses.ranking(rows, cosine_N, self.head.scale)
        return total / count.clamp(min=1), (count > 0).float()

    def _rows(self, step: Step) -> Rows:
        (a, b), (a_ids, b_ids) = step.z, step.ids
        known = self.known

        def look(some: Tensor, flipped: bool) -> tuple[Tensor, Tensor]:
            if not flipped:
                found: tuple[Tensor, Tensor] = known(a_ids[some], b_ids)
                return found
            partner, value = known(a_ids, b_ids[some])
            return partner.T, value.T

        t = step.targets
        return Rows(a, b, t["left"], t["right"], t["binds"], t["value"], t["bound"], look)

    # The gradient of a step ------------------------------------------------------------------------------------------

    def backward(
        self,
        batches: Sequence[Batch],
        idle: int = 0,
        add: Callable[[Tensor], Tensor] = lambda counts: counts,
        before: Callable[[int], None] = lambda number: None,
    ) -> Terms:
        """As of any objective; the losses are those of all rows of all micro-batches and ranks at once."""
        counting = len(batches) - idle
        single = len(batches) == 1  # its vectors can wait for their gradient, and need not be computed twice
        read = []
        for number, batch in enumerate(batches):
            before(number)
            with nullcontext() if single else torch.no_grad():
                read.append(self(batch, vectors=True))
        steps = [_step(batch, z) for batch, z in zip(batches[:counting], read, strict=False)]
        whole, own, ranks = _gather(_join(steps, batches[0], read[0]), add)
        leaves = tuple(z.detach().requires_grad_() for z in whole.z)
        terms = self._terms(
            Step((leaves[0], leaves[1]), whole.ids, whole.targets), lambda loss: (loss / ranks).backward()
        )  # ranks compute the same losses, and gradients of the head add up over them
        wanted = [
            (ranks * (torch.zeros_like(z) if z.grad is None else z.grad))[part]
            for z, part in zip(leaves, own, strict=True)
        ]  # fmt: skip
        starts = [0, 0]
        for number, batch in enumerate(batches):
            if not single:
                before(number)
            z_ab = read[number] if single else self(batch, vectors=True)
            gradients = []
            for side, z in enumerate(z_ab):
                part = wanted[side][starts[side] : starts[side] + len(z)] if number < counting else torch.zeros_like(z)
                starts[side] += len(z) if number < counting else 0
                gradients.append(part)
            learnt = [(z, g) for z, g in zip(z_ab, gradients, strict=True) if z.requires_grad]
            torch.autograd.backward([z for z, _ in learnt], [g for _, g in learnt])
        return {name: Term(term.sum / ranks, term.count / ranks, term.weight) for name, term in terms.items()}

    def rate_share(self, name: str) -> float:
        return self.encoder_rate if name.startswith("encoders.") and "lora_" not in name else 1.0

    def flops(self, batch: Batch) -> float:
        total = 0.0
        for view in self.views:
            projection = self.projections[self.tower_of[view]]
            assert isinstance(projection, Projection)
            total += projection.flops(len(batch.views[view]))
            if self.tower_of[view] in self.encoders:
                total += float(self.encoders[self.tower_of[view]].flops(batch.views[view]))  # type: ignore[operator]
        return total

    def bundle_modules(self) -> dict[str, nn.Module]:
        return {"head": self.head}


def _step(batch: Batch, z: tuple[Tensor, Tensor]) -> Step:
    ids = batch.targets["a"], batch.targets["b"]
    return Step(z, ids, {name: batch.targets[name] for name in TARGETS})


def _join(steps: Sequence[Step], like: Batch, z: tuple[Tensor, Tensor]) -> Step:
    """The micro-batches of this rank as one; of none, no rows."""
    if not steps:
        empty = _step(like, z)
        none = {name: t[:0] for name, t in empty.targets.items()}
        return Step((z[0][:0], z[1][:0]), (empty.ids[0][:0], empty.ids[1][:0]), none)
    starts = [0, 0]
    targets: dict[str, list[Tensor]] = {name: [] for name in TARGETS}
    for step in steps:
        for name in TARGETS:
            shift = starts[("left", "right").index(name)] if name in ("left", "right") else None
            targets[name].append(step.targets[name] if shift is None else step.targets[name] + shift)
        starts = [start + len(z) for start, z in zip(starts, step.z, strict=True)]
    return Step(
        (torch.cat([s.z[0] for s in steps]), torch.cat([s.z[1] for s in steps])),
        (torch.cat([s.ids[0] for s in steps]), torch.cat([s.ids[1] for s in steps])),
        {name: torch.cat(parts) for name, parts in targets.items()},
    )


def _gather(step: Step, add: Callable[[Tensor], Tensor]) -> tuple[Step, tuple[slice, slice], int]:
    """The rows of all ranks, in their order; where this rank's are; and how many ranks there are.

    Each rank writes its rows among zeros, and `add` sums them up.
    """
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_available() and dist.is_initialized() else (1, 0)
    if ranks == 1:
        return step, (slice(None), slice(None)), 1
    device = step.z[0].device
    sizes = torch.zeros(ranks, 3, dtype=torch.int64, device=device)
    sizes[rank] = torch.tensor([len(step.z[0]), len(step.z[1]), len(step.targets["left"])], device=device)
    sizes = add(sizes)
    starts, totals = (sizes.cumsum(0) - sizes)[rank].tolist(), sizes.sum(0).tolist()

    def everybody(tensor: Tensor, kind: int) -> Tensor:
        dtype = torch.int64 if tensor.dtype in (torch.bool, torch.int8) else tensor.dtype
        # NaN would spread over the sum
        hidden = tensor.detach().nan_to_num(nan=_UNKNOWN) if tensor.is_floating_point() else tensor
        found = torch.zeros(totals[kind], *tensor.shape[1:], dtype=dtype, device=device)
        found[starts[kind] : starts[kind] + len(tensor)] = hidden.to(dtype)
        found = add(found)
        return found.to(tensor.dtype)

    targets = {name: everybody(tensor, 2) for name, tensor in step.targets.items() if name not in ("left", "right")}
    targets["value"] = targets["value"].masked_fill(targets["value"] == _UNKNOWN, torch.nan)
    for side, name in enumerate(("left", "right")):
        targets[name] = everybody(step.targets[name] + starts[side], 2)
    own = tuple(slice(start, start + len(z)) for start, z in zip(starts, step.z, strict=False))
    z = everybody(step.z[0], 0), everybody(step.z[1], 1)
    return Step(z, (everybody(step.ids[0], 0), everybody(step.ids[1], 1)), targets), (own[0], own[1]), ranks


_UNKNOWN = -1.0e30
