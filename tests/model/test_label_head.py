"""The head of fine-tuned models, against plain loops over sequences."""

from __future__ import annotations

import pytest
import torch

from biometro.errors import UserError
from biometro.model.heads import LabelHead, LabelHeadConfig
from conftest import packed_of, random_sequences

LENGTHS = [5, 1, 9, 30]


def vectors(width: int = 6) -> torch.Tensor:
    return torch.randn(sum(LENGTHS) + 2 * len(LENGTHS), width, generator=torch.Generator().manual_seed(0))


def head(pooling: str, hidden: int | None = None) -> LabelHead:
    torch.manual_seed(1)
    made = LabelHead(LabelHeadConfig(6, 3, pooling, hidden))  # type: ignore[arg-type]
    made.mean.copy_(torch.randn(6))
    made.std.copy_(torch.rand(6) + 0.5)
    return made


def plain(made: LabelHead, inside: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """One sequence: its residues' vectors (L, D), and those with start and end."""
    if made.config.pooling == "cls":
        x = whole[:1]
    elif made.config.pooling == "mean":
        x = inside.mean(0, keepdim=True)
    elif made.config.pooling == "attention":
        assert made.attention is not None
        weights = made.attention((inside - made.mean) / made.std).softmax(0)
        x = (weights * inside).sum(0, keepdim=True)
    else:
        x = inside
    x = (x - made.mean) / made.std
    if made.dense is not None:
        x = torch.nn.functional.gelu(made.dense(x))
    out: torch.Tensor = made.out(x)
    return out


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("pooling", ["mean", "cls", "attention", "residues"])
@pytest.mark.parametrize("margins", [(1, 1), (0, 1), (0, 0)])
def test_every_pooling_is_that_of_one_sequence_at_a_time(
    pooling: str, hidden: int | None, margins: tuple[int, int]
) -> None:
    made, packed, h_TD = head(pooling, hidden), packed_of(random_sequences(LENGTHS)), vectors()
    parts = h_TD.split([length + 2 for length in LENGTHS])
    expected = torch.cat([plain(made, part[margins[0] : len(part) - margins[1]], part) for part in parts])
    torch.testing.assert_close(made(h_TD, packed, margins), expected, rtol=1e-5, atol=1e-6)


def test_outputs_come_back_in_the_unit_of_the_labels() -> None:
    made = head("mean")
    made.offset.copy_(torch.tensor([1.0, 2.0, 3.0]))
    made.unit.copy_(torch.tensor([10.0, 1.0, 0.1]))
    torch.testing.assert_close(made.scale(torch.ones(2, 3)), torch.tensor([[11.0, 3.0, 3.1]] * 2))


def test_attention_of_extreme_scores_is_finite() -> None:
    made, packed = head("attention"), packed_of(random_sequences(LENGTHS))
    out = made(1e4 * vectors(), packed, (1, 1))
    assert out.isfinite().all()


def test_wrong_settings_are_named() -> None:
    for settings, message in [
        ({"pooling": "max"}, "head.pooling"),
        ({"hidden": 0}, "head.hidden"),
        ({"dropout": 1.0}, "head.dropout"),
        ({"outputs": 0}, "head.outputs"),
    ]:
        with pytest.raises(UserError, match=message):
            LabelHeadConfig(**({"width": 6, "outputs": 3} | settings))  # type: ignore[arg-type]
