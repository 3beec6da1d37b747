"""Speed of pretraining on a CPU: METRO and MLM steps of biometro, beside the loop that people write with transformers.

All train the same ESM-2 shape on the same cropped sequences, in as many optimizer steps, with clipping and fused AdamW,
in float32. transformers reads them 16 a batch in file order, padded, masked by its own collator; biometro reads them
in packs from its loader and does what its trainer does in a step. Only real tokens count (start and end included).
Useful work is three forward passes by `Objective.flops`, which counts the vocabulary head at masked positions only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

import common
from biometro.alphabet import PROTEIN
from biometro.data.corpus import Shard, Split
from biometro.data.loader import Loader, PackingConfig
from biometro.model.encoder import EncoderConfig
from biometro.objectives.corruption import generator_for
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.mlm import MLM
from biometro.objectives.objective import Objective
from biometro.training import optimizer as optim

BATCH = 16  # sequences in a step of the usual loop
LOOP, MASKED, THIRD, QUARTER = (
    "transformers, padded 16, file order", "biometro MLM", "biometro METRO, auxiliary 1/3 depth",
    "biometro METRO, auxiliary 1/4 width",
)  # fmt: skip
MLM_TARGET = (2.8, 3.3)  # transformers' time in units of biometro's
METRO_TARGET = (1.34, 1.15)  # a METRO step in units of an MLM step


def crops(sequences: Sequence[bytes], crop: int, seed: int) -> list[bytes]:
    """A random window of at most `crop` residues of each."""
    random = np.random.default_rng(seed)
    starts = [int(random.integers(max(len(s) - crop, 0) + 1)) for s in sequences]
    return [s[start : start + crop] for s, start in zip(sequences, starts, strict=True)]


def usual_loop(sequences: Sequence[bytes], shape: common.Shape) -> Callable[[], None]:
    """EsmForMaskedLM, DataCollatorForLanguageModeling, AdamW and clipping as Trainer has them by default."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = common.esm(shape, folder)
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def epoch() -> None:
        for start in range(0, len(sequences), BATCH):
            examples = [tokenizer(s.decode()) for s in sequences[start : start + BATCH]]
            model(**collate(examples)).loss.backward()  # over the labels that are not -100
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def our_loop(objective: Objective, loader: Loader, seed: int) -> Callable[[], None]:
    """One epoch of the loader, each step as `biometro.training.trainer.train` does it."""
    config = optim.OptimizerConfig(lr=1e-4)
    optimizer = optim.build(objective.train(), config)

    def epoch() -> None:
        for number in range(loader.batches_per_epoch):
            generator = generator_for(torch.device("cpu"), seed, number)
            objective.backward([objective.prepare(loader.batch(number), generator)])
            clip_grad_norm_(objective.parameters(), config.clip)
            for group in optimizer.param_groups:
                group["lr"] = optim.learning_rate(config, number, loader.batches_per_epoch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def packs(sequences: Sequence[bytes], steps: int, seed: int) -> Loader:
    """A loader that lays the sequences out in as many packs as the other loop has batches."""
    offsets, longest = np.cumsum([0, *map(len, sequences)]), max(map(len, sequences))
    budget = -(-(int(offsets[-1]) + 2 * len(sequences)) // steps) + longest + 1
    split = Split.of(Shard(PROTEIN.encode(b"".join(sequences)), offsets))
    return Loader(split, PROTEIN, PackingConfig(batch_tokens=budget, crop=longest), seed)


def objectives(shape: common.Shape) -> dict[str, Objective]:
    """MLM, and METRO with the auxiliary at a third of the depth (as in METRO) or a quarter of the width (ELECTRA)."""
    encoder = EncoderConfig(
        width=shape.width, depth=shape.depth, head_size=shape.width // shape.heads, token_dropout=True
    )
    third = MetroConfig(mask_rate=0.15, clm_positions="masked")  # as their papers have it, whatever our defaults are
    narrow = replace(third, auxiliary_depth=shape.depth, auxiliary_width=shape.width // 4)
    return {
        MASKED: MLM(encoder, PROTEIN),
        THIRD: Metro(encoder, PROTEIN, third),
        QUARTER: Metro(encoder, PROTEIN, narrow),
    }


def row(name: str, rounds: common.Rounds, tokens: int, flops: float) -> list[str]:
    """Speed and target of one contender."""
    faster, slower = rounds.ratios(LOOP, name), rounds.ratios(name, MASKED)
    target = f"METRO / MLM {common.verdict(median(slower), *METRO_TARGET)}"
    if name in (LOOP, MASKED):
        target = "-" if name == LOOP else common.verdict(median(faster), *MLM_TARGET)
    return [
        name, f"{rounds.rate(name, tokens):,.0f}", common.spread(faster), common.spread(slower),
        f"{rounds.fraction(name, flops):.2f}", target,
    ]  # fmt: skip


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    shape = common.SHAPES[options.objective_shape]
    drawn = common.sample(options.data, BATCH * options.steps, options.seed)
    sequences = crops(drawn, options.crop, options.seed)
    loader, goals = packs(sequences, options.steps, options.seed), objectives(shape)
    runs = {LOOP: usual_loop(sequences, shape)}
    runs |= {name: our_loop(goal, loader, options.seed) for name, goal in goals.items()}
    for run in runs.values():
        run()  # the first pass sets things up
    rounds = common.interleave(runs, options, shape.width)
    batches = [loader.batch(number) for number in range(loader.batches_per_epoch)]
    tokens, padded = sum(batch.tokens for batch in batches), 0
    for start in range(0, len(sequences), BATCH):
        padded += BATCH * (max(map(len, sequences[start : start + BATCH])) + 2)
    common.print_table(
        f"Pretraining, {options.objective_shape} shape: {len(sequences)} real proteins cut to {options.crop} residues, "
        f"{tokens:,} tokens ({padded:,} with padding), {options.steps} batches or {len(batches)} packs, "
        f"{options.rounds} rounds",
        [
            "",
            "tokens/s",
            "transformers' time / its (range)",
            "time / biometro MLM (range)",
            "of matmul limit",
            "target",
        ],
        [row(name, rounds, tokens, 3 * sum(map(goals.get(name, goals[MASKED]).flops, batches))) for name in runs],
    )
    common.print_environment(rounds, options.seed, "transformers")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--objective-shape", choices=list(common.SHAPES), default="8M")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps in a round, of 16 sequences each")
    parser.add_argument("--crop", type=int, default=512, help="residues")
    main(parser.parse_args())
