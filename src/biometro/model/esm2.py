"""ESM-2 (Lin et al. 2023) in and out: Hugging Face `EsmForMaskedLM` folders and fair-esm `.pt` state dicts.

ESM-2 is one setting of `EncoderConfig` and one of `VocabularyHead`; this file only renames weights. The
contact-prediction weights are `ContactWeights`, under the role `contact`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biometro.alphabet import PROTEIN, Alphabet
from biometro.alphabet.kinds import ALPHABETS
from biometro.errors import UserError
from biometro.files import new_folder
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.esm2_names import HUGGINGFACE_LAYER, obstacles
from biometro.model.heads import ContactWeights, ContactWeightsConfig, VocabularyHead, VocabularyHeadConfig
from biometro.model.positions import rotary_frequencies
from biometro.model.weights import assign, distinct_state, read_folder, write_safetensors
from biometro.untrusted import check_archive, inside

_FAIR_LAYER = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v",
    "self_attn.out_proj": "attention.out", "self_attn_layer_norm": "attention_norm",
    "fc1": "ffn.up", "fc2": "ffn.down", "final_layer_norm": "ffn_norm",
}  # fmt: skip
_HUGGINGFACE = {
    "esm.embeddings.word_embeddings.weight": "encoder.embedding.weight",
    "esm.rotary_embeddings.inv_freq": "encoder.frequencies",
    "esm.encoder.emb_layer_norm_after.weight": "encoder.norm.weight",
    "esm.encoder.emb_layer_norm_after.bias": "encoder.norm.bias",
    "esm.contact_head.regression.weight": "contact.regression.weight",
    "esm.contact_head.regression.bias": "contact.regression.bias",
    "lm_head.dense.weight": "vocabulary.dense.weight",
    "lm_head.dense.bias": "vocabulary.dense.bias",
    "lm_head.layer_norm.weight": "vocabulary.norm.weight",
    "lm_head.layer_norm.bias": "vocabulary.norm.bias",
    "lm_head.bias": "vocabulary.bias",
}
_FAIR = {
    "embed_tokens.weight": "encoder.embedding.weight",
    "emb_layer_norm_after.weight": "encoder.norm.weight",
    "emb_layer_norm_after.bias": "encoder.norm.bias",
    "contact_head.regression.weight": "contact.regression.weight",
    "contact_head.regression.bias": "contact.regression.bias",
    "lm_head.dense.weight": "vocabulary.dense.weight",
    "lm_head.dense.bias": "vocabulary.dense.bias",
    "lm_head.layer_norm.weight": "vocabulary.norm.weight",
    "lm_head.layer_norm.bias": "vocabulary.norm.bias",
    "lm_head.bias": "vocabulary.bias",
}
_IGNORED = re.compile(
    r"(^|\.)(position_ids|lm_head\.decoder\.(weight|bias)|lm_head\.weight|position_embeddings\.weight)$"
)
_LONGEST_VOCABULARY = 1000  # characters of a vocab.txt that may be one of ours
_FREQUENCIES = re.compile(r"\.(rotary_embeddings|rot_emb)\.inv_freq$")


def _rename(
    theirs: Mapping[str, Tensor], fixed: dict[str, str], layer: dict[str, str], prefix: str
) -> dict[str, Tensor]:
    """Their weights under our names. `prefix` opens the name of layer n: `prefix` + n + `.`"""
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in theirs.items():
        # transformers 5 writes norms under the names that TensorFlow once used
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        found = re.match(re.escape(prefix) + r"(\d+)\.(.+)\.(weight|bias)$", name)
        if name in fixed:
            ours[fixed[name]] = tensor
        elif _FREQUENCIES.search(name):  # one copy in every layer of older files
            ours.setdefault("encoder.frequencies", tensor)
        elif found and found[2] in layer:
            target, block = layer[found[2]], f"encoder.blocks.{found[1]}"
            if target in "qkv":
                parts.setdefault(f"{block}.attention.qkv.{found[3]}", {})[target] = tensor
            else:
                ours[f"{block}.{target}.{found[3]}"] = tensor
        elif not _IGNORED.search(name):
            raise UserError(f"weight {name} is none of ESM-2's")
    for name, qkv in parts.items():
        if len(qkv) != 3:
            raise UserError(f"a query, key or value weight is missing beside {name}")
        try:
            ours[name] = torch.cat([qkv["q"], qkv["k"], qkv["v"]])
        except (RuntimeError, TypeError) as error:
            raise UserError(f"the query, key and value weights beside {name} do not fit one another") from error
    return ours


def _bundle(
    ours: dict[str, Tensor], config: EncoderConfig, where: Path, facts: dict[str, str], alphabet: Alphabet = PROTEIN
) -> Bundle:
    if config.depth > len(ours):
        raise UserError(f"{where}: {config.depth} layers are claimed, but there are {len(ours)} weights")
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"encoder": Encoder(config)}
        if any(name.startswith("vocabulary.") for name in ours):
            modules["vocabulary"] = VocabularyHead(
                VocabularyHeadConfig(config.width, config.vocab_size, norm_eps=config.norm_eps)
            )
        if any(name.startswith("contact.") for name in ours):
            modules["contact"] = ContactWeights(ContactWeightsConfig(config.depth * config.heads))
    if "encoder.frequencies" not in ours:
        ours["encoder.frequencies"] = rotary_frequencies(config.head_size)
    assign(modules, ours, where)
    return Bundle(alphabet, modules, facts=facts, crop=1022)


def _alphabet_of(folder: Path) -> Alphabet:
    """ESM-2's, unless vocab.txt holds the tokens of receptors that `to_huggingface` has written."""
    try:
        with inside(folder, "vocab.txt").open(encoding="utf-8") as handle:
            tokens = tuple(handle.read(_LONGEST_VOCABULARY).split())
    except (OSError, ValueError, UserError):
        return PROTEIN
    return next((alphabet for alphabet in ALPHABETS.values() if alphabet.tokens == tokens), PROTEIN)


def from_huggingface(folder: Path, config: dict[str, Any]) -> Bundle:
    """A bundle from a Hugging Face ESM-2 folder (`EsmForMaskedLM` or `EsmModel`, safetensors).

    Raises UserError where the folder is another kind of ESM, or its weights do not fit its configuration.
    """
    for key, wanted in {
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "vocab_size": (alphabet := _alphabet_of(folder)).size,
    }.items():
        if (config.get(key) or False) != wanted:
            raise UserError(
                f"{folder}: {key} is {config.get(key)!r}; of ESM models, only ESM-2 ({wanted!r}) can be read"
            )
    if config.get("is_folding_model"):
        raise UserError(f"{folder}: is a folding model (ESMFold); only the language models of ESM-2 can be read")
    if "auto_map" in config:
        raise UserError(
            f"{folder}: brings code of its own (auto_map in config.json), which is never run; ESM-2 needs none, so "
            "this is another model, or remove auto_map if you know that it is ESM-2"
        )
    tensors = read_folder(folder)
    if tensors is None:
        raise UserError(f"{folder}: no model.safetensors (pickled weights are not read; save them as safetensors)")
    if not any(name.startswith("esm.") for name in tensors):  # EsmModel without the masked-LM wrapper
        tensors = {f"esm.{name}": tensor for name, tensor in tensors.items()}
    tensors = {name: t for name, t in tensors.items() if not name.startswith(("esm.pooler.", "classifier."))}
    try:
        encoder = EncoderConfig(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            head_size=config["hidden_size"] // config["num_attention_heads"],
            ffn_width=config["intermediate_size"],
            norm_eps=config["layer_norm_eps"],
            token_dropout=bool(config.get("token_dropout")),
            mask_token=config.get("mask_token_id", PROTEIN.id(PROTEIN.mask)),
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{folder}/config.json: is incomplete or wrong ({type(error).__name__}: {error})") from error
    ours = _rename(tensors, _HUGGINGFACE, HUGGINGFACE_LAYER, "esm.encoder.layer.")
    return _bundle(ours, encoder, folder, {"source": f"Hugging Face folder {folder.name}"}, alphabet)


def from_fair_esm(path: Path) -> Bundle:
    """A bundle from a fair-esm ESM-2 checkpoint (`.pt`), read without running any code from the file.

    Raises UserError where the file holds anything but tensors and plain values, or no ESM-2.
    """
    check_archive(path)
    try:
        # The checkpoints keep their training options in an argparse.Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over in a file of unknown origin
        raise UserError(
            f"{path}: is no checkpoint that can be read safely: it is damaged, or holds more than tensors and plain "
            f"values ({type(error).__name__})"
        ) from error
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path}: holds no state dict of tensors")
    if not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: holds no state dict of named tensors")
    plain = all(t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized for t in state.values())
    if not plain or sum(t.numel() * t.element_size() for t in state.values()) > 2 * path.stat().st_size:
        raise UserError(f"{path}: claims weights that are larger than the file")  # views may claim without holding
    theirs = {re.sub(r"^encoder\.(sentence_encoder\.)?", "", name): tensor for name, tensor in state.items()}
    layers = [int(m[1]) for name in theirs if (m := re.match(r"layers\.(\d+)\.", name))]
    frequencies = [t for name, t in theirs.items() if _FREQUENCIES.search(name)]
    matrices = ("embed_tokens.weight", "layers.0.fc1.weight")
    if any(theirs[name].ndim != 2 for name in matrices if name in theirs):
        raise UserError(f"{path}: weights of the wrong shape")
    if not layers or not frequencies or "embed_tokens.weight" not in theirs or "layers.0.fc1.weight" not in theirs:
        raise UserError(f"{path}: is no ESM-2 checkpoint (ESM-1 and MSA models are not supported)")
    encoder = EncoderConfig(
        vocab_size=theirs["embed_tokens.weight"].shape[0],
        width=theirs["embed_tokens.weight"].shape[1],
        depth=max(layers) + 1,
        head_size=2 * frequencies[0].numel(),
        ffn_width=theirs["layers.0.fc1.weight"].shape[0],
        token_dropout=True,
        mask_token=PROTEIN.id(PROTEIN.mask),
    )
    ours = _rename(theirs, _FAIR, _FAIR_LAYER, "layers.")
    return _bundle(ours, encoder, path, {"source": f"fair-esm checkpoint {path.name}"})


def to_huggingface(bundle: Bundle, folder: str | Path) -> None:
    """Write `EsmForMaskedLM` for transformers: config, safetensors and tokenizer, no custom code.

    Raises UserError, naming the setting, where the model is not expressible as ESM-2: another position code, norm,
    feed-forward or head; only the encoder and its vocabulary head are exported.
    """
    with new_folder(Path(folder)) as work:
        write_huggingface(bundle, work)


def write_huggingface(bundle: Bundle, work: Path, head: bool = True) -> None:
    """The same into a folder that exists already; without `head`, the encoder alone (`EsmModel`)."""
    named = "EsmForMaskedLM" if head else "EsmModel"
    _check_esm(bundle, named, head)
    assert isinstance(bundle.encoder, Encoder) and isinstance(bundle.alphabet, Alphabet)
    config, alphabet = bundle.encoder.config, bundle.alphabet
    tensors, _ = distinct_state(bundle.modules)
    theirs = {name: tensors[ours] for name, ours in _HUGGINGFACE.items() if ours in tensors}
    for number in range(config.depth):
        for name, ours in HUGGINGFACE_LAYER.items():
            for kind in ("weight", "bias"):
                block = f"encoder.blocks.{number}"
                if ours in "qkv":
                    fused = tensors[f"{block}.attention.qkv.{kind}"]
                    tensor = fused.chunk(3)["qkv".index(ours)].clone()
                else:
                    tensor = tensors[f"{block}.{ours}.{kind}"]
                theirs[f"esm.encoder.layer.{number}.{name}.{kind}"] = tensor
    theirs.setdefault("esm.contact_head.regression.weight", torch.zeros(1, config.depth * config.heads))
    theirs.setdefault("esm.contact_head.regression.bias", torch.zeros(1))
    if not head:
        theirs = {name.removeprefix("esm."): tensor for name, tensor in theirs.items() if name.startswith("esm.")}
    settings = {
        "architectures": [named], "model_type": "esm", "vocab_size": config.vocab_size,
        "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.heads,
        "intermediate_size": config.hidden, "hidden_act": "gelu", "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
        "position_embedding_type": "rotary", "max_position_embeddings": 1026, "emb_layer_norm_before": False,
        "token_dropout": config.token_dropout, "mask_token_id": alphabet.id(alphabet.mask),
        "pad_token_id": alphabet.id(alphabet.pad), "is_folding_model": False, "vocab_list": None, "dtype": "float32",
        "tie_word_embeddings": True,
    }  # fmt: skip
    specials = {"cls_token": alphabet.begin, "eos_token": alphabet.end, "pad_token": alphabet.pad,
                "mask_token": alphabet.mask, "unk_token": "<unk>"}  # fmt: skip
    write_safetensors(work / "model.safetensors", theirs)
    (work / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (work / "vocab.txt").write_text("\n".join(alphabet.tokens), encoding="utf-8")
    tokenizer = {"tokenizer_class": "EsmTokenizer", "clean_up_tokenization_spaces": False, **specials}
    (work / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1), encoding="utf-8")
    (work / "special_tokens_map.json").write_text(json.dumps(specials, indent=1), encoding="utf-8")
    (work / "README.md").write_text(bundle.card(), encoding="utf-8")


def _check_esm(bundle: Bundle, named: str, head: bool) -> None:
    """Raises UserError where the model is not expressible."""
    if not isinstance(bundle.encoder, Encoder) or not isinstance(bundle.alphabet, Alphabet):
        raise UserError(f"cannot be exported as {named}: its encoder is one of transformers already")
    vocabulary = bundle.modules.get("vocabulary")
    problems = obstacles(bundle.encoder.config) | {
        f"its tokens ({bundle.alphabet.name}) are not those of ESM-2, with or without marks of receptors":
            bundle.alphabet.tokens not in [alphabet.tokens for alphabet in ALPHABETS.values()],
        "the vocabulary head has no dense layer":
            head and isinstance(vocabulary, VocabularyHead) and not vocabulary.config.dense,
        "the model has no vocabulary head": head and not isinstance(vocabulary, VocabularyHead),
    }  # fmt: skip
    for problem, present in problems.items():
        if present:
            raise UserError(f"cannot be exported as {named}: {problem}")
