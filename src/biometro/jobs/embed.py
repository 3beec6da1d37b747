"""`biometro embed`: sequences and a model -> vectors in a file.

    records ─▶ chunks of 1,024 ─▶ Embedder ─▶ one part file each ─▶ joined in input order into `out`

A part is named by the digest of what it holds and lies in a folder named by the model and the options, so a run that
was interrupted finds what it had done, and nothing that does not fit can be taken up by mistake.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from biometro.alphabet import PROTEIN, ResiduePolicy
from biometro.data.intake import Account, clean
from biometro.data.sources import Format, ReadOptions, Record, expand
from biometro.device import pick_device
from biometro.errors import UserError
from biometro.inference import vectors
from biometro.inference.embed import Embedder, Pooling, Precision, quantisation_cosine
from biometro.inference.vectors import Embeddings
from biometro.model.bundle import Bundle
from biometro.model.load import fingerprint, load

_CHUNK_SEQUENCES, _CHUNK_NUMBERS = 1024, 1 << 26  # a part ends at whichever comes first; numbers are 4 bytes each

LongPolicy = Literal["full", "window", "error"]

Chunk = list[tuple[Record, bytes]]


def embed(
    model: str,
    data: str | list[str],
    out: str | None = None,
    pooling: Pooling = "mean",
    long: LongPolicy = "full",
    max_length: int = 1022,
    precision: Precision = "auto",
    residues: ResiduePolicy = "as_is",
    format: Format = "auto",
    column: str = "sequence",
    id_column: str | None = None,
    device: str = "auto",
    batch_tokens: int | None = None,
) -> Embeddings | Path:
    """Turn sequences into vectors, in input order, in a stream; interrupted, the same command goes on.

    A sequence's vectors do not depend on what else is in the file.

    Args:
        model: model folder of biometro, Hugging Face ESM-2 folder, or fair-esm checkpoint (.pt).
        data: FASTA, CSV, TSV or Parquet files: a path, a pattern, a URL, a list of these, example:families, or
            sequences themselves (capital letters).
        out: file to write: .parquet, .npz or .safetensors. From Python it may be left out; the vectors are returned.
        pooling: mean over residues without start and end, cls (the start token's vector), or residues (one each).
        long: beyond max_length: full (read whole; rotary and ALiBi have no hard limit), window (overlapping windows,
            averaged), or error.
        max_length: residues.
        precision: of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere; int8 is for CPUs, and prints
            how near its vectors are to those of float32.
        residues: what to do with non-standard residues: as_is (letters that have a token keep it, others become X),
            keep_as_x, drop_sequence (left out and counted), or fail.
        format: of the files; auto goes by their names.
        column: of tables, the one that holds the sequence.
        id_column: of tables, the one that holds the identifier; without it rows are numbered.
        device: auto, cpu, cuda, cuda:1, ...
        batch_tokens: tokens read at once; more takes more memory and does not change results.

    Returns the path written, or the embeddings where `out` is not given. Raises UserError for input that cannot be
    read, a sequence over the limit under long: error, and a disk that is full.
    """
    path = None if out is None else Path(out)
    if path is not None:
        vectors.check_suffix(path)
    options = ReadOptions(format, column, id_column)
    sources = expand(data, options)
    bundle = _load(model)
    embedder = Embedder(
        bundle,
        pooling=pooling,
        long="window" if long == "window" else "full",
        max_length=max_length,
        precision=precision,
        device=pick_device(device),
        batch_tokens=batch_tokens,
    )
    console = Console(stderr=True, quiet=path is None)
    account = Account()
    chunks: Iterator[Chunk] = _chunks(clean(sources, options, residues, account), _CHUNK_NUMBERS // embedder.width)
    first = next(chunks, None)
    if first is None:
        raise UserError(f"there is no sequence to embed; dropped: {account.dropped}")
    chunks = itertools.chain([first], chunks)
    if precision == "int8":
        cosine = quantisation_cosine(bundle, [bundle.alphabet.encode(letters) for _, letters in first[:16]])
        console.print(f"int8: cosine to float32 on the first {len(first[:16])} sequences at least {cosine:.5f}")

    def run(chunk: Chunk) -> Embeddings:
        for record, letters in chunk:
            if long == "error" and len(letters) > max_length:
                raise UserError(
                    f"{record.where} ({record.id}): {len(letters)} residues, more than max_length {max_length}; "
                    "choose long: full or window"
                )
        found = embedder.embed([bundle.alphabet.encode(letters) for _, letters in chunk])
        if not all(np.isfinite(vector).all() for vector in found):
            raise UserError(f"{model}: this model gives vectors that are not finite; its weights are damaged")
        return Embeddings([record.id for record, _ in chunk], found, pooling == "residues")

    if path is None:
        parts = [run(chunk) for chunk in chunks]
        return Embeddings(
            [i for part in parts for i in part.ids], [v for part in parts for v in part.vectors], pooling == "residues"
        )

    weights = fingerprint(model)
    settings = f"{weights} {pooling} {long} {max_length} {precision} {embedder.device.type} {residues}"
    folder = path.with_name(f".{path.name}.parts") / hashlib.sha256(settings.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: could not be made ({error.strerror})") from error
    try:
        done = _write_parts(chunks, folder, run, embedder.width, console)
        about = {"model": model, "weights_sha256": weights, "pooling": pooling, "long": long, "precision": precision}
        vectors.join(done, path, embedder.width, pooling == "residues", about)
    except UserError as error:
        raise UserError(f"{error}; parts that are done are kept for the next try") from error
    shutil.rmtree(folder.parent, ignore_errors=True)
    console.print(f"{account.kept:,} sequences, {account.residues:,} residues -> {path}", highlight=False)
    for reason, count in account.dropped.items():
        console.print(f"dropped ({reason}): {count:,}, first: {'; '.join(account.examples[reason])}", markup=False)
    return path


def _load(model: str) -> Bundle:
    """A model that reads the letters of proteins."""
    bundle = load(model)
    if bundle.alphabet.tokens != PROTEIN.tokens:
        raise UserError(f"{model}: the tokens of its alphabet {bundle.alphabet.name!r} are not those of proteins")
    return bundle


def _write_parts(
    chunks: Iterable[Chunk], folder: Path, run: Callable[[Chunk], Embeddings], width: int, console: Console
) -> list[Path]:
    """The part files of all chunks in order; those that exist already are not made again."""
    done = []
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
    with bar:
        task = bar.add_task("embedding")
        sequences = residues = reused = 0
        began = time.perf_counter()
        for number, chunk in enumerate(chunks):
            digest = hashlib.sha256()
            for record, letters in chunk:
                digest.update(f"{len(record.id)} {record.id} {len(letters)} ".encode() + letters)
            part = folder / f"{number:08d}-{digest.hexdigest()[:32]}.parquet"
            size = sum(len(letters) for _, letters in chunk)
            sequences += len(chunk)
            if vectors.sound(part):
                reused += len(chunk)
            else:
                vectors.write_part(part, run(chunk), width)
                residues += size
            rate = residues / (time.perf_counter() - began)
            text = f"{sequences:,} sequences, {rate:,.0f} residues/s"
            bar.update(task, description=text + (f", {reused:,} found from before" if reused else ""))
            done.append(part)
    return done


def _chunks(records: Iterator[tuple[Record, bytes]], most_residues: int) -> Iterator[Chunk]:
    chunk: Chunk = []
    total = 0
    for record, letters in records:
        chunk.append((record, letters))
        total += len(letters)
        if len(chunk) == _CHUNK_SEQUENCES or total >= most_residues:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
