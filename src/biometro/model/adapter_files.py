"""Folders of LoRA adapters in PEFT's format: read as a stranger's, checked against the model that they are for.

    adapter_config.json ──▶ settings ──┐
                                       ├─▶ names, shapes, ranks agree ─▶ {layer: Update}
    adapter_model.safetensors ─────────┘

The layers in a folder have the names of the model that the adapter was made for. Our encoder reads its own names and
those of Hugging Face's ESM, where query, key and value are three layers. A low-rank update of our fused layer is three
that share A and split B; three with an A each are one update of three times the rank, whose B is block-diagonal.

Shape letters: R rank, I a layer's inputs, O its outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from biometro.errors import UserError
from biometro.model.adapter_config import CONFIG, Settings, read_settings
from biometro.model.encoder import Encoder
from biometro.model.esm2_names import HUGGINGFACE_LAYER, obstacles
from biometro.model.weights import read_safetensors, safetensors_shapes, write_safetensors
from biometro.untrusted import inside

Names = Literal["ours", "huggingface"]
WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."  # of all names in PEFT's files
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_ESM_LAYER = re.compile(r"(|esm\.)encoder\.layer\.\d+\.")  # of EsmModel, or within EsmForMaskedLM and its like


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one layer's (O, I) weight: alpha / R times B A (Hu et al. 2021, section 4.1)."""

    a_RI: Tensor
    b_OR: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.a_RI.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Adapter:
    """What a folder holds.

    base: the model that it says it was made for; None where it says nothing.
    rank, alpha, dropout: of its configuration; single layers may differ in rank and alpha.
    updates: by names of our layers; float32, on the CPU.
    """

    base: str | None
    rank: int
    alpha: float
    dropout: float
    updates: dict[str, Update]


@dataclass(frozen=True)
class Place:
    """Where a layer of the file stands in the module. `part`: 0, 1, 2 for query, key, value of a fused layer."""

    layer: str
    part: int | None
    outputs: int
    inputs: int


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers below a module by name, in order; of a layer that carries adapters, the one under them."""
    return dict(_walk(module, ""))


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Linear]]:
    for name, child in module.named_children():
        layer = getattr(child, "base_layer", child)  # of PEFT
        if isinstance(layer, nn.Linear):
            yield prefix + name, layer
        else:
            yield from _walk(child, f"{prefix}{name}.")


def places(module: nn.Module, names: Names) -> dict[str, Place]:
    """The layers that an adapter of a module can name, by those names.

    `huggingface`: for our encoder the names in transformers' `EsmModel`; for a module that holds another's in `.model`
    the names in there.
    """
    found = {name: Place(name, None, layer.out_features, layer.in_features) for name, layer in linears(module).items()}
    if names == "ours":
        return found
    if not isinstance(module, Encoder):
        return {name.removeprefix("model."): place for name, place in found.items() if name.startswith("model.")}
    theirs = {}
    for number in range(module.config.depth):
        for name, ours in HUGGINGFACE_LAYER.items():
            if ours in "qkv":
                fused = found[f"blocks.{number}.attention.qkv"]
                place = Place(fused.layer, "qkv".index(ours), fused.outputs // 3, fused.inputs)
            elif ours.endswith("norm"):
                continue
            else:
                place = found[f"blocks.{number}.{ours}"]
            theirs[f"encoder.layer.{number}.{name}"] = place
    return theirs


def write(module: nn.Module, folder: Path, updates: Mapping[str, Update], names: Names, base: str, drop: float) -> None:
    """Write the two files of an adapter. `updates` by the module's own names; `drop` is the dropout of training.

    Raises UserError where Hugging Face's names are asked for an encoder that is no ESM-2.
    """
    if names == "huggingface" and isinstance(module, Encoder):
        problem = next((text for text, present in obstacles(module.config).items() if present), None)
        if problem:
            raise UserError(f"cannot be saved as an adapter of Hugging Face's ESM: {problem}")
    known = places(module, names)
    theirs: dict[str, Update] = {}
    for name, place in known.items():
        update = updates.get(place.layer)
        if update is not None:
            b_OR = update.b_OR if place.part is None else update.b_OR.chunk(3)[place.part]
            theirs[name] = Update(update.a_RI, b_OR, update.alpha)
    if not theirs:
        raise ValueError(f"no layer with an adapter has a name in {names} names")
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, **pattern_of(theirs),
        "lora_dropout": drop, "target_modules": _targets(theirs, known), "bias": "none", "fan_in_fan_out": False,
        "use_rslora": False, "use_dora": False, "modules_to_save": None, "init_lora_weights": True,
        "inference_mode": True,
    }  # fmt: skip
    tensors = {f"{_PREFIX}{name}.lora_A.weight": update.a_RI for name, update in theirs.items()}
    tensors |= {f"{_PREFIX}{name}.lora_B.weight": update.b_OR for name, update in theirs.items()}
    write_safetensors(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def pattern_of(updates: Mapping[str, Update]) -> dict[str, Any]:
    """PEFT's settings of rank and alpha: those of the first layer, and a pattern for each layer that differs."""
    ranks = {name: update.rank for name, update in updates.items()}
    alphas = {name: int(u.alpha) if float(u.alpha).is_integer() else u.alpha for name, u in updates.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }


def _targets(names: Collection[str], known: Collection[str]) -> list[str]:
    """`target_modules`: the ends of names where they say the same as the names, which are six for each layer."""
    ends = sorted({re.sub(r".*\.\d+\.", "", name) for name in names})
    meant = {name for name in known if any(name == end or name.endswith(f".{end}") for end in ends)}
    return ends if meant == set(names) else sorted(names)


def read(module: nn.Module, folder: Path) -> Adapter:
    """The adapter in a folder, for a module; the module is not changed.

    Raises UserError where the folder is damaged, holds pickled weights, or a kind of adapter other than LoRA on linear
    layers; or where its layers, their shapes or their number are not those of the module.
    """
    settings = read_settings(folder)
    path, shapes, tensors = _weights(folder)
    known = _known(module, shapes)
    theirs: dict[str, Update] = {}
    for name, pair in shapes.items():
        place = known.get(name)
        a, b = (tensors.get(f"{_PREFIX}{name}.lora_{letter}.weight") for letter in "AB")
        if a is None or b is None:
            raise UserError(f"{path}: {name} has one of lora_A and lora_B, and lacks the other")
        if place is None:
            if not b.any():
                continue  # adapted and never learned, such as a pooler without a loss: it adds nothing
            raise _misfit(module, folder, settings, f"it adapts {name}, which is not here")
        if len(pair["A"]) != 2 or pair["A"][1] != place.inputs or pair["B"] != (place.outputs, pair["A"][0]):
            here = f"{name} has {place.inputs} inputs and {place.outputs} outputs here"
            raise _misfit(module, folder, settings, f"{here}, its A and B are {pair['A']} and {pair['B']}")
        rank, alpha = settings.of_layer(name)
        if rank != pair["A"][0]:
            raise UserError(f"{folder}: {name} has rank {pair['A'][0]} in {WEIGHTS} and {rank} in {CONFIG}")
        theirs[name] = Update(a.float(), b.float(), alpha)
    meant = settings.meant(known, theirs)
    missing, surplus = sorted(meant - set(theirs)), sorted(set(theirs) - meant)
    if missing:  # as in an adapter of a model with fewer layers
        raise _misfit(module, folder, settings, f"it has nothing for {missing[0]}{_more(missing)}")
    if surplus:
        raise UserError(f"{folder}: {WEIGHTS} holds {surplus[0]}{_more(surplus)}, which {CONFIG} does not target")
    if not theirs:
        raise _misfit(module, folder, settings, "it adapts none of its layers")
    return Adapter(settings.base, settings.rank, settings.alpha, settings.dropout, _joined(theirs, known))


def _weights(folder: Path) -> tuple[Path, dict[str, dict[str, tuple[int, ...]]], dict[str, Tensor]]:
    """The path of the weights, {layer: {"A" and "B": shape}}, and all tensors by the file's names."""
    try:
        path = inside(folder, WEIGHTS)
    except (FileNotFoundError, NotADirectoryError) as error:
        pickled = f"; {PICKLED} is pickled, which is never read: save it as safetensors" * (folder / PICKLED).exists()
        raise UserError(f"{folder}: has no {WEIGHTS}{pickled}") from error
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in safetensors_shapes(path).items():
        found = _KEY.fullmatch(key)
        if not found:
            raise UserError(f"{path}: holds {key}, which is no LoRA weight of a linear layer")
        shapes.setdefault(found[1], {})[found[2]] = shape
    if not shapes:
        raise UserError(f"{path}: holds no LoRA weights")
    tensors = read_safetensors(path)
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise UserError(f"{path}: {key} holds what is no finite number of floating point")
    return path, shapes, tensors


def _known(module: nn.Module, names: Collection[str]) -> dict[str, Place]:
    """The module's layers by the names that a file uses."""
    ours = places(module, "ours")
    if isinstance(module, Encoder):
        prefix = next((found[1] for name in names if (found := _ESM_LAYER.match(name))), None)
        return ours if prefix is None else {prefix + name: p for name, p in places(module, "huggingface").items()}
    return ours if any(name in ours for name in names) else places(module, "huggingface")


def _misfit(module: nn.Module, folder: Path, settings: Settings, reason: str) -> UserError:
    made_for = f"made for {settings.base}" if settings.base else "which does not say for what it was made"
    what = type(module).__name__
    if isinstance(module, Encoder):
        what = f"encoder of {module.config.depth} layers and width {module.config.width}"
    return UserError(f"{folder}: this adapter, {made_for}, does not fit this {what}: {reason}")


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _joined(theirs: Mapping[str, Update], known: Mapping[str, Place]) -> dict[str, Update]:
    """Updates by the module's own names, those of query, key and value as one."""
    ours: dict[str, Update] = {}
    parts: dict[str, dict[int, Update]] = {}
    for name, update in theirs.items():
        place = known[name]
        if place.part is None:
            ours[place.layer] = update
        else:
            parts.setdefault(place.layer, {})[place.part] = update
    return ours | {layer: _fused(of) for layer, of in parts.items()}


def _fused(parts: Mapping[int, Update]) -> Update:
    """One update of the fused layer, which gives exactly what those of query (0), key (1) and value (2) give."""
    rows = [parts[i] for i in sorted(parts)]
    first = rows[0]
    if len(rows) == 3 and all(u.alpha == first.alpha and torch.equal(u.a_RI, first.a_RI) for u in rows):
        return Update(first.a_RI, torch.cat([u.b_OR for u in rows]), first.alpha)
    outputs, rank = first.b_OR.shape[0], sum(u.rank for u in rows)
    scale = max(u.scale for u in rows)
    b_OR = torch.zeros(3 * outputs, rank)
    column = 0
    for part, update in sorted(parts.items()):
        block = b_OR[part * outputs : (part + 1) * outputs, column : column + update.rank]
        block.copy_(update.b_OR * (update.scale / scale))
        column += update.rank
    return Update(torch.cat([u.a_RI for u in rows]), b_OR, scale * rank)
