"""A corpus: token sequences in memory-mapped shards, in a folder or at a URL, built once in a stream.

A corpus is a set. Sequences stand in the order of their digests, so the same sequences give the same bytes
whatever the order of files (`spool.py`, `builder.py`).

    corpus.json        what is in it: alphabet, shards of each split, digests, where it came from
    lengths.npy        (rows, 3) uint32: shard, length, count. How many sequences of which length each shard holds
    train-00000.bin    tokens of one shard, uint8, no specials
    train-00000.npy    (N+1,) int64: where each of its sequences starts, from 0, and where the last one ends
    valid-00000.bin, ...

Shards are numbered through in lengths.npy: those of `train` first, then those of `valid`. The names of the files follow
from split and number, so none is ever taken from corpus.json.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from biometro.alphabet import Alphabet, read_alphabet
from biometro.data import remote
from biometro.data.cache import Cache
from biometro.errors import UserError
from biometro.files import sha256_of

FORMAT = 2
SPLITS = ("train", "valid")
_HEADER = 128  # bytes of an .npy header of such shapes
_LARGEST_INFO = 1 << 28  # bytes of a corpus.json that are read from a URL


class ShardInfo(NamedTuple):
    """One shard as corpus.json describes it: its name without suffix, its size, the sha256 of .bin and .npy."""

    name: str
    sequences: int
    residues: int
    digests: tuple[str, str]

    @property
    def files(self) -> list[tuple[str, int, str]]:
        """Name, bytes and sha256 of its two files."""
        sizes = (self.residues, _HEADER + 8 * (self.sequences + 1))
        names = f"{self.name}.bin", f"{self.name}.npy"
        return list(zip(names, sizes, self.digests, strict=True))


@dataclass(frozen=True)
class Shard:
    """Some sequences of a corpus: tokens (R,) uint8, and offsets (N+1,) int64, where each sequence starts in them."""

    tokens: np.ndarray
    offsets: np.ndarray
    name: str = "shard"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 residues of each sequence."""
        return np.diff(self.offsets)

    def __getitem__(self, number: int) -> np.ndarray:
        """Token numbers of one sequence, (L,) uint8, without specials."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]


class Split:
    """One side of a corpus, shard by shard; also the sequence of all its sequences, for those who want few of them.

    Args:
        histograms: of each shard, (K, 2) int64: a length in residues, and how many sequences have it.
        open_shard: gives a shard by its number, mapped.
        prefetch: is told the number of the shard that will be asked for next.
        check: raises UserError where the files are no longer those that were opened.
    """

    def __init__(
        self,
        histograms: Sequence[np.ndarray],
        open_shard: Callable[[int], Shard],
        prefetch: Callable[[int], None] = lambda number: None,
        check: Callable[[], None] = lambda: None,
    ):
        self.histograms, self.shard, self.prefetch, self.check = histograms, open_shard, prefetch, check
        self._starts = np.cumsum([0, *(int(h[:, 1].sum()) for h in histograms)])
        self._last: tuple[int, Shard] | None = None

    @classmethod
    def of(cls, *shards: Shard) -> Split:
        """A split of shards in memory."""
        found = [np.unique(shard.lengths, return_counts=True) for shard in shards]
        return cls([np.stack(pair, axis=1) for pair in found], shards.__getitem__)

    def __len__(self) -> int:
        """Number of sequences."""
        return int(self._starts[-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64 residues of each sequence. Opens every shard."""
        parts = [self.shard(number).lengths for number in range(len(self.histograms))]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def __getitem__(self, number: int) -> np.ndarray:
        """Token numbers of one sequence, (L,) uint8, without specials."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        if self._last is None or self._last[0] != index:
            self._last = None  # let go of one before the next is asked for
            self._last = index, self.shard(index)
        return self._last[1][number - int(self._starts[index])]


class _Files(Protocol):
    """Where a corpus lies."""

    def read(self, name: str, most: int) -> bytes: ...

    def open(self, name: str, size: int, sha256: str) -> IO[bytes]: ...

    def prefetch(self, files: Sequence[tuple[str, int, str]]) -> None: ...

    def check(self) -> None: ...


@dataclass(frozen=True)
class Corpus:
    """A corpus that was opened. `folder` is the path or URL as given, `info` what corpus.json holds."""

    folder: str
    alphabet: Alphabet
    info: dict[str, Any]
    shards: dict[str, list[ShardInfo]] = field(repr=False)
    _histograms: list[np.ndarray] = field(repr=False)
    _files: _Files = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path, cache: str | Path | None = None, cache_bytes: int | None = None) -> Corpus:
        """Open a corpus: a folder is mapped in place, of a URL the shards are fetched when they are needed.

        Args:
            folder: local folder, or any URL that fsspec knows (https, s3, gs, ...; file:// for a slow network disk).
            cache: folder for shards of a URL; by default $BIOMETRO_CACHE, or ~/.cache/biometro.
            cache_bytes: its size, at most; by default $BIOMETRO_CACHE_BYTES, or 64 GiB.

        Raises UserError where there is no corpus, or where its files do not fit one another.
        """
        name = str(folder)
        files: _Files
        files = _Remote(name, Cache(cache, cache_bytes)) if remote.is_url(name) else _Local(Path(folder))
        try:
            info = json.loads(files.read("corpus.json", _LARGEST_INFO).decode("utf-8"))
            if info["format"] != FORMAT:
                raise UserError(
                    f"{name}: corpus format {info['format']!r}; this version reads {FORMAT}: prepare it again"
                )
            alphabet = read_alphabet(info["alphabet"])
            shards = _read_shards(info, alphabet)
            histograms = _read_lengths(files, info, [shard for side in shards.values() for shard in side])
            if isinstance(files, _Local):
                files.expect([file for side in shards.values() for shard in side for file in shard.files])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise UserError(f"{name}: damaged corpus ({type(error).__name__}: {str(error)[:200]})") from error
        return cls(name, alphabet, info, shards, histograms, files)

    def split(self, name: str) -> Split:
        """`train` or `valid`."""
        shards = self.shards[name]
        first = 0 if name == "train" else len(self.shards["train"])
        return Split(
            self._histograms[first : first + len(shards)],
            lambda number: self._map(shards[number]),
            lambda number: self._files.prefetch(shards[number].files),
            self._files.check,
        )

    @property
    def digest(self) -> str:
        """Digest of tokens, boundaries and split, as recorded when the corpus was built."""
        return str(self.info["digests"]["corpus"])

    def verify(self) -> None:
        """Read everything and compare with the recorded digests. Raises UserError naming the damaged file.

        Shards of a URL are compared when they arrive instead.
        """
        if isinstance(self._files, _Local):
            for shard in (shard for side in self.shards.values() for shard in side):
                for name, _, sha256 in shard.files:
                    path = Path(self.folder) / name
                    if sha256_of(path) != sha256:
                        raise UserError(f"{path}: damaged, or changed since it was built; prepare it again")

    def check_unchanged(self) -> None:
        """A look at sizes, times and inodes. Raises UserError where a local corpus changed since it was opened.

        What comes from a URL cannot change unseen: each shard must have the digest that was read at first.
        """
        self._files.check()

    def unigram_entropy(self, split: str) -> float:
        """Entropy in nats of the standard letters' frequencies: the loss of a model that knows only composition."""
        counts = np.array(self.info["splits"][split]["token_counts"], dtype=np.float64)
        counts = counts[list(self.alphabet.standard_ids)]
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def _map(self, shard: ShardInfo) -> Shard:
        name = f"{self.folder.rstrip('/')}/{shard.name}"
        opened = [self._files.open(*file) for file in shard.files]
        try:
            shape = (shard.sequences + 1,)
            if opened[1].read(_HEADER) != npy_header("<i8", shape):
                raise ValueError(f"no .npy of {shape[0]:,} int64")
            tokens = np.memmap(opened[0], dtype=np.uint8, mode="r", shape=(shard.residues,))
            offsets = np.memmap(opened[1], dtype="<i8", mode="r", offset=_HEADER, shape=shape)
            if offsets[0] != 0 or offsets[-1] != shard.residues:
                raise ValueError("it does not fit the .bin")
        except (ValueError, OSError) as error:
            raise UserError(f"{name}.npy: damaged corpus ({error})") from error
        finally:
            for handle in opened:  # the maps keep descriptors of their own
                handle.close()
        # Plain arrays over the maps: indexing a memmap costs more, and gives memmaps.
        return Shard(np.asarray(tokens), np.asarray(offsets), name)


class _Local:
    """Files of a folder, mapped where they are."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._seen: dict[str, tuple[int, int, int]] = {}

    def read(self, name: str, most: int) -> bytes:
        path = self.folder / name
        try:
            self._seen[name] = self._look(name)
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{self.folder} is not a corpus folder: it has no {name}") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error

    def expect(self, files: Sequence[tuple[str, int, str]]) -> None:
        """See that these are there with the right sizes, and remember how they look."""
        for name, size, _ in files:
            try:
                self._seen[name] = self._look(name)
            except OSError as error:
                raise UserError(f"{self.folder / name}: damaged corpus ({error.strerror or error})") from error
            if self._seen[name][0] != size:
                raise UserError(
                    f"{self.folder / name}: damaged corpus ({self._seen[name][0]:,} bytes; by corpus.json, {size:,})"
                )

    def open(self, name: str, size: int, sha256: str) -> IO[bytes]:
        self._compare(name)
        try:
            return (self.folder / name).open("rb")
        except OSError as error:
            raise UserError(f"{self.folder / name}: cannot be read ({error.strerror or error})") from error

    def prefetch(self, files: Sequence[tuple[str, int, str]]) -> None:
        """Nothing to do: the system reads ahead."""

    def check(self) -> None:
        for name in self._seen:
            self._compare(name)

    def _look(self, name: str) -> tuple[int, int, int]:
        stat = (self.folder / name).stat()
        return stat.st_size, stat.st_mtime_ns, stat.st_ino

    def _compare(self, name: str) -> None:
        try:
            same = self._look(name) == self._seen[name]
        except OSError:
            same = False
        if not same:
            raise UserError(
                f"{self.folder / name}: changed under the run; start again from a corpus that stays as it is"
            )


class _Remote:
    """Files of a URL, fetched into a cache."""

    def __init__(self, url: str, cache: Cache):
        self.url, self.cache = url.rstrip("/"), cache
        self._thread: threading.Thread | None = None

    def read(self, name: str, most: int) -> bytes:
        buffer = io.BytesIO()
        count, _ = remote.download(f"{self.url}/{name}", buffer, most)
        return buffer.getvalue()[:count]

    def open(self, name: str, size: int, sha256: str) -> IO[bytes]:
        return self.cache.open(f"{self.url}/{name}", sha256, size)

    def prefetch(self, files: Sequence[tuple[str, int, str]]) -> None:
        """Fetch in the background. What goes wrong is left to whoever needs the files: he will meet it again."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=partial(self._fetch, files), name="prefetch", daemon=True)
            self._thread.start()

    def _fetch(self, files: Sequence[tuple[str, int, str]]) -> None:
        try:
            for file in files:
                self.open(*file).close()
        except UserError:
            pass

    def check(self) -> None:
        """Nothing to do: what arrives must have the digest that was read at first."""


def corpus_digest(shards: Sequence[ShardInfo], lengths: str) -> str:
    """One digest of the files' digests and of how they are split."""
    lines = [f"{s.name} {s.sequences} {s.residues} {' '.join(s.digests)}\n" for s in shards]
    return hashlib.sha256("".join([*lines, lengths]).encode()).hexdigest()


def _read_shards(info: dict[str, Any], alphabet: Alphabet) -> dict[str, list[ShardInfo]]:
    """The shards of each split. Raises ValueError, KeyError or TypeError for what makes no sense: a stranger may have
    written it."""
    shards: dict[str, list[ShardInfo]] = {}
    for name in SPLITS:
        side = info["splits"][name]
        shards[name] = [
            ShardInfo(
                f"{name}-{number:05d}",
                _count(entry["sequences"], 1),
                _count(entry["residues"], 1),
                (_sha256(entry["sha256"]["bin"]), _sha256(entry["sha256"]["npy"])),
            )
            for number, entry in enumerate(side["shards"])
        ]
        for key in ("sequences", "residues"):
            if _count(side[key]) != sum(getattr(shard, key) for shard in shards[name]):
                raise ValueError(f"the {key} of {name} are not those of its shards")
        counts = [_count(count) for count in side["token_counts"]]
        if len(counts) != alphabet.size or sum(counts) != side["residues"]:
            raise ValueError(f"the token_counts of {name} make no sense")
    for source in info.setdefault("sources", []):
        if not isinstance(source["name"], str):
            raise TypeError("a source without a name")
    expected = corpus_digest([*shards["train"], *shards["valid"]], _sha256(info["digests"]["lengths.npy"]))
    if info["digests"]["corpus"] != expected:
        raise ValueError("corpus.json was changed by hand; prepare the corpus again")
    return shards


def _read_lengths(files: _Files, info: dict[str, Any], shards: Sequence[ShardInfo]) -> list[np.ndarray]:
    """lengths.npy -> of each shard (K, 2) int64: length, count."""
    rows = _count(info["length_rows"])
    if rows > sum(shard.sequences for shard in shards):
        raise ValueError("more lengths than sequences")
    size = _HEADER + 12 * rows
    data = files.read("lengths.npy", size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != info["digests"]["lengths.npy"]:
        raise ValueError("lengths.npy is not as it was when the corpus was built; prepare it again")
    if not data.startswith(npy_header("<u4", (rows, 3))):
        raise ValueError("lengths.npy is no (rows, 3) array of uint32")
    table = np.frombuffer(data, dtype="<u4", offset=_HEADER).reshape(rows, 3).astype(np.int64)
    bounds = np.searchsorted(table[:, 0], np.arange(len(shards) + 1))
    histograms = [table[low:high, 1:] for low, high in pairwise(bounds)]
    if (np.diff(table[:, 0]) < 0).any() or bounds[0] != 0 or bounds[-1] != rows or (table[:, 1:] < 1).any():
        raise ValueError("lengths.npy makes no sense")
    for shard, histogram in zip(shards, histograms, strict=True):
        found = int(histogram[:, 1].sum()), int(histogram.prod(axis=1).sum())
        if found != (shard.sequences, shard.residues):
            raise ValueError(f"lengths.npy and corpus.json disagree about {shard.name}")
    return histograms


def npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """How an .npy file of this type and shape begins: always the same bytes, so none has to be interpreted."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + f"{text:<{_HEADER - 11}}\n".encode()


def _count(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 1 << 62:
        raise ValueError(f"{str(value)[:40]} where a number was expected")
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"{str(value)[:80]!r} is no sha256")
    return value
