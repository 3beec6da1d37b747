"""The encoder: packed = one by one = permuted, back-ends agree, positions mean what they should."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from biometro.alphabet import PROTEIN
from biometro.data.batch import pack
from biometro.errors import UserError
from biometro.model import attention
from biometro.model.encoder import Encoder, EncoderConfig
from conftest import packed_of, random_sequences

VARIANTS: list[dict[str, Any]] = [
    {"positions": p, "ffn": f, "norm": n, "bias": b}
    for p, f, n, b in itertools.product(
        ("rotary", "alibi"), ("gelu", "swiglu"), ("layernorm", "rmsnorm"), (True, False)
    )
]
LENGTHS = [5, 40, 40, 1, 17, 17, 17, 64]


def encoder_of(**settings: Any) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=64, depth=3, head_size=16, **settings)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.15)  # large enough that attention is far from uniform
    return encoder


@pytest.mark.parametrize("settings", VARIANTS)
def test_packed_is_one_by_one_is_permuted(settings: dict[str, Any]) -> None:
    encoder = encoder_of(token_dropout=True, **settings)
    sequences = random_sequences(LENGTHS)
    for sequence in sequences[::2]:
        sequence[:2] = PROTEIN.id("<mask>")
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        together = encoder(packed_of(sequences)).split([n + 2 for n in LENGTHS])
        shuffled = encoder(packed_of([sequences[i] for i in order])).split([LENGTHS[i] + 2 for i in order])
        alone = [encoder(packed_of([sequence])) for sequence in sequences]
    for i, vectors in enumerate(together):
        torch.testing.assert_close(vectors, alone[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(vectors, shuffled[order.index(i)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_against_a_plain_slow_transformer(positions: Any) -> None:
    """Every step written out for one sequence, attention as a full softmax with an explicit bias."""
    encoder = encoder_of(positions=positions)
    tokens = packed_of(random_sequences([23]))
    length, heads, size = 25, 4, 16
    state = encoder.state_dict()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (64,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = state["embedding.weight"][tokens.tokens]
    for i in range(3):
        qkv = linear(norm(x, f"blocks.{i}.attention_norm"), f"blocks.{i}.attention.qkv")
        q, k, v = qkv.view(length, 3, heads, size).permute(1, 2, 0, 3)
        bias = torch.zeros(heads, length, length)
        if positions == "rotary":
            rotated = []
            for part in (q, k):
                out = torch.empty_like(part)
                for t in range(length):
                    for j in range(size // 2):
                        angle = torch.tensor(t * 10000.0 ** (-2 * j / size))
                        a, b = part[:, t, j], part[:, t, j + size // 2]
                        out[:, t, j] = a * angle.cos() - b * angle.sin()
                        out[:, t, j + size // 2] = b * angle.cos() + a * angle.sin()
                rotated.append(out)
            q, k = rotated
        else:
            for h in range(heads):
                for s in range(length):
                    for t in range(length):
                        bias[h, s, t] = -(2.0 ** (-8 * (h + 1) / heads)) * abs(s - t)
        weights = (q @ k.transpose(1, 2) / size**0.5 + bias).softmax(-1)
        mixed = (weights @ v).permute(1, 0, 2).reshape(length, 64)
        x = x + linear(mixed, f"blocks.{i}.attention.out")
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.ffn_norm"), f"blocks.{i}.ffn.up"))
        x = x + linear(hidden, f"blocks.{i}.ffn.down")
    with torch.inference_mode():
        torch.testing.assert_close(encoder(tokens), norm(x, "norm"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_flex_and_sdpa_agree(positions: Any) -> None:
    sequences = random_sequences([30, 70, 70, 9])
    plain, flex = encoder_of(positions=positions), encoder_of(positions=positions, attention="flex")
    with torch.inference_mode():
        torch.testing.assert_close(flex(packed_of(sequences)), plain(packed_of(sequences)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("positions", "mirrored"), [("rotary", False), ("alibi", True)])
def test_alibi_alone_cannot_tell_left_from_right(positions: Any, mirrored: bool) -> None:
    encoder = encoder_of(positions=positions)
    (tokens,) = random_sequences([30])
    packs = [pack([one], [], []) for one in (tokens, tokens[::-1].copy())]  # no start and end that tell
    with torch.inference_mode():
        there, back = (encoder(packed) for packed in packs)
    assert torch.allclose(there, back.flip(0), atol=1e-4) == mirrored


def test_varlen_refuses_what_it_cannot_do() -> None:
    packed = packed_of(random_sequences([5]))
    with pytest.raises(UserError, match="varlen runs on CUDA only"):
        attention.plan(packed, "varlen", None, 64, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize(("positions", "backend"), [("rotary", "varlen"), ("alibi", "flex"), ("rotary", "flex")])
def test_cuda_backends_agree_with_float32_on_the_cpu(positions: Any, backend: Any) -> None:
    sequences = random_sequences([30, 70, 70, 9, 400])
    packed = packed_of(sequences)
    expected = encoder_of(positions=positions)(packed)
    encoder = encoder_of(positions=positions, attention=backend).cuda()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        actual = encoder(packed.to("cuda")).float().cpu()
    assert (actual - expected).norm() / expected.norm() < 2e-2


def test_gradients_do_not_depend_on_packing() -> None:
    sequences = random_sequences([5, 12, 12, 30])

    def gradient(packs: list[list[int]]) -> list[torch.Tensor]:
        encoder = encoder_of()
        for members in packs:
            encoder(packed_of([sequences[i] for i in members])).square().sum().backward()
        return [p.grad for p in encoder.parameters() if p.grad is not None]

    for a, b in zip(gradient([[0, 1, 2, 3]]), gradient([[2], [0, 3], [1]]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_flops_count_the_formula_of_a_plain_transformer() -> None:
    encoder = encoder_of()
    packed = packed_of(random_sequences([98]))
    width, depth, length = 64, 3, 100
    assert encoder.flops(packed) == length * (24 * depth * width**2 + 4 * depth * width * length)


def test_dropout_acts_in_training_only() -> None:
    encoder = encoder_of(dropout=0.5)
    packed = packed_of(random_sequences([20]))
    assert torch.equal(encoder(packed), encoder(packed))
    encoder.train()
    assert not torch.equal(encoder(packed), encoder(packed))


@pytest.mark.parametrize("wrong", [{"width": 100}, {"depth": 0}, {"head_size": 15, "width": 30}, {"dropout": 1.0}])
def test_impossible_shapes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"encoder\."):
        EncoderConfig(**wrong)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_compiled_blocks_agree_and_are_not_built_for_every_pack(positions: Any) -> None:
    from torch._dynamo.utils import counters

    plain, compiled = encoder_of(positions=positions), encoder_of(positions=positions)
    compiled.compile_blocks()
    counters.clear()
    built = []
    for lengths in (
        [5, 40, 40],
        [7],
        [30, 2, 2, 2, 9],
        [64, 65],
        [11, 12, 13],
        [90],
        [8, 8],
        [33, 1, 70],
        [4, 5, 6, 7],
    ):
        packed = packed_of(random_sequences(lengths))
        with torch.no_grad():
            torch.testing.assert_close(compiled(packed), plain(packed), atol=1e-5, rtol=0)
        built.append(counters["stats"]["unique_graphs"])
    assert built[4] == built[-1]


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_one_token_of_each_sequence_is_what_it_is_among_all(positions: Any) -> None:
    encoder = encoder_of(positions=positions, token_dropout=True)
    packed = packed_of(random_sequences(LENGTHS))
    inside_B = (torch.rand(len(packed), generator=torch.Generator().manual_seed(2)) * packed.lengths).long()
    at_B = packed.cu_seqlens[:-1].long() + inside_B
    with torch.inference_mode():
        torch.testing.assert_close(encoder(packed, at_B), encoder(packed)[at_B], atol=1e-5, rtol=0)
