"""Encoders of the transformers library (ProtBert, ProtT5, Ankh, ChemBERTa, ...) where our own `Encoder` stands.

    Packed ─▶ groups of like length, padded right ─▶ transformers' model ─▶ last hidden states, packed again ─▶ h_TD

A folder is read piece by piece: its configuration and weights by our own readers, which are bounded and never unpickle
more than tensors; transformers gets them as values, builds the model and puts weights in their places. It is not given
the folder, from which it would also take adapters, quantisation and attention kernels that lie elsewhere.
Shape letters: T tokens of the pack, G sequences of a group, L tokens of the longest of them, D width.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biometro.alphabet.tokenizer import TokenizerAlphabet, quiet, read_tokenizer
from biometro.data.batch import Packed
from biometro.errors import UserError
from biometro.model.attention import attention_pairs
from biometro.model.weights import read_folder
from biometro.untrusted import check_archive, inside

# Padding that costs about as much as one more call of the model. Measured on a CPU: 14 tokens for a BERT of 3 layers,
# width 320; no pack of 24 proteins was faster with more than 32. On CUDA a guess: calls wait for their kernels.
_CALL_TOKENS, _CALL_TOKENS_CUDA = 32, 2048
_LARGEST = 1 << 20  # no number of a configuration is larger, but those of tokens
_LARGEST_TABLE = 1 << 28  # numbers in a table of positions, which some models compute as they are built
_COUNTS = re.compile(r"(layers?|groups?|group_num|blocks|stages|experts)$")  # numbers that modules are built by
# What a configuration may say about running rather than about the model; some of it names code or files elsewhere.
_NOT_THE_MODEL = {
    "architectures", "attn_implementation", "dtype", "distributed_config", "experts_implementation", "fusion_config",
    "gradient_checkpointing", "id2label", "kernel_config", "label2id", "model_type", "name_or_path", "num_labels",
    "output_attentions", "output_hidden_states", "problem_type", "pruned_heads", "return_dict", "task_specific_params",
    "torch_dtype", "torchscript", "transformers_weights", "use_return_dict",
}  # fmt: skip


@dataclass(frozen=True)
class HuggingFaceConfig:
    """What is known of a transformers encoder; the whole configuration stands in the model's own config.json.

    Args:
        model_type: as transformers names it (bert, t5, roberta).
        vocab_size: number of tokens.
        width: size of a token's vector.
        depth: number of layers.
        attention_width: size of the queries of all heads together.
        most_tokens: the longest sequence that there are positions for, begin and end included; None where positions
            are relative and nothing but memory is a limit.
    """

    model_type: str
    vocab_size: int
    width: int
    depth: int
    attention_width: int
    most_tokens: int | None

    @property
    def summary(self) -> str:
        """The shape in words."""
        limit = "relative positions" if self.most_tokens is None else f"up to {self.most_tokens} tokens"
        return f"{self.depth} layers, width {self.width}, {self.model_type} of transformers, {limit}"


class HuggingFaceEncoder(nn.Module):
    """A model of transformers as an encoder. Call it with a `Packed`; it gives (T, width), in input order.

    A sequence's vectors do not depend on its neighbours, but for rounding (tested to 1e-5). The type is float32, or
    what autocast and the model's last layer make of it.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.config = _describe(model)
        pad = getattr(model.config, "pad_token_id", None)
        self._pad = pad if isinstance(pad, int) and 0 <= pad < self.config.vocab_size else 0

    def forward(self, packed: Packed) -> Tensor:
        """Raises UserError for a sequence that is longer than the model has positions for."""
        starts = packed.cu_seqlens.long().cpu()
        lengths = starts.diff()
        most = self.config.most_tokens
        if most is not None and len(lengths) and int(lengths.max()) > most:
            raise UserError(
                f"a sequence of {int(lengths.max())} tokens is longer than this {self.config.model_type} model has "
                f"positions for ({most}, begin and end included); embed it with long: window, or crop it"
            )
        vectors, places = [], []
        call_tokens = _CALL_TOKENS_CUDA if packed.tokens.device.type == "cuda" else _CALL_TOKENS
        for members in _groups(lengths, call_tokens):
            row_L = torch.arange(int(lengths[members].max()))
            real_GL = row_L < lengths[members, None]
            place_GL = (starts[members, None] + row_L).where(real_GL, 0)
            vectors.append(self._run(packed.tokens, real_GL, place_GL))
            places.append(place_GL[real_GL])
        if not vectors:
            return torch.zeros(0, self.config.width, device=packed.tokens.device)
        order = torch.cat(places).argsort().to(packed.tokens.device)
        return torch.cat(vectors)[order]

    def _run(self, tokens_T: Tensor, real_GL: Tensor, place_GL: Tensor) -> Tensor:
        """The vectors of one group's tokens, one after another."""
        device = tokens_T.device
        chosen = real_GL.flatten().nonzero().squeeze(1).to(device)
        real_GL = real_GL.to(device)
        tokens_GL = tokens_T[place_GL.to(device)].where(real_GL, self._pad)
        hidden_GLD: Tensor = self.model(input_ids=tokens_GL, attention_mask=real_GL.long()).last_hidden_state
        if hidden_GLD.shape != (*tokens_GL.shape, self.config.width):
            raise UserError(
                f"{self.config.model_type} models give no vector of width {self.config.width} for each token"
            )
        return hidden_GLD.flatten(0, 1)[chosen]

    def compile_blocks(self) -> None:
        """Compile the model in place, whole: torch cuts it where it must. One graph serves all lengths."""
        self.model.compile(dynamic=True)

    def recompute_blocks(self) -> None:
        """Keep only each layer's input for the backward pass. Raises UserError where the model cannot."""
        if not getattr(self.model, "supports_gradient_checkpointing", False):
            raise UserError(f"{self.config.model_type} models of transformers cannot recompute their layers")
        with quiet():  # it has a new name in transformers 5
            self.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]

    def flops(self, packed: Packed) -> float:
        """Floating-point operations of one forward pass, padding left out: 2 per weight and token, plus attention.

        Layers that share one set of weights (ALBERT) count as one.
        """
        weights = sum(
            module.weight.numel()
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and not name.startswith("pooler")
        )
        pairs = attention_pairs(packed)
        return 2.0 * weights * packed.tokens.numel() + 4.0 * self.config.depth * self.config.attention_width * pairs

    def save(self, folder: Path) -> None:
        """Write config.json and safetensors as transformers does."""
        with quiet():
            self.model.save_pretrained(str(folder))  # type: ignore[operator]


def _groups(lengths: Tensor, call_tokens: int) -> list[Tensor]:
    """Numbers of sequences that are padded to one length together, (G,) int64 each.

    By length, from the shortest: a group is closed where the next sequence would add more padding than a call costs,
    which is `call_tokens`.
    """
    order = lengths.argsort(stable=True)
    groups, first = [], 0
    for place in range(1, len(order)):
        longer = int(lengths[order[place]] - lengths[order[place - 1]])
        if longer * (place - first) > call_tokens:
            groups.append(order[first:place])
            first = place
    return [*groups, order[first:]] if len(order) else []


def _describe(model: Any) -> HuggingFaceConfig:
    config = model.config
    head_size = getattr(config, "d_kv", None) or config.hidden_size // config.num_attention_heads
    return HuggingFaceConfig(
        model_type=config.model_type,
        vocab_size=model.get_input_embeddings().num_embeddings,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        attention_width=head_size * config.num_attention_heads,
        most_tokens=_most_tokens(model),
    )


def _most_tokens(model: nn.Module) -> int | None:
    """Positions that a table of them has; RoBERTa's begin after the padding token's number."""
    limits = [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding)
        and "position" in name
        and table.num_embeddings == getattr(model.config, "max_position_embeddings", None)
    ]
    return min(limits, default=None)


def read(folder: Path, config: dict[str, Any]) -> tuple[HuggingFaceEncoder, TokenizerAlphabet]:
    """The encoder and the tokenizer of a Hugging Face folder, whose config.json is given; float32, on the CPU.

    Of an encoder-decoder (T5) the encoder alone. Heads are left out; every weight of the encoder must be there.

    Raises UserError where the folder needs code of its own, holds no encoder, or is damaged.
    """
    if "auto_map" in config:
        raise UserError(
            f"{folder}: is a {config['model_type']} model that brings code of its own (auto_map), which is never run"
        )
    if config.get("quantization_config") is not None:
        raise UserError(f"{folder}: its weights are quantised (quantization_config); only plain weights can be read")
    tensors = _weights(folder)
    encoder = HuggingFaceEncoder(_load(folder, _configuration(folder, config, len(tensors)), tensors))
    alphabet = read_tokenizer(folder)
    if alphabet.size > encoder.config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has tokens up to {alphabet.size - 1}, but its encoder has vectors for "
            f"{encoder.config.vocab_size}"
        )
    return encoder, alphabet


def _weights(folder: Path) -> dict[str, Tensor]:
    tensors = read_folder(folder)
    if tensors is not None:
        return tensors
    if not (folder / "pytorch_model.bin").exists():
        raise UserError(f"{folder}: has no weights (model.safetensors, its index, or pytorch_model.bin)")
    path = inside(folder, "pytorch_model.bin")
    check_archive(path)
    from transformers.modeling_utils import load_state_dict

    try:
        found = load_state_dict(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over in a file of unknown origin
        raise UserError(
            f"{path}: cannot be read safely: it is damaged, or holds more than tensors and plain values "
            f"({type(error).__name__}); save the weights as model.safetensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in found.items()):
        raise UserError(f"{path}: holds no state dict of named tensors")
    plain = all(t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized for t in found.values())
    if not plain or sum(t.numel() * t.element_size() for t in found.values()) > 2 * path.stat().st_size:
        raise UserError(f"{path}: claims weights that are larger than the file")  # views may claim without holding
    return dict(found)


def _configuration(folder: Path, config: dict[str, Any], tensors: int) -> Any:
    """The configuration as transformers knows it, without what is not about the model.

    Raises UserError for a number that no model of so many `tensors` has.
    """
    from transformers import CONFIG_MAPPING

    def clean(found: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for key, value in found.items():
            if key in _NOT_THE_MODEL or key.startswith("_"):
                continue
            most = tensors if _COUNTS.search(key) else _LARGEST
            if isinstance(value, int | float) and not key.endswith("token_id") and not -most <= value <= most:
                raise UserError(
                    f"{folder}/config.json: {key} is {value!r}; a model of these weights has at most {most:,}"
                )
            kept[key] = clean(value) if isinstance(value, dict) else value
        return kept

    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"{folder}: is a {kind!r} model, which this version of transformers does not know")
    try:
        with quiet():
            found = CONFIG_MAPPING[kind].from_dict(clean(config))
            sizes = (found.hidden_size, found.num_hidden_layers, found.num_attention_heads, found.vocab_size)
    except UserError:
        raise
    except Exception as error:  # its classes check their fields in many ways
        raise UserError(f"{folder}/config.json: no encoder ({type(error).__name__}: {error})") from error
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"{folder}/config.json: sizes must be whole numbers above 0, not {sizes}")
    positions = getattr(found, "max_position_embeddings", None) or 0
    if not isinstance(positions, int) or positions * found.hidden_size > _LARGEST_TABLE:
        raise UserError(f"{folder}/config.json: max_position_embeddings is {positions!r}, more than any model has")
    return found


def _model_class(folder: Path, config: Any) -> Any:
    """The class that reads tokens in both directions. Raises UserError where there is none."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_TEXT_ENCODING_MAPPING,
        MODEL_MAPPING,
    )

    kind: type[Any] = type(config)
    found: Any = None
    one_way = getattr(config, "is_decoder", False)
    if kind in MODEL_FOR_TEXT_ENCODING_MAPPING:
        found = MODEL_FOR_TEXT_ENCODING_MAPPING[kind]
    if getattr(found, "__name__", "").endswith("EncoderModel"):
        pass  # T5: the encoder alone
    elif kind in MODEL_FOR_MASKED_LM_MAPPING and kind in MODEL_MAPPING and not one_way:
        found = None if getattr(config, "is_encoder_decoder", False) else MODEL_MAPPING[kind]
    else:
        found = None
    takes = inspect.signature(getattr(found, "forward", type)).parameters if inspect.isclass(found) else {}
    if "input_ids" not in takes or "attention_mask" not in takes:
        raise UserError(f"{folder}: is a {config.model_type} model, which is no encoder of token sequences")
    return found


def _load(folder: Path, config: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """The model with its weights. Raises UserError where one of the encoder's is missing, superfluous or of another
    shape; transformers would fill in random numbers."""
    kind = _model_class(folder, config)
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    here = sum(tensor.numel() for tensor in tensors.values())
    try:
        with quiet():
            with torch.device("meta"):
                claimed = sum(weight.numel() for weight in kind(config, **options).parameters())
            if claimed > 2 * here + _LARGEST:  # before memory is taken for what is missing
                raise UserError(f"{folder}: config.json claims {claimed:,} weights, but there are {here:,}")
            model, report = kind.from_pretrained(
                None, config=config, state_dict=tensors, output_loading_info=True, dtype=torch.float32, **options
            )
    except UserError:
        raise
    except Exception as error:  # models check their configurations in many ways, and where they please
        raise UserError(
            f"{folder}: weights and configuration disagree, or are damaged ({type(error).__name__}: {error})"
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(f"{folder}: {len(missing)} weights of the encoder are missing, first {missing[0]}")
    own = {name for name, _ in model.named_children()} - {"pooler"}
    buffers = {name for name, _ in model.named_buffers()}
    for name in sorted(report["unexpected_keys"]):
        inner = name.removeprefix(f"{model.base_model_prefix}.")
        if inner.partition(".")[0] in own and inner not in buffers:
            raise UserError(f"{folder}: holds the weight {name}, which is none of a {config.model_type} of this shape")
    if report["mismatched_keys"]:
        raise UserError(
            f"{folder}: weights and configuration disagree about {min(map(str, report['mismatched_keys']))}"
        )
    return model.eval()
