"""`biometro index`: a library and a model -> a store of vectors, which `screen` ranks.

records ─▶ chunks ─▶ one tower of the model ─▶ shards (float32, and int8 for the first look) ─▶ a folder
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from biometro.alphabet import MoleculeAlphabet, MoleculePolicy, Reading, ResiduePolicy, SequenceKind, kind_of
from biometro.data.intake import Account
from biometro.data.layouts import Region
from biometro.data.rows import check_place
from biometro.data.sources import Format, ReadOptions, Source, expand
from biometro.device import pick_device
from biometro.errors import UserError
from biometro.inference import library
from biometro.inference.embed import Precision
from biometro.inference.plan import Plan
from biometro.inference.store import SHARD_NUMBERS, About, ShardNote
from biometro.inference.towers import TowerReader
from biometro.model.bundle import Bundle
from biometro.model.load import load
from biometro.model.towers import fingerprint_of, is_towers, load_towers

_CHUNK_SEQUENCES, _CHUNK_NUMBERS = 1024, 1 << 26  # a part ends at whichever comes first; numbers are 4 bytes each
ALONE = "model"
"""What the tower of a model that has no towers is called."""


def index(
    model: str,
    data: str | list[str],
    out: str,
    tower: str | None = None,
    max_length: int | None = None,
    precision: Precision = "auto",
    kind: SequenceKind | None = None,
    residues: ResiduePolicy = "as_is",
    molecules: MoleculePolicy = MoleculePolicy(),
    format: Format = "auto",
    column: str | dict[str, str] = "sequence",
    region: Region = "auto",
    id_column: str | None = None,
    device: str = "auto",
    batch_tokens: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Embed a library into a store that `screen` ranks, in a stream; interrupted, the same command goes on.

    Args:
        model: folder of towers, as `align` leaves it; or any model that `embed` takes, to search what is like a query.
        data: the library: FASTA, CSV, TSV, Parquet, SMILES or SDF files: a path, a pattern, a URL, a list of these.
        out: folder to write.
        tower: of towers, the one that reads the library: protein or ligand. Left out, ligand for SMILES and SDF files
            and protein for FASTA.
        max_length: residues (tokens); longer sequences are cut to their first ones; default: as in training.
        precision: of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        kind: what the library holds, as of `embed`. Left out, what the tower reads.
        residues: what to do with non-standard residues: as_is, keep_as_x, drop_sequence or fail.
        molecules: what to do with salts, stereochemistry and molecules that cannot be read.
        format: of the files; auto goes by their names.
        column: of tables, the one that holds the sequence.
        region: of the chains in a table of receptors: full, cdr3 or cdrs.
        id_column: of tables, the one that holds the identifier; without it rows are numbered.
        device: auto, cpu, cuda, cuda:1, ...
        batch_tokens: tokens read at once; more takes more memory and does not change results.
        overwrite: replace what stands at `out`.

    Returns the folder. Raises UserError for input that cannot be read, a tower that is not there, and a full disk.
    """
    path = Path(out)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another folder, or say overwrite: true")
    if path.exists() and not (path / "store.json").is_file():
        raise UserError(f"{path} is no store, and would be replaced; choose another name")
    if not path.exists():
        check_place(path)
    name, bundle = tower_of(model, tower, expand(data, ReadOptions(format, kind=kind or "protein")))
    reading = Reading(kind_of(bundle.alphabet, kind, model), residues, molecules)
    options = ReadOptions(format, column, id_column, kind=reading.kind, region=region)
    reader = TowerReader(
        bundle, max_length=max_length, precision=precision, device=pick_device(device), batch_tokens=batch_tokens
    )
    weights = fingerprint_of(model)
    plan = Plan(
        model, weights, expand(data, options), options, reading, reader.embedder.pooling, "full", reader.max_length,
        precision, batch_tokens, _CHUNK_SEQUENCES, _CHUNK_NUMBERS // reader.width,
        bundle.alphabet if isinstance(bundle.alphabet, MoleculeAlphabet) else None,
    )  # fmt: skip
    console, account = Console(stderr=True), Account()
    folder = library.parts_folder(path, plan, name, reader.embedder.device.type)
    try:
        notes = _follow(plan, reader, folder, account, console)
        if not notes:
            raise UserError(f"there is no sequence to index; dropped: {account.dropped}")
        settings = f"max_length {reader.max_length}, precision {precision}, {reader.embedder.device.type}"
        library.finish(folder, path, About(model, weights, name, reading.kind, settings), reader.width, notes)
    except UserError as error:
        raise (
            UserError(f"{error}; shards that are done are kept for the next try")
            if any((folder / "shards").glob("*"))
            else error
        ) from error
    rows = f"{account.kept:,} sequences of the tower {name!r}, {reader.width} numbers each, {len(notes)} shards"
    console.print(f"{rows} -> {path}", highlight=False, markup=False)
    for reason, count in account.dropped.items():
        console.print(f"dropped ({reason}): {count:,}, first: {'; '.join(account.examples[reason])}", markup=False)
    return path


def tower_of(model: str, asked: str | None, sources: Sequence[Source]) -> tuple[str, Bundle]:
    """The tower that reads a library, and its name.

    Raises UserError where there is none of that name, or where neither its name is given nor the files tell it.
    """
    if not is_towers(model):
        if asked not in (None, ALONE):
            raise UserError(f"{model}: is no folder of towers, and has no tower {asked!r}")
        return ALONE, load(model)
    towers = load_towers(model).towers
    if asked is None:
        asked = next(iter(towers)) if len(towers) == 1 else _told(towers, sources)
    if asked not in towers:
        given = "the files do not say which tower reads them" if asked is None else f"there is no tower {asked!r}"
        raise UserError(f"{model}: {given}; say with `tower`: {' or '.join(towers)}")
    return asked, towers[asked]


def _told(towers: dict[str, Bundle], sources: Sequence[Source]) -> str | None:
    """The one tower that reads molecules for files of molecules, the one that does not for FASTA."""
    formats = {source.format for source in sources}
    molecules = formats <= {"smi", "sdf"}
    if not molecules and not formats <= {"fasta"}:
        return None
    fitting = [name for name, b in towers.items() if isinstance(b.alphabet, MoleculeAlphabet) == molecules]
    return fitting[0] if len(fitting) == 1 else None


def _follow(plan: Plan, reader: TowerReader, folder: Path, account: Account, console: Console) -> list[ShardNote]:
    """Shards as they are done, with a line that tells how fast."""
    notes: list[ShardNote] = []
    sequences = residues = reused = 0
    began = time.perf_counter()
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("indexing")
        for step in library.make_shards(plan, reader, folder, account, max(1, SHARD_NUMBERS // reader.width)):
            sequences += step.sequences
            reused += step.sequences if step.found else 0
            residues += 0 if step.found else step.residues
            if step.shard is not None:
                notes.append(step.shard)
            text = f"{sequences:,} sequences, {residues / (time.perf_counter() - began):,.0f} {plan.reading.unit}/s"
            bar.update(task, description=text + (f", {reused:,} found from before" if reused else ""))
    return notes
