"""Files at a URL: a transfer that breaks goes on where it broke; a server that falls silent is an error, not a hang.

    URL ─▶ fsspec, in a helper thread ─▶ bytes ─▶ Transfer: broken? wait, go on from that byte ─▶ all bytes, each once
                                      └▶ SilentServerError after STALL_SECONDS without an answer

A read that hangs inside a library cannot be stopped from outside, so it is left behind in a daemon thread, which
ends with the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import IO, Any, ParamSpec, TypeVar, cast

import fsspec

from biometro.data.links import ChangedError, Link, is_http, link
from biometro.errors import UserError

STALL_SECONDS = 60.0  # $BIOMETRO_STALL_SECONDS says otherwise
_CHUNK = 1 << 20
_ATTEMPTS = 4  # without a byte between them
_MOST_BREAKS = 1000  # of one transfer
_FIRST_WAIT = 1.0  # seconds before the second attempt; doubles with every further one

P = ParamSpec("P")
T = TypeVar("T")


def is_url(name: str) -> bool:
    """Whether fsspec, and not the file system, is to be asked for it."""
    return "://" in name


def stall_seconds() -> float:
    """For how long a server may be silent. Raises UserError where the environment says something else."""
    text = os.environ.get("BIOMETRO_STALL_SECONDS", str(STALL_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UserError(f"BIOMETRO_STALL_SECONDS is {text!r}; it is a number of seconds above 0")
    return seconds


def guarded(name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`call(...)`, which asks for `name`. Where that is a URL, raises UserError if there is no answer in time."""
    if not is_url(name):
        return call(*args, **kwargs)
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((True, call(*args, **kwargs)))
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            answers.put((False, error))

    limit = stall_seconds()
    threading.Thread(target=ask, name=f"reads {name}", daemon=True).start()
    try:
        went_well, answer = answers.get(timeout=limit)
    except queue.Empty:
        raise SilentServerError(
            f"{name}: nothing has come for {limit:g} s; is the server there? (BIOMETRO_STALL_SECONDS)"
        ) from None
    if not went_well:
        raise answer
    return cast(T, answer)


class SilentServerError(UserError):
    """A server has fallen silent."""


class NoSuchFileError(UserError):
    """A URL stands for nothing."""


def open_binary(name: str) -> IO[bytes]:
    """A file or URL for reading, with seek; of a URL, a `Transfer`."""
    if not is_url(name):
        return cast(IO[bytes], fsspec.open(name, "rb").open())
    return cast(IO[bytes], Transfer(name))


def found(url: str) -> bool:
    """Whether a URL is that of one file on a web server; patterns are not looked at. Raises UserError as `Transfer`."""
    if not is_http(url) or any(sign in url for sign in "*["):
        return False
    try:
        Transfer(url).close()
    except NoSuchFileError:
        return False
    return True


class Transfer(io.RawIOBase):
    """A file at a URL, read as if it were here: each byte once, in its place, and of one version of the file.

    A connection that is lost, an answer that ends early, a server that is busy (5xx) or falls silent is met with
    further attempts, ever later, from the byte that was reached; every byte that comes renews the patience. Over HTTP
    the server is asked for the rest of the same file (Range, If-Range). Where it gives whole files only, or does not
    say which version it gives, what was read before is read over once more, and compared.

    Raises UserError, naming the URL, where it stands for nothing, changes meanwhile, falls silent, or fails again and
    again without giving one more byte.
    """

    def __init__(self, url: str):
        self._url = url
        self._handle: IO[bytes] | None = None
        self._at = 0  # where the handle stands
        self._end: int | None = None  # where its answer ends, if less than the rest was asked for
        self._place = 0  # what is to be read next
        self._ends = 0  # where the last bytes that were given ended
        self._digest: Any = hashlib.sha256()  # of all bytes that were given, as long as they are read in their order
        self._failures = self._breaks = 0
        self._link: Link = self._persist(lambda: self._ask(link, url, stall_seconds()))
        self._persist(lambda: self._stand(0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._link.size is not None

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == io.SEEK_END:
            if self._link.size is None:
                raise UserError(f"{self._url}: the server does not say how large it is; download it first")
            offset += self._link.size
        elif whence == io.SEEK_CUR:
            offset += self._place
        if offset < 0:
            raise ValueError("a place before the beginning")
        self._place = offset
        return offset

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return self.readall()
        data = bytearray()
        while len(data) < size and (more := self._some(size - len(data))):
            data += more
        return bytes(data)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._some(_CHUNK), b""))

    def readinto(self, buffer: Any, /) -> int:
        """What has come, at most as much as fits."""
        data = self._some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _some(self, size: int) -> bytes:
        """The next bytes, as many as have come; none at the end of the file."""
        data = self._persist(lambda: self._next(size))
        if data:
            self._failures = 0
            self._place += len(data)
            self._at = self._ends = self._place
            if self._digest is not None:
                self._digest.update(data)
        return data

    def _next(self, size: int) -> bytes:
        if self._link.size is not None and self._place >= self._link.size:
            return b""
        for _ in range(2):
            handle = self._stand(size)
            data = self._ask(handle.read, size)
            if data or self._end is None or self._place < self._end:
                break
            self._drop()  # at the end of what was asked for, not of the file: reading goes on, so ask for the rest
        if not data and self._link.size is not None:
            raise EOFError("the answer ended early")
        return data

    def _stand(self, size: int) -> IO[bytes]:
        """A handle that stands at the place to be read."""
        handle, place, on = self._handle, self._place, self._place == self._ends
        if handle is not None and self._at == place:
            return handle
        if not on:
            self._digest = None
        if handle is not None and self._link.seeks:
            self._ask(handle.seek, place)
            self._at = place
            return handle
        self._drop()
        length = None if on else max(size, _CHUNK)
        handle, begins = self._ask(self._link.open, place, length, self._digest is not None)
        self._handle, self._at, self._end = handle, begins, None if length is None else place + length
        if begins < place:
            self._read_over(handle)
        elif place == 0 and on:
            self._digest = hashlib.sha256()
        return handle

    def _read_over(self, handle: IO[bytes]) -> None:
        """Pass by what was read before; it must be what it was."""
        again = hashlib.sha256()
        while self._at < self._place:
            data = self._ask(handle.read, min(_CHUNK, self._place - self._at))
            if not data:
                raise EOFError("the answer ended early")
            self._at += len(data)
            again.update(data)
        if again.digest() != self._digest.digest():
            raise ChangedError(self._url, f"its first {self._place:,} bytes are others now")

    def _ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return guarded(self._url, call, *args, **kwargs)
        except SilentServerError:
            self._handle = None  # a thread hangs in it: nobody else may touch it, not even to close it
            raise

    def _drop(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(Exception):  # it has given what it had
                self._ask(handle.close)

    def _persist(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except Exception as error:  # fsspec's file systems are many, and each fails in its own way
                self._broke(error)

    def _broke(self, error: Exception) -> None:
        """Wait for the next attempt. Raises UserError where there is none."""
        self._drop()
        silent = isinstance(error, SilentServerError)
        if isinstance(error, UserError) and not silent:
            raise error
        if isinstance(error, FileNotFoundError):
            raise NoSuchFileError(f"{self._url}: no such file") from error
        self._failures += 2 if silent else 1  # a silence has taken its time already
        self._breaks += 1
        if self._failures >= _ATTEMPTS or self._breaks >= _MOST_BREAKS or not _may_pass(error):
            if silent:
                raise error
            what = " ".join(str(error).split())[:300] or type(error).__name__
            size = "" if self._place == 0 or self._link.size is None else f" of {self._link.size:,}"
            where = f" beyond byte {self._place:,}{size}" if self._place else ""
            raise UserError(f"{self._url}: cannot be read{where} ({what})") from error
        time.sleep(_FIRST_WAIT * 2 ** (self._failures - 1))


def download(url: str, out: IO[bytes], most: int) -> tuple[int, str]:
    """Copy what a URL holds to the start of `out`; gives the number of bytes and their sha256.

    Raises UserError as `Transfer` does, and where it is more than `most` bytes.
    """
    out.seek(0)
    count, digest, buffer = 0, hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with Transfer(url) as transfer:
        while size := transfer.readinto(buffer):
            count += size
            if count > most:
                raise UserError(f"{url}: larger than the {most:,} bytes it should have")
            out.write(buffer[:size])
            digest.update(buffer[:size])
    return count, digest.hexdigest()


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go better: not where access is refused or the kind of URL is unknown."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    return not isinstance(error, (PermissionError, IsADirectoryError, ImportError, ValueError, NotImplementedError))
