"""Supervised learning of labels: an encoder (or its vectors, computed before) and a head.

    tokens ─▶ encoder ─┐
    vectors ───────────┴▶ head ─▶ cross-entropy | binary cross-entropy of each label | squared error

Shape letters: T tokens, B sequences, R residues, D width, K outputs; N is B, or R where residues have labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biometro.data.batch import Batch, halve
from biometro.data.task import Task
from biometro.model.heads import LabelHead
from biometro.objectives.objective import Objective, Term, Terms


class Supervised(Objective):
    """Prediction of labels.

    Reports `label_loss`: nats per label (weighted by class where weights are given), or the squared error in units of
    the training labels' variance.

    Args:
        task: what is predicted.
        head: on the encoder's vectors.
        encoder: `Packed -> (T, D)`; None where batches bring vectors as the target `features` (T, D).
        margins: tokens before and after each sequence that are no residues (0, 0 for vectors of residues).
        class_weights: (K,) of classification, by which each example's loss is weighted.
        encoder_rate: the encoder learns at this share of the learning rate; LoRA's new weights at all of it.
    """

    def __init__(
        self,
        task: Task,
        head: LabelHead,
        encoder: nn.Module | None,
        margins: tuple[int, int],
        class_weights: Tensor | None = None,
        encoder_rate: float = 1.0,
    ):
        super().__init__()
        self.task, self.margins, self.encoder_rate = task, margins, encoder_rate
        self.encoder, self.head = encoder, head
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return batch

    def outputs(self, batch: Batch) -> Tensor:
        """(N, K) float32 logits, or numbers in units of the training labels."""
        h_TD = batch.targets["features"] if self.encoder is None else self.encoder(batch.sequence)
        out: Tensor = self.head(h_TD, batch.sequence, self.margins)
        return out.float()

    def _weights(self, label: Tensor) -> Tensor:
        """The weight of each label (of each known one, for numbers and several labels)."""
        if not self.task.kind.endswith("classification"):
            return torch.isfinite(label).float()
        known_N = (label >= 0).float()
        return known_N if self.class_weights is None else known_N * self.class_weights[label.clamp(min=0)]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"label_loss": self._weights(batch.targets["label"]).sum()}

    def forward(self, batch: Batch, outputs: bool = False) -> Terms | Tensor:  # type: ignore[override]
        """Losses; or the outputs themselves, (N, K) float32, through the same call, since hooks fire on calls."""
        if outputs:
            return self.outputs(batch)
        label = batch.targets["label"]
        out_NK, weights = self.outputs(batch), self._weights(label)
        if self.task.kind.endswith("classification"):
            loss = F.cross_entropy(out_NK, label.clamp(min=0), reduction="none")
        elif self.task.kind == "multilabel":
            loss = F.binary_cross_entropy_with_logits(out_NK, label.nan_to_num(), reduction="none")
        else:
            loss = (out_NK - (label.nan_to_num() - self.head.offset) / self.head.unit).square()
        return {"label_loss": Term((loss * weights).sum(), weights.sum(), 1.0)}

    def rate_share(self, name: str) -> float:
        return self.encoder_rate if name.startswith("encoder.") and "lora_" not in name else 1.0

    def halves(self, batch: Batch) -> tuple[Batch, Batch] | None:
        return halve(batch) if len(batch.sequence) > 1 else None

    def flops(self, batch: Batch) -> float:
        own = 0.0 if self.encoder is None else self.encoder.flops(batch.sequence)  # type: ignore[operator]
        return float(own) + self.head.flops(batch.sequence.tokens.numel())

    def bundle_modules(self) -> dict[str, nn.Module]:
        return {"head": self.head} if self.encoder is None else {"encoder": self.encoder, "head": self.head}
