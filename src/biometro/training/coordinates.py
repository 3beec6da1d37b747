"""The coordinate check of muP: how large activations are, and how far a few steps move them, at several widths.

    model of each width ─▶ a few steps ─▶ the same batch before and after ─▶ size of every activation and of its change

Under muP neither depends on the width (Yang et al. 2022, arXiv 2203.03466, appendix D.1); in the standard
parametrisation changes grow with it, so that a learning rate that suits one width is too high for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from biometro.data.batch import Batch
from biometro.model.encoder import Block, Encoder
from biometro.model.heads import TokenHead, VocabularyHead
from biometro.objectives.objective import Objective
from biometro.training import optimizer as optim
from biometro.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Coordinates:
    """Root mean squares over tokens and coordinates, by name of the activation, each (steps + 1,): before any step, and
    after each. moved: of the difference to what stood there before any step."""

    size: dict[str, np.ndarray]
    moved: dict[str, np.ndarray]

    @staticmethod
    def mean(each: Sequence[Coordinates]) -> Coordinates:
        """Over seeds, geometric: the chance of one start would look like a drift."""
        whole: list[dict[str, np.ndarray]] = []
        for what in ("size", "moved"):
            found = [getattr(one, what) for one in each]
            whole.append({n: np.exp(np.mean([np.log(np.maximum(f[n], 1e-30)) for f in found], 0)) for n in found[0]})
        return Coordinates(*whole)


def coordinates(
    build: Callable[[], Objective], source: Callable[[int], Batch], config: OptimizerConfig, steps: int, seed: int = 0
) -> Coordinates:
    """Train for a few steps at a constant learning rate, and look at the activations of one batch after each.

    Args:
        build: makes the objective, fresh.
        source: clean micro-batches by number; number `steps` is the one looked at.
        config: the optimizer; its schedule and clipping are left out, as they would hide what is looked for.
        steps: how many.
        seed: of corruption.
    """
    goal = build().train()
    optimizer = optim.build(goal, config)

    def prepared(number: int) -> Batch:
        return goal.prepare(source(number), torch.Generator().manual_seed(seed * 1_000_003 + number))

    watched = prepared(steps)
    first: dict[str, Tensor] = {}
    size: dict[str, list[float]] = {}
    moved: dict[str, list[float]] = {}
    for number in range(steps + 1):
        if number:
            goal.backward([prepared(number - 1)])
            optim.apply(optimizer, config.lr, torch.ones(()))
        for name, found in _activations(goal, watched):
            before = first.setdefault(name, found)
            size.setdefault(name, []).append(_rms(found))
            moved.setdefault(name, []).append(_rms(found - before))
    return Coordinates({n: np.array(v) for n, v in size.items()}, {n: np.array(v) for n, v in moved.items()})


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


@torch.no_grad()
def _activations(goal: Objective, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Of every encoder the stream after each layer and what attention and feed-forward add to it, and the answers of
    its heads; all on the masked view, since what an auxiliary writes changes with its weights."""
    packed = batch.views["masked"]
    modules = goal.bundle_modules()
    for role, head_roles in {"encoder": ("vocabulary", "rtd"), "auxiliary": ("auxiliary_vocabulary",)}.items():
        encoder = modules.get(role)
        if not isinstance(encoder, Encoder):
            continue
        with _recording(encoder) as found:
            h_TD = encoder(packed)
        yield from ((f"{role}, {name}", tensor) for name, tensor in found.items())
        for name in head_roles:
            head = modules.get(name)
            if isinstance(head, VocabularyHead):
                yield f"{name} logits", head(h_TD, encoder.embedding.weight)
            elif isinstance(head, TokenHead):
                yield f"{name} logits", head(h_TD)


@contextmanager
def _recording(encoder: Encoder) -> Iterator[dict[str, Tensor]]:
    """Outputs of its parts while it is called."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, given: Any, out: Tensor) -> None:
            found[name] = out

        return hook

    handles = [encoder.embedding.register_forward_hook(keep("embedding"))]
    for number, block in enumerate(encoder.blocks, 1):
        assert isinstance(block, Block)
        parts = {"attention": block.attention, "feed-forward": block.ffn, "stream": block}
        handles += [part.register_forward_hook(keep(f"layer {number} {name}")) for name, part in parts.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def slopes(widths: Sequence[int], values: Sequence[float]) -> float:
    """The power of the width with which values grow: of a straight line through their logarithms."""
    return float(np.polyfit(np.log(widths), np.log(np.maximum(values, 1e-30)), 1)[0])
