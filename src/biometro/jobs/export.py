"""`biometro export`: a model folder -> formats that other libraries load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from biometro.errors import UserError
from biometro.model import esm2
from biometro.model.load import load, merged
from biometro.model.sentence import SentencePooling, to_sentence_transformers


def export(
    model: str,
    out: str,
    to: Literal["huggingface", "sentence_transformers", "biometro"] = "huggingface",
    overwrite: bool = False,
    base: str | None = None,
    pooling: SentencePooling | None = None,
) -> Path:
    """Write a model for other libraries.

    Args:
        model: model folder of biometro, Hugging Face ESM-2 folder, or fair-esm checkpoint (.pt).
        out: folder to write.
        to: huggingface (`EsmForMaskedLM`, which transformers loads with no custom code), sentence_transformers (whose
            `SentenceTransformer(out).encode` gives the vectors of `embed`, and of a tower those of the common space),
            or biometro's own format.
        overwrite: replace a model that stands at `out`.
        base: folder of the base model, where an adapter's is no longer where it was. Adapters are merged into it.
        pooling: mean (over residues) or cls, for sentence_transformers; a tower has its own. Default: mean.

    Returns the folder. Raises UserError where the model cannot be expressed in that format, naming the setting.
    """
    folder = Path(out)
    if folder.exists():
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} exists and is no model folder; choose another `out`")
        if not overwrite:
            raise UserError(f"{folder} holds a model already; choose another `out`, or say overwrite: true")
    if pooling is not None and to != "sentence_transformers":
        raise UserError(f"pooling is of sentence_transformers; {to} keeps the vectors of all tokens")
    bundle = merged(load(model, base))
    if to == "huggingface":
        esm2.to_huggingface(bundle, folder)
    elif to == "sentence_transformers":
        to_sentence_transformers(bundle, folder, pooling)
    else:
        bundle.save(folder)
    return folder
