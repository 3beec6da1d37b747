"""LoRA (Hu et al. 2021, arXiv 2106.09685): small trainable updates of a frozen model's linear layers, through PEFT.

    add ──▶ layer(x) = W x + b + alpha/rank B A dropout(x) ──▶ train ──▶ save ──▶ a folder in PEFT's own format
    load ─▶ several by name on one base ─▶ activate (their sum, or none) ─▶ merge into W, or remove

W and b stay as they are; A starts random and B at zero, so that outputs are unchanged before training. A folder saved
under Hugging Face's names is an adapter of the plain ESM-2 that transformers loads.

While there are adapters, the module's `state_dict` holds their weights and other names for the base's: save the base
and the adapter apart, or merge before `Bundle.save`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from biometro.errors import UserError
from biometro.model import adapter_files
from biometro.model.adapter_files import Adapter, Names, Update, linears
from biometro.model.encoder import Encoder
from biometro.model.limits import check_choices, check_sizes

__all__ = ["Adapter", "LoraConfig", "activate", "adapted", "add", "load", "merge", "remove", "save"]

_OURS = {"attention": ("attention.qkv", "attention.out"), "feed_forward": ("ffn.up", "ffn.down")}


@dataclass(frozen=True)
class LoraConfig:
    """Args:
    rank: inner size of an update; of our fused query, key and value layer it is one update.
    alpha: the update is scaled by alpha / rank.
    dropout: probability, on what goes into the update, in training.
    layers: the layers that get one: of the attention, of the feed-forward, both, or those of the head alone.
    """

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    layers: Literal["attention", "feed_forward", "all", "head"] = "all"

    def __post_init__(self) -> None:
        check_sizes("lora", self)
        check_choices("lora", self)
        if isinstance(self.alpha, bool) or not (isinstance(self.alpha, int | float) and 0 < self.alpha <= 1e6):
            raise UserError(f"lora.alpha is {self.alpha!r}; it must be above 0 and at most 1,000,000")
        if isinstance(self.dropout, bool) or not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise UserError(f"lora.dropout is {self.dropout!r}; it must be at least 0 and below 1")


def add(module: nn.Module, config: LoraConfig, name: str = "default") -> None:
    """Freeze a module and put a new adapter on it, which alone acts and learns until `activate` says otherwise.

    On our encoder, and on one of another library (linear layers in its stack of layers; those whose names have
    "attention" or "attn" in them are the attention's), the layers are those of `config.layers`. A head gets it on all
    its linear layers. A is drawn from torch's global generator.

    Raises UserError for a name that is taken or cannot be one; ValueError for a module without such layers.
    """
    layers = _chosen(module, config.layers)
    _check_new_name(module, name)
    _inject(module, name, layers, {"r": config.rank, "lora_alpha": config.alpha}, config.dropout, empty=False)
    activate(module, [name], train=[name])


def load(module: nn.Module, folder: str | Path, name: str = "default") -> Adapter:
    """Put the adapter of a folder on a module, as PEFT or `save` wrote it; it alone acts, and none learns.

    The layers may be named as the module's are, or (for our encoder) as in transformers' `EsmModel` or a model around
    one; (for a module that holds another library's in `.model`) as in there. Separate updates of query, key and value
    become one of three times the rank, with the same outputs. Nothing is changed unless all names and shapes fit.

    Raises UserError as `adapter_files.read`, and for a name that is taken or cannot be one.
    """
    found = adapter_files.read(module, Path(folder))
    _check_new_name(module, name)
    settings = adapter_files.pattern_of(found.updates)
    for of in ("rank_pattern", "alpha_pattern"):
        settings[of] = {f"^{re.escape(layer)}": value for layer, value in settings[of].items()}
    _inject(module, name, found.updates, settings, found.dropout, empty=True)
    for layer_name, layer in adapted(module).items():
        if layer_name in found.updates:
            update, weight = found.updates[layer_name], layer.get_base_layer().weight
            layer.lora_A[name].weight = nn.Parameter(update.a_RI.to(weight.device, weight.dtype, copy=True))
            layer.lora_B[name].weight = nn.Parameter(update.b_OR.to(weight.device, weight.dtype, copy=True))
    activate(module, [name])
    return found


def save(module: nn.Module, folder: str | Path, *, base: str, names: Names, adapter: str = "default") -> None:
    """Write an adapter into a folder that exists, so that `peft.PeftModel.from_pretrained` loads it.

    Args:
        module: that carries the adapter.
        folder: gets adapter_config.json and adapter_model.safetensors.
        base: folder or name of the base model, for whoever loads the adapter (`base_model_name_or_path`).
        names: `ours` fits the same module; `huggingface` fits the transformers model that our encoder was loaded from
            (`EsmModel`), or that the module holds in `.model`.
        adapter: which.

    Raises UserError for an adapter that there is not, or an encoder that is no ESM-2 under Hugging Face's names.
    """
    _check_known(module, [adapter])
    layers = {name: layer for name, layer in adapted(module).items() if adapter in layer.lora_A}
    updates = {
        name: Update(
            layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach(), layer.lora_alpha[adapter]
        )
        for name, layer in layers.items()
    }
    dropout = next(iter(layers.values())).lora_dropout[adapter]
    drop = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    adapter_files.write(module, Path(folder), updates, names, base, drop)


def activate(module: nn.Module, names: Sequence[str], *, train: Collection[str] = ()) -> None:
    """Let these adapters act; their updates add up, and without any the module is its base.

    `train`: those of them that learn (`requires_grad`); all other weights of the module are frozen.
    Raises UserError for an adapter that there is not.
    """
    _check_known(module, names)
    if not set(train) <= set(names):
        raise ValueError(f"{sorted(set(train) - set(names))} cannot learn without acting")
    module.requires_grad_(False)
    for layer in adapted(module).values():
        layer.set_adapter(list(names))
        for weights in (layer.lora_A, layer.lora_B):
            for name, weight in weights.items():
                weight.requires_grad_(name in train)


def merge(module: nn.Module, names: Sequence[str] | None = None) -> None:
    """Fold adapters into the base's weights (those that act, or `names`) and take all adapters off.

    The layers are plain ones again, so that the module is an ordinary one with other weights; all of them may learn.
    Raises UserError for an adapter that there is not.
    """
    _check_known(module, names or ())
    with torch.no_grad():
        for layer in adapted(module).values():
            chosen = layer.active_adapters if names is None else names
            layer.merge(adapter_names=[name for name in chosen if name in layer.lora_A])
    _take_off(module)


def remove(module: nn.Module) -> None:
    """Take all adapters off; the base is what it was, bit for bit, and all of it may learn."""
    _take_off(module)


def adapted(module: nn.Module) -> dict[str, Any]:
    """PEFT's layers in a module, by the names of the layers that they stand for."""
    return {name: layer for name, layer in module.named_modules() if name and hasattr(layer, "lora_A")}


def _take_off(module: nn.Module) -> None:
    layers = adapted(module)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    if layers:
        del module.peft_config
        module.requires_grad_(True)


def _chosen(module: nn.Module, on: str) -> list[str]:
    """Names of the layers that get an adapter."""
    if isinstance(module, Encoder):
        kinds = [kind for part, kinds in _OURS.items() if on in (part, "all") for kind in kinds]
        names = [f"blocks.{number}.{kind}" for number in range(module.config.depth) for kind in kinds]
    else:
        names = list(linears(module))
        stacks = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
        inner = [name for name in names if any(name.startswith(f"{stack}.") for stack in stacks)]
        if inner and on != "head":
            kind_of = {
                name: "attention" if re.search("attention|attn", name, re.I) else "feed_forward" for name in inner
            }
            names = [name for name in inner if on in (kind_of[name], "all")]
    if not names:
        raise ValueError(f"{type(module).__name__} has no linear layers below it for an adapter on {on}")
    return names


def names_on(module: nn.Module) -> set[str]:
    return {name for layer in adapted(module).values() for name in layer.lora_A}


def _check_known(module: nn.Module, names: Collection[str]) -> None:
    there = names_on(module)
    for name in names:
        if name not in there:
            raise UserError(f"there is no adapter {name!r} here, but: {', '.join(sorted(there)) or 'none'}")


def _check_new_name(module: nn.Module, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or hasattr(nn.ModuleDict(), name):
        raise UserError(f"an adapter cannot be called {name!r}; use letters, digits, - and _ (and no word of Python's)")
    if name in names_on(module):
        raise UserError(f"there is an adapter {name!r} here already; give this one another name")


def _inject(
    module: nn.Module, name: str, layers: Collection[str], settings: Mapping[str, Any], dropout: float, *, empty: bool
) -> None:
    """Let PEFT put its layers in place. `empty`: without weights, which the caller assigns."""
    import peft

    pattern = "|".join(map(re.escape, layers))  # a list would match the ends of names, too
    config = peft.LoraConfig(target_modules=pattern, lora_dropout=dropout, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is meant
        peft.inject_adapter_in_model(config, module, name, low_cpu_mem_usage=empty)
    for layer in adapted(module).values():
        layer.train(layer.get_base_layer().training)  # PEFT's start in training: dropout would be on in a model for use
