"""adapter_config.json of PEFT, read as a stranger's: which layers a LoRA adapter is for, and its rank and alpha there.

What would change the outputs in a way that is not plain LoRA is refused by name, and so is every setting that is not
known here. PEFT takes some of its texts for regular expressions; one from a stranger can run forever, so none is run.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biometro.errors import UserError
from biometro.untrusted import inside, read_json

CONFIG = "adapter_config.json"
LARGEST_ALPHA = 1e6
# Ways to start A and B that leave the base's weights alone; the others need a base that was changed with them.
_HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_DEFAULTS: dict[str, Any] = {
    "peft_type": None, "r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "rank_pattern": {}, "alpha_pattern": {},
    "use_rslora": False, "bias": "none", "target_modules": None, "exclude_modules": None, "layers_to_transform": None,
    "base_model_name_or_path": None, "init_lora_weights": None,
}  # fmt: skip
# Keys that say nothing about what an adapter computes on linear layers.
_SILENT = {
    "revision", "task_type", "inference_mode", "auto_mapping", "peft_version", "runtime_config", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size", "layers_pattern",
    "fan_in_fan_out",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is used of the file. `rank` and `alpha` hold for layers that the patterns do not name; `pattern` says that
    the layers are named by a regular expression, in which case `targets` and `excluded` are None."""

    base: str | None
    rank: int
    alpha: float
    dropout: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    pattern: bool
    targets: frozenset[str] | None
    excluded: frozenset[str]
    layers: frozenset[int] | None

    def of_layer(self, name: str) -> tuple[int, float]:
        """Rank and alpha of one layer, for a scale of alpha / rank."""
        ends = set(_ends(name))
        rank = next((value for key, value in self.rank_pattern.items() if key in ends), self.rank)
        alpha = next((value for key, value in self.alpha_pattern.items() if key in ends), self.alpha)
        return rank, alpha * rank**0.5 if self.rslora else alpha  # rslora scales by alpha / sqrt(rank)

    def meant(self, known: Collection[str], found: Collection[str]) -> set[str]:
        """Those of a model's `known` layers that the adapter must hold. `found`: those that it holds.

        Where a regular expression would say so: whatever is adapted in one layer of the stack, in all of them.
        """
        if self.pattern:
            kinds = {_kind(name) for name in found}
            return {name for name in known if _kind(name) in kinds}
        if self.targets is None:  # all linear layers
            meant = set(known)
        else:
            meant = {name for name in known if not self.targets.isdisjoint(_ends(name))}
        meant = {name for name in meant if self.excluded.isdisjoint(_ends(name))}
        if self.layers is None:
            return meant
        return {name for name in meant if (n := re.search(r"\.(\d+)\.", name)) and int(n[1]) in self.layers}


def _ends(name: str) -> list[str]:
    """a.b.c -> a.b.c, b.c, c: what PEFT lets stand for a name."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _kind(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def read_settings(folder: Path) -> Settings:
    """What adapter_config.json says. Raises UserError where it is missing, damaged, or of an adapter that is not plain
    LoRA."""
    path = folder / CONFIG
    try:
        found = read_json(inside(folder, CONFIG))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder} is no adapter's folder: it has no {CONFIG}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: is not an adapter's configuration")
    config: dict[str, Any] = _DEFAULTS | {key: value for key, value in found.items() if value is not None}
    _check_kind(path, config)
    targets, excluded, layers = (
        _items(path, config, key, kind)
        for key, kind in (("target_modules", str), ("exclude_modules", str), ("layers_to_transform", int))
    )
    linear = config["target_modules"] == "all-linear"
    expressions = any(isinstance(config[key], str) for key in ("target_modules", "exclude_modules"))
    pattern = not linear and (targets is None or expressions)
    drop = config["lora_dropout"]
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1:
        raise UserError(f"{path}: lora_dropout is {drop!r}; it must be at least 0 and below 1")
    return Settings(
        base=config["base_model_name_or_path"],
        rank=_number(path, "r", config["r"]),
        alpha=_number(path, "lora_alpha", config["lora_alpha"]),
        dropout=drop,
        rslora=config["use_rslora"],
        rank_pattern=_pattern(path, config, "rank_pattern", "r"),
        alpha_pattern=_pattern(path, config, "alpha_pattern", "lora_alpha"),
        pattern=pattern,
        targets=None if linear or pattern else targets,
        excluded=frozenset() if pattern or excluded is None else excluded,
        layers=layers,
    )


def _check_kind(path: Path, config: dict[str, Any]) -> None:
    if config["peft_type"] != "LORA":
        raise UserError(f"{path}: is an adapter of kind {config['peft_type']!r}; only LORA can be read")
    for key, value in config.items():
        if key not in _DEFAULTS and key not in _SILENT and value:
            raise UserError(f"{path}: sets {key}, and adapters with that are not supported; plain LoRA is")
    start = config["init_lora_weights"]
    if not isinstance(start, bool | str | None) or start not in _HARMLESS_STARTS:
        raise UserError(f"{path}: init_lora_weights is {start!r}, which changes the base's weights; not supported")
    if config["bias"] != "none":
        raise UserError(f"{path}: bias is {config['bias']!r}; adapters that train biases are not supported")
    if not isinstance(config["use_rslora"], bool):
        raise UserError(f"{path}: use_rslora is {config['use_rslora']!r}; it must be true or false")
    if not isinstance(config["base_model_name_or_path"], str | None):
        raise UserError(f"{path}: base_model_name_or_path is no name")


def _items(path: Path, config: dict[str, Any], key: str, kind: type) -> frozenset[Any] | None:
    """The items of a list, or one alone."""
    value = config[key]
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, kind) for item in items):
        raise UserError(f"{path}: {key} is {value!r:.80}, which is no list of {kind.__name__}")
    return frozenset(items)


def _number(path: Path, key: str, value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (key == "lora_alpha" and isinstance(value, float))) or not 0 < value <= LARGEST_ALPHA:
        raise UserError(f"{path}: {key} cannot be {value!r:.80}")
    return value if key == "r" else float(value)


def _pattern(path: Path, config: dict[str, Any], of: str, kind: str) -> dict[str, Any]:
    if not isinstance(config[of], dict):
        raise UserError(f"{path}: {of} must map names of layers to numbers")
    found = {key.replace("\\.", "."): value for key, value in config[of].items()}
    for key in found:
        if not re.fullmatch(r"[\w.-]+", key):
            raise UserError(f"{path}: {of} names {key!r}, a regular expression, which is not run; names of layers are")
    return {key: _number(path, kind, value) for key, value in found.items()}
