"""Files that appear whole or not at all, on the disk before their name is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
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
    with saying(path):
        clear_leftovers(path)
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
    with saying(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        work = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
        work.mkdir()
        try:
            yield work
            put_in_place(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def put_in_place(work: Path, folder: Path) -> None:
    """Flush a finished folder to the disk and give it its name; one that bore the name is removed after that."""
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes, of this host or another, until the block ends or this process dies.

    Raises UserError, with the holder's host and process, where it is held. On a file system without locks the note of
    the holder decides, and one of another host must be removed by hand.
    """
    path = folder / ".lock"
    with saying(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use by {_holder(handle)['who']}; wait for it, or stop it") from None
        except OSError:  # no locks on this file system
            holder = _holder(handle)
            here = holder["host"] == socket.gethostname()
            if holder["host"] and not (here and not alive(int(holder["process"]))):
                raise UserError(
                    f"{folder} is in use by {holder['who']}; wait for it, or remove {path} if it is gone"
                ) from None
        note = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with saying(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(note).encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _holder(handle: int) -> dict[str, str]:
    try:
        note = json.loads(os.pread(handle, 4096, 0))
        host, process, since = str(note["host"]), str(int(note["process"])), str(note["since"])
    except (ValueError, KeyError, TypeError):
        return {"host": "", "process": "0", "who": "another process"}
    return {"host": host, "process": process, "who": f"process {process} on {host}, since {since}"}


def safetensors_header(entries: Mapping[str, tuple[str, list[int], int]], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with, for tensors that follow in this order.

    `entries`: name -> (dtype as safetensors names it, shape, bytes). For files that are written piece by piece.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def saying(path: Path) -> Iterator[None]:
    """What the file system refuses in this block, as an error a user can read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from error
    except SafetensorError as error:  # its writer wraps the system's errors in its own
        raise UserError(f"{path}: could not be written ({error})") from error


def clear_leftovers(path: Path) -> None:
    """Before `path` is written: put back what a killed process had moved aside, and remove what it had begun."""
    for kind in ("replaced", "writing"):
        for leftover in path.parent.glob(f".{path.name}.{kind}-*"):
            owner = leftover.name.rpartition("-")[2]
            if owner.isdigit() and int(owner) != os.getpid() and alive(int(owner)):
                continue
            if kind == "replaced" and not path.exists():
                leftover.rename(path)
            elif leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
