"""Files at a URL, read with an eye on the clock: a server that falls silent ends in an error, not in a hang.

    URL ─▶ fsspec, in a helper thread ─▶ bytes, or a UserError after STALL_SECONDS without an answer

A read that hangs inside a library cannot be stopped from outside, so it is left behind in a daemon thread, which
ends with the process.
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import IO, Any, ParamSpec, TypeVar, cast

import fsspec

from biometro.errors import UserError

STALL_SECONDS = 60.0  # $BIOMETRO_STALL_SECONDS says otherwise
_CHUNK = 1 << 20
_ATTEMPTS = 4
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


def open_binary(name: str) -> IO[bytes]:
    """A file or URL for reading, with seek; of a URL, every read is guarded."""
    if not is_url(name):
        return cast(IO[bytes], fsspec.open(name, "rb").open())
    return cast(IO[bytes], _Guarded(name, guarded(name, _open, name)))


def _open(url: str, **options: Any) -> IO[bytes]:
    settings: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp  # fsspec needs it for these, and for these alone

        # By default, five minutes for a whole file, however large; silence is watched for here instead.
        settings["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None)}
    fs, path = fsspec.core.url_to_fs(url, **settings)
    return cast(IO[bytes], fs.open(path, "rb", **options))


class _Guarded(io.RawIOBase):
    """A remote file of which no read takes longer than the limit."""

    def __init__(self, url: str, handle: IO[bytes]):
        self._url, self._handle, self._lost = url, handle, False

    def _ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return guarded(self._url, call, *args, **kwargs)
        except SilentServerError:
            self._lost = True  # a thread hangs in it: nobody else may touch it, not even to close it
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._handle.seekable()

    def read(self, size: int = -1, /) -> bytes:
        return self._ask(self._handle.read, size)

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._ask(self._handle.seek, offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def close(self) -> None:
        if not self.closed and not self._lost:
            self._ask(self._handle.close)
        super().close()


def download(url: str, out: IO[bytes], most: int) -> tuple[int, str]:
    """Copy what a URL holds to the start of `out`; gives the number of bytes and their sha256.

    Passing failures are met with further attempts, ever later. Raises UserError, naming the URL, where it stands for
    nothing, holds more than `most` bytes, falls silent, or fails again and again.
    """
    wait = _FIRST_WAIT
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _copy(url, out, most)
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{url}: no such file") from error
        except Exception as error:  # fsspec's file systems are many, and each fails in its own way
            if attempt == _ATTEMPTS or not _may_pass(error):
                what = " ".join(str(error).split())[:300] or type(error).__name__
                raise UserError(f"{url}: cannot be read ({what})") from error
        time.sleep(wait)
        wait *= 2
    raise AssertionError


def _copy(url: str, out: IO[bytes], most: int) -> tuple[int, str]:
    # Over HTTP one long answer rather than many ranges: faster, and each byte that comes is a sign of life.
    options = {"block_size": 0} if url.startswith(("http://", "https://")) else {}
    out.seek(0)
    count, digest = 0, hashlib.sha256()
    with _Guarded(url, guarded(url, _open, url, **options)) as handle:
        while data := handle.read(_CHUNK):
            count += len(data)
            if count > most:
                raise UserError(f"{url}: larger than the {most:,} bytes it should have")
            out.write(data)
            digest.update(data)
    return count, digest.hexdigest()


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go better: not where access is refused or the kind of URL is unknown."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    return not isinstance(error, (PermissionError, IsADirectoryError, ImportError, ValueError, NotImplementedError))
