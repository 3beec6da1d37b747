"""A tower reads sequences: encoder, pooling, projection, one vector of length 1 each.

token arrays ─▶ Embedder (sorted, packed) ─▶ (N, D) ─▶ projection ─▶ (N, P)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from biometro.inference.embed import Embedder, Precision
from biometro.model.bundle import Bundle
from biometro.model.pairing import Projection


class TowerReader:
    """A bundle's vectors in the common space of a model of pairs; of a bundle without a projection, its mean vectors
    brought to length 1. A sequence's vector does not depend on others.

    Args:
        bundle: the tower.
        max_length: residues (tokens); longer sequences are cut to their first ones. Default: as the tower was trained
            (its `crop`), or 1,022.
        precision, device, batch_tokens: as of `Embedder`.
    """

    def __init__(
        self, bundle: Bundle, *, max_length: int | None = None, precision: Precision = "auto",
        device: torch.device | str = "cpu", batch_tokens: int | None = None,
    ):  # fmt: skip
        found = bundle.modules.get("projection")
        assert found is None or isinstance(found, Projection)
        self.projection = found
        length = max_length or bundle.tower_length
        self.max_length = length if bundle.longest is None else min(length, bundle.longest)
        self.embedder = Embedder(
            bundle, pooling="mean" if found is None else found.config.pooling, long="first", max_length=self.max_length,
            precision=precision, device=device, batch_tokens=batch_tokens,
        )  # fmt: skip
        self.alphabet = bundle.alphabet
        self.width = self.embedder.width if found is None else found.config.outputs
        if found is not None:
            found.to(self.embedder.device).eval()

    def embed(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """Token arrays without specials -> (N, P) float32, rows of length 1, in the same order."""
        if not tokens:
            return np.empty((0, self.width), np.float32)
        return self.project(np.stack(self.embedder.embed(tokens)))

    @torch.inference_mode()
    def project(self, pooled_ND: np.ndarray) -> np.ndarray:
        """Pooled vectors of the encoder -> (N, P) float32, rows of length 1."""
        h_ND = torch.from_numpy(np.ascontiguousarray(pooled_ND, np.float32)).to(self.embedder.device)
        z_NP = F.normalize(h_ND, dim=-1) if self.projection is None else self.projection(h_ND)
        return z_NP.cpu().numpy()
