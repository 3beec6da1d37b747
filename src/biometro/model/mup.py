"""Maximal update parametrisation: hyper-parameters found on a small model serve the large one. All of it in one table.

    name of a parameter ─▶ role ─▶ what its first scale, learning rate, decay and epsilon are multiplied by

Yang et al. 2022 (arXiv 2203.03466, table 8) for width; Dey et al. 2025 (CompleteP, arXiv 2505.01618, table 1 with
alpha = 1) for depth, epsilon and decay. Both multiply activations by constants; under Adam and Muon, whose updates do
not depend on the gradient's scale, a weight that starts m times as large and learns m times as fast is the same model.
So nothing is multiplied in the forward pass: a muP model is a plain one, and exports, embeds and is tuned as such.

With w = width / base width and d = depth / base depth:

    role    parameters                                      start     AdamW lr  Muon lr   AdamW eps
    vector  token table, last norm, biases of heads         1         1         -         1/w
    inner   norms and biases within a layer, other LoRA's B 1         1         -         1/(w d)
    hidden  qkv, up, lift, a head's dense layer, LoRA's A   1/sqrt(w) 1/w       1/sqrt(w) 1/(w d)
    writes  attention's out and ffn's down, to the stream   1/sqrt(w)/d  1/(w d)  1/sqrt(w)/d  1/w
    added   their biases, their LoRA's B                    0         1/d       -         1/w
    output  rows that read the stream into a few numbers;   1/w       1/w       -         1
            the gain and bias before the tied token table

Weight decay is divided by the share of the learning rate, so that both together shrink a weight as at the base; Adam,
which adds it to the gradient, has it by the share of epsilon, which goes as gradients do, over that of the start.
Muon's updates are scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982), of which the spectral
norm grows with the square root of the width. Attention's logits keep 1/sqrt(head size): the head size is the same at
every width, and there are more heads.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from biometro.errors import UserError

Role = Literal["vector", "inner", "hidden", "writes", "added", "output"]


@dataclass(frozen=True)
class Ratios:
    """How many times as wide and as deep as the base a model is; 1 and 1 in the standard parametrisation."""

    width: float = 1.0
    depth: float = 1.0


@dataclass(frozen=True)
class Shares:
    """What settings of the base are multiplied by, for one parameter: the first scale, the learning rates of AdamW and
    of Muon (None where it is no matrix for it), and AdamW's epsilon."""

    start: float = 1.0
    adam: float = 1.0
    muon: float | None = None
    eps: float = 1.0


def shares(role: Role, ratios: Ratios) -> Shares:
    """The table."""
    w, d = ratios.width, ratios.depth
    root = 1 / math.sqrt(w)
    return {
        "vector": Shares(eps=1 / w),
        "inner": Shares(eps=1 / (w * d)),
        "hidden": Shares(root, 1 / w, root, 1 / (w * d)),
        "writes": Shares(root / d, 1 / (w * d), root / d, 1 / w),
        "added": Shares(0.0, 1 / d, None, 1 / w),
        "output": Shares(1 / w, 1 / w, None, 1.0),
    }[role]


# By what varies, options that fix a size: muP takes parts for as many times as wide, or deep, as the base as the model.
_FIXED = {"encoder.width": ("encoder.ffn_width", "metro.auxiliary_width"), "encoder.depth": ("metro.auxiliary_depth",)}


def check_growth(options: Mapping[str, Any], varied: Container[str]) -> None:
    """Raises UserError where muP would scale a part that does not grow with the model.

    Args:
        options: of `pretrain`, by dotted name.
        varied: options that differ between models that share a learning rate.
    """
    for grows, fixed in _FIXED.items():
        for key in fixed if options.get("encoder.mup") and grows in varied else ():
            if options.get(key) is not None:
                fixed_at = f"{key} is {options[key]} at every {grows}"
                raise UserError(f"{fixed_at}, and muP would scale that part as if it grew; leave it out")


@runtime_checkable
class HasRoles(Protocol):
    """A module that knows what its parameters are."""

    ratios: Ratios

    def role(self, name: str) -> Role: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


_ADDED = ("attention.out.bias", "ffn.down.bias")
_ENDINGS: tuple[tuple[str, Role], ...] = (
    ("attention.out.weight", "writes"), ("ffn.down.weight", "writes"),
    *((ending, "added") for ending in _ADDED),
    ("attention.qkv.weight", "hidden"), ("ffn.up.weight", "hidden"), ("lift.weight", "hidden"),
)  # fmt: skip


def encoder_role(name: str) -> Role:
    """Of a parameter of an encoder, by its name there; PEFT's names of layers that carry LoRA count as the layer's."""
    if ".lora_A." in name:
        return "hidden"
    layer, of_b, _ = name.partition(".lora_B.")
    if of_b:
        return "added" if f"{layer}.bias".endswith(_ADDED) else "inner"
    plain = name.replace(".base_layer.", ".")
    rest: Role = "inner" if name.startswith("blocks.") else "vector"
    return next((role for ending, role in _ENDINGS if plain.endswith(ending)), rest)


def of_parameters(module: nn.Module) -> dict[str, Shares]:
    """The shares of every parameter whose role is known, by its name in `module`; at the base all are 1.

    Modules say what their parameters are by `ratios` and `role(name)`: encoders, and the heads that were made for them.
    """
    found: dict[str, Shares] = {}
    for path, part in module.named_modules():
        if isinstance(part, HasRoles):
            prefix = f"{path}." if path else ""
            found |= {prefix + name: shares(part.role(name), part.ratios) for name, _ in part.named_parameters()}
    return found
