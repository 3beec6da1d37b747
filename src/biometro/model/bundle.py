"""A bundle is a self-describing model folder: what training leaves, and all that later jobs load.

    config.json        format, kind, and for every module its type and configuration; tied weights; the alphabet
    model.safetensors  all weights, each stored once
    recipe.yaml        the resolved options of the job that made it
    README.md          the model card: data, training, measured results
    encoder/           where the encoder is one of transformers: its own folder, with its tokenizer, in place of the
                       alphabet and of its weights in model.safetensors
    adapter_config.json, adapter_model.safetensors
                       where the encoder is a base model with LoRA: the adapter in PEFT's format; config.json says which
                       base, and its weights stay where they are

Nothing in it is code and nothing is unpickled; modules are built from their configurations by the table below, on
the meta device, and take the weights of the file only where names and shapes agree.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from biometro.alphabet import Alphabet, TokenizerAlphabet, read_alphabet
from biometro.data.task import Answers
from biometro.errors import UserError
from biometro.files import new_folder, sha256_of
from biometro.model import adapters, huggingface
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import (
    ContactWeights,
    ContactWeightsConfig,
    LabelHead,
    LabelHeadConfig,
    TokenHead,
    TokenHeadConfig,
    VocabularyHead,
    VocabularyHeadConfig,
)
from biometro.model.huggingface import HuggingFaceEncoder
from biometro.model.pairing import PairHead, PairHeadConfig, Projection, ProjectionConfig
from biometro.model.weights import (
    assign,
    check_shapes,
    distinct_state,
    read_safetensors,
    safetensors_shapes,
    write_safetensors,
)
from biometro.untrusted import inside, read_json, read_yaml

FORMAT = 1
TOWERS = "towers"
"""The kind, in config.json, of a folder of several bundles (`model/towers.py`)."""
_MOST_MODULES = 16
BUILDERS: dict[str, tuple[type, type]] = {
    "Encoder": (Encoder, EncoderConfig),
    "VocabularyHead": (VocabularyHead, VocabularyHeadConfig),
    "TokenHead": (TokenHead, TokenHeadConfig),
    "ContactWeights": (ContactWeights, ContactWeightsConfig),
    "LabelHead": (LabelHead, LabelHeadConfig),
    "Projection": (Projection, ProjectionConfig),
    "PairHead": (PairHead, PairHeadConfig),
}


@dataclass(frozen=True)
class BaseModel:
    """The model that an adapter is for: where it is, and its fingerprint (`load.fingerprint`)."""

    path: str
    fingerprint: str


@dataclass
class Bundle:
    """A model and what must be known to use it.

    `modules` by role: `encoder` (the model that is kept) and `vocabulary` (its head over tokens); with METRO also
    `rtd`, `auxiliary` and `auxiliary_vocabulary`; a tower has a `projection`. `facts` (data, FLOPs, results) make the
    model card.
    """

    alphabet: Alphabet | TokenizerAlphabet
    modules: dict[str, nn.Module]
    recipe: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    crop: int | None = None
    """Longest window of residues seen in training; None where unknown. Not a limit: positions are relative."""
    answers: Answers | None = None
    """What the module `head` answers, of a fine-tuned model."""
    base: BaseModel | None = None
    """Where the encoder is this base with an adapter."""
    adapter: str | None = None
    """The adapter's name on the encoder, which may carry those of other bundles."""

    @property
    def encoder(self) -> Encoder | HuggingFaceEncoder:
        encoder = self.modules["encoder"]
        assert isinstance(encoder, Encoder | HuggingFaceEncoder)
        return encoder

    @property
    def longest(self) -> int | None:
        """Residues (tokens of text) that the encoder has positions for; None where positions are relative."""
        most = self.encoder.config.most_tokens if isinstance(self.encoder, HuggingFaceEncoder) else None
        return None if most is None else most - len(self.alphabet.begin_ids) - len(self.alphabet.end_ids)

    @property
    def tower_length(self) -> int:
        """Residues (tokens) to which a tower's sequences were cut in training; 1,022 for what is no tower."""
        return self.crop if self.crop is not None and "projection" in self.modules else 1022

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
        own = {r: m for r, m in self.modules.items() if r != "encoder" or self.base is None}
        tensors, tied = distinct_state({r: m for r, m in own.items() if not isinstance(m, HuggingFaceEncoder)})
        config: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.alphabet.name,
            "alphabet": self.alphabet.to_json(),
            "crop": self.crop,
            "modules": {
                role: {"type": type(module).__name__, "config": _saved_config(module)} for role, module in own.items()
            },
            "tied": tied,
            "facts": self.facts,
        }
        if self.answers is not None:
            config["answers"] = self.answers.to_json()
        if self.base is not None:
            config["base"] = dataclasses.asdict(self.base)
        with new_folder(folder) as work:
            write_safetensors(work / "model.safetensors", tensors)
            config["weights_sha256"] = sha256_of(work / "model.safetensors")
            if self.base is not None:
                self._write_adapter(work)
                config["adapter_sha256"] = sha256_of(work / "adapter_model.safetensors")
            elif isinstance(self.encoder, HuggingFaceEncoder):
                config["encoder_sha256"] = _write_encoder(work / "encoder", self.encoder, self.alphabet)
            (work / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
            (work / "recipe.yaml").write_text(yaml.safe_dump(self.recipe, sort_keys=False), encoding="utf-8")
            (work / "README.md").write_text(self.card(), encoding="utf-8")

    def _write_adapter(self, folder: Path) -> None:
        """For a base that transformers loads, under its names, so that PEFT can put the adapter there."""
        assert self.base is not None
        theirs = isinstance(self.encoder, HuggingFaceEncoder) or is_esm2_folder(Path(self.base.path))
        adapters.save(
            self.encoder, folder, base=self.base.path, names="huggingface" if theirs else "ours",
            adapter=self.adapter or "default",
        )  # fmt: skip

    def card(self) -> str:
        """The model card in Markdown."""
        own = sum(p.numel() for p in self.encoder.parameters())
        total = sum(t.numel() for t in distinct_state(self.modules)[0].values())
        rows = "\n".join(f"| {key} | {value} |" for key, value in self.facts.items())
        return (
            f"---\nlibrary_name: biometro\ntags: [biology, {self.alphabet.name}]\n---\n"
            f"# A {self.alphabet.name} language model\n\n"
            f"{self.encoder.config.summary}; {own:,} parameters in the encoder, {total:,} in all modules "
            f"({', '.join(self.modules)}).\n\n"
            "```python\nimport biometro\nmodel = biometro.load('.')\n```\n\n"
            f"| | |\n|---|---|\n{rows}\n\nHow it was made stands in `recipe.yaml`.\n"
        )


def _saved_config(module: nn.Module) -> dict[str, Any]:
    config = dataclasses.asdict(module.config)  # type: ignore[call-overload]
    config.pop("attention", None)  # the back-end belongs to the machine, not to the model
    return config


def is_esm2_folder(path: Path) -> bool:
    """Whether a folder is an ESM-2 as transformers writes it."""
    try:
        config = read_json(inside(path, "config.json"))
    except (UserError, OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "esm"


def base_of(folder: Path, config: dict[str, Any]) -> BaseModel | None:
    """The base model that an adapter's config.json names; None for a model that is whole."""
    try:
        return (
            None if "base" not in config else BaseModel(str(config["base"]["path"]), str(config["base"]["fingerprint"]))
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: this model folder cannot be read ({type(error).__name__}: {error})") from error


def from_folder(folder: Path, config: dict[str, Any], base: Bundle | None = None) -> Bundle:
    """A bundle of ours from its folder and the content of its config.json; `base` is the one that an adapter is for.

    Everything that config.json claims is compared with the names and shapes in model.safetensors before any weight is
    read. Raises UserError where they disagree, or where the folder is damaged.
    """
    try:
        if config["format"] != FORMAT:
            raise UserError(f"{folder}: model format {config['format']!r}; this version reads {FORMAT}")
        path = inside(folder, "model.safetensors")
        shapes = safetensors_shapes(path)
        modules = _build(folder, config["modules"], len(shapes), whole=base is None)
        answers = Answers.from_json(config["answers"]) if "answers" in config else None
        head = modules.get("head")
        if answers is not None and not (
            isinstance(head, LabelHead) and head.config.outputs == answers.task.outputs
            and (head.config.pooling == "residues") == answers.task.per_residue
        ):  # fmt: skip
            raise ValueError("its head does not fit what it answers")
        alphabet = read_alphabet(config["alphabet"]) if "encoder" in modules else None
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
        if alphabet is not None and isinstance(encoder, Encoder) and encoder.config.vocab_size < alphabet.size:
            raise UserError(f"{folder}: its alphabet has more tokens ({alphabet.size}) than its {role} has vectors")
    tensors = read_safetensors(path)
    tensors |= {alias: tensors[name] for alias, name in tied.items() if name in tensors}
    assign(modules, tensors, path)
    if base is not None:
        return _adapted(folder, config, base, Bundle(base.alphabet, modules, recipe or {}, facts, crop, answers))
    if alphabet is not None:
        return Bundle(alphabet, modules, recipe or {}, facts, crop, answers)
    theirs, tokenizer = _read_encoder(folder, config)
    return Bundle(tokenizer, {"encoder": theirs, **modules}, recipe or {}, facts, crop, answers)


def _adapted(folder: Path, config: dict[str, Any], base: Bundle, own: Bundle) -> Bundle:
    """A bundle whose encoder is the base's, with the folder's adapter on it. Raises UserError where it does not fit."""
    path = inside(folder, "adapter_model.safetensors")
    if config.get("adapter_sha256") != sha256_of(path):
        raise UserError(f"{path}: damaged (its digest is not that of config.json)")
    name = f"adapter{len(adapters.names_on(base.encoder))}"
    adapters.load(base.encoder, folder, name)
    own.modules = {"encoder": base.encoder, **own.modules}
    own.base, own.adapter = base_of(folder, config), name
    return own


def _write_encoder(folder: Path, encoder: HuggingFaceEncoder, alphabet: Alphabet | TokenizerAlphabet) -> dict[str, str]:
    """Write a transformers encoder and its tokenizer; the digest of every file by its name."""
    assert isinstance(alphabet, TokenizerAlphabet)
    folder.mkdir()
    encoder.save(folder)
    alphabet.save(folder)
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def _read_encoder(folder: Path, config: dict[str, Any]) -> tuple[HuggingFaceEncoder, TokenizerAlphabet]:
    """The transformers encoder of a bundle and its tokenizer.

    Raises UserError where its files are not those that config.json knows, or it is another model.
    """
    inner = folder / "encoder"
    try:
        digests = config["encoder_sha256"]
        if inner.is_symlink() or not _is_text(digests) or {path.name for path in inner.iterdir()} != set(digests):
            raise UserError(f"{inner}: holds other files than config.json lists")
        for name, digest in digests.items():
            if sha256_of(inside(inner, name)) != digest:
                raise UserError(f"{inner / name}: damaged (its digest is not that of config.json)")
        settings = read_json(inner / "config.json")
        if not isinstance(settings, dict) or "model_type" not in settings:
            raise UserError(f"{inner / 'config.json'}: is no configuration of a model")
        encoder, alphabet = huggingface.read(inner, settings)
        same = dataclasses.asdict(encoder.config) == config["modules"]["encoder"]["config"]
        if not same or alphabet.fingerprint != config["alphabet"]["fingerprint"]:
            raise UserError(f"{inner}: is another encoder or tokenizer than config.json describes")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{inner}: this encoder cannot be read ({type(error).__name__}: {error})") from error
    return encoder, alphabet


def _is_text(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def _build(folder: Path, specs: Any, tensors: int, whole: bool = True) -> dict[str, nn.Module]:
    """The modules that config.json describes, on the meta device. `tensors` is how many the weights' file has.

    A transformers encoder, which has a folder of its own, is left out. Only a `whole` model has an encoder.
    """
    if not isinstance(specs, dict) or len(specs) > _MOST_MODULES:
        raise ValueError(f"modules must map at most {_MOST_MODULES} names to types and configurations")
    modules: dict[str, nn.Module] = {}
    layers = 0
    with torch.device("meta"):
        for role, spec in specs.items():
            if role == "encoder" and spec["type"] == HuggingFaceEncoder.__name__:
                continue
            module_type, config_type = BUILDERS[spec["type"]]
            settings = config_type(**spec["config"])
            layers += settings.depth if isinstance(settings, EncoderConfig) else 0
            if layers > tensors:
                raise UserError(f"{folder}: config.json claims {layers} layers, but there are {tensors} weights")
            modules[role] = module_type(settings)
    if whole != ("encoder" in specs) or not isinstance(modules.get("encoder"), Encoder | None):
        raise UserError(f"{folder}: config.json describes no encoder")
    return modules
