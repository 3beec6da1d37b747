"""Files of a URL on the local disk, as many as fit: fetched once, whole and checked, the longest unused deleted.

A file's name in the cache is its sha256, so corpora share it without meeting, and what stands under a name is never
anything else. Processes of one machine share it by locks (flock):

    SHA256       data; whoever has it mapped holds a shared lock on it, so that nobody deletes it
    .SHA256.lock held while the file is being fetched, so that it is fetched once
    .lock        held while room is made, so that the bound holds for all of them together

The shared lock lives as long as the memory map does: a map keeps a duplicate of the file's descriptor, and a lock of
this kind belongs to the open file. (A mapped file that someone deletes by hand stays readable on Linux until it is
unmapped; it only no longer counts.)
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from biometro.data import remote
from biometro.errors import UserError
from biometro.files import new_file

CACHE_BYTES = 64 << 30
_POLL = 0.1  # seconds between two looks at a lock
_GRACE = 10.0  # seconds, above two silences of a server, that another process may take without a byte: its pauses


class Cache:
    """A cache folder.

    Args:
        folder: on a local disk; by default $BIOMETRO_CACHE, or ~/.cache/biometro.
        limit: bytes; by default $BIOMETRO_CACHE_BYTES, or 64 GiB. Processes that share the folder should agree.
    """

    def __init__(self, folder: str | Path | None = None, limit: int | None = None):
        chosen = folder or os.environ.get("BIOMETRO_CACHE") or "~/.cache/biometro"
        self.folder = Path(chosen).expanduser()
        text = os.environ.get("BIOMETRO_CACHE_BYTES") or str(CACHE_BYTES)
        if limit is None and not (text.isascii() and text.isdigit()):
            raise UserError(f"BIOMETRO_CACHE_BYTES is {text!r}; it is a number of bytes")
        self.limit = int(text) if limit is None else limit

    def open(self, url: str, sha256: str, size: int) -> IO[bytes]:
        """The content of a URL, from the cache if it is there. While the handle, or a map of it, lives, it stays.

        Raises UserError where the URL holds something else, falls silent, or where there is no room.
        """
        path = self.folder / sha256
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = _held(path, size)
            if handle is None:
                with self._fetching(path, url):
                    handle = _held(path, size) or self._fetch(path, url, sha256, size)
        except OSError as error:
            raise UserError(f"{self.folder}: the cache cannot be used ({error.strerror or error})") from error
        return handle

    def _fetch(self, path: Path, url: str, sha256: str, size: int) -> IO[bytes]:
        with new_file(path) as work:
            handle = self._reserve(work, url, size)
            try:
                for attempt in (1, 2):
                    count, found = remote.download(url, handle, size)
                    if (count, found) == (size, sha256):
                        break
                    if attempt == 2:
                        raise UserError(
                            f"{url}: damaged, or changed since the corpus was built "
                            f"({count:,} bytes of {size:,}, sha256 {found[:16]} instead of {sha256[:16]})"
                        )
                handle.seek(0)  # which flushes, too
            except BaseException:
                handle.close()
                raise
        return handle

    def _reserve(self, work: Path, url: str, size: int) -> IO[bytes]:
        """Make the file `work` with its final size, after deleting what must go for it."""
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            total = promised = 0
            kept = []
            for path in self.folder.iterdir():
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                if path.is_dir():
                    continue  # of others, such as the vectors that probes keep
                if ".writing-" in path.name and _deleted(path):
                    continue  # a killed process left it: a living one would hold it
                total += stat.st_size
                if path.name.startswith("."):
                    promised += max(stat.st_size - 512 * stat.st_blocks, 0)  # being fetched, not on the disk yet
                else:
                    kept.append((stat.st_atime_ns, stat.st_size, path))
            free = shutil.disk_usage(self.folder).free - promised
            too_much, shortage = total + size - self.limit, size - free
            for _, length, path in sorted(kept):
                if max(too_much, shortage) <= 0:
                    break
                if _deleted(path):
                    too_much, shortage = too_much - length, shortage - length
            if max(too_much, shortage) > 0:
                why = (
                    f"the limit is {self.limit:,} bytes (BIOMETRO_CACHE_BYTES); training needs room for two shards, "
                    "and for three to fetch the next one ahead"
                    if too_much > 0
                    else f"the disk has {max(free, 0):,} bytes free"
                )
                raise UserError(f"{self.folder}: no room for {url} ({size:,} bytes): {why}")
            handle = work.open("w+b")
            fcntl.flock(handle, fcntl.LOCK_SH)  # from its first moment on, so that it is nobody else's to delete
            handle.truncate(size)
            return handle

    @contextmanager
    def _fetching(self, path: Path, url: str) -> Iterator[None]:
        """One process, and one thread of it, at a time. Raises UserError where the one before makes no progress."""
        with (self.folder / f".{path.name}.lock").open("a") as lock:
            patience = 2 * remote.stall_seconds() + _GRACE
            seen, since = -1, time.monotonic()
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
                written = max((_mtime(p) for p in self.folder.glob(f".{path.name}.writing-*")), default=0)
                if written != seen:
                    seen, since = written, time.monotonic()
                if time.monotonic() - since > patience:
                    raise UserError(f"{url}: another process has been fetching it into {self.folder}, and stands still")
                time.sleep(_POLL)
            yield


def _held(path: Path, size: int) -> IO[bytes] | None:
    """The file, open and under a shared lock, and noted as used now; None where it is not (or no longer) there."""
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        ours = os.fstat(handle.fileno())
        there = path.stat()
        if ours.st_ino == there.st_ino and ours.st_size == size:
            os.utime(path, ns=(time.time_ns(), ours.st_mtime_ns))
            return handle
        if ours.st_ino == there.st_ino:
            path.unlink()  # cut short behind our back
    except FileNotFoundError:
        pass
    handle.close()
    return None


def _deleted(path: Path) -> bool:
    """Delete a file that nobody holds; False where someone does."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
