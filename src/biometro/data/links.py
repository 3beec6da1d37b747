"""One file of a URL, opened at any byte, and the question whether it is still the same file.

    Http: a request with Range and If-Range ─▶ 206, the rest of the same file │ 200, all of it │ changed
    Stored: any other file system of fsspec, which has handles that seek

Nothing waits or tries again here: `remote` does.
"""

from __future__ import annotations

import io
import re
from typing import IO, Any, Protocol, cast

import fsspec

from biometro.errors import UserError

_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_MARKS = ("ETag", "Last-Modified")


class ChangedError(UserError):
    """The file of a URL has become another one while it was read."""

    def __init__(self, url: str, how: str):
        super().__init__(f"{url}: changed while it was read ({how}); begin again")


class Link(Protocol):
    """size: bytes of the file, None where nobody says. seeks: its handles can be moved."""

    size: int | None
    seeks: bool

    def open(self, place: int, length: int | None, afresh: bool) -> tuple[IO[bytes], int]:
        """A handle, and the byte of the file at which it stands: `place`, or 0 where all of it comes once more.

        Args:
            place: byte to go on from.
            length: bytes that are wanted, None for all that is left.
            afresh: all that was read before is known and can be compared, so that a fresh start will do.

        Raises ChangedError where the file is another one than at the first opening, UserError where the place cannot
        be reached, and what fsspec raises.
        """
        ...


def link(url: str, silence: float) -> Link:
    """What opens a URL; `silence`: seconds after which an idle connection that was left behind is given up."""
    return Http(url, silence) if is_http(url) else Stored(url)


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


class Http:
    """A file of a web server: one long answer rather than many short ones, so that each byte is a sign of life."""

    seeks = False

    def __init__(self, url: str, silence: float):
        import aiohttp  # fsspec needs it for these, and for these alone

        # By default, five minutes for a whole file, however large. Bytes are wanted as they lie there: an answer that
        # is compressed on the way has other places, and may be compressed otherwise the next time.
        timeout = aiohttp.ClientTimeout(total=None, sock_read=2 * silence)
        settings = {"client_kwargs": {"timeout": timeout, "auto_decompress": False}}
        self._url, self.size, self._begun, self._ranges = url, cast("int | None", None), False, True
        self._fs, self._path = fsspec.core.url_to_fs(url, **settings)
        self._marks: dict[str, str] = {}

    @property
    def _validator(self) -> str | None:
        """What tells one version of the file from all others, as If-Range wants it."""
        tag = self._marks.get("ETag", "W/")
        return self._marks.get("Last-Modified") if tag.startswith("W/") else tag

    def open(self, place: int, length: int | None, afresh: bool) -> tuple[IO[bytes], int]:
        headers = {**self._fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if place and not (afresh and (self._validator is None or not self._ranges)):
            headers["Range"] = f"bytes={place}-" + ("" if length is None else str(place + length - 1))
            if self._validator is not None:
                headers["If-Range"] = self._validator
        try:
            # a size, whatever it is, keeps fsspec from asking for it in a request of its own
            handle = self._fs.open(self._path, "rb", block_size=0, size=1, headers=headers)
        except Exception as error:
            if getattr(error, "status", None) == 416:
                return self._beyond(place, getattr(error, "headers", None) or {})
            raise
        try:
            return self._judge(handle, place, afresh)
        except BaseException:
            handle.close()
            raise

    def _judge(self, handle: Any, place: int, afresh: bool) -> tuple[IO[bytes], int]:
        """What an answer is good for."""
        status, headers = handle.r.status, handle.r.headers
        marks = {name: headers[name] for name in _MARKS if name in headers}
        if status == 206:
            begins, size = _range(headers)
            wrong = self._differs(marks, size) or (None if begins == place else "other bytes came than were asked for")
            if wrong is None:
                return handle, place
            if not afresh:
                raise ChangedError(self._url, wrong)
            handle.close()  # in doubt, all of it, and a comparison
            self._ranges = False
            return self.open(place, None, afresh)
        length = headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else None
        if not self._begun or (afresh and place == 0):  # nothing of it has been used
            self._begun, self.size, self._marks = True, size, marks
        elif size != self.size:
            raise ChangedError(self._url, f"{_bytes(self.size)} became {_bytes(size)}")
        elif not afresh:
            if wrong := self._differs(marks, size):
                raise ChangedError(self._url, wrong)
            if place:
                raise UserError(
                    f"{self._url}: the server gives whole files only (it knows no ranges), and this one is not read "
                    "from front to back; download it first"
                )
        elif place:
            self._ranges = False
        return handle, 0

    def _differs(self, marks: dict[str, str], size: int | None) -> str | None:
        """How the file is another one than before, as far as both answers say."""
        if size is not None and self.size is not None and size != self.size:
            return f"{_bytes(self.size)} became {_bytes(size)}"
        names = [name for name in marks if self._marks.get(name, marks[name]) != marks[name]]
        return f"{names[0]} {self._marks[names[0]]} became {marks[names[0]]}" if names else None

    def _beyond(self, place: int, headers: Any) -> tuple[IO[bytes], int]:
        """The answer where the file has no such byte: its end, if nobody said how long it is."""
        size = _range(headers)[1]
        if self.size is None and size == place:
            return io.BytesIO(), place
        if size == self.size:
            size = None  # says nothing
        has = "it has no byte" if size is None else f"it has {_bytes(size)}, and no byte"
        raise ChangedError(self._url, f"or the server, which announced {_bytes(self.size)}, was wrong: {has} {place:,}")


class Stored:
    """A file of any other file system."""

    seeks = True

    def __init__(self, url: str):
        self.size: int | None = None
        self._url, self._mark = url, cast("str | None", None)
        self._fs, self._path = fsspec.core.url_to_fs(url)

    def open(self, place: int, length: int | None, afresh: bool) -> tuple[IO[bytes], int]:
        if self._mark is not None:
            self._fs.invalidate_cache()
        handle = self._fs.open(self._path, "rb")
        try:
            mark = self._fs.ukey(self._path)
            if self._mark not in (None, mark):
                raise ChangedError(self._url, "its date, size or tag")
            self._mark, self.size = mark, getattr(handle, "size", None)
            if place:
                handle.seek(place)
        except BaseException:
            handle.close()
            raise
        return handle, place


def _range(headers: Any) -> tuple[int | None, int | None]:
    """Content-Range: the first byte that comes, and the size of the whole; None for what is not said."""
    found = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if found is None:
        return None, None
    return tuple(int(text) if text and text != "*" else None for text in found.groups())  # type: ignore[return-value]


def _bytes(size: int | None) -> str:
    return "an unknown number of bytes" if size is None else f"{size:,} bytes"
