"""Attention maps against those of transformers and fair-esm, and against the encoder's own back-ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import biometro
from biometro.alphabet import PROTEIN
from biometro.inference.contacts import ContactReader
from biometro.model.encoder import Encoder, EncoderConfig
from conftest import esm2_folder, packed_of, random_sequences


def test_maps_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = esm2_folder(tmp_path / "esm2")
    theirs = transformers.EsmModel.from_pretrained(folder, attn_implementation="eager").eval()
    encoder = biometro.load(folder).encoder
    assert isinstance(encoder, Encoder)
    for sequence in random_sequences([1, 7, 40]):
        sequence[3:5] = PROTEIN.id("<mask>")  # rescales all other tokens
        packed = packed_of([sequence])
        with torch.inference_mode():
            expected = theirs(input_ids=packed.tokens[None], output_attentions=True).attentions
            actual = list(encoder.attention_maps(packed))
        assert len(actual) == len(expected) == 2
        for ours, reference in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, reference[0], atol=1e-5, rtol=0)


def test_contacts_of_esm2_are_those_of_fair_esm(tmp_path: Path) -> None:
    fair = pytest.importorskip("esm")
    torch.manual_seed(1)
    model = fair.ESM2(num_layers=3, embed_dim=40, attention_heads=4).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
        model.contact_head.regression.weight.normal_(std=8)
    torch.save({"model": {f"encoder.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "esm2.pt")
    reader = ContactReader(biometro.load(tmp_path / "esm2.pt"))
    alphabet = fair.data.Alphabet.from_architecture("ESM-1b")
    for sequence in random_sequences([2, 30, 65]):
        letters = PROTEIN.decode(sequence)
        _, _, tokens = alphabet.get_batch_converter()([("", letters)])
        with torch.inference_mode():
            expected = model.predict_contacts(tokens)[0]
        actual = torch.from_numpy(reader.attention_contacts(letters.encode()))
        assert len(letters) < 10 or expected.std() > 0.05
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "change",
    [{}, {"positions": "alibi"}, {"norm": "rmsnorm", "ffn": "swiglu", "bias": False}, {"embedding_width": 8}],
)
def test_the_pass_that_keeps_maps_computes_what_the_fast_one_does(change: dict[str, Any]) -> None:
    """Maps times values, layer by layer, must end where the encoder's own attention ends."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=32, depth=3, head_size=8, init_std=0.3, **change)).eval()
    packed = packed_of(random_sequences([25]))
    last: list[torch.Tensor] = []
    encoder.blocks[-1].register_forward_hook(lambda module, given, out: last.append(out))
    with torch.inference_mode():
        maps = list(encoder.attention_maps(packed))
        encoder(packed)
    assert [tuple(m.shape) for m in maps] == [(4, 27, 27)] * 3 and {m.dtype for m in maps} == {torch.float32}
    torch.testing.assert_close(last[0], last[1], atol=1e-4, rtol=0)
    for map_HLL in maps:
        torch.testing.assert_close(map_HLL.sum(-1), torch.ones(4, 27))
    assert (maps[0] - 1 / 27).abs().max() > 0.05  # not uniform, of which any order would be right


def test_maps_are_of_one_sequence() -> None:
    encoder = Encoder(EncoderConfig(width=16, depth=1, head_size=8))
    with pytest.raises(ValueError, match="one sequence"):
        next(encoder.attention_maps(packed_of(random_sequences([3, 4]))))
