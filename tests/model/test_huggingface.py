"""Encoders of transformers behind our own: against plain transformers, one sequence at a time."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

import biometro
from biometro.alphabet import PROTEIN, TokenizerAlphabet
from biometro.alphabet.protein import STANDARD
from biometro.data.batch import pack
from biometro.errors import UserError
from biometro.inference.embed import Embedder
from biometro.model.bundle import Bundle
from biometro.model.esm2 import to_huggingface
from biometro.model.heads import TokenHead, TokenHeadConfig
from biometro.model.huggingface import HuggingFaceEncoder, _groups
from biometro.model.load import fingerprint
from fuzz.readers import a_protbert_folder

LETTERS = "LAGVESIKRDTPNQFYMHWCXUBZO"  # of ProtTrans' vocabularies
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "GG", "M", "ACDEFGHIKLMNPQRSTVWYACDEFGHIKLM", "WWWWW", "MKTXA"]
SMILES = ["CCO", "c1ccccc1C(=O)O", "C", "CC(=O)Oc1ccccc1C(=O)O", "[Na+].[Cl-]"]


def a_prott5_folder(folder: Path) -> None:
    """Encoder and decoder, relative positions, "▁A" for every residue and </s> behind."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    torch.manual_seed(0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{letter}", -2.0) for letter in LETTERS), ("▁", -9.0)]
    T5Tokenizer(pieces, extra_ids=0).save_pretrained(folder)
    config = T5Config(vocab_size=40, d_model=16, d_kv=12, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False)  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


def an_ankh_folder(folder: Path) -> None:
    """A T5 whose tokenizer reads residues without spaces."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(1)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in LETTERS)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    T5EncoderModel(T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )


def a_chemberta_folder(folder: Path) -> None:
    """A RoBERTa with a masked-LM head over byte-level BPE of SMILES, more than 255 tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizer

    torch.manual_seed(2)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SMILES * 50, vocab_size=290, special_tokens=specials, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    RobertaTokenizer(vocab=state["vocab"], merges=[tuple(m) for m in state["merges"]]).save_pretrained(folder)
    config = RobertaConfig(vocab_size=290, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=1,
                           intermediate_size=32, max_position_embeddings=66, type_vocab_size=1)  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(folder)


def others(kind: str) -> Callable[[Path], None]:
    """Other encoders with ProtBert's tokenizer."""

    def build(folder: Path) -> None:
        import transformers

        a_protbert_folder(folder)
        sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {f"{token}_token_id": number for number, token in enumerate(["pad", "bos", "cls", "sep", "eos"])}
        config = transformers.AutoConfig.for_model(kind, **sizes, intermediate_size=32, max_position_embeddings=64)
        if kind == "albert":
            config.embedding_size = 8
        transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)

    return build


BUILDERS: dict[str, Callable[[Path], None]] = {
    "protbert": a_protbert_folder, "prott5": a_prott5_folder, "ankh": an_ankh_folder, "chemberta": a_chemberta_folder,
    "electra": others("electra"), "distilbert": others("distilbert"), "albert": others("albert"),
    "roformer": others("roformer"), "deberta-v2": others("deberta-v2"), "modernbert": others("modernbert"),
}  # fmt: skip
ENCODERS = {"prott5": "T5EncoderModel", "ankh": "T5EncoderModel"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, build in BUILDERS.items():
        found[name] = tmp_path_factory.mktemp(name)
        build(found[name])
    return found


@pytest.fixture
def protbert(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(folders["protbert"], tmp_path / "protbert"))


def plain(folder: Path, name: str) -> tuple[Any, Any]:
    """Model and tokenizer as transformers reads them."""
    import transformers

    model = getattr(transformers, ENCODERS.get(name, "AutoModel")).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def plain_hidden(folder: Path, name: str, text: str) -> torch.Tensor:
    """(tokens, width) hidden states of one sequence alone, put to the tokenizer as its model card says."""
    model, tokenizer = plain(folder, name)
    given = text if name in ("ankh", "chemberta") else " ".join(text)
    with torch.inference_mode():
        return model(**tokenizer(given, return_tensors="pt")).last_hidden_state[0]


def texts(name: str) -> list[str]:
    return SMILES if name == "chemberta" else PROTEINS


@pytest.mark.parametrize("name", BUILDERS)
def test_hidden_states_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    bundle = biometro.load(folders[name])
    alphabet, encoder = bundle.alphabet, bundle.encoder
    packed = pack([alphabet.encode(text) for text in texts(name)], alphabet.begin_ids, alphabet.end_ids)
    with torch.inference_mode():
        found = encoder(packed).split(packed.lengths.tolist())
    for text, vectors in zip(texts(name), found, strict=True):
        torch.testing.assert_close(vectors, plain_hidden(folders[name], name, text), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_vectors_do_not_depend_on_neighbours(folders: dict[str, Path], name: str) -> None:
    bundle = biometro.load(folders[name])
    tokens = [bundle.alphabet.encode(text) for text in texts(name)]
    together, reverse = Embedder(bundle).embed(tokens), Embedder(bundle).embed(tokens[::-1])[::-1]
    for one, (a, b) in zip(tokens, zip(together, reverse, strict=True), strict=True):
        alone = Embedder(bundle).embed([one])[0]
        np.testing.assert_allclose(a, alone, atol=1e-5)
        np.testing.assert_allclose(b, alone, atol=1e-5)


@pytest.mark.parametrize("name", ["protbert", "prott5", "ankh"])
def test_pooling(folders: dict[str, Path], name: str) -> None:
    mean = biometro.embed(str(folders[name]), PROTEINS).matrix
    residues = biometro.embed(str(folders[name]), PROTEINS, pooling="residues").vectors
    first = 1 if name == "protbert" else 0
    for i, text in enumerate(PROTEINS):
        hidden = plain_hidden(folders[name], name, text).numpy()[first : first + len(text)]
        np.testing.assert_allclose(residues[i], hidden, atol=1e-5)
        np.testing.assert_allclose(mean[i], hidden.mean(0), atol=1e-5)
    if name == "protbert":
        cls = biometro.embed(str(folders[name]), PROTEINS, pooling="cls").matrix
        np.testing.assert_allclose(cls[0], plain_hidden(folders[name], name, PROTEINS[0])[0], atol=1e-5)
    else:
        with pytest.raises(UserError, match="no token before a sequence"):
            biometro.embed(str(folders[name]), PROTEINS, pooling="cls")


def test_text_models(folders: dict[str, Path], tmp_path: Path) -> None:
    bundle = biometro.load(folders["chemberta"])
    tokens = [bundle.alphabet.encode(text) for text in SMILES]
    assert max(t.max() for t in tokens) > 255
    for text, vector in zip(SMILES, Embedder(bundle).embed(tokens), strict=True):
        hidden = plain_hidden(folders["chemberta"], "chemberta", text).numpy()
        np.testing.assert_allclose(vector, hidden[1:-1].mean(0), atol=1e-5)
    (tmp_path / "x.csv").write_text("sequence\nOCC\n" + "\n".join(SMILES) + "\n")
    found = biometro.embed(str(folders["chemberta"]), str(tmp_path / "x.csv"), kind="molecule")
    ethanol = Embedder(bundle).embed([bundle.alphabet.encode("CCO")])[0]  # as RDKit writes it
    np.testing.assert_allclose(found.vectors[0], ethanol, atol=1e-5)
    assert len(found.vectors) == 1 + len(SMILES)
    with pytest.raises(UserError, match="not single letters"):
        Embedder(bundle, pooling="residues")


# Tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "way", "begin", "end"),
    [("protbert", "spaced", 1, 1), ("prott5", "spaced", 0, 1), ("ankh", "plain", 0, 1), ("chemberta", "text", 1, 1)],
)
def test_tokens_are_those_of_the_tokenizer(folders: dict[str, Path], name: str, way: str, begin: int, end: int) -> None:
    alphabet = biometro.load(folders[name]).alphabet
    assert isinstance(alphabet, TokenizerAlphabet)
    assert (alphabet.way, len(alphabet.begin_ids), len(alphabet.end_ids)) == (way, begin, end)
    assert alphabet.letter_is_token == (way != "text")
    _, tokenizer = plain(folders[name], name)

    @given(st.text("CNOc1()=" if way == "text" else STANDARD + "X", min_size=1, max_size=300))
    def check(text: str) -> None:
        framed = [*alphabet.begin_ids, *alphabet.encode(text.encode()).tolist(), *alphabet.end_ids]
        assert framed == tokenizer(" ".join(text) if way == "spaced" else text)["input_ids"]

    check()


def test_rare_letters_are_x_and_others_unknown(folders: dict[str, Path]) -> None:
    alphabet = biometro.load(folders["protbert"]).alphabet
    x, unknown = alphabet.encode("X")[0], 1
    assert alphabet.encode("UZOBJ").tolist() == [x] * 5
    assert alphabet.encode(b"*7a").tolist() == [unknown] * 3


def test_a_letter_without_a_token_is_refused_where_none_is_unknown() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate("CNO")}, []))
    text = TokenizerAlphabet(PreTrainedTokenizerFast(tokenizer_object=backend), "here")
    assert text.encode("CCO").tolist() == [0, 0, 2]
    with pytest.raises(UserError, match="no token for 'S'"):
        text.encode("CCS")
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(STANDARD)}, []))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    protein = TokenizerAlphabet(PreTrainedTokenizerFast(tokenizer_object=backend), "here")
    assert protein.encode("ACY").tolist() == [0, 1, 19]
    with pytest.raises(UserError, match="no token for 'X'"):
        protein.encode("AXC")


def test_residues_that_merge_are_text() -> None:
    """Single letters that are tokens do not suffice: longer ones must not arise."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), *((letter, -2.0) for letter in STANDARD)]
    for more, letter_is_token in {(): True, ("AC",): False, ("CCC",): False}.items():
        backend = Tokenizer(models.Unigram([*pieces, *((piece, -2.0) for piece in more)], unk_id=0))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
        assert TokenizerAlphabet(tokenizer, "here").letter_is_token is letter_is_token


def test_both_alphabets_say_the_same_things() -> None:
    assert (PROTEIN.begin_ids, PROTEIN.end_ids, PROTEIN.letter_is_token) == ((0,), (2,), True)
    packed = pack([np.array([300, 5])], (7, 8), ())
    assert packed.tokens.tolist() == [7, 8, 300, 5] and packed.lengths.tolist() == [4]


# Long sequences --------------------------------------------------------------------------------------------------


def test_absolute_positions_end(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["protbert"]
    bundle = biometro.load(folder)
    assert bundle.longest == 38 and biometro.load(folders["chemberta"]).longest == 62
    assert biometro.load(folders["prott5"]).longest is None
    (tmp_path / "in.fasta").write_text(">short\nMK\n>fits\n" + "M" * 38 + "\n>long\n" + "MA" * 20)
    with pytest.raises(UserError, match=r"sequence long: 40 residues, more than the 38 .* long: window"):
        biometro.embed(str(folder), str(tmp_path / "in.fasta"))
    with pytest.raises(UserError, match="max_length up to 38"):
        biometro.embed(str(folder), ["MK"], long="window")
    found = biometro.embed(str(folder), ["MK", "MA" * 20], long="window", max_length=38, pooling="residues").vectors
    assert [len(v) for v in found] == [2, 40]
    tokens = bundle.alphabet.encode("M" * 39)
    with pytest.raises(UserError, match="41 tokens"), torch.inference_mode():
        bundle.encoder(pack([tokens], bundle.alphabet.begin_ids, bundle.alphabet.end_ids))
    biometro.embed(str(folders["prott5"]), ["MA" * 600])


def test_robertas_positions_begin_after_the_padding(folders: dict[str, Path]) -> None:
    bundle = biometro.load(folders["chemberta"])
    tokens = np.full(62, bundle.alphabet.encode("C")[0])
    assert len(Embedder(bundle).embed([tokens])) == 1
    with pytest.raises(UserError, match="positions for"):
        Embedder(bundle).embed([np.append(tokens, tokens[0])])


# Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
def test_round_trip(folders: dict[str, Path], tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = biometro.load(folders[name])
    bundle.modules["head"] = TokenHead(TokenHeadConfig(16, 3)).eval()
    bundle.facts["a"] = "b"
    bundle.save(tmp_path / "ours")
    again = biometro.load(tmp_path / "ours")
    assert (again.encoder.config, again.facts, again.alphabet.fingerprint) == (
        bundle.encoder.config, bundle.facts, bundle.alphabet.fingerprint,
    )  # fmt: skip
    tokens = [bundle.alphabet.encode(text) for text in texts(name)]
    for a, b in zip(Embedder(bundle).embed(tokens), Embedder(again).embed(tokens), strict=True):
        np.testing.assert_array_equal(a, b)
    h = torch.randn(4, 16)
    torch.testing.assert_close(again.modules["head"](h), bundle.modules["head"](h), atol=0, rtol=0)
    assert bundle.encoder.config.model_type in again.card()
    with pytest.raises(UserError, match="one of transformers"):
        to_huggingface(bundle, tmp_path / "esm")
    assert capfd.readouterr() == ("", "")  # nothing that transformers would say


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "extra.json"])
def test_changes_of_a_saved_encoder_are_seen(folders: dict[str, Path], tmp_path: Path, file: str) -> None:
    folder = tmp_path / "ours"
    biometro.load(folders["protbert"]).save(folder)
    before = fingerprint(folder)
    path = folder / "encoder" / file
    path.write_bytes(path.read_bytes().replace(b"16", b"32", 1).replace(b"[CLS]", b"[SEP]") if path.exists() else b"{}")
    if file == "model.safetensors":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert fingerprint(folder) != before
    with pytest.raises(UserError, match=r"damaged|other files"):
        biometro.load(folder)


def test_the_fingerprint_covers_the_tokenizer(protbert: Path) -> None:
    before = fingerprint(protbert)
    path = protbert / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"do_lower_case": false', '"do_lower_case": true'))
    assert fingerprint(protbert) != before


@pytest.mark.parametrize("name", ["protbert", "prott5", "chemberta"])
def test_no_weight_is_made_up(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / name))
    tensors = load_file(folder / "model.safetensors")
    ours = [n for n in tensors if n.startswith(("encoder.", "embeddings.", "roberta.", "shared."))]
    assert len(ours) > 10
    for gone in ours[:: len(ours) // 6]:
        save_file({n: t for n, t in tensors.items() if n != gone}, folder / "model.safetensors", {"format": "pt"})
        if name == "prott5" and gone in ("shared.weight", "encoder.embed_tokens.weight"):
            continue  # one table under two names
        with pytest.raises(UserError, match="missing"):
            biometro.load(folder)
    last = next(n for n in reversed(ours) if ".0." in n)
    save_file(
        tensors | {last.replace(".0.", ".9.", 1): tensors[last].clone()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match="none of a"):
        biometro.load(folder)
    save_file(tensors | {last: torch.zeros(5, 5)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="disagree"):
        biometro.load(folder)


def test_half_precision_shards_and_old_names(protbert: Path) -> None:
    expected = biometro.embed(str(protbert), PROTEINS).matrix
    tensors = {f"bert.{n}": t.half() for n, t in load_file(protbert / "model.safetensors").items()}
    tensors = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in tensors.items()}
    tensors |= {"bert.embeddings.position_ids": torch.arange(40)[None], "cls.predictions.bias": torch.zeros(30)}
    names = sorted(tensors)
    (protbert / "model.safetensors").unlink()
    for part, half in {"a.safetensors": names[::2], "b.safetensors": names[1::2]}.items():
        save_file({n: tensors[n] for n in half}, protbert / part)
    index = {"weight_map": {n: "ab"[i % 2] + ".safetensors" for i, n in enumerate(names)}}
    (protbert / "model.safetensors.index.json").write_text(json.dumps(index))
    bundle = biometro.load(protbert)
    assert {p.dtype for p in bundle.encoder.parameters()} == {torch.float32}
    np.testing.assert_allclose(biometro.embed(str(protbert), PROTEINS).matrix, expected, atol=5e-3)


class _Writes:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_pickles_hold_tensors_or_are_refused(protbert: Path, tmp_path: Path) -> None:
    expected = biometro.embed(str(protbert), PROTEINS).matrix
    tensors = load_file(protbert / "model.safetensors")
    (protbert / "model.safetensors").unlink()
    torch.save(tensors, protbert / "pytorch_model.bin")
    np.testing.assert_array_equal(biometro.embed(str(protbert), PROTEINS).matrix, expected)
    trap = tmp_path / "trap"
    torch.save({**tensors, "x": _Writes(trap)}, protbert / "pytorch_model.bin")
    with pytest.raises(UserError, match="read safely"):
        biometro.load(protbert)
    for data in (pickle.dumps(_Writes(trap)), b""):
        (protbert / "pytorch_model.bin").write_bytes(data)
        with pytest.raises(UserError, match="as torch writes"):
            biometro.load(protbert)
    # and transformers alone, which the last word is left to
    from transformers.modeling_utils import load_state_dict

    torch.save({"x": _Writes(trap)}, protbert / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError):
        load_state_dict(str(protbert / "pytorch_model.bin"))
    assert not trap.exists()


def change(folder: Path, name: str, **settings: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_code_and_files_elsewhere_are_left_alone(protbert: Path, tmp_path: Path) -> None:
    expected = biometro.embed(str(protbert), PROTEINS).matrix
    elsewhere = Path(shutil.copytree(protbert, tmp_path / "elsewhere"))
    # what transformers would follow, given the folder
    (protbert / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(elsewhere)}))
    change(protbert, "config.json", attn_implementation="someone/kernel", _attn_implementation="someone/kernel",
           transformers_weights="../elsewhere/x.safetensors", output_hidden_states=True, return_dict=False)  # fmt: skip
    np.testing.assert_array_equal(biometro.embed(str(protbert), PROTEINS).matrix, expected)
    trap = tmp_path / "trap"
    (protbert / "code.py").write_text(f"open({str(trap)!r}, 'w')\nclass T: pass\n")
    change(protbert, "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]})
    with pytest.raises(UserError, match=r"auto_map.*never run"):
        biometro.load(protbert)
    (protbert / "tokenizer.json").unlink()
    (protbert / "tokenizer.json").symlink_to(elsewhere / "tokenizer.json")
    with pytest.raises(UserError, match="link out of its folder"):
        biometro.load(protbert)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, "no encoder of token sequences"),
        ({"model_type": "bart"}, "no encoder of token sequences"),
        ({"model_type": "vit"}, "no encoder"),
        ({"model_type": "of_no_one"}, "does not know"),
        ({"model_type": ["bert"]}, "does not know"),
        ({"is_decoder": True}, "no encoder of token sequences"),
        ({"num_hidden_layers": 10**6}, "at most"),
        ({"hidden_size": 10**12}, "at most"),
        ({"hidden_size": 1 << 16}, "claims"),
        ({"num_hidden_layers": "2"}, "no encoder|whole numbers"),
        ({"vocab_size": 10}, "disagree"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(protbert: Path, settings: dict[str, Any], message: str) -> None:
    change(protbert, "config.json", **settings)
    with pytest.raises(UserError, match=message) as error:
        biometro.load(protbert)
    assert "\n" not in str(error.value)


def test_tokenizers_that_are_refused(protbert: Path) -> None:
    tokenizer = json.loads((protbert / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"] = 99
    (protbert / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="tokens up to 99"):
        biometro.load(protbert)
    tokenizer["model"]["vocab"] = {t: n for t, n in vocabulary.items() if len(t) > 1}
    (protbert / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="neither the letters"):
        biometro.load(protbert)
    (protbert / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer cannot be read"):
        biometro.load(protbert)
    (protbert / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        biometro.load(protbert)
    (protbert / "spiece.model").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pip install sentencepiece|cannot be read"):
        biometro.load(protbert)


# The module ------------------------------------------------------------------------------------------------------


def test_groups_hold_every_sequence_once_and_little_padding() -> None:
    lengths = torch.tensor([500, 3, 4, 501, 3, 90, 1000])
    groups = _groups(lengths, 32)
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    assert [lengths[group].tolist() for group in groups] == [[3, 3, 4], [90], [500, 501], [1000]]
    assert [len(group) for group in _groups(lengths, 10_000)] == [7]
    assert _groups(torch.tensor([], dtype=torch.int64), 32) == []
    assert len(_groups(torch.full((100,), 7), 32)) == 1


@pytest.mark.parametrize("name", ["protbert", "prott5", "chemberta"])
def test_training_reaches_every_weight_and_recomputing_changes_nothing(folders: dict[str, Path], name: str) -> None:
    gradients = []
    for recompute in (False, True):
        bundle = biometro.load(folders[name])
        encoder = bundle.encoder.train()
        for module in encoder.modules():
            for place in ("p", "dropout", "attention_dropout", "dropout_prob"):
                if isinstance(getattr(module, place, None), float):
                    setattr(module, place, 0.0)
        if recompute:
            encoder.recompute_blocks()
        tokens = [bundle.alphabet.encode(text) for text in texts(name)]
        encoder(pack(tokens, bundle.alphabet.begin_ids, bundle.alphabet.end_ids)).square().mean().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters()})
    assert all(g is not None and torch.isfinite(g).all() for g in gradients[0].values())
    for n, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][n], gradient)


@pytest.mark.parametrize("name", ["protbert", "prott5", "chemberta"])
def test_flops(folders: dict[str, Path], name: str) -> None:
    bundle = biometro.load(folders[name])
    assert isinstance(bundle.encoder, HuggingFaceEncoder)
    tokens = [np.full(20, bundle.alphabet.encode("C")[0])] * 3  # no padding
    packed = pack(tokens, bundle.alphabet.begin_ids, bundle.alphabet.end_ids)
    bundle.encoder.model.set_attn_implementation("eager")  # whose products the counter knows on any device
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        bundle.encoder(packed)
    assert bundle.encoder.flops(packed) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_int8_is_refused_by_name(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="encoders of our own"):
        biometro.embed(str(folders["prott5"]), ["MK"], precision="int8")
    found = biometro.embed(str(folders["prott5"]), ["MK"], precision="bfloat16").matrix
    np.testing.assert_allclose(found, biometro.embed(str(folders["prott5"]), ["MK"]).matrix, atol=0.1)


@pytest.mark.parametrize("command", ["import biometro.jobs.embed, biometro.model.load", "import biometro"])
def test_transformers_is_imported_only_where_it_is_needed(command: str) -> None:
    code = f"{command}\nimport sys\nassert 'transformers' not in sys.modules and 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_does_not_import_transformers() -> None:
    code = (
        "import sys\nfrom biometro import cli\n"
        "for arguments in (['--help'], ['embed', '--help']):\n"
        "    try:\n        cli.main(arguments)\n    except SystemExit:\n        pass\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_bundle_of_our_own_has_no_limit(tmp_path: Path) -> None:
    from biometro.model.encoder import Encoder, EncoderConfig

    bundle = Bundle(PROTEIN, {"encoder": Encoder(EncoderConfig(width=16, depth=1, head_size=8)).eval()})
    assert bundle.longest is None and "1 layers, width 16, 2 heads, rotary positions" in bundle.card()
