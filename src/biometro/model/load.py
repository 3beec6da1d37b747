"""One way to load any model: a folder of ours, a Hugging Face folder of an encoder, a fair-esm checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

from biometro.errors import UserError
from biometro.files import sha256_of
from biometro.model import esm2, huggingface
from biometro.model.bundle import Bundle, from_folder
from biometro.untrusted import inside, read_json


def load(model: str | Path) -> Bundle:
    """A model from a folder of ours, a Hugging Face folder, or a fair-esm `.pt` file; on CPU, in eval mode.

    ESM-2 becomes an encoder of our own; others (ProtBert, ProtT5, Ankh, ChemBERTa) stay transformers' models.

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
        encoder, alphabet = huggingface.read(path, config)
        return Bundle(alphabet, {"encoder": encoder}, facts={"source": f"Hugging Face folder {path.name}"}).eval()
    return from_folder(path, config).eval()


def fingerprint(model: str | Path) -> str:
    """Hex digest of a model's weights and configuration as they lie on the disk, and of its tokenizer if it has one."""
    path = Path(model)
    if path.is_file():
        files = [path]
    else:
        names = sorted(file.name for file in path.glob("*.safetensors"))
        files = [inside(path, name) for name in ("config.json", *names)]
        config = read_json(files[0])
        if isinstance(config, dict) and config.get("model_type", "esm") != "esm":
            files = _all_files(path)
        if (path / "encoder").is_dir():
            files += _all_files(path / "encoder")
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()


def _all_files(folder: Path) -> list[Path]:
    """What a transformers model and its tokenizer may be read from."""
    ends = (".json", ".txt", ".model", ".safetensors", ".bin")
    return [inside(folder, name) for name in sorted(file.name for file in folder.iterdir()) if name.endswith(ends)]
