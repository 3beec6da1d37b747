"""Small files that a stranger may have written, read before they are believed: JSON, YAML, array headers, and where
the names in a folder lead. Bounds stand in docs/security.md.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import yaml

from biometro.errors import UserError

MOST_JSON = 64 << 20  # bytes
MOST_YAML = 1 << 18  # characters; it is parsed at some 100 kB/s
MOST_NODES = 100_000  # of a YAML file, where every alias counts as all that it stands for
MOST_PICKLE = 16 << 20  # bytes; a model's has some 100 kB, for the weights themselves lie beside it
DEEPEST = 50  # levels of nesting


def inside(folder: Path, name: str) -> Path:
    """The file `name` of a folder.

    Raises UserError where the name or a link leads out of the folder, or to what is no regular file;
    FileNotFoundError where there is none.
    """
    if not name or Path(name).name != name or name == ".." or not name.isprintable():
        raise UserError(
            f"{folder}: names the file {name!r}, which is not one of the folder; nothing outside it is read"
        )
    path, home = folder / name, folder.resolve()
    if home.parent.name == "snapshots":  # Hugging Face's cache, where files are links to ../../blobs
        home = home.parent.parent
    try:
        real = path.resolve(strict=True)
    except RuntimeError as error:
        raise UserError(f"{path}: is a link that leads back to itself") from error
    if not real.is_relative_to(home):
        raise UserError(f"{path}: is a link out of its folder, to {real}; if that is meant, put a copy in its place")
    if not real.is_file():
        raise UserError(f"{path}: is no regular file")
    return path


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """What a JSON file holds. Raises UserError where it is none, is nested deeply or longer than `most` bytes, or has
    numbers that are not finite; OSError where it cannot be read."""
    with path.open("rb") as handle:
        data = handle.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path}: is longer than {most:,} bytes, the most that is read of such a file")
    try:
        found = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
        _check_depth(found)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(DEEPEST):
        level = [
            below
            for node in level
            if isinstance(node, dict | list)
            for below in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} deep")


class YamlBoundError(yaml.YAMLError):
    """A YAML text that is longer, deeper or larger than any that is meant."""


def check_yaml(text: str) -> None:
    """Raises yaml.YAMLError for what is no YAML, or is out of bounds when its aliases are followed."""
    if len(text) > MOST_YAML:
        raise YamlBoundError(f"longer than {MOST_YAML:,} characters")
    try:
        sizes: dict[int, int] = {}
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _expanded(root, sizes, 0)
    except RecursionError as error:
        raise YamlBoundError(f"nested more than {DEEPEST} deep") from error


def _expanded(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """How many nodes there are below a node, aliases followed. `sizes` remembers; 0 marks one that is being counted."""
    known = sizes.get(id(node))
    if known is not None:
        if known == 0:
            raise YamlBoundError("an alias stands inside what it names")
        return known
    if depth > DEEPEST:
        raise YamlBoundError(f"nested more than {DEEPEST} deep")
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for below in item if isinstance(item, tuple) else (item,):
                size += _expanded(below, sizes, depth + 1)
    if size > MOST_NODES:
        raise YamlBoundError(f"more than {MOST_NODES:,} values when its aliases are followed")
    sizes[id(node)] = size
    return size


def read_yaml(path: Path) -> Any:
    """What a YAML file of plain values holds. Raises UserError where it is none, or out of bounds; OSError where it
    cannot be read."""
    with path.open("rb") as handle:
        data = handle.read(4 * MOST_YAML)
    try:
        text = data.decode("utf-8")
        check_yaml(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_npy(handle: IO[bytes], size: int) -> np.ndarray:
    """The array of a `.npy` file of `size` bytes, of numbers or text. Raises ValueError where it is none, or where its
    header claims another size than it has, before anything of that size is allocated."""
    dtype, shape = _npy_header(handle, size)
    array = np.frombuffer(handle.read(math.prod(shape) * dtype.itemsize), dtype=dtype).reshape(shape)
    if dtype.kind == "U" and array.size and np.frombuffer(array.tobytes(), f"{dtype.byteorder}u4").max() > 0x10FFFF:
        raise ValueError("its text is no Unicode")
    return array


def map_npy(path: Path) -> np.ndarray:
    """A `.npy` file of numbers as a memory map. Raises ValueError as `read_npy` does, OSError where it is not there."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        dtype, shape = _npy_header(handle, size)
        if not math.prod(shape):
            raise ValueError("the array is empty")
        return np.memmap(path, dtype=dtype, mode="r", offset=handle.tell(), shape=shape)


def _npy_header(handle: IO[bytes], size: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    try:
        version = np.lib.format.read_magic(handle)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(handle)
    except Exception as error:  # the header is Python source, and its parser has many ways to fail
        raise ValueError(f"no .npy header ({type(error).__name__})") from error
    if dtype.kind not in "biufU" or not dtype.itemsize or (fortran and len(shape) > 1):
        raise ValueError(f"an array of {dtype} is not what is written here")
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"an array cannot have the shape {shape}")
    claimed = math.prod(shape) * dtype.itemsize + handle.tell()
    if claimed != size:
        raise ValueError(f"its header claims {claimed} bytes where there are {size}")
    return dtype, shape


def check_archive(path: Path) -> None:
    """Raises UserError unless a `.pt` file is a zip archive whose members lie in it as they are, uncompressed.

    torch would inflate compressed members whole, and the format before the archives allocates what a pickle claims.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"{path}: is no checkpoint as torch writes them since version 1.6 ({error})") from error
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UserError(f"{path}: is no checkpoint as torch writes them: {member.filename!r} in it is compressed")
        if member.filename.endswith("data.pkl") and member.file_size > MOST_PICKLE:
            raise UserError(f"{path}: its list of weights has {member.file_size:,} bytes, too many to be one")
    if sum(member.file_size for member in members) > size:
        raise UserError(f"{path}: damaged: its members are larger than the file")
