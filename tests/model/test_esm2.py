"""Parity with ESM-2 as transformers and fair-esm compute it, on random weights of the 8M shape."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import biometro
from biometro.alphabet import PROTEIN
from biometro.alphabet.immune import TCR
from biometro.errors import UserError
from biometro.inference.embed import Embedder
from biometro.model import esm2
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import VocabularyHead, VocabularyHeadConfig
from conftest import packed_of, random_sequences

transformers = pytest.importorskip("transformers")
LENGTHS = [1, 7, 33, 33, 90, 2]


def logits_of(bundle: Bundle, sequences: list[np.ndarray]) -> torch.Tensor:
    with torch.inference_mode():
        h = bundle.encoder(packed_of(sequences))
        return bundle.modules["vocabulary"](h, bundle.encoder.embedding.weight)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """EsmForMaskedLM of the 8M shape with weights large enough that every layer matters."""
    torch.manual_seed(0)
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=320, num_hidden_layers=6, num_attention_heads=20,
        intermediate_size=1280, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=1026, position_embedding_type="rotary", token_dropout=True, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = transformers.EsmForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif parameter.ndim == 2:
                parameter.normal_(std=0.06)
    return model


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "esm2"
    theirs.save_pretrained(path)
    return path


def padded(sequences: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sequences)) + 2
    tokens = torch.ones(len(sequences), longest, dtype=torch.long)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence) + 2] = torch.tensor([0, *sequence.tolist(), 2])
    return tokens, (tokens != 1).long()


@pytest.mark.parametrize("with_masks", [False, True])
def test_logits_and_embeddings_agree_with_transformers(theirs: Any, folder: Path, with_masks: bool) -> None:
    bundle = biometro.load(folder)
    sequences = random_sequences(LENGTHS)
    if with_masks:  # exercises the token-dropout rescaling
        for sequence in sequences:
            sequence[::3] = PROTEIN.id("<mask>")
    tokens, mask = padded(sequences)
    with torch.inference_mode():
        output = theirs(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
    expected = output.logits[mask.bool()]
    actual = logits_of(bundle, sequences)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    if not with_masks:
        last = output.hidden_states[-1]
        vectors = Embedder(bundle, pooling="mean").embed(sequences)
        for i, sequence in enumerate(sequences):
            mean = last[i, 1 : len(sequence) + 1].mean(0)
            np.testing.assert_allclose(vectors[i], mean.numpy(), atol=1e-4)


def test_fair_esm_checkpoint_agrees_and_is_read_without_unpickling_code(tmp_path: Path) -> None:
    fair = pytest.importorskip("esm")
    torch.manual_seed(1)
    model = fair.ESM2(num_layers=6, embed_dim=320, attention_heads=20).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.06)
    # As released: names with the prefix of training, and the options in an argparse.Namespace.
    state = {f"encoder.sentence_encoder.{k}": v for k, v in model.state_dict().items() if not k.startswith("lm_head")}
    state |= {f"encoder.{k}": v for k, v in model.state_dict().items() if k.startswith("lm_head")}
    torch.save({"cfg": {"model": argparse.Namespace(encoder_layers=6)}, "model": state}, tmp_path / "esm2.pt")
    bundle = biometro.load(tmp_path / "esm2.pt")
    alphabet = fair.data.Alphabet.from_architecture("ESM-1b")
    assert list(PROTEIN.tokens) == alphabet.all_toks
    sequences = random_sequences(LENGTHS)
    letters = [PROTEIN.decode(s) for s in sequences]
    _, _, tokens = alphabet.get_batch_converter()([(str(i), s) for i, s in enumerate(letters)])
    with torch.inference_mode():
        output = model(tokens, repr_layers=[6])
    keep = tokens != alphabet.padding_idx
    torch.testing.assert_close(logits_of(bundle, sequences), output["logits"][keep], atol=1e-4, rtol=0)
    with torch.inference_mode():
        h = bundle.encoder(packed_of(sequences))
    torch.testing.assert_close(h, output["representations"][6][keep], atol=1e-4, rtol=0)


class _Malicious:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_checkpoint_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": _Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="safely"):
        biometro.load(tmp_path / "bad.pt")
    assert "code ran" not in capsys.readouterr().out


def test_import_of_export_is_the_identity(theirs: Any, folder: Path, tmp_path: Path) -> None:
    esm2.to_huggingface(biometro.load(folder), tmp_path / "out")
    model, info = transformers.EsmForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected = theirs.state_dict()
    actual = model.state_dict()
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    again = biometro.load(tmp_path / "out")
    for name, tensor in biometro.load(folder).encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], tensor), name


@pytest.mark.parametrize("mup", [False, True])
def test_a_model_of_our_own_exports_and_gives_the_same_logits(tmp_path: Path, mup: bool) -> None:
    """One of muP as well: its factors are in its weights."""
    torch.manual_seed(2)
    config = EncoderConfig(width=64, depth=2, head_size=16, mup=mup, base_width=16, base_depth=1)
    head = VocabularyHead(VocabularyHeadConfig.of(config))
    bundle = Bundle(PROTEIN, {"encoder": Encoder(config), "vocabulary": head})
    esm2.to_huggingface(bundle, tmp_path / "hf")
    model = transformers.EsmForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    sequences = random_sequences(LENGTHS)
    batch = tokenizer([PROTEIN.decode(s) for s in sequences], return_tensors="pt", padding=True)
    with torch.inference_mode():
        expected = model(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(logits_of(bundle, sequences), expected, atol=1e-5, rtol=0)


def test_a_model_of_receptors_exports_with_its_marks_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = EncoderConfig(width=64, depth=2, head_size=16, vocab_size=TCR.size)
    modules = {"encoder": Encoder(config), "vocabulary": VocabularyHead(VocabularyHeadConfig(64, TCR.size))}
    bundle = Bundle(TCR, modules)
    esm2.to_huggingface(bundle, tmp_path / "hf")
    model = transformers.EsmForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = ["CAVRDSNYQLIW|CASSIRSSYEQYF:GILGFVFTL", "|CASSF", "CASSX"]
    sequences = [TCR.encode(text) for text in texts]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert batch["input_ids"][0, 1:-1].tolist() == sequences[0].tolist()
    with torch.inference_mode():
        expected = model(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(logits_of(bundle, sequences), expected, atol=1e-5, rtol=0)
    assert biometro.load(tmp_path / "hf").alphabet == TCR


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"positions": "alibi"}, "alibi"),
        ({"norm": "rmsnorm"}, "rmsnorm"),
        ({"ffn": "swiglu"}, "swiglu"),
        ({"bias": False}, "bias"),
    ],
)
def test_what_esm_cannot_say_is_refused_by_name(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    encoder = Encoder(EncoderConfig(width=32, depth=1, head_size=16, **change))
    bundle = Bundle(PROTEIN, {"encoder": encoder, "vocabulary": VocabularyHead(VocabularyHeadConfig(32, 33))})
    with pytest.raises(UserError, match=word):
        esm2.to_huggingface(bundle, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_rounded_frequencies_of_a_checkpoint_are_kept(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("inv_freq")}
    frequencies = biometro.load(folder).encoder.frequencies
    for i in range(6):  # as older checkpoints have it
        tensors[f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = frequencies.half()
    save_file(tensors, copy / "model.safetensors")
    assert torch.equal(biometro.load(copy).encoder.frequencies, frequencies.half().float())


def test_damaged_or_foreign_folders_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        biometro.load(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="safetensors"):
        biometro.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged"):
        biometro.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "position_embedding_type": "absolute"}))
    with pytest.raises(UserError, match="position_embedding_type"):
        biometro.load(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.dense.weight"] = tensors["lm_head.dense.weight"][:5].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"vocabulary\.dense\.weight"):
        biometro.load(tmp_path)
