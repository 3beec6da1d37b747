"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from biometro.errors import UserError


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, text: str) -> None:
    """Write a text file in one stroke: a reader sees the old text or the new, never a part."""
    work = path.parent / f".{path.name}.writing-{os.getpid()}"
    try:
        work.write_text(text, encoding="utf-8")
        fsync(work)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`: it takes that name when the block ends well, and vanishes otherwise.

    What stood there before is replaced only then. Files are flushed to the disk before the change of name. Raises
    UserError for whatever the file system refuses (no permission, no space).
    """
    work = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
            for path in work.rglob("*"):
                fsync(path)
            fsync(work)
            if folder.exists():
                retired = folder.parent / f".{folder.name}.replaced-{os.getpid()}"
                folder.rename(retired)
                work.rename(folder)
                shutil.rmtree(retired, ignore_errors=True)
            else:
                work.rename(folder)
            fsync(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: could not be written ({error.strerror or error})") from error
