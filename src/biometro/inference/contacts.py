"""Which residues touch, read off a language model that was never told: from its attention, or from its answers.

    letters ─▶ attention maps, layer by layer ─▶ symmetrised, APC ─▶ logistic regression      attention_contacts
    letters ─▶ 20 L passes, one for each single change ─▶ logits ─▶ norms of blocks ─▶ APC     jacobian_contacts

Attention: Rao et al. 2021, "Transformer protein language models are unsupervised structure learners" (ICLR). The
regression is the model's own (ESM-2 brings one), or fitted by `fit_regression` on a few proteins of known contacts.

Categorical Jacobian: Zhang et al. 2024, "Protein language models learn evolutionary statistics of interacting sequence
motifs", PNAS 121, e2406285121. It needs a head over tokens and no contacts at all.

Shapes: L residues, P places, T tokens of a pack, H heads, F = layers x H features, M pairs of residues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from biometro.alphabet import Alphabet, AlphabetError
from biometro.alphabet.protein import STANDARD
from biometro.data.batch import pack
from biometro.data.contacts import Protein
from biometro.errors import UserError
from biometro.inference.likelihood import FloatPrecision
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder
from biometro.model.heads import ContactWeights, VocabularyHead

SEPARATION = 6  # residues; nearer pairs touch because the chain is one, and nobody scores them
LONGEST = 512  # residues that are read unless more are asked for
PENALTY = 0.15  # lambda of Rao et al. 2021
_MOST_NUMBERS = 1 << 24  # of features that a regression is fitted to; its solver keeps some 16 bytes for each


@dataclass(frozen=True, eq=False)  # eq would ask arrays for one truth value
class Regression:
    """A logistic regression over symmetrised and corrected attention maps: weights (F,) float64, layer by layer."""

    weights: np.ndarray
    bias: float


class ContactReader:
    """A bundle that contacts are read off.

    Args:
        bundle: the model.
        device: where to run.
        precision: auto is float32 everywhere: what is read are small differences, of which bfloat16 loses some.
        batch_tokens: tokens read at once by the Jacobian; results do not depend on it. Default 2,048 on a CPU, 65,536
            on CUDA.
        longest: residues; attention of a longer sequence, and a Jacobian of more places, is refused.

    Raises UserError for a model whose encoder is one of transformers, where attention differs from kind to kind, or
    whose alphabet is not that of proteins.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | str = "cpu",
        precision: FloatPrecision = "auto",
        batch_tokens: int | None = None,
        longest: int = LONGEST,
    ):
        if not isinstance(bundle.encoder, Encoder) or not isinstance(bundle.alphabet, Alphabet):
            raise UserError(
                "contacts are read off encoders of our own (ESM-2 among them), not off this one of transformers"
            )
        if not set(STANDARD) <= set(bundle.alphabet.tokens):
            raise UserError(f"contacts are those of proteins; this model reads {bundle.alphabet.name}")
        if batch_tokens is not None and batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        self.device, self.longest = torch.device(device), longest
        self.alphabet = bundle.alphabet
        bundle.to(self.device).eval()
        self.encoder = bundle.encoder
        self.features = self.encoder.config.depth * self.encoder.config.heads
        self.own = _own_regression(bundle.modules.get("contact"), self.features)
        """The model's own regression; None where it has none, or one of zeros."""
        head = bundle.modules.get("vocabulary")
        self._head = head if isinstance(head, VocabularyHead) else None
        self._standard = torch.tensor([bundle.alphabet.id(letter) for letter in STANDARD], device=self.device)
        self._begin, self._end = self.alphabet.begin_ids, self.alphabet.end_ids
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        self._budget = batch_tokens or (65536 if self.device.type == "cuda" else 2048)

    def attention_contacts(self, letters: bytes, regression: Regression | None = None) -> np.ndarray:
        """(L, L) float32 probabilities, symmetric, by a regression, or by the model's own where none is given.

        One pass; memory is that of one layer's maps, some 12 H L^2 bytes.

        Raises UserError for a model without a regression of its own where none is given, a sequence that is longer
        than `longest`, and letters that are none; ValueError for a regression of another number of features.
        """
        regression = regression or self.own
        if regression is None:
            raise UserError(
                "this model has no contact head; fit a regression to its attention on proteins of known contacts"
            )
        if len(regression.weights) != self.features:
            raise ValueError(f"{len(regression.weights)} weights for {self.features} attention heads")
        weights_FH = torch.from_numpy(regression.weights).float().to(self.device).split(self.encoder.config.heads)
        logit_LL = torch.full((len(letters), len(letters)), regression.bias, device=self.device)
        with torch.inference_mode():
            for weight_H, map_HLL in zip(weights_FH, self._maps(letters), strict=True):
                logit_LL += torch.einsum("h,hij->ij", weight_H, map_HLL)
        return logit_LL.sigmoid().cpu().numpy()

    def attention_features(self, letters: bytes, i_M: np.ndarray, j_M: np.ndarray) -> np.ndarray:
        """(M, F) float32: symmetrised and corrected attention of pairs of residues, as a regression reads it."""
        with torch.inference_mode():
            i, j = (torch.from_numpy(places_M).to(self.device) for places_M in (i_M, j_M))
            return torch.cat([map_HLL[:, i, j] for map_HLL in self._maps(letters)]).T.cpu().numpy()

    def jacobian_contacts(
        self,
        letters: bytes,
        places: Sequence[int] | None = None,
        say: Callable[[int, int], None] = lambda done, of: None,
    ) -> np.ndarray:
        """(P, P) float32 couplings of `places` (default: all L residues), symmetric, 0 on the diagonal.

        J[i, a, j, b] is how the logit of residue b at place j changes when place i becomes a. J is centred along each
        of its four axes and made symmetric under (i, a) <-> (j, b); its blocks' Frobenius norms are corrected (APC).

        Cost: 20 P passes over the sequence, less those for the residues that stand there already (`jacobian_flops`).
        Memory: J, 1,600 P^2 bytes: 0.42 GB for 512 residues.
        No token is masked, so of a METRO model the main encoder is asked.

        Raises UserError for a model without a head over tokens, more places than `longest`, letters that are none, and
        places that are none.
        """
        self._vocabulary()
        tokens_L = self._encode(letters)
        at = np.arange(len(letters)) if places is None else np.asarray(places, dtype=np.int64)
        if not len(at) or len({*at.tolist()}) != len(at) or at.min() < 0 or at.max() >= len(letters):
            raise UserError(f"places must be different numbers from 0 to {len(letters) - 1}")
        if len(at) > self.longest:
            raise UserError(
                f"the Jacobian of {len(at):,} residues, more than {self.longest:,}, takes {20 * len(at):,} passes and "
                f"{1.6e-6 * len(at) ** 2:.1f} GB: choose up to {self.longest:,} places, or raise `longest`"
            )
        standard = self._standard.cpu().numpy()
        changes = [(p, a) for p, place in enumerate(at) for a in range(20) if standard[a] != tokens_L[place]]
        size = max(1, self._budget // (len(tokens_L) + len(self._begin) + len(self._end)))
        jacobian = np.zeros((len(at), 20, len(at), 20), dtype=np.float32)
        wild_P20 = self._logits(tokens_L[None], at)[0]
        for start in range(0, len(changes), size):
            chosen = np.array(changes[start : start + size])
            changed_NL = np.tile(tokens_L, (len(chosen), 1))
            changed_NL[np.arange(len(chosen)), at[chosen[:, 0]]] = standard[chosen[:, 1]]
            jacobian[chosen[:, 0], chosen[:, 1]] = self._logits(changed_NL, at) - wild_P20
            say(start + len(chosen), len(changes))
        return couplings(jacobian)

    def jacobian_flops(self, length: int, places: int | None = None) -> float:
        """Floating-point operations of `jacobian_contacts` for L residues, at most: 20 passes a place, and one more.

        Raises UserError for a model without a head over tokens.
        """
        head = self._vocabulary()
        passes = 20 * (length if places is None else places) + 1
        packed = pack([np.zeros(length, np.uint8)], self._begin, self._end)
        rows = length if places is None else places
        return passes * (self.encoder.flops(packed) + head.flops(rows))

    def _vocabulary(self) -> VocabularyHead:
        if self._head is None:
            raise UserError("this model has no head over tokens, whose answers the categorical Jacobian compares")
        return self._head

    def _encode(self, letters: bytes) -> np.ndarray:
        """Token numbers, (L,) uint8 or what the alphabet gives."""
        if not letters:
            raise UserError("an empty sequence has no contacts")
        try:
            return np.asarray(self.alphabet.encode(letters))
        except AlphabetError as error:
            raise UserError(f"{letters[:20].decode('ascii', 'replace')}...: {error}") from error

    def _maps(self, letters: bytes) -> Iterator[Tensor]:
        """(H, L, L) float32 maps of each layer, without start and end, symmetrised and corrected."""
        if len(letters) > self.longest:
            raise UserError(
                f"a sequence of {len(letters):,} residues is longer than {self.longest:,}; a layer's attention takes "
                f"{12e-9 * self.encoder.config.heads * len(letters) ** 2:.1f} GB: cut it in domains, or raise `longest`"
            )
        packed = pack([self._encode(letters)], self._begin, self._end).to(self.device)
        inside = slice(len(self._begin), packed.tokens.numel() - len(self._end))
        maps = self.encoder.attention_maps(packed)
        while True:
            with self._autocast:  # of the encoder alone: who takes a map may reckon with it in float32
                map_HLL = next(maps, None)
            if map_HLL is None:
                return
            map_HLL = map_HLL[:, inside, inside]
            yield corrected(map_HLL + map_HLL.transpose(1, 2))

    @torch.inference_mode()
    def _logits(self, tokens_NL: np.ndarray, places_P: np.ndarray) -> np.ndarray:
        """(N, P, 20) float32 logits of the standard residues at the places of equally long sequences."""
        head = self._vocabulary()
        packed = pack(list(tokens_NL), self._begin, self._end).to(self.device)
        with self._autocast:
            h_NLD = self.encoder(packed).unflatten(0, (len(tokens_NL), -1))
        h_NPD = h_NLD[:, torch.from_numpy(places_P).to(self.device) + len(self._begin)].float()
        logits = head(h_NPD.flatten(0, 1), self.encoder.embedding.weight)
        return logits[:, self._standard].unflatten(0, h_NPD.shape[:2]).cpu().numpy()


def corrected(map_HLL: Tensor) -> Tensor:
    """Maps less what the sums of their rows and columns explain (average product correction, Dunn et al. 2008)."""
    row_HL1, column_H1L = map_HLL.sum(-1, keepdim=True), map_HLL.sum(-2, keepdim=True)
    total_H11 = row_HL1.sum(-2, keepdim=True)
    return map_HLL - row_HL1 * column_H1L / total_H11.where(total_H11 != 0, 1.0)


def couplings(jacobian: np.ndarray) -> np.ndarray:
    """(P, 20, P, 20) changes of logits -> (P, P) float32 couplings, as `jacobian_contacts` gives them; overwrites."""
    for axis in range(4):
        jacobian -= jacobian.mean(axis, keepdims=True, dtype=np.float64).astype(np.float32)
    squares_PP = np.empty((len(jacobian), len(jacobian)))
    for p in range(len(jacobian)):  # a row of blocks at a time: no second array of this size
        both_20P20 = (jacobian[p] + jacobian[:, :, p].transpose(2, 0, 1)) / 2
        squares_PP[p] = np.square(both_20P20, dtype=np.float64).sum((0, 2))
    norms_PP = np.sqrt(squares_PP)
    np.fill_diagonal(norms_PP, 0)
    couplings_PP = corrected(torch.from_numpy(norms_PP)[None])[0].numpy()
    np.fill_diagonal(couplings_PP, 0)
    return couplings_PP.astype(np.float32)


def _own_regression(contact: torch.nn.Module | None, features: int) -> Regression | None:
    if not isinstance(contact, ContactWeights) or contact.config.features != features:
        return None
    weights_F = contact.regression.weight.detach()[0].double().cpu().numpy()
    # An export of a model that had none carries zeros.
    return Regression(weights_F, float(contact.regression.bias.detach())) if weights_F.any() else None


def fit_regression(reader: ContactReader, proteins: Sequence[Protein], seed: int = 0) -> Regression:
    """A logistic regression with an L1 penalty from attention to contacts, on all known pairs 6 or more apart.

    As Rao et al. 2021: lambda 0.15, features as they are, some 20 proteins. Where that is more numbers than fit, all
    contacts are taken, and of the other pairs a sample drawn under the seed, whose weight makes up for those left out.

    Raises UserError where no pair touches, or all do.
    """
    from sklearn.linear_model import LogisticRegression

    sampled = _sample(proteins, max(1, _MOST_NUMBERS // reader.features), seed)
    true_M = np.concatenate([true for _, _, true, _ in sampled]) if sampled else np.zeros(0, bool)
    if not true_M.any() or true_M.all():
        raise UserError(
            f"the {len(proteins)} proteins to fit attention to contacts on have {int(true_M.sum())} contacts among "
            f"{len(true_M)} known pairs {SEPARATION} or more residues apart; both kinds of pairs are needed"
        )
    weight_M = np.concatenate([weight for _, _, _, weight in sampled])
    features_MF = np.concatenate(
        [
            reader.attention_features(protein.letters, i_M, j_M)
            for protein, (i_M, j_M, _, _) in zip(proteins, sampled, strict=True)
        ]
    )
    model = LogisticRegression(C=1 / PENALTY, solver="liblinear", random_state=seed, **_l1())
    model.fit(features_MF.astype(np.float64), true_M, sample_weight=weight_M)
    return Regression(model.coef_[0].astype(np.float64), float(model.intercept_[0]))


def _l1() -> dict[str, float | str]:
    """What says L1 to scikit-learn: its name for it changed in 1.8."""
    import inspect

    from sklearn.linear_model import LogisticRegression

    renamed = inspect.signature(LogisticRegression).parameters["penalty"].default == "deprecated"
    return {"l1_ratio": 1.0} if renamed else {"penalty": "l1"}


def _sample(
    proteins: Sequence[Protein], most: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For each protein pairs i < j (M,), whether they touch (M,), and their weights (M,); about `most` in all."""
    pairs = []
    for protein in proteins:
        known = np.flatnonzero(protein.known)
        i_M, j_M = (known[side] for side in np.triu_indices(len(known), 1))
        far = j_M - i_M >= SEPARATION
        i_M, j_M = i_M[far], j_M[far]
        pairs.append((i_M, j_M, protein.matrix()[i_M, j_M]))
    touching = sum(int(true_M.sum()) for _, _, true_M in pairs)
    others = sum(len(true_M) for _, _, true_M in pairs) - touching
    share = min(1.0, max(most - touching, touching) / max(others, 1))
    random = np.random.default_rng(seed)
    found = []
    for i_M, j_M, true_M in pairs:
        keep = true_M | (random.random(len(true_M)) < share)
        weight_M = np.where(true_M, 1.0, 1 / share)[keep]
        found.append((i_M[keep], j_M[keep], true_M[keep], weight_M))
    return found
