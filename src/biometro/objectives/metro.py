"""METRO: an auxiliary model corrupts, the main model detects and restores (Bajaj et al. 2022, arXiv 2204.06644).

    tokens ─▶ mask 15 % ─▶ auxiliary ─▶ L_aux, and a sample for each masked residue
                                              │
    tokens with the samples in place ◀────────┘ ─▶ main ─▶ L_rtd at every residue: was it replaced?
                                                        └▶ L_clm: what stood there?
    L = L_aux + rtd_weight L_rtd + clm_weight L_clm

After ELECTRA (Clark et al. 2020, arXiv 2003.10555) and COCO-LM (Meng et al. 2021, arXiv 2102.08473): all chosen
residues are masked, sampling carries no gradient, a sample equal to the original counts as original, the auxiliary
has no dropout so that one pass serves its loss and its samples, and the corrective head has no copy gate. The auxiliary
may start from a model that was pretrained by MLM, or be one and stay as it is, with a temperature that falls
(Fast-ELECTRA, Dong et al. 2023, arXiv 2310.07347).
Positions other than standard residues are never replaced and are not counted as detections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biometro.alphabet import Alphabet
from biometro.data.batch import Batch, Packed
from biometro.errors import UserError
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import TokenHead, TokenHeadConfig, VocabularyHead, VocabularyHeadConfig
from biometro.objectives.corruption import choose, gumbel, letter_mask, sample
from biometro.objectives.objective import Objective, Term, Terms


@dataclass(frozen=True)
class MetroConfig:
    """Replaced-token detection with restoration.

    Args:
        mask_rate: share of each sequence's residues that the auxiliary model may replace (ELECTRA, COCO-LM: 0.15).
        keep_rate: share of those that the auxiliary reads as they are. It predicts and samples them all the same
            (ELECTRA's code: 0.15; COCO-LM and METRO mask all).
        auxiliary_depth: layers of the auxiliary model; default a third of the main model's, at least 1.
        auxiliary_width: its width; default that of the main model. ELECTRA: full depth and a quarter of the width.
        auxiliary: folder of a model of the same alphabet, pretrained by MLM (or METRO, of which the auxiliary is
            taken): the auxiliary has its shape and starts from its weights.
        auxiliary_frozen: and keeps them. Its training is not part of this run's FLOPs. One that is trained further
            keeps its own muP base, too.
        temperature: of sampling.
        temperature_from: what it is at the start. It falls to `temperature`, the difference by a factor of e in each
            tenth of the steps.
        rtd_weight: lambda, the weight of detection (ELECTRA and COCO-LM 50, DeBERTaV3's code 10; such weights stand in
            the way of restoration in small models: docs/results.md, "Which knob of METRO").
        clm_weight: the weight of restoration; 0 leaves it out (ELECTRA).
        clm_positions: restore at the masked residues alone (COCO-LM, METRO) or at all, replaced or not.
        clm_head: dense layer, GELU and norm before the tied projection (exports to EsmForMaskedLM), or the
            projection alone (COCO-LM).
        rtd_head: one linear layer (COCO-LM), or dense and linear (ELECTRA).
        embeddings: tied (one token table), disentangled (the main model reads the auxiliary's table, with no gradient
            into it, plus a difference of its own; DeBERTaV3, arXiv 2111.09543), or separate.
    """

    mask_rate: float = 0.4
    keep_rate: float = 0.0
    auxiliary_depth: int | None = None
    auxiliary_width: int | None = None
    auxiliary: str | None = None
    auxiliary_frozen: bool = False
    temperature: float = 1.0
    temperature_from: float | None = None
    rtd_weight: float = 1.0
    clm_weight: float = 1.0
    clm_positions: Literal["masked", "all"] = "all"
    clm_head: Literal["dense", "linear"] = "dense"
    rtd_head: Literal["linear", "dense"] = "linear"
    embeddings: Literal["tied", "disentangled", "separate"] = "tied"

    def __post_init__(self) -> None:
        if not 0 < self.mask_rate < 1:
            raise UserError(f"metro.mask_rate is {self.mask_rate}; it must lie between 0 and 1")
        if not 0 <= self.keep_rate < 1:
            raise UserError(f"metro.keep_rate is {self.keep_rate}; it must be at least 0 and below 1")
        for name in ("temperature", "temperature_from"):
            if not (getattr(self, name) or 1.0) > 0 or getattr(self, name) == 0:
                raise UserError(f"metro.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("auxiliary_depth", "auxiliary_width"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
                raise UserError(f"metro.{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.rtd_weight, self.clm_weight) < 0:
            raise UserError("metro.rtd_weight and metro.clm_weight must be at least 0")
        if self.auxiliary is not None and (self.auxiliary_depth or self.auxiliary_width):
            raise UserError("metro.auxiliary has a shape of its own; leave auxiliary_depth and auxiliary_width out")
        if self.auxiliary_frozen and self.auxiliary is None:
            raise UserError("metro.auxiliary_frozen: name the model that is to stay as it is (metro.auxiliary)")
        if self.auxiliary_frozen and self.embeddings == "tied":
            raise UserError(
                "metro.auxiliary_frozen: the main model would train the table that they share; "
                "metro.embeddings is disentangled or separate"
            )


class DisentangledEmbedding(nn.Module):
    """A token table that reads another one without a gradient into it, plus a difference that starts at 0."""

    def __init__(self, base: nn.Embedding):
        super().__init__()
        self.base = [base]  # in a list: it belongs to the auxiliary, and must not be registered twice
        self.difference = nn.Parameter(torch.zeros_like(base.weight))

    @property
    def weight(self) -> Tensor:
        return self.base[0].weight.detach() + self.difference

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class Metro(Objective):
    """Auxiliary and main model trained together. The main one (`encoder`) is kept.

    Reports aux_loss, aux_accuracy, aux_masked_loss (where the auxiliary reads a mask token, with `keep_rate`), replaced
    (share of residues that differ after sampling), rtd_loss, rtd_ap (average precision), clm_loss, clm_masked_loss
    (nats at the chosen residues, whatever the CLM learns on), clm_accuracy_replaced and clm_accuracy_kept (at residues
    that were replaced, and at all others).
    """

    def __init__(
        self, encoder: EncoderConfig, alphabet: Alphabet, config: MetroConfig = MetroConfig(),
        pretrained: tuple[Encoder, VocabularyHead] | None = None,
    ):  # fmt: skip
        """pretrained: what the auxiliary starts from (`config.auxiliary`, opened)."""
        super().__init__()
        self.config = config
        self.mask_token = alphabet.id(alphabet.mask)
        self.behind = 0.0  # share of the steps
        if config.clm_head == "linear" and (encoder.embedding_width or encoder.width) != encoder.width:
            raise UserError("metro.clm_head linear needs encoder.embedding_width equal to encoder.width")
        self.encoder = Encoder(encoder)
        head = VocabularyHeadConfig.of(encoder, config.clm_head == "dense")
        if pretrained is None:
            shape = _auxiliary_shape(encoder, config)
            self.auxiliary = Encoder(shape)
            self.auxiliary_vocabulary = VocabularyHead(replace(head, width=shape.width, dense=True))
        else:
            self.auxiliary, self.auxiliary_vocabulary = pretrained
            self._check_table()
            for module in pretrained:
                module.requires_grad_(not config.auxiliary_frozen)
        if config.embeddings == "tied":
            if pretrained is None:
                self.auxiliary.embedding = self.encoder.embedding
            else:
                self.encoder.embedding = self.auxiliary.embedding
        elif config.embeddings == "disentangled":
            self.encoder.embedding = DisentangledEmbedding(self.auxiliary.embedding)  # type: ignore[assignment]
        self.vocabulary = VocabularyHead(head)
        self.rtd = TokenHead(
            TokenHeadConfig(encoder.width, dense=config.rtd_head == "dense", ratio=encoder.ratios.width)
        )
        self.letters_V: Tensor
        self.register_buffer("letters_V", letter_mask(alphabet), persistent=False)

    def _check_table(self) -> None:
        """Raises UserError where the two models are to share a table and theirs differ in width."""
        own, other = self.encoder.embedding.weight.shape[1], self.auxiliary.embedding.weight.shape[1]
        if own != other and self.config.embeddings != "separate":
            raise UserError(
                f"{self.config.auxiliary}: its token table has width {other}, that of the main model {own}; "
                "metro.embeddings separate gives each its own"
            )

    def at(self, share: float) -> None:
        self.behind = share

    @property
    def temperature(self) -> float:
        """Of sampling, at this point of the training; of validation its last one, so that figures can be compared."""
        last, first = self.config.temperature, self.config.temperature_from
        return last if first is None or not self.training else last + (first - last) * math.exp(-10.0 * self.behind)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        packed = batch.sequence
        letters_T = self.letters_V[packed.tokens]
        chosen_M = choose(packed, letters_T, self.config.mask_rate, generator)
        # The noise of sampling is drawn here as well: a forward pass repeated (for activation checkpointing, or
        # over cached gradients) must see the same replacements.
        gumbel_MV = gumbel(chosen_M.numel(), self.letters_V.numel(), generator)
        hidden_K = chosen_M
        if self.config.keep_rate:
            draw_M = torch.rand(chosen_M.numel(), generator=generator, device=chosen_M.device)
            hidden_K = chosen_M[draw_M >= self.config.keep_rate]
        masked = packed.with_tokens(packed.tokens.index_fill(0, hidden_K, self.mask_token))
        return replace(
            batch,
            views={**batch.views, "masked": masked},
            targets={
                **batch.targets,
                "chosen": chosen_M,
                "letters": letters_T.nonzero().squeeze(1),
                "gumbel": gumbel_MV,
            },
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        chosen, letters = batch.targets["chosen"], batch.targets["letters"]
        # full, not tensor: it fills on the device, where tensor would copy from the host and wait
        masked = torch.full((), float(chosen.numel()), device=chosen.device)
        every = torch.full((), float(letters.numel()), device=chosen.device)
        return {
            "aux_loss": masked,
            "rtd_loss": every,
            "clm_loss": masked if self.config.clm_positions == "masked" else every,
        }

    def _corrupt(self, batch: Batch) -> tuple[Packed, Terms]:
        """The auxiliary's pass: the corrupted view, and the auxiliary's losses and figures."""
        packed, chosen_M = batch.sequence, batch.targets["chosen"]
        original_M = packed.tokens[chosen_M]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.auxiliary_frozen):
            h_MD = self.auxiliary(batch.views["masked"])[chosen_M]
            logits_MV = self.auxiliary_vocabulary(h_MD, self.auxiliary.embedding.weight).float()
        sampled_M = sample(logits_MV, self.letters_V, self.temperature, batch.targets["gumbel"])
        corrupted = packed.with_tokens(packed.tokens.index_copy(0, chosen_M, sampled_M))
        count, frozen = self.counts(batch)["aux_loss"], self.config.auxiliary_frozen
        loss_M = F.cross_entropy(logits_MV, original_M, reduction="none")
        terms = {
            "aux_loss": Term(loss_M.sum(), count, None if frozen else 1.0),
            "aux_accuracy": Term((logits_MV.detach().argmax(-1) == original_M).sum(), count),
        }
        if self.config.keep_rate:
            hidden_M = batch.views["masked"].tokens[chosen_M] == self.mask_token
            terms["aux_masked_loss"] = Term((loss_M.detach() * hidden_M).sum(), hidden_M.sum())
        return corrupted, terms

    def forward(self, batch: Batch) -> Terms:
        corrupted, terms = self._corrupt(batch)
        counts = self.counts(batch)
        letters_N, chosen_M = batch.targets["letters"], batch.targets["chosen"]
        original_T = batch.sequence.tokens
        h_TD = self.encoder(corrupted)

        replaced_T = corrupted.tokens != original_T
        replaced_N = replaced_T[letters_N].float()
        score_N = self.rtd(h_TD[letters_N]).squeeze(-1).float()
        rtd = F.binary_cross_entropy_with_logits(score_N, replaced_N, reduction="sum")
        terms["rtd_loss"] = Term(rtd, counts["rtd_loss"], self.config.rtd_weight)
        terms["replaced"] = Term(replaced_N.sum(), counts["rtd_loss"])
        terms["rtd_ap"] = Term(average_precision(score_N.detach(), replaced_N), torch.ones_like(rtd.detach()))
        if self.config.clm_weight > 0:
            everywhere = self.config.clm_positions == "all"
            places = letters_N if everywhere else chosen_M
            logits = self.vocabulary(h_TD[places], self.encoder.embedding.weight).float()
            loss = F.cross_entropy(logits, original_T[places], reduction="none")
            terms["clm_loss"] = Term(loss.sum(), counts["clm_loss"], self.config.clm_weight)
            with torch.no_grad():
                right = (logits.argmax(-1) == original_T[places]).float()
                wrong_input = replaced_T[places]
                masked = torch.zeros_like(replaced_T).index_fill_(0, chosen_M, True)[places]
                terms["clm_masked_loss"] = Term((loss * masked).sum(), masked.sum())
                terms["clm_accuracy_replaced"] = Term((right * wrong_input).sum(), wrong_input.sum())
                terms["clm_accuracy_kept"] = Term((right * ~wrong_input).sum(), (~wrong_input).sum())
        return terms

    def flops(self, batch: Batch) -> float:
        packed = batch.sequence
        tokens = packed.tokens.numel()
        masked = int(tokens * self.config.mask_rate)
        restored = 0 if self.config.clm_weight == 0 else tokens if self.config.clm_positions == "all" else masked
        auxiliary = self.auxiliary.flops(packed) + self.auxiliary_vocabulary.flops(masked)
        return (
            (auxiliary / 3 if self.config.auxiliary_frozen else auxiliary)  # no pass back, which costs twice as much
            + self.encoder.flops(packed)
            + self.rtd.flops(tokens)
            + self.vocabulary.flops(restored)
        )

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        """`rtd_gain`: entropy of the share of replaced residues minus the RTD loss, in nats.

        It is what detection knows beyond that share; an RTD loss alone says nothing.
        """
        share = torch.tensor(means["replaced"], dtype=torch.float64)
        entropy = torch.special.entr(share) + torch.special.entr(1 - share)
        return {"rtd_gain": float(entropy) - means["rtd_loss"]}

    def bundle_modules(self) -> dict[str, nn.Module]:
        modules = {
            "encoder": self.encoder,
            "rtd": self.rtd,
            "auxiliary": self.auxiliary,
            "auxiliary_vocabulary": self.auxiliary_vocabulary,
        }
        if isinstance(self.encoder.embedding, DisentangledEmbedding):  # written out as the plain table it stands for
            plain = Encoder(self.encoder.config)
            state = {k: v for k, v in self.encoder.state_dict().items() if k != "embedding.difference"}
            plain.load_state_dict({**state, "embedding.weight": self.encoder.embedding.weight.detach()})
            modules["encoder"] = plain
        if self.config.clm_weight > 0:
            modules["vocabulary"] = self.vocabulary
        return modules


def _auxiliary_shape(encoder: EncoderConfig, config: MetroConfig) -> EncoderConfig:
    """Of an auxiliary that is trained from nothing."""
    depth, width = config.auxiliary_depth or max(1, encoder.depth // 3), config.auxiliary_width or encoder.width
    return replace(
        encoder,
        depth=depth,
        width=width,
        ffn_width=None if config.auxiliary_width else encoder.ffn_width,
        embedding_width=encoder.embedding_width or encoder.width,
        dropout=0.0,
        # muP: the base's auxiliary is to this one as the base to the model that is kept
        base_width=max(1, round(width / encoder.ratios.width)),
        base_depth=max(1, round(depth / encoder.ratios.depth)),
    )


def average_precision(score_N: Tensor, label_N: Tensor) -> Tensor:
    """Area under the precision-recall curve as a step function (0-d float32); ties share a step, as in scikit-learn.

    0 where no label is positive.
    """
    if label_N.numel() == 0:
        return score_N.new_zeros(())
    order = score_N.argsort(descending=True)
    score, label = score_N[order], label_N[order].double()
    hits = label.cumsum(0)
    last = torch.ones_like(score, dtype=torch.bool)  # of its run of equal scores
    last[:-1] = score[1:] != score[:-1]
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    # Each hit counts with the precision at the end of its run of ties.
    reached = torch.where(last, hits, torch.zeros_like(hits)).cummax(0).values
    gained = torch.where(last, hits - torch.cat([hits.new_zeros(1), reached[:-1]]), torch.zeros_like(hits))
    return ((precision * gained).sum() / hits[-1].clamp(min=1)).float()
