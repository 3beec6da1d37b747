"""Run folders: begun once, gone on with under the same options, held by one run at a time."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from biometro.errors import UserError
from biometro.files import locked, write_file
from biometro.untrusted import read_yaml


def begin(folder: Path, recipe: dict[str, Any], what: str, digest: str, free: Collection[str], held: ExitStack) -> None:
    """Make the run folder and its recipe, or see that it was begun with the same options on the same data.

    Holds it against other runs until `held` is left.

    Args:
        folder: of the run.
        recipe: all options, resolved.
        what: the data are called: corpus, labels.
        digest: of the data, which are no option but belong to the run.
        free: options, by dotted key, that may differ when a run goes on.
        held: keeps the lock.

    Raises UserError where the folder cannot be used, or was begun with other options.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the run folder cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        stat = folder.stat()
        raise UserError(
            f"{folder}: the run folder cannot be written (owner {stat.st_uid}, mode {stat.st_mode & 0o777:o}, "
            f"you are {os.getuid()})"
        )
    path = folder / "recipe.yaml"
    if not path.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(f"{folder} is no run folder (it has no recipe.yaml) and is not empty; choose another")
    held.enter_context(locked(folder))
    begun = (next(folder.rglob(pattern), None) for pattern in ("checkpoints/step-*", "result.json"))
    if path.exists() and any(begun):
        _compare(path, recipe, f"# {what} {digest}\n", what, free)
    (folder / "exit-status").unlink(missing_ok=True)
    write_file(path, f"# {what} {digest}\n{yaml.safe_dump(recipe, sort_keys=False)}")


def _compare(path: Path, recipe: dict[str, Any], first: str, what: str, free: Collection[str]) -> None:
    """Raises UserError where a run that has checkpoints was begun on other data or with other options."""
    try:
        text = path.read_text(encoding="utf-8")
        begun = read_yaml(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); choose another run folder") from error
    except UserError as error:
        raise UserError(f"{error}; choose another run folder") from error
    if not isinstance(begun, dict):
        raise UserError(f"{path}: is no recipe any more; choose another run folder")
    differences = [
        f"{key}: {old!r} then, {new!r} now"
        for key, (old, new) in _differences(begun, recipe).items()
        if key not in free
    ]
    if differences:
        raise UserError(
            f"{path.parent} was begun with other options ({'; '.join(differences)}); choose another run folder"
        )
    if not text.startswith(first):
        raise UserError(f"{path.parent} was begun on another {what}, or {recipe['data']} has changed since")


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Values that differ between two nested dictionaries, by dotted key.

    An option that did not exist when the run was begun is no difference while it is off (none, false, 0 or empty).
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old and new[key])]:
            found |= _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if old == new else {prefix: (old, new)}
