"""Towers: a folder of two models and what is learnt of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from biometro.alphabet import PROTEIN
from biometro.alphabet.molecule import MoleculeAlphabet
from biometro.errors import UserError
from biometro.inference.embed import Embedder
from biometro.inference.towers import TowerReader
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.load import load
from biometro.model.pairing import PairHead, PairHeadConfig, Projection, ProjectionConfig
from biometro.model.towers import PairAnswers, Towers, fingerprint_of, is_towers, load_towers

WIDTHS = {"protein": 32, "ligand": 16}


def towers(shared: bool = False, hidden: int | None = 8) -> Towers:
    torch.manual_seed(0)
    alphabets = {"protein": PROTEIN, "ligand": MoleculeAlphabet.of(["[C]", "[O]", "[N]"], "selfies")}
    found = {}
    for name, width in {"shared": 32}.items() if shared else WIDTHS.items():
        alphabet = alphabets.get(name, PROTEIN)
        encoder = Encoder(
            EncoderConfig(vocab_size=alphabet.size, mask_token=alphabet.id("<mask>"), width=width, depth=2, head_size=8)
        )
        projection = Projection(
            ProjectionConfig(width, 12, hidden=hidden, pooling="cls" if name == "ligand" else "mean")
        )
        projection.mean.normal_()
        projection.std.uniform_(0.5, 2)
        found[name] = Bundle(alphabet, {"encoder": encoder, "projection": projection}).eval()
    head = PairHead(PairHeadConfig(12, hidden)).eval()
    head.center.fill_(6.5)
    head.unit.fill_(1.5)
    return Towers(found, head, PairAnswers("pKd", 0.8, (3.0, -1.0), "pKd of at least 7"), {"seed": 0}, {"data": "x"})


@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_gives_back_what_was_saved(tmp_path: Path, shared: bool) -> None:
    made = towers(shared)
    made.save(tmp_path / "m")
    found = load_towers(tmp_path / "m")
    assert [*found.towers] == [*made.towers] and found.answers == made.answers and found.facts == made.facts
    for one, other in zip(made.sides, found.sides, strict=True):
        for role, module in one.modules.items():
            for (name, a), b in zip(
                module.state_dict().items(), other.modules[role].state_dict().values(), strict=True
            ):
                assert torch.equal(a, b), name
    a, b = np.eye(12, dtype=np.float32)[:3], np.full((3, 12), 12**-0.5, np.float32)
    one, other = made.affinity(a, b), found.affinity(a, b)
    assert one is not None and other is not None and np.array_equal(one, other)
    assert np.allclose(found.probability(np.array([0.0, 1.0])), [1 / (1 + np.e), 1 / (1 + np.exp(-2))])
    before = fingerprint_of(tmp_path / "m")
    found.answers = PairAnswers()
    found.save(tmp_path / "m")
    assert load_towers(tmp_path / "m").affinity(a, b) is None and fingerprint_of(tmp_path / "m") != before


@pytest.mark.parametrize("hidden", [None, 8])
def test_a_tower_is_its_encoder_pooled_standardised_projected(hidden: int | None) -> None:
    made = towers(hidden=hidden)
    sequences = [np.array(row, np.uint8) for row in ([5, 6, 7], [5], [7, 6, 5, 5])]
    for bundle, pooling in zip(made.sides, ("mean", "cls"), strict=True):
        found = TowerReader(bundle).embed(sequences)
        projection = bundle.modules["projection"]
        assert isinstance(projection, Projection)
        for vector, sequence in zip(found, sequences, strict=True):
            h_D = torch.from_numpy(Embedder(bundle, pooling=pooling).embed([sequence])[0])
            z = (h_D - projection.mean) / projection.std
            for layer in (projection.dense, projection.out):
                if layer is not None:
                    z = layer(z) if layer is projection.out else torch.nn.functional.gelu(layer(z))
            assert torch.allclose(torch.from_numpy(vector), z / z.norm(), atol=1e-5)


def test_without_a_projection_vectors_have_length_one() -> None:
    bundle = towers().sides[0]
    del bundle.modules["projection"]
    sequence = np.array([5, 6, 7], np.uint8)
    (plain,), (found,) = Embedder(bundle).embed([sequence]), TowerReader(bundle).embed([sequence])
    assert np.allclose(found, plain / np.linalg.norm(plain), atol=1e-6)


def test_a_pack_is_pooled_as_one_by_one() -> None:
    bundle = towers().sides[0]
    projection = bundle.modules["projection"]
    assert isinstance(projection, Projection)
    from biometro.data.batch import pack

    sequences = [np.array(row, np.uint8) for row in ([5, 6, 7], [5], [7, 6, 5, 5])]
    packed = pack(sequences, PROTEIN.begin_ids, PROTEIN.end_ids)
    with torch.no_grad():
        z = projection(projection.pool(bundle.encoder(packed), packed, (1, 1)))
    assert np.allclose(z.numpy(), TowerReader(bundle).embed(sequences), atol=1e-5)


def test_affinity_is_the_mean_of_both_heads_in_the_labels_unit() -> None:
    head = towers().head
    a, b = (torch.nn.functional.normalize(torch.randn(5, 12), dim=-1) for _ in range(2))
    with torch.no_grad():
        head.slope.fill_(2.0)
        cosine = (a * b).sum(-1)
        expected = ((2 * cosine + head.offset) + head.cross(a, b)) / 2 * 1.5 + 6.5
        assert torch.allclose(head.affinity(a, b), expected)


def test_mistakes_are_plain(tmp_path: Path) -> None:
    towers().save(tmp_path / "m")
    with pytest.raises(UserError, match=r"name one of them: .*protein or .*ligand"):
        load(tmp_path / "m")
    assert load(tmp_path / "m" / "protein").modules["projection"] is not None
    assert is_towers(tmp_path / "m") and not is_towers(tmp_path / "m" / "protein")
    with pytest.raises(UserError, match="no folder of towers"):
        load_towers(tmp_path / "m" / "protein")
    with pytest.raises(UserError, match="did you mean"):
        (tmp_path / "run").mkdir()
        (tmp_path / "m").rename(tmp_path / "run" / "model")
        load_towers(tmp_path / "run")
    config = tmp_path / "run" / "model" / "config.json"
    whole = json.loads(config.read_text())
    broken = [
        ({"towers": ["../../etc", "ligand"]}, "towers are"), ({"format": 2}, "format 2"),
        ({"head": {"width": 12, "hidden": None}}, "disagree"), ({"head": {"width": 1 << 40}}, "whole number"),
        ({"answers": {"probability": "no"}}, "cannot be read"), ({"facts": 3}, "cannot be read"),
        ({"weights_sha256": "x"}, "damaged"),
    ]  # fmt: skip
    for change, message in broken:
        config.write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=message):
            load_towers(tmp_path / "run" / "model")
    config.write_text(json.dumps(whole))
    (tmp_path / "run" / "model" / "ligand" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="damaged"):
        load_towers(tmp_path / "run" / "model")
