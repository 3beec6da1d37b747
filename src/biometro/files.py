"""Files that appear whole or not at all, on the disk before their name is."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

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


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A hidden file beside `path`: it takes that name when the block ends well, and vanishes otherwise.

    A reader sees the old content or the new, never a part. Raises UserError for whatever the file system refuses.
    """
    with _saying(path):
        _clear_leftovers(path)
        work = path.with_name(f".{path.name}.writing-{os.getpid()}")
        try:
            yield work
            fsync(work)
            work.replace(path)
            fsync(path.parent)
        finally:
            work.unlink(missing_ok=True)


def write_file(path: Path, text: str) -> None:
    """Write a text file in one stroke. Raises UserError for whatever the file system refuses."""
    with new_file(path) as work:
        work.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`: it takes that name when the block ends well, and vanishes otherwise.

    What stood there before is replaced only then. Files are flushed to the disk before the change of name. Raises
    UserError for whatever the file system refuses (no permission, no space).
    """
    with _saying(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        work = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
        work.mkdir()
        try:
            yield work
            for path in work.rglob("*"):
                fsync(path)
            fsync(work)
            if folder.exists():
                retired = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
                folder.rename(retired)
                work.rename(folder)
                shutil.rmtree(retired, ignore_errors=True)
            else:
                work.rename(folder)
            fsync(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _saying(path: Path) -> Iterator[None]:
    """What the file system refuses, as an error a user can read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from error
    except SafetensorError as error:  # its writer wraps the system's errors in its own
        raise UserError(f"{path}: could not be written ({error})") from error


def _clear_leftovers(path: Path) -> None:
    """Put back what a killed process had moved aside, and remove what it had begun."""
    for kind in ("replaced", "writing"):
        for leftover in path.parent.glob(f".{path.name}.{kind}-*"):
            owner = leftover.name.rpartition("-")[2]
            if owner.isdigit() and int(owner) != os.getpid() and _alive(int(owner)):
                continue
            if kind == "replaced" and not path.exists():
                leftover.rename(path)
            elif leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
