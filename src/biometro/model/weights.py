"""Weights in safetensors files: read after their names and shapes, written one at a time, given to modules by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from biometro.errors import UserError
from biometro.files import safetensors_header
from biometro.untrusted import inside, read_json

_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


def distinct_state(modules: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All weights by `role.name`, each once, and the names that stand for another name's weight."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[int, str] = {}
    for role, module in modules.items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            full = f"{role}.{name}"
            if id(tensor) in seen:
                tied[full] = seen[id(tensor)]
            else:
                seen[id(tensor)] = full
                tensors[full] = tensor.detach()
    return tensors, tied


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors one by one, without a copy of them all."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned, as readers like it
    entries = {
        name: (
            _DTYPES[tensors[name].dtype],
            list(tensors[name].shape),
            tensors[name].numel() * tensors[name].element_size(),
        )
        for name in names
    }
    with path.open("wb") as handle:
        handle.write(safetensors_header(entries, {"format": "pt"}))
        for name in names:
            handle.write(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, which are not read. Raises UserError where it is missing or damaged."""
    with _open(path) as handle:
        return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises UserError where it is missing or damaged."""
    with _open(path) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def check_shapes(modules: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]], where: Path) -> None:
    """Raises UserError where a weight of the modules is missing, superfluous, or of another shape."""
    for role, module in modules.items():
        mine = {name.removeprefix(f"{role}."): tuple(s) for name, s in shapes.items() if name.startswith(f"{role}.")}
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        wrong = sorted(name for name in {*expected, *mine} if expected.get(name) != mine.get(name))
        if wrong:
            raise UserError(
                f"{where}: weights and configuration disagree about {role}.{wrong[0]}"
                + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
            )
    for name in shapes:
        if name.split(".", 1)[0] not in modules:
            raise UserError(f"{where}: holds {name}, which the configuration does not mention")


def assign(modules: dict[str, nn.Module], tensors: dict[str, Tensor], where: Path) -> None:
    """Give modules built on the meta device their weights; float32. Tensors that are one object stay tied.

    Raises UserError where a weight is missing, superfluous, or of another shape.
    """
    check_shapes(modules, {name: tensor.shape for name, tensor in tensors.items()}, where)
    shared: dict[int, nn.Parameter] = {}
    for role, module in modules.items():
        mine = {name.removeprefix(f"{role}."): t for name, t in tensors.items() if name.startswith(f"{role}.")}
        parameters = dict(module.named_parameters())
        state: dict[str, Tensor] = {}
        for name, tensor in mine.items():
            if name in parameters:
                state[name] = shared.setdefault(id(tensor), nn.Parameter(tensor.float()))
            else:
                state[name] = tensor.float()
        module.load_state_dict(state, assign=True)


def read_folder(folder: Path) -> dict[str, Tensor] | None:
    """The tensors of a folder's model.safetensors, or of all files that its index names; None where it has neither.

    Raises UserError where they are damaged, or lead out of the folder.
    """
    if (folder / "model.safetensors").exists():
        return read_safetensors(inside(folder, "model.safetensors"))
    if (folder / "model.safetensors.index.json").exists():
        return _read_shards(folder)
    return None


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """The tensors of all files that model.safetensors.index.json names."""
    try:
        index = read_json(inside(folder, "model.safetensors.index.json"))
        names = sorted(set(index["weight_map"].values()))
        return {k: v for name in names for k, v in read_safetensors(inside(folder, name)).items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{folder}/model.safetensors.index.json: cannot be read ({error})") from error
