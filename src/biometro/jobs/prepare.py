"""`biometro prepare`: raw files -> a corpus folder."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import biometro
from biometro.alphabet import PROTEIN, ResiduePolicy
from biometro.data import parts, splits
from biometro.data.builder import LARGEST_SHARD, SHARD_RESIDUES, build
from biometro.data.corpus import Corpus
from biometro.data.fill import Cleaning, fill
from biometro.data.intake import Account
from biometro.data.sources import Format, ReadOptions, Source, expand
from biometro.errors import UserError
from biometro.files import new_folder

console = Console(stderr=True)


def prepare(
    data: str | list[str],
    out: str,
    residues: ResiduePolicy = "keep_as_x",
    valid: float = 0.01,
    min_length: int = 1,
    max_length: int | None = None,
    format: Format = "auto",
    column: str = "sequence",
    split_column: str | None = None,
    workers: int = 1,
    part: str | None = None,
    shard_residues: int = SHARD_RESIDUES,
    overwrite: bool = False,
) -> Corpus | None:
    """Turn sequence files into a corpus folder: cleaned, deduplicated, split, counted.

    Reads in a stream, with bounded memory. Alignment gaps (- and .), white space and a stop (*) at the end are removed,
    lower case becomes upper case. Exact duplicates are removed. The same sequences give the same corpus, byte for
    byte, whatever the order of files.

    Args:
        data: FASTA, CSV, TSV or Parquet files (plain, .gz, .zst, .bz2): a path, a pattern such as 'uniref/*.fasta.gz',
            a URL that fsspec knows, a list of these, or example:families.
        out: corpus folder to write.
        residues: what to do with U O B Z J X and stops inside: keep_as_x, as_is (letters that have a token keep it),
            drop_sequence, or fail.
        valid: share of sequences held out, chosen by a stable hash of the sequence.
        min_length: residues; shorter sequences are dropped.
        max_length: residues; longer sequences are dropped.
        format: of the files; auto goes by their names.
        column: of CSV, TSV and Parquet files, the one that holds the sequence.
        split_column: of these, one that says train or valid, instead of the hash; rows with anything else in it (a
            test set) are left out. A sequence that stands on both sides is held out.
        workers: processes that read and clean; any number gives the same corpus.
        part: `3/16` reads the third of sixteen shares of the input and leaves it beside `out`; run one for each, on
            machines that share the folder. Whichever finishes last makes the corpus, the same as one machine would.
        shard_residues: of one shard, at most: the piece in which a corpus is fetched from a URL and shuffled.
        overwrite: replace a corpus that stands at `out`.

    Returns the corpus, or None where it waits for other parts. Raises UserError, naming file and line, for input that
    is not what its format promises; nothing is written then.
    """
    if not 0 <= valid < 1:
        raise UserError(f"valid is {valid}; it is a share, from 0 up to but not including 1")
    if min_length < 1 or (max_length is not None and max_length < min_length):
        raise UserError(f"min_length {min_length} and max_length {max_length} leave nothing; at least 1, and in order")
    if workers < 1:
        raise UserError(f"workers is {workers}; at least 1")
    if not 1 <= shard_residues <= LARGEST_SHARD:
        raise UserError(f"shard_residues is {shard_residues}; it must lie between 1 and {LARGEST_SHARD}")
    number, of = (1, 1) if part is None else parts.numbers(part)
    folder = Path(out)
    sources = expand(data, ReadOptions(format))
    cleaning = Cleaning(ReadOptions(format, column, split_column=split_column), residues, min_length, max_length)
    options = {
        "residues": residues,
        "valid": valid,
        "split": "hash" if split_column is None else f"column {split_column}",
        "min_length": min_length,
        "max_length": max_length,
        "column": column,
        "shard_residues": shard_residues,
    }
    names = [source.name for source in sources]
    if part is not None and not overwrite and _made_of(folder, names, options):
        console.print(f"{folder} is there already, of all parts", highlight=False, soft_wrap=True)
        return Corpus.open(folder)
    _check_place(folder, overwrite)
    began = time.perf_counter()
    if part is None:
        with new_folder(folder) as work:
            account = fill(work / "spools", sources, cleaning, workers)
            spools = sorted((work / "spools").iterdir())
            info = _assemble(work, spools, account, sources, options)
            shutil.rmtree(work / "spools")
    else:
        formats = [source.format for source in sources]
        settings = {"files": names, "formats": formats, **options, "version": biometro.__version__}
        shared = parts.Parts(folder, of, settings)
        if not _add_part(shared, number, [replace(source) for source in sources], cleaning, workers):
            return Corpus.open(folder) if _made_of(folder, names, options) else None
        try:
            account, spools = shared.load(sources)
            with new_folder(folder) as work:
                info = _assemble(work, spools, account, sources, options)
        except BaseException:
            shared.release()
            raise
        shared.remove()
    corpus = Corpus.open(folder)
    _report(corpus, info["duplicates"], account, residues, time.perf_counter() - began)
    return corpus


def _check_place(folder: Path, overwrite: bool) -> None:
    try:
        if folder.exists():
            if not (folder / "corpus.json").exists():
                raise UserError(f"{folder} exists and is no corpus folder; choose another `out`")
            if not overwrite:
                raise UserError(f"{folder} holds a corpus already; choose another `out`, or say overwrite: true")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error


def _made_of(folder: Path, names: list[str], options: dict[str, Any]) -> bool:
    """Whether a corpus stands there that this command would make."""
    if not (folder / "corpus.json").exists():
        return False
    info = Corpus.open(folder).info
    return info.get("options") == options and [source["name"] for source in info["sources"]] == names


def _add_part(shared: parts.Parts, number: int, sources: list[Source], cleaning: Cleaning, workers: int) -> bool:
    """Make one part if it is not there; whether it is on us to assemble them all."""
    shared.check()
    if shared.path(number).exists():
        console.print(f"part {number} of {shared.of} was there already", highlight=False)
    else:
        with shared.adding(number) as work:
            account = fill(work, sources, cleaning, workers, number - 1, shared.of)
            shared.describe(work, account, sources)
        console.print(f"part {number} of {shared.of} is done: {account.read:,} sequences", highlight=False)
        shared.check()
    missing = shared.missing()
    if number in missing:  # another has seen all parts, assembled and removed them
        return False
    if missing:
        first = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        console.print(f"{len(missing)} still missing: {first}; the last one makes the corpus", highlight=False)
        return False
    busy = shared.claim()
    if busy is not None:
        console.print(f"all parts are there; {busy}", highlight=False, soft_wrap=True)
    return busy is None


def _assemble(
    work: Path, spools: list[Path], account: Account, sources: list[Source], options: dict[str, Any]
) -> dict[str, Any]:
    if account.read == sum(account.dropped.values()):
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in account.dropped.items())
        raise UserError(f"no sequence is left of {account.read:,} ({reasons})")
    return build(
        work,
        spools,
        PROTEIN,
        lambda digests: splits.by_hash(digests, options["valid"]),
        {
            "intake": account.to_json(),
            "options": options,
            "sources": [source.to_json() for source in sources],
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "version": biometro.__version__,
        },
        shard_residues=options["shard_residues"],
    )


def _report(corpus: Corpus, duplicates: int, account: Account, residues: str, seconds: float) -> None:
    table = Table("", "sequences", "residues", title=str(corpus.folder), title_style="bold")
    table.columns[0].no_wrap = True
    table.add_row("read", f"{account.read:,}", "")
    for reason, count in account.dropped.items():
        table.add_row(f"dropped: {reason}", f"{count:,}", "", style="yellow")
    table.add_row(
        f"with non-standard residues ({residues})", f"{account.with_nonstandard:,}", f"{account.nonstandard_residues:,}"
    )
    table.add_row("exact duplicates removed", f"{duplicates:,}", "")
    for name, split in corpus.info["splits"].items():
        table.add_row(name, f"{split['sequences']:,}", f"{split['residues']:,}", style="green")
    console.print(table)
    lengths = corpus.info["splits"]["train"]["length_percentiles"]
    console.print(
        f"lengths: 5 % below {lengths['5']}, half below {lengths['50']}, 95 % below {lengths['95']} residues; "
        f"{seconds:.1f} s", highlight=False,
    )  # fmt: skip
    for reason, examples in account.examples.items():
        console.print(f"dropped ({reason}): {'; '.join(examples)}", highlight=False, markup=False, soft_wrap=True)
    if account.warning:
        console.print(f"warning: {account.warning}", style="bold yellow", soft_wrap=True)
