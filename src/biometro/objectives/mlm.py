"""Masked language modelling (Devlin et al. 2019, arXiv 1810.04805), as ESM-2 does it.

tokens ─▶ mask 15 % ─▶ encoder ─▶ vocabulary head at the masked positions ─▶ cross-entropy
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biometro.alphabet import Alphabet
from biometro.data.batch import Batch
from biometro.errors import UserError
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import VocabularyHead, VocabularyHeadConfig
from biometro.objectives.corruption import choose, letter_mask
from biometro.objectives.objective import Objective, Term, Terms


@dataclass(frozen=True)
class MLMConfig:
    """Masked language modelling.

    Args:
        mask_rate: share of each sequence's residues that are predicted.
        random_rate: share of those that read as a random residue instead of the mask token.
        keep_rate: share of those that read as they are.
    """

    mask_rate: float = 0.15
    random_rate: float = 0.1
    keep_rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.mask_rate < 1:
            raise UserError(f"mlm.mask_rate is {self.mask_rate}; it must lie between 0 and 1")
        if min(self.random_rate, self.keep_rate) < 0 or self.random_rate + self.keep_rate > 1:
            raise UserError("mlm.random_rate and mlm.keep_rate must be at least 0 and add up to at most 1")


class MLM(Objective):
    """Prediction of masked residues.

    Reports `mlm_loss` (nats per chosen residue), `mlm_accuracy`, and `mlm_masked_loss`: the loss where the model reads
    a mask token. Only that one can be compared with the unigram entropy, since a residue kept as it is betrays itself.
    """

    def __init__(self, encoder: EncoderConfig, alphabet: Alphabet, config: MLMConfig = MLMConfig()):
        super().__init__()
        self.config = config
        self.mask_token = alphabet.id(alphabet.mask)
        self.encoder = Encoder(encoder)
        self.vocabulary = VocabularyHead(VocabularyHeadConfig.of(encoder))
        self.letters_V: Tensor
        self.register_buffer("letters_V", letter_mask(alphabet), persistent=False)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        packed = batch.sequence
        chosen_M = choose(packed, self.letters_V[packed.tokens], self.config.mask_rate, generator)
        original_M = packed.tokens[chosen_M]
        draw_M = torch.rand(chosen_M.numel(), generator=generator, device=chosen_M.device)
        letters = self.letters_V.nonzero().squeeze(1)
        random_M = letters[torch.randint(letters.numel(), chosen_M.shape, generator=generator, device=letters.device)]
        written_M = torch.full_like(original_M, self.mask_token)
        written_M = torch.where(draw_M < self.config.random_rate + self.config.keep_rate, original_M, written_M)
        written_M = torch.where(draw_M < self.config.random_rate, random_M, written_M)
        masked = packed.with_tokens(packed.tokens.index_copy(0, chosen_M, written_M))
        return replace(
            batch,
            views={**batch.views, "masked": masked},
            targets={**batch.targets, "chosen": chosen_M, "original": original_M},
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        chosen = batch.targets["chosen"]
        return {"mlm_loss": torch.full((), float(chosen.numel()), device=chosen.device)}

    def forward(self, batch: Batch) -> Terms:
        h_MD = self.encoder(batch.views["masked"])[batch.targets["chosen"]]
        logits_MV = self.vocabulary(h_MD, self.encoder.embedding.weight).float()
        original_M = batch.targets["original"]
        count = self.counts(batch)["mlm_loss"]
        loss_M = F.cross_entropy(logits_MV, original_M, reduction="none")
        with torch.no_grad():
            right = (logits_MV.argmax(-1) == original_M).sum()
            hidden_M = batch.views["masked"].tokens[batch.targets["chosen"]] == self.mask_token
        return {
            "mlm_loss": Term(loss_M.sum(), count, 1.0),
            "mlm_accuracy": Term(right, count),
            "mlm_masked_loss": Term((loss_M.detach() * hidden_M).sum(), hidden_M.sum()),
        }

    def flops(self, batch: Batch) -> float:
        masked = int(batch.sequence.tokens.numel() * self.config.mask_rate)
        return self.encoder.flops(batch.sequence) + self.vocabulary.flops(masked)

    def bundle_modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "vocabulary": self.vocabulary}
