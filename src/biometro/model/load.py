"""One way to load any model: a folder of ours, a Hugging Face ESM-2 folder, a fair-esm checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from biometro.errors import UserError
from biometro.files import sha256_of
from biometro.model import esm2
from biometro.model.bundle import Bundle, from_folder


def load(model: str | Path) -> Bundle:
    """A model from a folder of ours, a Hugging Face ESM-2 folder, or a fair-esm `.pt` file; on CPU, in eval mode.

    Raises UserError where the path is none of these, or is damaged.
    """
    path = Path(model)
    if path.is_file() and path.suffix == ".pt":
        return esm2.from_fair_esm(path).eval()
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = f" (did you mean {path / 'model'}?)" if (path / "model" / "config.json").exists() else ""
        raise UserError(f"{path} is no model folder: it has no config.json{hint}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path / 'config.json'}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.json'}: is not a model configuration")
    if config.get("model_type") == "esm":
        return esm2.from_huggingface(path, config).eval()
    if "model_type" in config:
        raise UserError(f"{path}: is a {config['model_type']} model; of Hugging Face folders only ESM-2 can be read")
    return from_folder(path, config).eval()


def fingerprint(model: str | Path) -> str:
    """Hex digest of a model's weights and configuration as they lie on the disk."""
    path = Path(model)
    files = [path] if path.is_file() else [path / "config.json", *sorted(path.glob("*.safetensors"))]
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()
