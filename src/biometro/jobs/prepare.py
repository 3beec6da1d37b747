"""`biometro prepare`: raw files -> a corpus folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

import biometro
from biometro.alphabet import Alphabet, MoleculeAlphabet, MoleculePolicy, Reading, ResiduePolicy, SequenceKind
from biometro.alphabet.kinds import ALPHABETS
from biometro.alphabet.molecule import MOST_TOKENS, Growing, Notation
from biometro.data import catalogue, mmseqs, parts, splits
from biometro.data.builder import LARGEST_SHARD, SHARD_RESIDUES, Learning, build, by_homology
from biometro.data.corpus import Corpus
from biometro.data.fill import Cleaning, SplitBy, fill
from biometro.data.intake import Account
from biometro.data.layouts import Region
from biometro.data.sources import Format, ReadOptions, Source, expand
from biometro.errors import UserError
from biometro.files import new_folder
from biometro.jobs.listing import show_catalogue

console = Console(stderr=True)
_IDENTITY, _COVERAGE = 0.4, 0.8  # of relatives, as `sides.SplitConfig` has them for labelled sequences


@dataclass(frozen=True)
class VocabularyConfig:
    """The tokens of a corpus of molecules.

    Args:
        notation: selfies, or smiles (atoms, bonds, ring bonds and branches).
        least: a symbol that fewer molecules (with `forms`, SMILES) have is left out of the vocabulary.
        most: symbols; of more, the commonest are taken in.
        like: corpus whose vocabulary is taken instead of learning one.
    """

    notation: Notation = "selfies"
    least: int = 1
    most: int = MOST_TOKENS
    like: str | None = None

    def __post_init__(self) -> None:
        if self.least < 1 or not 1 <= self.most <= MOST_TOKENS:
            raise UserError(f"vocabulary.least is at least 1, vocabulary.most between 1 and {MOST_TOKENS}")


def prepare(
    data: str | list[str] = "",
    out: str = "",
    kind: SequenceKind = "protein",
    residues: ResiduePolicy = "keep_as_x",
    molecules: MoleculePolicy = MoleculePolicy(),
    vocabulary: VocabularyConfig = VocabularyConfig(),
    forms: int = 0,
    reverse: float = 0.0,
    valid: float = 0.01,
    min_length: int = 1,
    max_length: int | None = None,
    format: Format = "auto",
    column: str | dict[str, str] = "sequence",
    region: Region = "auto",
    split: SplitBy | None = None,
    split_column: str | None = None,
    split_identity: float | None = None,
    split_coverage: float | None = None,
    workers: int = 1,
    part: str | None = None,
    shard_residues: int = SHARD_RESIDUES,
    overwrite: bool = False,
    list: bool = False,
) -> Corpus | None:
    """Turn sequence files into a corpus folder: cleaned, deduplicated, split, counted.

    Reads in a stream, with bounded memory. Alignment gaps (- and .), white space and a stop (*) at the end are removed,
    lower case becomes upper case. Exact duplicates are removed. The same sequences give the same corpus, byte for
    byte, whatever the order of files.

    Args:
        data: FASTA, CSV, TSV, Parquet, SMILES or SDF files (plain, .gz, .zst, .bz2): a path, a pattern such as
            'uniref/*.fasta.gz', a URL that fsspec knows, a public source such as catalogue:uniref50 (see `list`),
            example:families, example:receptors, example:molecules, or a list of these. Needed, but for `list`.
        out: corpus folder to write. Needed, but for `list`.
        kind: what the sequences are: protein, antibody (heavy|light), tcr (alpha|beta:peptide@MHC), molecule (SMILES).
            Of a source of the catalogue it is known.
        residues: what to do with U O B Z J X and stops inside: keep_as_x, as_is (letters that have a token keep it),
            drop_sequence, or fail.
        molecules: what to do with salts, stereochemistry, and molecules that cannot be read.
        vocabulary: how the tokens of molecules are learnt.
        forms: other SMILES of each molecule, atoms in random order, that are added to its canonical one; all of a
            molecule stand on one side of the split.
        reverse: of proteins and receptors, the share that is read back to front in training where its recipe says
            nothing else (packing.reverse).
        valid: share of sequences held out, chosen by a stable hash of the sequence.
        min_length: residues (tokens of SMILES); shorter sequences are dropped.
        max_length: of the same; longer sequences are dropped.
        format: of the files; auto goes by their names.
        column: of CSV, TSV and Parquet files, the one that holds the sequence; of receptors, columns by part, as in
            {alpha: cdr3a, beta: cdr3b, peptide: epitope}. Tables of public sources are known by their columns.
        region: of such a table's chains: full (the V domain), cdr3, or cdrs (CDR1, CDR2, CDR3); auto is full for
            antibodies and cdr3 for T-cell receptors.
        split: what decides which sequences are held out: hash (of the sequence), scaffold (Bemis-Murcko, of molecules),
            group (split_column names it: a cluster, a patient, an epitope; all of a group are on one side), homology
            (of proteins, whole families, so that no held-out sequence has a relative in training; all are in memory,
            and MMseqs2 compares them), or column (split_column says train or valid; rows with anything else in it, a
            test set, are left out). A sequence that stands on both sides is held out. Left out, column where
            split_column is given, otherwise hash.
        split_column: of tables, the one that says the side or the group.
        split_identity: of split: homology, the share of identical residues from which two aligned proteins are
            relatives; 0.4 unless given.
        split_coverage: of the same, the share of the shorter sequence that must be aligned; 0.8 unless given.
        workers: processes that read and clean; any number gives the same corpus.
        part: `3/16` reads the third of sixteen shares of the input and leaves it beside `out`; run one for each, on
            machines that share the folder. Whichever finishes last makes the corpus, the same as one machine would.
        shard_residues: of one shard, at most: the piece in which a corpus is fetched from a URL and shuffled.
        overwrite: replace a corpus that stands at `out`.
        list: only print the catalogue of public sources: where they are, licence, size, how they are read, citation.

    Returns the corpus, or None where it only lists, or waits for other parts. Raises UserError, naming file and line,
    for input that is not what its format promises; nothing is written then.
    """
    if list:
        show_catalogue()
        return None
    if not out:
        raise UserError("say where to write: out")
    kind, column = catalogue.settings(data, kind, column)
    _check_numbers(valid, min_length, max_length, workers, shard_residues)
    split = split or ("hash" if split_column is None else "column")
    _check_kind(kind, split, split_column, forms, reverse)
    relatives = _relatives(kind, split, split_identity, split_coverage)
    reading = Reading(kind, residues, molecules)
    alphabet = _alphabet(kind, vocabulary, molecules.unknown)
    growing = Growing(vocabulary.notation) if isinstance(alphabet, Learning) else alphabet
    number, of = (1, 1) if part is None else parts.numbers(part)
    reads = ReadOptions(format, column, split_column=split_column, kind=kind, region=region)
    sources = expand(data, reads)
    options = {
        "residues": residues, "valid": valid, "split": split if split_column is None else f"{split} {split_column}",
        "min_length": min_length, "max_length": max_length, "column": column, "shard_residues": shard_residues,
        **relatives, **_of_kind(kind, molecules, vocabulary, forms, reverse, region),
    }  # fmt: skip
    making = _Making(
        Path(out), sources, Cleaning(reads, reading, min_length, max_length, growing, forms, split, valid), alphabet,
        options, workers,
    )  # fmt: skip
    if part is not None and not overwrite and making.made():
        console.print(f"{out} is there already, of all parts", highlight=False, soft_wrap=True)
        return Corpus.open(out)
    _check_place(Path(out), overwrite)
    began = time.perf_counter()
    account = making.whole() if part is None else making.part(number, of)
    if account is None:
        return Corpus.open(out) if making.made() else None
    corpus = Corpus.open(out)
    _report(corpus, account, reading, time.perf_counter() - began)
    return corpus


@dataclass(frozen=True)
class _Making:
    """One corpus to be made: where, of what, and how."""

    folder: Path
    sources: list[Source]
    cleaning: Cleaning
    alphabet: Alphabet | Learning
    options: dict[str, Any]
    workers: int

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    def made(self) -> bool:
        """Whether a corpus stands there that this command would make."""
        if not (self.folder / "corpus.json").exists():
            return False
        info = Corpus.open(self.folder).info
        return info.get("options") == self.options and [source["name"] for source in info["sources"]] == self.names

    def whole(self) -> Account:
        with new_folder(self.folder) as work:
            account = fill(work / "spools", self.sources, self.cleaning, self.workers)
            self._assemble(work, sorted((work / "spools").iterdir()), account)
            shutil.rmtree(work / "spools")
        return account

    def part(self, number: int, of: int) -> Account | None:
        """One part, and the corpus where it was the last; None where it was not."""
        formats = [source.format for source in self.sources]
        settings = {"files": self.names, "formats": formats, **self.options, "version": biometro.__version__}
        shared = parts.Parts(self.folder, of, settings)
        if not _add_part(shared, number, [replace(source) for source in self.sources], self.cleaning, self.workers):
            return None
        try:
            account, spools = shared.load(self.sources)
            with new_folder(self.folder) as work:
                self._assemble(work, spools, account)
        except BaseException:
            shared.release()
            raise
        shared.remove()
        return account

    def _assemble(self, work: Path, spools: list[Path], account: Account) -> None:
        if account.read == sum(account.dropped.values()):
            reasons = "; ".join(f"{reason}: {count:,}" for reason, count in account.dropped.items())
            first = next(iter(account.examples.values()), [""])[0]
            raise UserError(f"no sequence is left of {account.read:,} ({reasons}); first: {first}")
        held_out, families = self._held_out(spools)
        build(
            work,
            spools,
            self.alphabet,
            held_out,
            {
                "intake": account.to_json(),
                "options": self.options,
                **({"families": families} if families else {}),
                "sources": [source.to_json() for source in self.sources],
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "version": biometro.__version__,
            },
            shard_residues=self.options["shard_residues"],
        )

    def _held_out(self, spools: list[Path]) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any] | None]:
        """Which digests are held out, of sequences whose record did not say; and of families, how many are."""
        valid, identity = self.options["valid"], self.options.get("split_identity")
        if identity is None or isinstance(self.alphabet, Learning):
            return partial(splits.by_hash, valid=valid), None
        console.print("comparing all sequences with one another (MMseqs2)", highlight=False)
        return by_homology(spools, self.alphabet, valid, identity, self.options["split_coverage"])


def _check_numbers(valid: float, min_length: int, max_length: int | None, workers: int, shard_residues: int) -> None:
    if not 0 <= valid < 1:
        raise UserError(f"valid is {valid}; it is a share, from 0 up to but not including 1")
    if min_length < 1 or (max_length is not None and max_length < min_length):
        raise UserError(f"min_length {min_length} and max_length {max_length} leave nothing; at least 1, and in order")
    if workers < 1:
        raise UserError(f"workers is {workers}; at least 1")
    if not 1 <= shard_residues <= LARGEST_SHARD:
        raise UserError(f"shard_residues is {shard_residues}; it must lie between 1 and {LARGEST_SHARD}")


def _check_kind(kind: SequenceKind, split: SplitBy, split_column: str | None, forms: int, reverse: float) -> None:
    """Raises UserError where options do not go together."""
    if kind == "text":
        raise UserError("kind is text; a corpus holds proteins, antibodies, T-cell receptors (tcr) or molecules")
    if (split in ("column", "group")) != (split_column is not None):
        raise UserError("split: column or group, and split_column, go together")
    if kind != "molecule" and (split == "scaffold" or forms):
        raise UserError("split: scaffold and forms are for kind: molecule")
    if forms < 0 or not 0 <= reverse <= 1:
        raise UserError("forms must be at least 0, reverse between 0 and 1")
    if kind == "molecule" and reverse:
        raise UserError("a molecule read back to front is another one; reverse is for proteins and receptors")


def _relatives(
    kind: SequenceKind, split: SplitBy, identity: float | None, coverage: float | None
) -> dict[str, float]:  # fmt: skip
    """From where on two sequences are relatives, where whole families are held out: what the corpus keeps of it.

    Raises UserError where such a split cannot be made, before anything is read.
    """
    if split != "homology":
        if (identity, coverage) != (None, None):
            raise UserError(f"split_identity and split_coverage are for split: homology, and split is {split}")
        return {}
    identity = _IDENTITY if identity is None else identity
    coverage = _COVERAGE if coverage is None else coverage
    if kind != "protein":
        raise UserError(f"split: homology is for proteins; of {kind} sequences, group or column says who is held out")
    if not 0 < identity <= 1 or not 0 <= coverage <= 1:
        raise UserError(f"split_identity {identity} and split_coverage {coverage} are shares, above 0 and up to 1")
    mmseqs.find()
    return {"split_identity": identity, "split_coverage": coverage}


def _of_kind(
    kind: SequenceKind, molecules: MoleculePolicy, vocabulary: VocabularyConfig, forms: int, reverse: float,
    region: Region,
) -> dict[str, Any]:  # fmt: skip
    """What a corpus keeps of options that few corpora have."""
    options: dict[str, Any] = {} if kind == "protein" else {"kind": kind}
    if kind == "molecule":
        options |= {"molecules": asdict(molecules), "vocabulary": asdict(vocabulary), "forms": forms}
    if reverse:
        options["reverse"] = reverse
    if region != "auto":
        options["region"] = region
    return options


def _alphabet(
    kind: SequenceKind, vocabulary: VocabularyConfig, unknown: Literal["drop", "unk", "fail"]
) -> Alphabet | Learning:
    """Of a kind of sequence; of molecules, that of another corpus, or how it is learnt."""
    if kind != "molecule":
        return ALPHABETS[kind]
    if vocabulary.like is None:
        return Learning(vocabulary.notation, vocabulary.least, unknown, vocabulary.most)
    found = Corpus.open(vocabulary.like).alphabet
    if not isinstance(found, MoleculeAlphabet):
        raise UserError(f"vocabulary.like: {vocabulary.like} is no corpus of molecules")
    return found


def _check_place(folder: Path, overwrite: bool) -> None:
    try:
        if folder.exists():
            if not (folder / "corpus.json").exists():
                raise UserError(f"{folder} exists and is no corpus folder; choose another `out`")
            if not overwrite:
                raise UserError(f"{folder} holds a corpus already; choose another `out`, or say overwrite: true")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error


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


def _report(corpus: Corpus, account: Account, reading: Reading, seconds: float) -> None:
    table = Table("", "sequences", reading.unit, title=str(corpus.folder), title_style="bold")
    table.columns[0].no_wrap = True
    table.add_row("read", f"{account.read:,}", "")
    for reason, count in account.dropped.items():
        table.add_row(f"dropped: {reason}", f"{count:,}", "", style="yellow")
    unusual = f"{account.with_nonstandard:,}", f"{account.nonstandard_residues:,}"
    if reading.kind != "molecule":
        table.add_row(f"with non-standard residues ({reading.residues})", *unusual)
    elif account.with_nonstandard:
        table.add_row("with tokens that the vocabulary lacks, read as <unk>", *unusual)
    vocabulary = corpus.info.get("vocabulary")
    if vocabulary and vocabulary["covered"] < vocabulary["molecules"]:
        what = "dropped: outside the vocabulary" if vocabulary["unknown"] == "drop" else "with tokens read as <unk>"
        table.add_row(what, f"{vocabulary['molecules'] - vocabulary['covered']:,}", "", style="yellow")
    table.add_row("exact duplicates removed", f"{corpus.info['duplicates']:,}", "")
    for name, split in corpus.info["splits"].items():
        table.add_row(name, f"{split['sequences']:,}", f"{split['residues']:,}", style="green")
    console.print(table)
    if families := corpus.info.get("families"):
        console.print(
            f"families: {families['train']:,} in training, {families['valid']:,} held out, the largest of "
            f"{families['largest_valid']:,} sequences", highlight=False,
        )  # fmt: skip
    lengths = corpus.info["splits"]["train"]["length_percentiles"]
    console.print(
        f"lengths: 5 % below {lengths['5']}, half below {lengths['50']}, 95 % below {lengths['95']} {reading.unit}; "
        f"{seconds:.1f} s", highlight=False,
    )  # fmt: skip
    if vocabulary:
        _tell_vocabulary(vocabulary)
    for reason, examples in account.examples.items():
        console.print(f"dropped ({reason}): {'; '.join(examples)}", highlight=False, markup=False, soft_wrap=True)
    if account.warning:
        console.print(f"warning: {account.warning}", style="bold yellow", soft_wrap=True)


def _tell_vocabulary(found: dict[str, Any]) -> None:
    """The coverage of a vocabulary that was learnt, and what it lacks."""
    console.print(
        f"vocabulary: {found['kept']:,} of {found['symbols']:,} {found['notation']} symbols, covering "
        f"{found['covered']:,} of {found['molecules']:,} molecules", highlight=False, soft_wrap=True,
    )  # fmt: skip
    if found["lacking"]:
        lacking = ", ".join(f"{name} ({count:,})" for name, count in list(found["lacking"].items())[:10])
        first = "; ".join(found["examples"])
        console.print(f"left out: {lacking}; first molecules: {first}", markup=False, highlight=False, soft_wrap=True)
