"""Speed of scoring variants: masked marginals of all single mutants of a protein, beside what people use today.

Every contender takes the same real protein as text and gives (L, 20) log-probabilities, each place masked alone, from
the same random weights of an ESM-2 shape. The largest difference to fair-esm's loop stands beside each; the one-pass
method, which is another quantity, is timed in the same rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

import biometro
import common
from biometro.alphabet.protein import STANDARD
from biometro.inference.likelihood import Likelihood

FAIR, THEIRS, OURS, SEEN = (
    "fair-esm, one mask after another", "transformers, one mask after another", "biometro masked (exact)",
    "biometro wildtype (one pass)",
)  # fmt: skip
TARGET = (1.5, 2.0)  # time of fair-esm's loop in that of ours
LARGEST = 1e-4  # difference of log-probabilities


@torch.inference_mode()
def with_fair_esm(model: Any, letters: str) -> np.ndarray:
    """The loop of fair-esm's examples/variant-prediction/predict.py, masked marginals."""
    columns = [model.alphabet.get_idx(letter) for letter in STANDARD]
    _, _, tokens = model.alphabet.get_batch_converter()([("protein", letters)])
    rows = []
    for place in range(1, tokens.shape[1] - 1):
        masked = tokens.clone()
        masked[0, place] = model.alphabet.mask_idx
        rows.append(model(masked)["logits"].log_softmax(-1)[0, place, columns])
    return torch.stack(rows).numpy()


@torch.inference_mode()
def with_transformers(model: Any, tokenizer: Any, letters: str) -> np.ndarray:
    columns = tokenizer.convert_tokens_to_ids(list(STANDARD))
    inputs = tokenizer(letters, return_tensors="pt")
    rows = []
    for place in range(1, inputs["input_ids"].shape[1] - 1):
        masked = inputs["input_ids"].clone()
        masked[0, place] = tokenizer.mask_token_id
        logits = model(input_ids=masked, attention_mask=inputs["attention_mask"]).logits
        rows.append(logits[0, place].log_softmax(-1)[columns])
    return torch.stack(rows).numpy()


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    shape = common.SHAPES[options.model]
    long_enough = [s for s in common.sample(options.data, 50_000, options.seed) if len(s) >= options.length]
    letters = long_enough[0][: options.length].decode()
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = common.lively_esm(shape, folder, options.seed)
        likelihood = Likelihood(biometro.load(folder))
        contenders: dict[str, Callable[[], np.ndarray]] = {
            FAIR: partial(with_fair_esm, common.fair_model(model, shape), letters),
            THEIRS: partial(with_transformers, model, tokenizer, letters),
            OURS: lambda: likelihood.masked([letters.encode()])[0],
            SEEN: lambda: likelihood.seen([letters.encode()])[0],
        }
        likelihood.masked([letters.encode()], [range(4)])
        rounds = common.interleave(contenders, options, shape.width)
    rows = []
    for name in contenders:
        ratios = rounds.ratios(FAIR, name)
        difference = max(np.abs(rounds.results[name][r] - rounds.results[FAIR][r]).max() for r in rounds.results[name])
        target = common.verdict(median(ratios), *TARGET) if name == OURS else "-"
        if name == OURS and difference > LARGEST:
            target += f", DIFFERS by more than {LARGEST:g}"
        seconds = common.spread(list(rounds.seconds[name].values()))
        rows.append([name, seconds, common.spread(ratios), f"{difference:.1e}", target])
    common.print_table(
        f"All single mutants of a protein of {options.length} residues, ESM-2 {options.model} shape, "
        f"{options.rounds} rounds",
        ["", "seconds", "time of fair-esm's loop in its own", "largest difference (nats)", "must / aim"],
        rows,
    )
    common.print_environment(rounds, options.seed, "fair-esm", "transformers")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--model", choices=list(common.SHAPES), default="8M")
    parser.add_argument("--length", type=int, default=300, help="residues")
    main(parser.parse_args())
