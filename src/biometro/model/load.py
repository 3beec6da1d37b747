"""One way to load any model: a folder of ours, a Hugging Face ESM-2 folder, a fair-esm checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

from biometro.errors import UserError
from biometro.files import sha256_of
from biometro.model import esm2
from biometro.model.bundle import Bundle, from_folder
from biometro.untrusted import inside, read_json


def load(model: str | Path) -> Bundle:
    """A model from a folder of ours, a Hugging Face ESM-2 folder, or a fair-esm `.pt` file; on CPU, in eval mode.

    Raises UserError where the path is none of these, or is damaged.
    """
    path = Path(model)
    if path.is_file() and path.suffix == ".pt":
        return esm2.from_fair_esm(path).eval()
    try:
        config = read_json(inside(path, "config.json"))
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = f" (did you mean {path / 'model'}?)" if (path / "model" / "config.json").exists() else ""
        raise UserError(f"{path} is no model folder: it has no config.json{hint}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path / 'config.json'}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.json'}: is not a model configuration")
    if config.get("model_type") == "esm":
        return esm2.from_huggingface(path, config).eval()
    if "model_type" in config:
        code = "; it brings code of its own (auto_map), which is never run" if "auto_map" in config else ""
        raise UserError(
            f"{path}: is a {config['model_type']} model; of Hugging Face folders only ESM-2 can be read{code}"
        )
    return from_folder(path, config).eval()


def fingerprint(model: str | Path) -> str:
    """Hex digest of a model's weights and configuration as they lie on the disk."""
    path = Path(model)
    names = sorted(file.name for file in path.glob("*.safetensors"))
    files = [path] if path.is_file() else [inside(path, name) for name in ("config.json", *names)]
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()
