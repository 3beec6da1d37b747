"""A bundle is a self-describing model folder: what training leaves, and all that later jobs load.

    config.json        format, kind, and for every module its type and configuration; tied weights; the alphabet
    model.safetensors  all weights, each stored once
    recipe.yaml        the resolved options of the job that made it
    README.md          the model card: data, training, measured results

Nothing in it is code and nothing is unpickled; modules are built from their configurations by the table below, on
the meta device, and take the weights of the file only where names and shapes agree.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from biometro.alphabet import Alphabet
from biometro.errors import UserError
from biometro.files import new_folder, safetensors_header, sha256_of
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import (
    ContactWeights,
    ContactWeightsConfig,
    TokenHead,
    TokenHeadConfig,
    VocabularyHead,
    VocabularyHeadConfig,
)
from biometro.untrusted import inside, read_yaml

FORMAT = 1
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
_MOST_MODULES = 16
BUILDERS: dict[str, tuple[type, type]] = {
    "Encoder": (Encoder, EncoderConfig),
    "VocabularyHead": (VocabularyHead, VocabularyHeadConfig),
    "TokenHead": (TokenHead, TokenHeadConfig),
    "ContactWeights": (ContactWeights, ContactWeightsConfig),
}


@dataclass
class Bundle:
    """A model and what must be known to use it.

    `modules` by role: `encoder` (the model that is kept) and `vocabulary` (its head over tokens); with METRO also
    `rtd`, `auxiliary` and `auxiliary_vocabulary`. `facts` (data, FLOPs, results) make the model card.
    """

    alphabet: Alphabet
    modules: dict[str, nn.Module]
    recipe: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    crop: int | None = None
    """Longest window of residues seen in training; None where unknown. Not a limit: positions are relative."""

    @property
    def encoder(self) -> Encoder:
        encoder = self.modules["encoder"]
        assert isinstance(encoder, Encoder)
        return encoder

    def to(self, device: torch.device | str) -> Bundle:
        for module in self.modules.values():
            module.to(device)
        return self

    def eval(self) -> Bundle:
        for module in self.modules.values():
            module.eval()
        return self

    def save(self, folder: str | Path) -> None:
        """Write the folder in one stroke; one that stands there is replaced. Raises UserError if it cannot be.

        Weights are written one at a time, so that the model is never in memory twice.
        """
        folder = Path(folder)
        tensors, tied = distinct_state(self.modules)
        config: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.alphabet.name,
            "alphabet": self.alphabet.to_json(),
            "crop": self.crop,
            "modules": {
                role: {"type": type(module).__name__, "config": _saved_config(module)}
                for role, module in self.modules.items()
            },
            "tied": tied,
            "facts": self.facts,
        }
        with new_folder(folder) as work:
            write_safetensors(work / "model.safetensors", tensors)
            config["weights_sha256"] = sha256_of(work / "model.safetensors")
            (work / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
            (work / "recipe.yaml").write_text(yaml.safe_dump(self.recipe, sort_keys=False), encoding="utf-8")
            (work / "README.md").write_text(self.card(), encoding="utf-8")

    def card(self) -> str:
        """The model card in Markdown."""
        encoder = self.encoder.config
        own = sum(p.numel() for p in self.encoder.parameters())
        total = sum(t.numel() for t in distinct_state(self.modules)[0].values())
        rows = "\n".join(f"| {key} | {value} |" for key, value in self.facts.items())
        return (
            f"---\nlibrary_name: biometro\ntags: [biology, {self.alphabet.name}]\n---\n"
            f"# A {self.alphabet.name} language model\n\n"
            f"{encoder.depth} layers, width {encoder.width}, {encoder.heads} heads, {encoder.positions} positions; "
            f"{own:,} parameters in the encoder, {total:,} in all modules ({', '.join(self.modules)}).\n\n"
            "```python\nimport biometro\nmodel = biometro.load('.')\n```\n\n"
            f"| | |\n|---|---|\n{rows}\n\nHow it was made stands in `recipe.yaml`.\n"
        )


def _saved_config(module: nn.Module) -> dict[str, Any]:
    config = dataclasses.asdict(module.config)  # type: ignore[call-overload]
    config.pop("attention", None)  # the back-end belongs to the machine, not to the model
    return config


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


def from_folder(folder: Path, config: dict[str, Any]) -> Bundle:
    """A bundle of ours from its folder and the content of its config.json.

    Everything that config.json claims is compared with the names and shapes in model.safetensors before any weight is
    read. Raises UserError where they disagree, or where the folder is damaged.
    """
    try:
        if config["format"] != FORMAT:
            raise UserError(f"{folder}: model format {config['format']!r}; this version reads {FORMAT}")
        path = inside(folder, "model.safetensors")
        shapes = safetensors_shapes(path)
        modules = _build(folder, config["modules"], len(shapes))
        alphabet = Alphabet.from_json(config["alphabet"])
        tied, facts, crop = config["tied"], config["facts"], config["crop"]
        if not _is_text(tied) or not _is_text(facts):
            raise ValueError("tied and facts must map names to text")
        if crop is not None and (isinstance(crop, bool) or not isinstance(crop, int) or crop < 1):
            raise ValueError(f"crop is {crop!r}; it must be a whole number from 1")
        shapes |= {alias: shapes[name] for alias, name in tied.items() if name in shapes}
        check_shapes(modules, shapes, path)
        recipe = read_yaml(inside(folder, "recipe.yaml"))
        if recipe is not None and not isinstance(recipe, dict):
            raise ValueError("recipe.yaml holds no options")
        if config["weights_sha256"] != sha256_of(path):
            raise UserError(f"{path}: damaged (its digest is not that of config.json)")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError) as error:
        raise UserError(f"{folder}: this model folder cannot be read ({type(error).__name__}: {error})") from error
    for role in ("encoder", "auxiliary"):
        encoder = modules.get(role)
        if isinstance(encoder, Encoder) and encoder.config.vocab_size < alphabet.size:
            raise UserError(f"{folder}: its alphabet has more tokens ({alphabet.size}) than its {role} has vectors")
    tensors = read_safetensors(path)
    tensors |= {alias: tensors[name] for alias, name in tied.items() if name in tensors}
    assign(modules, tensors, path)
    return Bundle(alphabet, modules, recipe or {}, facts, crop)


def _is_text(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def _build(folder: Path, specs: Any, tensors: int) -> dict[str, nn.Module]:
    """The modules that config.json describes, on the meta device. `tensors` is how many the weights' file has."""
    if not isinstance(specs, dict) or len(specs) > _MOST_MODULES:
        raise ValueError(f"modules must map at most {_MOST_MODULES} names to types and configurations")
    modules: dict[str, nn.Module] = {}
    layers = 0
    with torch.device("meta"):
        for role, spec in specs.items():
            module_type, config_type = BUILDERS[spec["type"]]
            settings = config_type(**spec["config"])
            layers += settings.depth if isinstance(settings, EncoderConfig) else 0
            if layers > tensors:
                raise UserError(f"{folder}: config.json claims {layers} layers, but there are {tensors} weights")
            modules[role] = module_type(settings)
    if not isinstance(modules.get("encoder"), Encoder):
        raise UserError(f"{folder}: config.json describes no encoder")
    return modules


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
