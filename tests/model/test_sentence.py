"""What sentence-transformers makes of an exported folder, beside our own vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import biometro
from biometro import cli
from biometro.alphabet import PROTEIN, Alphabet
from biometro.alphabet.immune import TCR
from biometro.alphabet.molecule import MoleculeAlphabet
from biometro.errors import UserError
from biometro.inference.embed import Embedder
from biometro.inference.towers import TowerReader
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.pairing import Projection, ProjectionConfig
from biometro.model.sentence import to_sentence_transformers

sentence_transformers = pytest.importorskip("sentence_transformers")

WIDTH = 48
LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO"


def proteins(lengths: tuple[int, ...]) -> list[str]:
    random = np.random.default_rng(3)
    return ["".join(random.choice(list(LETTERS), n)) for n in lengths]


def made(alphabet: Alphabet = PROTEIN, **config: Any) -> Bundle:
    """An encoder whose weights are large enough for all that it does to be seen."""
    torch.manual_seed(1)
    settings = {"width": WIDTH, "depth": 2, "head_size": 16, "init_std": 0.2, "vocab_size": alphabet.size}
    return Bundle(alphabet, {"encoder": Encoder(EncoderConfig(**(settings | config)))}).eval()


def tower(pooling: Any = "mean", hidden: int | None = None, **config: Any) -> Bundle:
    """With a projection whose standardisation is far from doing nothing."""
    bundle = made(**config)
    projection = Projection(ProjectionConfig(WIDTH, 24, pooling=pooling, hidden=hidden, dropout=0.2))
    projection.mean.copy_(torch.randn(WIDTH) * 2)
    projection.std.copy_(torch.rand(WIDTH) + 0.1)
    for layer in projection.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.bias)
    bundle.modules["projection"] = projection.eval()
    return bundle


def encoded(folder: Path, texts: list[str]) -> np.ndarray:
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode(texts, batch_size=len(texts), show_progress_bar=False))


@pytest.mark.parametrize("token_dropout", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encode_gives_the_vectors_of_embed(tmp_path: Path, pooling: Any, token_dropout: bool) -> None:
    bundle = made(token_dropout=token_dropout)
    bundle.save(tmp_path / "ours")
    biometro.export(str(tmp_path / "ours"), str(tmp_path / "out"), "sentence_transformers", pooling=pooling)
    texts = proteins((1, 7, 33, 120, 1100))  # the last is longer than what ESM-2 was trained on
    ours = Embedder(bundle, pooling=pooling).embed([PROTEIN.encode(text) for text in texts])
    np.testing.assert_allclose(encoded(tmp_path / "out", texts), np.stack(ours), atol=1e-5, rtol=0)


@pytest.mark.parametrize("hidden", [None, 32])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encode_gives_the_vectors_of_a_tower(tmp_path: Path, pooling: Any, hidden: int | None) -> None:
    bundle = tower(pooling, hidden)
    to_sentence_transformers(bundle, tmp_path / "out")
    texts = proteins((1, 7, 33, 120, 1100))  # the last one is cut, as ours is
    ours = TowerReader(bundle).embed([PROTEIN.encode(text) for text in texts])
    assert np.abs(ours[0] - ours[1]).max() > 0.01
    np.testing.assert_allclose(encoded(tmp_path / "out", texts), ours, atol=1e-5, rtol=0)


def test_marks_of_receptors_are_tokens_like_residues(tmp_path: Path) -> None:
    bundle = made(TCR)
    to_sentence_transformers(bundle, tmp_path / "out")
    texts = ["CAVRDSNYQLIW|CASSIRSSYEQYF:GILGFVFTL", "|CASSF", "CASSX"]
    ours = Embedder(bundle).embed([TCR.encode(text) for text in texts])
    np.testing.assert_allclose(encoded(tmp_path / "out", texts), np.stack(ours), atol=1e-5, rtol=0)


def test_nothing_of_ours_is_needed_and_no_weight_is_made_up(tmp_path: Path) -> None:
    to_sentence_transformers(tower(hidden=32), tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "modules.json").read_text())
    kinds = ["Transformer", "WordWeights", "Pooling", "Dense", "Dense", "Normalize"]
    assert [module["type"] for module in listed] == [f"sentence_transformers.models.{kind}" for kind in kinds]
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert [type(module).__name__ for module in model] == kinds and model.similarity_fn_name == "cosine"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {*model[0].auto_model.state_dict()} <= {*stored}  # a layer that is not there would be drawn anew
    model.save(str(tmp_path / "again"))
    assert np.array_equal(encoded(tmp_path / "again", ["MKTW"]), encoded(tmp_path / "out", ["MKTW"]))
    assert "SentenceTransformer('.')" in (tmp_path / "out" / "README.md").read_text()


def test_the_encoder_comes_back_whole(tmp_path: Path) -> None:
    bundle = made()
    to_sentence_transformers(bundle, tmp_path / "out")
    again = biometro.load(tmp_path / "out").encoder.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in bundle.encoder.state_dict().items())


def test_what_it_cannot_say_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="positions is alibi"):
        to_sentence_transformers(made(positions="alibi"), tmp_path / "out")
    molecules = MoleculeAlphabet.of(["[C]", "[O]"], "selfies")
    with pytest.raises(UserError, match=r"its tokens \(molecule\)"):
        to_sentence_transformers(made(molecules, mask_token=molecules.id("<mask>")), tmp_path / "out")
    with pytest.raises(UserError, match="trained on cls vectors"):
        to_sentence_transformers(tower("cls"), tmp_path / "out", "mean")
    assert list(tmp_path.iterdir()) == []
    made(positions="alibi").save(tmp_path / "ours")
    wanted = ["export", f"--model={tmp_path / 'ours'}", f"--out={tmp_path / 'out'}"]
    assert cli.main([*wanted, "--to=sentence_transformers"]) == 1
    assert cli.main([*wanted, "--pooling=cls"]) == 1
    said = capsys.readouterr().err
    assert "alibi" in said and "pooling is of sentence_transformers" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
