"""A model's outputs for sequences, in packs of like length, results in input order; a pack that does not fit is halved.

Shape letters: N examples, R residues, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from biometro.data.batch import Batch
from biometro.data.examples import Examples
from biometro.data.task import Task
from biometro.device import out_of_memory
from biometro.errors import UserError


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
