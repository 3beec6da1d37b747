"""What each rank of tests/training/test_parallel.py runs, under torchrun: several small runs, one folder each."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biometro.alphabet import PROTEIN
from biometro.data.batch import Batch
from biometro.data.corpus import Shard, Split
from biometro.data.loader import Loader, PackingConfig
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.objective import Objective
from biometro.training.optimizer import OptimizerConfig
from biometro.training.parallel import ParallelConfig, World, join
from biometro.training.signals import StopRequest
from biometro.training.trainer import Outcome, TrainingConfig, train

ENCODER = EncoderConfig(width=32, depth=3, head_size=16, dropout=0.1)
CONFIG = TrainingConfig(
    steps=20, accumulate=4, checkpoint_every=5, valid_every=10, track=[], optimizer=OptimizerConfig(lr=3e-3, warmup=5)
)
STOP_AT = 13


def loader() -> Loader:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(5, 40, 200))])
    tokens = random.choice(PROTEIN.standard_ids, size=int(offsets[-1])).astype(np.uint8)
    return Loader(Split.of(Shard(tokens, offsets)), PROTEIN, PackingConfig(200, 30, reverse=0.2), 0)


def fresh(embeddings: Any = "tied") -> Objective:
    torch.manual_seed(0)
    return Metro(ENCODER, PROTEIN, MetroConfig(embeddings=embeddings))


def run(
    folder: Path, world: World, config: TrainingConfig = CONFIG, *, stop_on: int | None = None, **more: Any
) -> Outcome:
    """Train to the end, or until rank `stop_on`, and no other, is asked to stop in the middle of step STOP_AT."""
    folder.mkdir(exist_ok=True)
    source, request = loader(), StopRequest(None)

    def batch(number: int) -> Batch:
        if world.rank == stop_on and number // config.accumulate == STOP_AT - 1:
            request.reason = "SIGUSR1"
        return source.batch(number)

    validation = [source.batch(n) for n in range(3)]
    return train(
        fresh(**more), batch, config, folder, world=world, validation=validation, request=request, quiet=True
    )  # fmt: skip


def main(root: Path) -> None:
    with join("cpu") as world:
        name = f"{world.size}-ranks"
        for sharding in ("replicate", "shard", "hybrid") if world.size == 4 else ("replicate", "shard"):
            parallel = ParallelConfig(sharding=sharding)  # type: ignore[arg-type]
            # two ranks to a node, so that hybrid has something to share and something to replicate
            run(root / f"{name}-{sharding}", replace(world, node_size=2), replace(CONFIG, parallel=parallel))
        if world.size == 4:
            options = ParallelConfig(sharding="shard", recompute=True, reshard=False)
            run(root / "recomputed", world, replace(CONFIG, parallel=options), embeddings="disentangled")
            outcome = run(root / "cut", world, stop_on=2)
            assert outcome.stopped == "SIGUSR1" and outcome.progress.step == STOP_AT
        if world.size == 2:
            run(root / "whole", world)  # what a single process began


if __name__ == "__main__":
    main(Path(sys.argv[1]))
