"""A model's outputs for sequences, in packs of like length, results in input order; a pack that does not fit is halved.

Shape letters: N examples, R residues, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from biometro.data.batch import Batch
from biometro.data.examples import Examples
from biometro.data.task import Task
from biometro.device import out_of_memory
from biometro.errors import UserError
from biometro.model import adapters
from biometro.model.bundle import Bundle
from biometro.model.heads import LabelHead


class Predictor:
    """A fine-tuned model on a device, ready to answer. A sequence's answer does not depend on others.

    Args:
        bundle: with `answers`.
        device: where to run.
        precision: auto is bfloat16 on CUDA and float32 elsewhere.
        batch_tokens: tokens read at once; default 8,192 on a CPU, 65,536 on CUDA.

    Raises UserError for a model that answers nothing.
    """

    def __init__(
        self, bundle: Bundle, device: torch.device | str = "cpu",
        precision: Literal["auto", "float32", "bfloat16"] = "auto", batch_tokens: int | None = None,
    ):  # fmt: skip
        head = bundle.modules.get("head")
        if bundle.answers is None or not isinstance(head, LabelHead):
            raise UserError("this model is not fine-tuned: it has no head that answers; see `biometro finetune`")
        self.device = torch.device(device)
        self.bundle = bundle.to(self.device).eval()
        self.asked, self.task, self.head = bundle.answers, bundle.answers.task, head
        half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half)
        self._budget = batch_tokens or (65536 if self.device.type == "cuda" else 8192)

    def __call__(self, letters: Sequence[bytes]) -> np.ndarray | list[np.ndarray]:
        """Calibrated probabilities (N, K) or numbers (N, K); for residues a list of (L, K).

        Sequences are cut to the length the model was trained with, where they have one answer. Raises AlphabetError
        for a letter that the model has no token for.
        """
        alphabet = self.bundle.alphabet
        most = None if self.task.per_residue else self.asked.max_length
        tokens = [alphabet.encode(sequence)[:most] for sequence in letters]
        blank: list[np.ndarray] = [np.zeros(len(t) if self.task.per_residue else 1, dtype=np.int64) for t in tokens]
        read = Examples(self.task, blank, tokens, alphabet.begin_ids, alphabet.end_ids)
        if self.bundle.adapter is not None:
            adapters.activate(self.bundle.encoder, [self.bundle.adapter])
        with self._autocast:
            found = outputs(self._model, read, self._budget, self.device)
        scale = self.head.offset.cpu().numpy(), self.head.unit.cpu().numpy()
        return answers(self.task, found, *scale, self.asked.calibration.temperature)

    def _model(self, batch: Batch) -> Tensor:
        margins = len(self.bundle.alphabet.begin_ids), len(self.bundle.alphabet.end_ids)
        out: Tensor = self.head(self.bundle.encoder(batch.sequence), batch.sequence, margins)
        return out


@torch.no_grad()
def outputs(
    model: Callable[[Batch], Tensor], examples: Examples, budget: int, device: torch.device | str
) -> np.ndarray | list[np.ndarray]:
    """(N, K) float32 outputs, or, where residues have labels, a list of (R, K) of each sequence's residues.

    Args:
        model: batch on the device -> (N, K), or (R, K) of all residues in it.
        examples: what to read; their labels are not looked at.
        budget: tokens read at once; results do not depend on it.
        device: where the model is.

    Raises UserError where a single sequence does not fit in memory.
    """
    results: list[np.ndarray] = [np.empty(0)] * len(examples)
    sizes = examples.sizes
    waiting = list(_packs(sizes, budget))[::-1]
    while waiting:
        members = waiting.pop()
        batch = examples.batch(members)
        try:
            out = model(batch.to(device)).float().cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(members) == 1:
                raise UserError(
                    f"a sequence of {sizes[members[0]]:,} tokens does not fit in memory; lower max_length"
                ) from None
            waiting += [members[len(members) // 2 :], members[: len(members) // 2]]
            continue
        if examples.task.per_residue:
            ends = np.cumsum(batch.targets["label_counts"].numpy())
            for member, part in zip(members, np.split(out, ends[:-1]), strict=True):
                results[member] = part
        else:
            for member, row in zip(members, out, strict=True):
                results[member] = row
    return results if examples.task.per_residue else np.stack(results)


def answers(
    task: Task, found: np.ndarray | list[np.ndarray], offset: np.ndarray, unit: np.ndarray, temperature: float = 1.0
) -> np.ndarray | list[np.ndarray]:
    """From outputs to what they mean, laid out alike: probabilities, or numbers in the unit of the labels.

    Args:
        task: classes exclude one another (softmax), labels do not (sigmoid).
        found: as `outputs` gives them.
        offset, unit: (K,), of numbers.
        temperature: by which logits are divided (Guo et al. 2017).
    """
    if isinstance(found, list):
        return [np.asarray(answers(task, part, offset, unit, temperature)) for part in found]
    if not task.discrete:
        return found * unit + offset
    logits = found.astype(np.float64) / temperature
    if task.kind == "multilabel":
        return 0.5 * (1 + np.tanh(0.5 * logits))
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def _packs(sizes: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Examples in order of length, cut where the next would pass the budget."""
    order = np.argsort(sizes, kind="stable")
    start = total = 0
    for place, size in enumerate(sizes[order].tolist()):
        if total + size > budget and place > start:
            yield order[start:place]
            start, total = place, 0
        total += size
    if len(order):
        yield order[start:]
