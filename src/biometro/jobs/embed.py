"""`biometro embed`: sequences and a model -> vectors in a file.

    records ─▶ chunks of 1,024 ─▶ Embedder ─▶ one part file each ─▶ joined in input order into `out`

`inference/plan.py` says what a part is. Parts are made here, or by workers on Ray (`inference/cluster.py`).
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from biometro.alphabet import MoleculeAlphabet, MoleculePolicy, Reading, ResiduePolicy, SequenceKind, kind_of
from biometro.data.intake import Account
from biometro.data.layouts import Region
from biometro.data.sources import Format, ReadOptions, expand
from biometro.device import pick_device
from biometro.errors import UserError
from biometro.inference import cluster as ray_cluster
from biometro.inference import vectors
from biometro.inference.embed import Embedder, Pooling, Precision, quantisation_cosine
from biometro.inference.plan import Chunk, Done, LongPolicy, Plan
from biometro.inference.vectors import Embeddings
from biometro.model.load import fingerprint, load

_CHUNK_SEQUENCES, _CHUNK_NUMBERS = 1024, 1 << 26  # a part ends at whichever comes first; numbers are 4 bytes each


def embed(
    model: str,
    data: str | list[str],
    out: str | None = None,
    pooling: Pooling = "mean",
    long: LongPolicy = "full",
    max_length: int = 1022,
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
    workers: int | None = None,
    cluster: str | None = None,
) -> Embeddings | Path:
    """Turn sequences into vectors, in input order, in a stream; interrupted, the same command goes on.

    A sequence's vectors do not depend on what else is in the file.

    Args:
        model: model folder of biometro, Hugging Face folder of ESM-2 or another encoder (ProtBert, ProtT5, Ankh,
            ChemBERTa), or fair-esm checkpoint (.pt).
        data: FASTA, CSV, TSV, Parquet, SMILES or SDF files: a path, a pattern, a URL, a list of these,
            example:families, or sequences themselves (capital letters).
        out: file to write: .parquet, .npz or .safetensors. From Python it may be left out; the vectors are returned.
        pooling: mean over residues without start and end, cls (the start token's vector), or residues (one each).
        long: beyond max_length: full (read whole; rotary and ALiBi have no hard limit, a model with a table of
            positions has and says so), window (overlapping windows, averaged), or error.
        max_length: residues.
        precision: of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere; int8 is for CPUs, and prints
            how near its vectors are to those of float32.
        kind: what the sequences are: protein, antibody, tcr, molecule, or text for what the model's own tokenizer reads
            as it stands. Left out, what the model reads.
        residues: what to do with non-standard residues: as_is (letters that have a token keep it, others become X),
            keep_as_x, drop_sequence (left out and counted), or fail.
        molecules: what to do with salts, stereochemistry and molecules that cannot be read.
        format: of the files; auto goes by their names.
        column: of tables, the one that holds the sequence; of receptors, columns by part, as in {heavy: VH, light: VL}.
            Tables of public sources are known by their columns.
        region: of such a table's chains: full (the V domain), cdr3, or cdrs (CDR1, CDR2, CDR3); auto is full for
            antibodies and cdr3 for T-cell receptors.
        id_column: of tables, the one that holds the identifier; without it rows are numbered.
        device: auto, cpu, cuda, cuda:1, ...
        batch_tokens: tokens read at once; more takes more memory and does not change results.
        workers: processes that embed, on Ray, each with a GPU where there are any; without it, this process does.
        cluster: address of a running Ray cluster (auto or HOST:PORT) whose machines all see `model`
            and the folder of `out`; without it, workers run on this machine.

    Returns the path written, or the embeddings where `out` is not given. Raises UserError for input that cannot be
    read, a sequence over the limit under long: error, a disk that is full, and workers that cannot be had.
    """
    path = None if out is None else Path(out)
    if path is not None:
        vectors.check_suffix(path)
    if cluster is not None and workers is None:
        raise UserError("`cluster` says where workers run; say with `workers` how many")
    if workers is not None and path is None:
        raise UserError("workers write files; say with `out` where")
    bundle = load(model)
    reading = Reading(kind_of(bundle.alphabet, kind, model), residues, molecules)
    options = ReadOptions(format, column, id_column, kind=reading.kind, region=region)
    sources = expand(data, options)
    width = bundle.encoder.config.width
    plan = Plan(
        model, "" if path is None else fingerprint(model), sources, options, reading, pooling, long, max_length,
        precision, batch_tokens, _CHUNK_SEQUENCES, _CHUNK_NUMBERS // width,
        bundle.alphabet if isinstance(bundle.alphabet, MoleculeAlphabet) else None,
    )  # fmt: skip
    # with workers this process computes nothing, but finds the options' mistakes before any of them starts
    embedder = plan.embedder(bundle, "cpu" if workers is not None else pick_device(device))
    console = Console(stderr=True, quiet=path is None)
    account = Account()
    chunks = plan.chunks(account)
    first = next(chunks, None)
    if first is None:
        raise UserError(f"there is no sequence to embed; dropped: {account.dropped}")
    if precision == "int8":
        cosine = quantisation_cosine(bundle, [bundle.alphabet.encode(letters) for letters in first.letters[:16]])
        console.print(f"int8: cosine to float32 on the first {len(first.ids[:16])} sequences at least {cosine:.5f}")
    chunks = itertools.chain([first], chunks)
    if path is None:
        parts = [plan.run(chunk, embedder) for chunk in chunks]
        return Embeddings(
            [i for part in parts for i in part.ids], [v for part in parts for v in part.vectors], pooling == "residues"
        )
    if workers is None:
        folder = _parts_folder(path, plan, embedder.device.type)
        _write(_made_here(plan, chunks, folder, embedder), plan, folder, path, width, console)
    else:
        del bundle, embedder, chunks  # their memory is the workers'
        account = Account()
        with ray_cluster.connect(workers, cluster, device) as connection:
            folder = _parts_folder(path, plan, connection.device)
            _write(ray_cluster.make_parts(plan, folder, connection, account), plan, folder, path, width, console)
    shutil.rmtree(folder.parent, ignore_errors=True)
    console.print(f"{account.kept:,} sequences, {account.residues:,} residues -> {path}", highlight=False)
    for reason, count in account.dropped.items():
        console.print(f"dropped ({reason}): {count:,}, first: {'; '.join(account.examples[reason])}", markup=False)
    return path


def _parts_folder(path: Path, plan: Plan, device: str) -> Path:
    folder = path.absolute().with_name(f".{path.name}.parts") / plan.settings(device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: could not be made ({error.strerror})") from error
    return folder


def _made_here(plan: Plan, chunks: Iterable[Chunk], folder: Path, embedder: Embedder) -> Iterator[Done]:
    """Every part of the chunks, made in this process where it does not exist already."""
    for chunk in chunks:
        found = vectors.sound(folder / chunk.part)
        if not found:
            vectors.write_part(folder / chunk.part, plan.run(chunk, embedder), embedder.width)
        yield Done(chunk.part, len(chunk.ids), chunk.residues, found)


def _write(done: Iterable[Done], plan: Plan, folder: Path, path: Path, width: int, console: Console) -> None:
    """Follow the parts as they are done, then join them in input order."""
    names = []
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
    try:
        with bar:
            task = bar.add_task("embedding")
            sequences = residues = reused = 0
            began = time.perf_counter()
            for part in done:
                names.append(part.name)
                sequences += part.sequences
                if part.found:
                    reused += part.sequences
                else:
                    residues += part.residues
                rate = residues / (time.perf_counter() - began)
                text = f"{sequences:,} sequences, {rate:,.0f} residues/s"
                bar.update(task, description=text + (f", {reused:,} found from before" if reused else ""))
        about = {
            "model": plan.model, "weights_sha256": plan.weights, "pooling": plan.pooling, "long": plan.long,
            "precision": plan.precision,
        }  # fmt: skip
        parts = [folder / name for name in sorted(names)]  # names begin with their place
        vectors.join(parts, path, width, plan.pooling == "residues", about)
    except UserError as error:
        raise UserError(f"{error}; parts that are done are kept for the next try") from error
