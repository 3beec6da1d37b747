"""One way to load any model: a folder of ours, a Hugging Face folder of an encoder, a fair-esm checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biometro.errors import UserError
from biometro.files import sha256_of
from biometro.model import adapters, esm2, huggingface
from biometro.model.bundle import TOWERS, BaseModel, Bundle, base_of, from_folder
from biometro.untrusted import inside, read_json


def load(model: str | Path, base: str | Path | None = None) -> Bundle:
    """A model from a folder of ours, a Hugging Face folder, or a fair-esm `.pt` file; on CPU, in eval mode.

    A folder that holds an adapter names its base; `base` says where that is now, if it was moved (a base that is an
    adapter itself is folded into its own). ESM-2 becomes an
    encoder of our own; others (ProtBert, ProtT5, Ankh, ChemBERTa) stay transformers' models.

    Raises UserError where the path is none of these, or is damaged.
    """
    path = Path(model)
    if path.is_file() and path.suffix == ".pt":
        return esm2.from_fair_esm(path).eval()
    config = _configuration(path)
    if config.get("model_type") == "esm":
        return esm2.from_huggingface(path, config).eval()
    if "model_type" in config:
        encoder, alphabet = huggingface.read(path, config)
        return Bundle(alphabet, {"encoder": encoder}, facts={"source": f"Hugging Face folder {path.name}"}).eval()
    named = base_of(path, config)
    if config.get("kind") == TOWERS:
        inner = " or ".join(str(path / name) for name in config.get("towers", ()))
        raise UserError(f"{path} holds towers, a model of pairs; name one of them: {inner}")
    if named is None:
        return from_folder(path, config).eval()
    return from_folder(path, config, merged(load(_find_base(path, named, base)))).eval()


def _configuration(path: Path) -> dict[str, Any]:
    """What config.json says. Raises UserError where there is none, or none of a model."""
    try:
        config = read_json(inside(path, "config.json"))
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = f" (did you mean {path / 'model'}?)" if (path / "model" / "config.json").exists() else ""
        raise UserError(f"{path} is no model folder: it has no config.json{hint}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path / 'config.json'}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.json'}: is not a model configuration")
    return config


def _find_base(path: Path, named: BaseModel, base: str | Path | None) -> Path:
    """Where the base of an adapter is. Raises UserError where it is not, or another model is there."""
    place = Path(base or named.path)
    if not place.exists():
        raise UserError(f"{path}: an adapter for {place}, which is not there; say with `base` where that model is now")
    found = fingerprint(place)
    if found != named.fingerprint:
        raise UserError(
            f"{path}: an adapter for another base than {place} (fingerprint {named.fingerprint[:16]}, there "
            f"{found[:16]})"
        )
    return place


def load_all(models: Sequence[str | Path], base: str | Path | None = None) -> list[Bundle]:
    """Several models, as `load` gives them; adapters of one base share its encoder in memory."""
    bases: dict[str, Bundle] = {}
    bundles = []
    for model in models:
        path = Path(model)
        config = read_json(path / "config.json") if (path / "config.json").is_file() else None
        named = base_of(path, config) if isinstance(config, dict) else None
        if config is None or named is None:
            bundles.append(load(model))
            continue
        if named.fingerprint not in bases:
            bases[named.fingerprint] = merged(load(_find_base(path, named, base)))
        bundles.append(from_folder(path, config, bases[named.fingerprint]).eval())
    return bundles


def merged(bundle: Bundle) -> Bundle:
    """The same model whole: an adapter folded into a copy of its base's weights."""
    if bundle.base is None:
        return bundle
    encoder = copy.deepcopy(bundle.encoder)
    adapters.merge(encoder, [bundle.adapter] if bundle.adapter is not None else None)
    modules = {**bundle.modules, "encoder": encoder}
    return dataclasses.replace(bundle, modules=modules, base=None, adapter=None)


def fingerprint(model: str | Path) -> str:
    """Hex digest of a model's weights and configuration as they lie on the disk, and of its tokenizer if it has one.

    Raises UserError where the path is no model's.
    """
    path = Path(model)
    if not path.exists():
        raise UserError(f"{path}: there is no such model")
    if path.is_file():
        if path.suffix != ".pt":
            raise UserError(f"{path}: is no model; name its folder, or a fair-esm checkpoint (.pt)")
        files = [path]
    else:
        config = _configuration(path)
        names = sorted(file.name for file in path.glob("*.safetensors"))
        files = [inside(path, name) for name in ("config.json", *names)]
        if config.get("model_type", "esm") != "esm":
            files = _all_files(path)
        if (path / "encoder").is_dir():
            files += _all_files(path / "encoder")
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()


def _all_files(folder: Path) -> list[Path]:
    """What a transformers model and its tokenizer may be read from."""
    ends = (".json", ".txt", ".model", ".safetensors", ".bin")
    return [inside(folder, name) for name in sorted(file.name for file in folder.iterdir()) if name.endswith(ends)]
