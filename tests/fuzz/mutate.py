"""Damage that keeps enough of a format to come far: numbers, JSON nodes, members of archives, compressed content."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pyarrow as pa

_MOST = 1 << 16
_NUMBERS = ["0", "-1", "1", "255", "65536", "2147483647", "-2147483648", "4294967295", "9223372036854775807",
            "18446744073709551616", "1e308", "1e999", "NaN", "-Infinity", "1" + "0" * 30,
            "9" * 5000, "0.5"]  # fmt: skip
_BYTES = [b"\x00", b"\xff", b"\n", b"\r", b">", b",", b'"', b"\t", b"\xef\xbb\xbf", b"[" * 3000, b'{"a":' * 2000,
          b"&a *a", b"../../x", b"\x1f\x8b", b"PAR1", b"<<: *a",
          b"!!python/object/apply:os.system ['true']"]  # fmt: skip
_VALUES: list[Any] = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"),
                      float("inf"),
                      "", "x", "../../x", "/etc/passwd", "é\n", "A" * 3000, [], {}, [[]], [1], {"a": 1},
                      [None], ["x"] * 300, {"class_path": "os.system"}]  # fmt: skip


def mutated(random: Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, damaged one to four times."""
    data = random.choice(list(seeds))
    for _ in range(random.randint(1, 4)):
        data = _once(random, data, seeds)[:_MOST]
    return data


def _once(random: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    structural = _structure(data)
    if structural is not None and random.random() < 0.7:
        try:
            return structural(random, data)
        except Exception:  # what is damaged already need not have a structure any more
            pass
    return random.choice(_PLAIN)(random, data, seeds)


def _structure(data: bytes) -> Callable[[Random, bytes], bytes] | None:
    if data[:2] == b"PK":
        return _zip
    if data[:2] == b"\x1f\x8b":
        return lambda random, d: gzip.compress(mutated(random, [gzip.decompress(d)]), mtime=0)
    if data[:3] == b"BZh":
        return lambda random, d: bz2.compress(mutated(random, [bz2.decompress(d)]))
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return lambda random, d: pa.Codec("zstd").compress(
            mutated(random, [pa.CompressedInputStream(pa.BufferReader(d), "zstd").read()]), asbytes=True
        )
    if data[8:9] == b"{":
        return _safetensors
    if data.lstrip()[:1] in (b"{", b"["):
        return lambda random, d: _json(random, d)
    return None


def _zip(random: Random, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = random.randrange(len(members))
    name, content = members[number]
    what = random.randrange(6)
    if what == 0:
        name = random.choice(["../../x", "/x", "", name + "x", "\x00"])
    elif what == 1:
        members.append((name, content))
    else:
        content = mutated(random, [content])
    members[number] = (name, content)
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return out.getvalue()


def _safetensors(random: Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = _json(random, data[8 : 8 + size])
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _json(random: Random, data: bytes) -> bytes:
    root = json.loads(data)
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            nodes.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(root)
    holder, key = random.choice(nodes)
    what = random.randrange(4)
    if what == 0:
        del holder[key]
    elif what == 1:
        other, at = random.choice(nodes)
        holder[key] = json.loads(json.dumps(other[at])) if at in other or isinstance(other, list) else None
    else:
        holder[key] = random.choice(_VALUES)
    return json.dumps(root).encode()


def _flip(random: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    if not data:
        return b"\x00"
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _cut(random: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    start, end = sorted(random.randint(0, len(data)) for _ in range(2))
    return data[:start] + data[end:] if random.random() < 0.7 else data[:start]


def _insert(random: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.choice(_BYTES) + data[at:]


def _repeat(random: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    start = random.randint(0, len(data))
    piece = data[start : start + random.randint(1, 64)]
    return data[:start] + piece * random.choice([2, 10, 500]) + data[start:]


def _splice(random: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    other = random.choice(list(seeds))
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def _number(random: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not found:
        return _word(random, data, seeds)
    hit = random.choice(found)
    return data[: hit.start()] + random.choice(_NUMBERS).encode() + data[hit.end() :]


def _word(random: Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    size = random.choice([1, 2, 4, 8])
    value = random.choice([0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 1 << 7])
    at = random.randint(0, max(0, len(data) - size))
    return data[:at] + value.to_bytes(size, random.choice(["little", "big"])) + data[at + size :]


_PLAIN = [_flip, _cut, _insert, _repeat, _splice, _number, _word]
