"""A library embedded into a store, shard by shard; what an earlier run did is found again.

    chunks of about a thousand sequences ─▶ shards' worth of them ─┬─▶ a shard that stands: taken as it is
                                                                   └─▶ TowerReader ─▶ parts ─▶ shard ─▶ parts removed

Parts and shards are named by their place and the digest of what they hold, in a folder named by the model and the
options (as those of `embed`, see `plan.py`), so nothing that does not fit is taken up.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biometro.data.intake import Account
from biometro.errors import UserError
from biometro.files import put_in_place, saying
from biometro.inference import store, vectors
from biometro.inference.plan import Chunk, Plan
from biometro.inference.store import About, ShardNote
from biometro.inference.towers import TowerReader
from biometro.inference.vectors import Embeddings


@dataclass(frozen=True)
class Step:
    """What was done: sequences, their residues, whether they were `found` from before, and a shard where one ended."""

    sequences: int
    residues: int
    found: bool
    shard: ShardNote | None = None


def parts_folder(out: Path, plan: Plan, tower: str, device: str) -> Path:
    """Where shards wait until all are done, made here: beside `out`, by the model, the tower and the options."""
    name = hashlib.sha256(f"{plan.settings(device)} {tower}".encode()).hexdigest()[:16]
    folder = out.absolute().with_name(f".{out.name}.parts") / name
    with saying(folder):
        (folder / "shards").mkdir(parents=True, exist_ok=True)
    return folder


def make_shards(plan: Plan, reader: TowerReader, folder: Path, account: Account, rows: int) -> Iterator[Step]:
    """Every shard, made or found, in order.

    Args:
        plan: what to read, and in which chunks.
        reader: the tower.
        folder: of `parts_folder`.
        account: is filled in on the way.
        rows: a shard ends with the chunk that reaches so many.

    Raises UserError for input that cannot be read, and a model whose vectors are not finite.
    """
    for number, chunks in enumerate(_groups(plan.chunks(account), rows)):
        home = folder / "shards" / store.shard_name(number, [chunk.part for chunk in chunks])
        note = store.read_note(home)
        found: list[np.ndarray] = []
        for chunk in chunks if note is None else ():
            part = folder / chunk.part
            before = vectors.sound(part)
            if not before:
                vectors.write_part(part, Embeddings(chunk.ids, list(_embed(plan, reader, chunk)), False), reader.width)
            found.append(vectors.read(part).matrix)
            yield Step(len(chunk.ids), chunk.residues, before)
        if note is not None:
            yield Step(sum(len(c.ids) for c in chunks), sum(c.residues for c in chunks), True, note)
            continue
        ids, letters = [i for chunk in chunks for i in chunk.ids], [row for chunk in chunks for row in chunk.letters]
        yield Step(0, 0, False, store.write_shard(home, ids, letters, np.concatenate(found)))
        for chunk in chunks:
            (folder / chunk.part).unlink(missing_ok=True)


def finish(folder: Path, out: Path, about: About, width: int, shards: list[ShardNote]) -> None:
    """The shards become the store `out`, in one stroke; one that stood there is replaced."""
    home, kept = folder / "shards", {note.name for note in shards}
    with saying(out):
        for path in home.iterdir():  # of an input that was another when the command ran before
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        store.write_about(home, about, width, shards)
        put_in_place(home, out)
    shutil.rmtree(folder.parent, ignore_errors=True)


def _groups(chunks: Iterable[Chunk], rows: int) -> Iterator[list[Chunk]]:
    """Chunks of one shard each; holds their letters in memory."""
    group: list[Chunk] = []
    for chunk in chunks:
        group.append(chunk)
        if sum(len(each.ids) for each in group) >= rows:
            yield group
            group = []
    if group:
        yield group


def _embed(plan: Plan, reader: TowerReader, chunk: Chunk) -> np.ndarray:
    """(N, P) float32 of a chunk."""
    found_NP = reader.embed([reader.alphabet.encode(letters) for letters in chunk.letters])
    try:
        store.check_unit(found_NP)
    except ValueError as error:
        raise UserError(
            f"{plan.model}: this model gives vectors without a direction ({error}); it is damaged"
        ) from error
    return found_NP
