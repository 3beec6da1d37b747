"""A model folder in the format of sentence-transformers, of modules that it ships: no code of ours is needed there.

    Transformer ─▶ WordWeights (start and end weigh 0) ─▶ Pooling: mean  ┐
    Transformer ──────────────────────────────────────▶ Pooling: cls    ┴▶ (Dense, GELU) ─▶ Dense ─▶ Normalize

sentence-transformers' mean is over all tokens; ours leaves start and end out, which `WordWeights` says exactly: it
multiplies a token's vector by the weight of its token, and the mean divides by the sum of weights. The means and
deviations by which a projection standardises are folded into its first linear layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from biometro.alphabet import Alphabet
from biometro.errors import UserError
from biometro.files import new_folder
from biometro.model import esm2
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder
from biometro.model.pairing import Projection
from biometro.model.weights import write_safetensors

SentencePooling = Literal["mean", "cls"]
_NO_LIMIT = 1 << 20  # tokens; positions are relative, and `embed` cuts nothing
_POOLINGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def to_sentence_transformers(bundle: Bundle, folder: str | Path, pooling: SentencePooling | None = None) -> None:
    """Write a folder that `SentenceTransformer(folder)` loads, and whose `encode` gives our vectors.

    Of a tower those of the common space, of length 1; of any other model its pooled vectors as `embed` gives them.

    Args:
        pooling: of a model without a projection, which has its own; default: mean.

    Raises UserError where the encoder is not expressible as ESM-2, naming the setting, and where a tower is asked for
    another pooling than its own.
    """
    encoder, alphabet = bundle.encoder, bundle.alphabet
    projection = bundle.modules.get("projection")
    if isinstance(projection, Projection):
        if pooling not in (None, projection.config.pooling):
            raise UserError(f"pooling is {pooling}, but this tower was trained on {projection.config.pooling} vectors")
        pooling = projection.config.pooling
    with new_folder(Path(folder)) as work:
        esm2.write_huggingface(bundle, work, head=False)
        assert isinstance(encoder, Encoder) and isinstance(alphabet, Alphabet)
        longest = (
            _NO_LIMIT if projection is None else bundle.tower_length + len(alphabet.begin_ids) + len(alphabet.end_ids)
        )
        modules = _Modules(work)
        modules.add(
            "Transformer",
            {"max_seq_length": longest, "do_lower_case": False, "model_args": {"add_pooling_layer": False}},
            name="sentence_bert_config.json",
        )
        width = encoder.config.width
        if pooling != "cls":
            edges = {alphabet.begin: 0, alphabet.end: 0, alphabet.pad: 0}
            modules.add("WordWeights", {"vocab": alphabet.tokens, "word_weights": edges, "unknown_word_weight": 1})
        wanted = "cls_token" if pooling == "cls" else "mean_tokens"
        modes = {f"pooling_mode_{mode}": mode == wanted for mode in _POOLINGS}
        modules.add("Pooling", {"word_embedding_dimension": width, **modes, "include_prompt": True})
        if isinstance(projection, Projection):
            for layer, activation in _folded(projection):
                modules.add_dense(layer, activation)
            modules.add("Normalize", {})
        modules.close()
        (work / "README.md").write_text(_card(bundle), encoding="utf-8")


def _folded(projection: Projection) -> list[tuple[tuple[Tensor, Tensor], type[nn.Module]]]:
    """Weight and bias of each linear layer, and what follows it; the first takes vectors as they are.

    W ((h - mean) / std) + b = (W / std) h + (b - (W / std) mean), in float64.
    """
    first, *rest = [layer for layer in (projection.dense, projection.out) if layer is not None]
    weight = first.weight.double() / projection.std.double()
    bias = first.bias.double() - weight @ projection.mean.double()
    layers = [(weight.float(), bias.float()), *((layer.weight.float(), layer.bias.float()) for layer in rest)]
    return [(layer, nn.GELU if layer is not layers[-1] else nn.Identity) for layer in layers]


class _Modules:
    """The modules of a folder, in order, each in a folder of its own; the first one in the root."""

    def __init__(self, work: Path):
        self.work = work
        self.listed: list[dict[str, Any]] = []

    def add(self, kind: str, config: dict[str, Any], name: str = "config.json") -> Path:
        number = len(self.listed)
        path = f"{number}_{kind}" if number else ""
        # the names of modules since version 2, which newer ones read too
        entry = {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        self.listed.append(entry)
        folder = self.work / path
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(config, indent=1), encoding="utf-8")
        return folder

    def add_dense(self, layer: tuple[Tensor, Tensor], activation: type[nn.Module]) -> None:
        weight, bias = (tensor.detach().cpu().contiguous() for tensor in layer)
        config = {
            "in_features": weight.shape[1], "out_features": weight.shape[0], "bias": True,
            "activation_function": f"{activation.__module__}.{activation.__qualname__}",
        }  # fmt: skip
        folder = self.add("Dense", config)
        write_safetensors(folder / "model.safetensors", {"linear.weight": weight, "linear.bias": bias})

    def close(self) -> None:
        settings: dict[str, Any] = {
            "model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        }  # fmt: skip
        (self.work / "modules.json").write_text(json.dumps(self.listed, indent=1), encoding="utf-8")
        path = self.work / "config_sentence_transformers.json"
        path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _card(bundle: Bundle) -> str:
    """The model card in Markdown, with how this folder is loaded."""
    ours = "import biometro\nmodel = biometro.load('.')\n"
    theirs = (
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer('.')\nvectors = model.encode(['MKTAYIAKQR'])\n"
    )
    card = bundle.card().replace(ours, theirs)
    return card.replace("library_name: biometro", "library_name: sentence-transformers")
