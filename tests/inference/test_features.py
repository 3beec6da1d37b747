"""Vectors kept on the disk: the same as fresh ones, computed once, and never believed when damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from biometro.alphabet import PROTEIN
from biometro.inference.embed import Embedder, Pooling
from biometro.inference.features import Features
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig

LETTERS = [b"MKTAYIAKQR", b"MK", b"ACDEFGHIKLMNPQRSTVWY", b"MK", b"W"]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Features]:
    torch.manual_seed(0)
    bundle = Bundle(PROTEIN, {"encoder": Encoder(EncoderConfig(width=32, depth=1, head_size=16))})

    def made(pooling: Pooling = "mean", settings: str = "a", limit: int | None = None) -> Features:
        return Features(lambda: Embedder(bundle, pooling=pooling), f"{settings} {pooling}", tmp_path / "store", limit)

    return made


def fresh(features: Features, letters: list[bytes]) -> list[np.ndarray]:
    embedder = features.embedder()
    return embedder.embed([PROTEIN.encode(sequence) for sequence in letters])


@pytest.mark.parametrize("pooling", ["mean", "cls", "residues"])
def test_what_is_kept_is_what_the_encoder_gives(make: Callable[..., Features], pooling: Pooling) -> None:
    first, second = make(pooling), make(pooling)
    expected = fresh(first, LETTERS)
    for features, computed in ((first, 4), (second, 0)):
        for found, vector in zip(features.of(LETTERS), expected, strict=True):
            assert found.shape == vector.shape
            np.testing.assert_allclose(found, vector, rtol=1e-5, atol=1e-6)
        assert features.computed == computed  # one of the five is there twice


def test_only_what_is_missing_is_read(make: Callable[..., Features]) -> None:
    make().of(LETTERS[:2])
    more = make()
    more.of([*LETTERS, b"PPPP"])
    assert more.computed == 3
    other = make(settings="another model")
    other.of(LETTERS)
    assert other.computed == 4


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_part_is_computed_again(make: Callable[..., Features], harm: str) -> None:
    features = make()
    expected = features.of(LETTERS)
    (part,) = features.store.iterdir()
    path = part / "vectors.npy"
    if harm == "remove":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data[:-40] if harm == "cut" else data)
    again = make()
    for found, vector in zip(again.of(LETTERS), expected, strict=True):
        np.testing.assert_array_equal(found, vector)
    assert again.computed == 4


def test_the_longest_unused_goes_when_the_limit_would_be_passed(make: Callable[..., Features]) -> None:
    make(limit=3000).of([b"MKTA", b"MKTC"])
    make(limit=3000).of([b"MKTD", b"MKTE"])
    several = [b"MKT" + bytes([code]) for code in b"FGHIKLMNPQRSTVWY"]
    last = make(limit=3000)
    last.of(several)
    assert sum(file.stat().st_size for file in last.root.rglob("*.npy")) <= 4000
    kept = make(limit=3000)
    kept.of(several)
    assert kept.computed == 0
