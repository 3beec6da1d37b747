"""How tables of antibodies and T-cell receptors are laid out, and what of a row is its sequence.

    header ─▶ find ─▶ Layout(columns) ─▶ cells of a row ─▶ parts by name, or why there are none ─▶ immune.join

The tables of public sources are known by their headers, as they are downloaded:

    OAS                 one chain in a row (sequence_alignment_aa), or both (..._heavy, ..._light); Olsen et al. 2022
    AIRR, iReceptor     one chain in a row (junction_aa, v_call or locus); the schema of the AIRR Community
    VDJdb               one chain in a row (complex.id, Gene, CDR3; vdjdb.txt too), or both (cdr3.alpha, cdr3.beta)
    McPAS-TCR           both (CDR3.alpha.aa, CDR3.beta.aa), in Latin-1
    IEDB                both, each of a type that is said (Chain 1 - CDR3 Curated, ...); its header may take two rows
    TCRdb               one chain in a row (AASeq, Vregion; or cdr3, v, chain)
    10x Genomics        one chain in a row (contig_id, chain, cdr3)

CDR3s are taken as the table has them: those of IEDB, and `cdr3_aa` of AIRR and OAS, lack the C and the F or W that
stand around the loop, and junctions have them. An epitope comes along where it is a peptide in plain letters, and is
left out where it is anything else. MHC molecules are named by their alleles there, not written in residues: they are
left out. A known layout is a function of the header alone, so that pieces of a file are read alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

from biometro.alphabet import SequenceKind
from biometro.alphabet.immune import PARTS, ImmuneKind
from biometro.errors import UserError

Region = Literal["auto", "full", "cdr3", "cdrs"]
Parts = dict[str, str]
Cells = Sequence[Any]

DEFAULT_COLUMN = "sequence"

UNPRODUCTIVE = "not productive"
NO_LETTERS = "no amino acids"
ODD = "a chain with characters that are no residues"
NO_CHAIN = {"tcr": "neither an alpha nor a beta chain", "antibody": "neither a heavy nor a light chain"}
BLANK = "no sequence in any of its columns"

_NOTHING = frozenset({"", "-", "na", "n/a", "nan", "none", "null"})
_FALSE = frozenset({"f", "false", "0", "no", "n"})
_ODD = re.compile(r"[^A-Za-z*.\-]")
_SMILES = re.compile(r"[=\[\]\\/@]|[Cc]1")
_MARK = re.compile(r"[|:@]")
_PEPTIDE = re.compile(r"[A-Za-z]{2,}")
_CHAINS = {
    "tcr": re.compile(r"(?:TC?R)?-?(?:(A|G|ALPHA|GAMMA)|(B|D|BETA|DELTA))(?:[VDJC].*)?"),
    "antibody": re.compile(r"(?:IG)?-?(?:(H|VH|HEAVY)|(K|L|VK|VL|KAPPA|LAMBDA|LIGHT))(?:[VDJCAGEM].*)?"),
}
_MOST_LINES = 64  # of metadata


class Layout(NamedTuple):
    """What is read of a table's rows.

    columns: those that are read, in order. parts: their cells -> the parts by name, or why there are none. Raises
    ValueError for cells that are wrong. key: the column whose value consecutive rows of one receptor share. latin:
    bytes that are not UTF-8 are Latin-1.
    """

    name: str
    columns: tuple[str, ...]
    parts: Callable[[Cells], Parts | str]
    key: str | None = None
    latin: bool = False


def find(
    names: Collection[str], column: str | dict[str, str], kind: SequenceKind, region: Region, where: str
) -> Layout | None:
    """The layout of a table of receptors; None where one column holds the sequence.

    Args:
        names: of the table's columns.
        column: `ReadOptions.column`.
        kind: of the sequences.
        region: `ReadOptions.region`.
        where: the file, for messages.

    Raises UserError for a region that the table does not have.
    """
    if isinstance(column, dict):
        return _of_columns(column, kind)  # type: ignore[arg-type]
    if column == DEFAULT_COLUMN and (kind == "tcr" or kind == "antibody"):
        for known in _KNOWN[kind]:
            layout = known(set(names), kind, _Regions(region, where))
            if layout is not None:
                return layout
    if region != "auto":
        raise UserError(
            f"{where}: region: {region} chooses columns of a public layout, and this table has none of them"
        )
    return None


def check_parts(column: dict[str, str], kind: SequenceKind) -> None:
    """Raises UserError where columns by part do not fit the kind."""
    if kind not in PARTS:
        raise UserError(f"column: sequences of kind {kind} have no parts; name one column")
    own = PARTS[kind]
    by_chain = {"cdr3", "chain"}
    allowed = [{*own}, {*own[2:], *by_chain}]
    if not column or not any(set(column) <= names for names in allowed) or len(by_chain & set(column)) == 1:
        raise UserError(
            f"column: {', '.join(column) or 'nothing'} does not say where the parts of kind {kind} stand; give columns "
            f"of {', '.join(own)}, or of cdr3 and chain"
        )


# Cells -----------------------------------------------------------------------------------------------------------


def text_of(cell: Any) -> str:
    """A cell without white space around it; empty where it says that there is nothing."""
    text = "" if cell is None else str(cell).strip()
    return "" if text.lower() in _NOTHING else text


@lru_cache(maxsize=1 << 14)
def side_of(kind: ImmuneKind, name: str) -> int | None:
    """Which chain it is: 0 the first (heavy; alpha, gamma), 1 the second (light; beta, delta), None where that is not
    said. Names of chains, loci and genes do (TRB, beta, B, TRBV7-2)."""
    found = _CHAINS[kind].fullmatch(name.strip().upper())
    return None if found is None else 0 if found[1] else 1


def _side(kind: ImmuneKind, cells: Cells) -> int | None:
    """Of the first cell that says it."""
    return next((side for cell in cells if (side := side_of(kind, text_of(cell))) is not None), None)


def _chain(cells: Cells) -> str:
    """The residues of a chain, of its regions joined; empty where one is missing. A ValueError tells what is odd."""
    found = ["".join(text_of(cell).split()) for cell in cells]
    if not all(found):
        return ""
    text = "".join(found)
    if _ODD.search(text) and not _SMILES.search(text):  # a SMILES is an error that the reader of sequences explains
        raise _OddError
    return text


class _OddError(ValueError):
    pass


def _peptide(cells: Cells) -> Parts:
    text = text_of(cells[0]) if cells else ""
    return {"peptide": text} if _PEPTIDE.fullmatch(text) else {}


def _unproductive(cells: Cells) -> bool:
    return any(text_of(cell).lower() in _FALSE for cell in cells)


# Columns that were named -----------------------------------------------------------------------------------------


def _of_columns(column: dict[str, str], kind: ImmuneKind) -> Layout:
    return Layout("columns", tuple(column.values()), partial(_named, tuple(column), kind))


def _named(names: tuple[str, ...], kind: ImmuneKind, cells: Cells) -> Parts | str:
    found = {name: text_of(cell) for name, cell in zip(names, cells, strict=True)}
    for name, text in found.items():
        if name != "chain" and (mark := _MARK.search(text)):
            raise ValueError(f"{mark[0]!r} in the {name} {text[:40]!a}: a column holds one part and no marks")
    if "cdr3" in found:
        side, residues = side_of(kind, found.pop("chain")), found.pop("cdr3")
        if residues and side is None:
            return NO_CHAIN[kind]
        if residues:
            found[PARTS[kind][side or 0]] = residues
    return {name: text for name, text in found.items() if text} or BLANK


# Known tables ----------------------------------------------------------------------------------------------------


class _Regions(NamedTuple):
    """What was asked for, and by which file."""

    asked: Region
    where: str

    def pick(self, name: str, has: dict[Region, tuple[str, ...]], order: tuple[Region, ...]) -> tuple[str, ...]:
        """The columns of the region, of those that the table has; under auto, of the first in the order."""
        region = self.asked if self.asked != "auto" else next(region for region in order if region in has)
        if region not in has:
            raise UserError(
                f"{self.where}: has no columns of region: {region} (a table of {name}; it has {', '.join(has)})"
            )
        return has[region]


def _regions(names: set[str], kind: ImmuneKind, suffix: str = "") -> dict[Region, tuple[str, ...]]:
    """The regions that a table in AIRR's names has, and the columns of each."""
    loops = ("junction_aa", "cdr3_aa") if kind == "tcr" else ("cdr3_aa", "junction_aa")
    full, loop = (
        next(((name + suffix,) for name in choice if name + suffix in names), ())
        for choice in (("sequence_alignment_aa", "sequence_aa"), loops)
    )
    cdrs = tuple(f"cdr{i}_aa{suffix}" for i in (1, 2, 3))
    found: dict[Region, tuple[str, ...]] = {"full": full, "cdr3": loop, "cdrs": cdrs if {*cdrs} <= names else ()}
    return {region: columns for region, columns in found.items() if columns}


def _order(kind: ImmuneKind) -> tuple[Region, ...]:
    return ("full", "cdr3", "cdrs") if kind == "antibody" else ("cdr3", "full", "cdrs")


def _long(
    name: str, kind: ImmuneKind, residues: tuple[str, ...], chain: tuple[str, ...], productive: str | None = None,
    peptide: str | None = None, key: str | None = None,
) -> Layout:  # fmt: skip
    """One chain in a row.

    Args:
        name: of the layout.
        kind: of the sequences.
        residues: columns that are joined.
        chain: columns of which the first that tells says which chain it is.
        productive: the column that says it.
        peptide: the epitope's column.
        key: as in `Layout`.
    """
    last = [column for column in (productive, peptide) if column is not None]
    ends = len(residues), len(residues) + len(chain), len(residues) + len(chain) + (productive is not None)
    return Layout(name, (*residues, *chain, *last), partial(_one_chain, kind, ends), key)


def _one_chain(kind: ImmuneKind, ends: tuple[int, int, int], cells: Cells) -> Parts | str:
    a, b, c = ends
    if _unproductive(cells[b:c]):
        return UNPRODUCTIVE
    try:
        text = _chain(cells[:a])
    except _OddError:
        return ODD
    if not text:
        return NO_LETTERS
    side = _side(kind, cells[a:b])
    if side is None:
        return NO_CHAIN[kind]
    return {PARTS[kind][side]: text} | _peptide(cells[c:])


def _wide(
    name: str, kind: ImmuneKind, chains: Sequence[tuple[str, ...]], productive: tuple[str, ...] = (),
    peptide: str | None = None, latin: bool = False,
) -> Layout:  # fmt: skip
    """Both chains in a row: the columns of the first, and those of the second."""
    ends = len(chains[0]), len(chains[0]) + len(chains[1]), len(chains[0]) + len(chains[1]) + len(productive)
    columns = (*chains[0], *chains[1], *productive, *(() if peptide is None else (peptide,)))
    return Layout(name, columns, partial(_both_chains, kind, ends), latin=latin)


def _both_chains(kind: ImmuneKind, ends: tuple[int, int, int], cells: Cells) -> Parts | str:
    a, b, c = ends
    if _unproductive(cells[b:c]):
        return UNPRODUCTIVE
    try:
        first, second = _chain(cells[:a]), _chain(cells[a:b])
    except _OddError:
        return ODD
    found = {name: text for name, text in zip(PARTS[kind], (first, second), strict=False) if text}
    return found | _peptide(cells[c:]) if found else NO_LETTERS


def _oas_paired(names: set[str], kind: ImmuneKind, regions: _Regions) -> Layout | None:
    heavy, light = (_regions(names, kind, suffix) for suffix in ("_heavy", "_light"))
    both: dict[Region, tuple[str, ...]] = {region: heavy[region] + light[region] for region in heavy if region in light}
    if not both:
        return None
    columns = regions.pick("paired antibodies of OAS", both, _order(kind))
    half = len(columns) // 2
    productive = tuple(name for name in ("productive_heavy", "productive_light") if name in names)
    return _wide("OAS, paired", kind, (columns[:half], columns[half:]), productive)


def _airr(names: set[str], kind: ImmuneKind, regions: _Regions) -> Layout | None:
    has = _regions(names, kind)
    chain = tuple(name for name in ("locus", "v_call", "Chain") if name in names)  # the last one of OAS's metadata
    if not has or not chain:
        return None
    residues = regions.pick("AIRR rearrangements", has, _order(kind))
    return _long("AIRR", kind, residues, chain, "productive" if "productive" in names else None)


def _vdjdb(names: set[str], kind: ImmuneKind, regions: _Regions) -> Layout | None:
    if {"cdr3.alpha", "cdr3.beta"} <= names:
        regions.pick("VDJdb", {"cdr3": ("cdr3.alpha", "cdr3.beta")}, ("cdr3",))
        epitope = "antigen.epitope" if "antigen.epitope" in names else None
        return _wide("VDJdb", kind, (("cdr3.alpha",), ("cdr3.beta",)), peptide=epitope)
    for gene, cdr3, epitope in (("Gene", "CDR3", "Epitope"), ("gene", "cdr3", "antigen.epitope")):
        if {"complex.id", gene, cdr3} <= names:
            residues = regions.pick("VDJdb", {"cdr3": (cdr3,)}, ("cdr3",))
            peptide = epitope if epitope in names else None
            return _long("VDJdb", kind, residues, (gene,), peptide=peptide, key="complex.id")
    return None


def _mcpas(names: set[str], kind: ImmuneKind, regions: _Regions) -> Layout | None:
    chains = ("CDR3.alpha.aa",), ("CDR3.beta.aa",)
    if not {*chains[0], *chains[1]} <= names:
        return None
    regions.pick("McPAS-TCR", {"cdr3": chains[0]}, ("cdr3",))
    peptide = "Epitope.peptide" if "Epitope.peptide" in names else None
    return _wide("McPAS-TCR", kind, chains, peptide=peptide, latin=True)


def _tcrdb(names: set[str], kind: ImmuneKind, regions: _Regions) -> Layout | None:
    for cdr3, needed, chain in (
        ("AASeq", {"Vregion"}, ("Vregion", "Jregion")),
        ("cdr3", {"v", "chain"}, ("chain", "v", "j")),
    ):
        if {cdr3, *needed} <= names:
            residues = regions.pick("TCRdb", {"cdr3": (cdr3,)}, ("cdr3",))
            return _long("TCRdb", kind, residues, tuple(name for name in chain if name in names))
    return None


def _tenx(names: set[str], kind: ImmuneKind, regions: _Regions) -> Layout | None:
    if not {"contig_id", "chain", "cdr3", "productive"} <= names:
        return None
    cdrs = ("cdr1", "cdr2", "cdr3")
    full = ("fwr1", "cdr1", "fwr2", "cdr2", "fwr3", "cdr3", "fwr4")
    every: dict[Region, tuple[str, ...]] = {"full": full, "cdr3": ("cdr3",), "cdrs": cdrs}
    has = {region: columns for region, columns in every.items() if {*columns} <= names}
    return _long("10x", kind, regions.pick("10x contigs", has, _order(kind)), ("chain",), "productive")


def _iedb(names: set[str], kind: ImmuneKind, regions: _Regions) -> Layout | None:
    """Each region is curated, or else calculated."""
    if "Chain 1 - CDR3 Curated" not in names and "Chain 1 - CDR3 Calculated" not in names:
        return None
    choices = {
        "cdr3": [("CDR3 Curated", "CDR3 Calculated")],
        "cdrs": [(f"CDR{i} Curated", f"CDR{i} Calculated") for i in (1, 2, 3)],
        "full": [("Protein Sequence", "Full Sequence")],
    }
    held = {
        region: [tuple(name for name in pair if f"Chain 1 - {name}" in names) for pair in pairs]
        for region, pairs in choices.items()
    }
    has: dict[Region, tuple[str, ...]] = {r: (r,) for r, pairs in held.items() if all(pairs)}  # type: ignore[misc]
    (region,) = regions.pick("IEDB", has, ("cdr3",))
    columns: list[str] = []
    for number in (1, 2):
        columns += [f"Chain {number} - Type"]
        columns += [f"Chain {number} - {name}" for pair in held[region] for name in pair]
    if not {*columns} <= names:
        return None
    peptide = ("Epitope - Name",) if kind == "tcr" and "Epitope - Name" in names else ()
    widths = tuple(len(pair) for pair in held[region])
    return Layout("IEDB", (*columns, *peptide), partial(_two_types, kind, widths))


def _two_types(kind: ImmuneKind, widths: tuple[int, ...], cells: Cells) -> Parts | str:
    """Two chains, each a type and its regions; a region is the first of its cells that is there."""
    size = 1 + sum(widths)
    found: Parts = {}
    untold = False
    for number, start in enumerate((0, size)):
        place, pieces = start + 1, []
        for width in widths:
            pieces.append(next((cell for cell in cells[place : place + width] if text_of(cell)), None))
            place += width
        try:
            text = _chain(pieces)
        except _OddError:
            return ODD
        said = text_of(cells[start])
        side = side_of(kind, said) if said else number
        untold |= bool(text) and side is None
        if text and side is not None:
            found.setdefault(PARTS[kind][side], text)
    if not found:
        return NO_CHAIN[kind] if untold else NO_LETTERS
    return found | _peptide(cells[2 * size :])


_KNOWN: dict[ImmuneKind, tuple[Callable[[set[str], ImmuneKind, _Regions], Layout | None], ...]] = {
    "tcr": (_vdjdb, _mcpas, _iedb, _tenx, _tcrdb, _airr),
    "antibody": (_oas_paired, _iedb, _tenx, _airr),
}


# Beginnings ------------------------------------------------------------------------------------------------------


def joined_header(first: Sequence[str], second: Sequence[str] | None = None) -> list[str] | None:
    """The header of an IEDB export that takes two rows, in one; None where the first row is a header by itself."""
    groups = set(first)
    if not ({"Receptor", "Chain 1", "Chain 2"} <= groups and len(groups) < len(first)):
        return None
    return [f"{group} - {name}" for group, name in zip(first, second or (), strict=False)]


def begins_with_metadata(line: str) -> bool:
    """Whether the first line of a table is JSON, as in OAS's files."""
    return line.lstrip().startswith(("{", '"{'))


def metadata(lines: Callable[[], str]) -> dict[str, str]:
    """The JSON that a table begins with, plain or as one quoted cell.

    Args:
        lines: gives the next line of the file, empty at its end.

    Raises ValueError where it is none.
    """
    text = ""
    for _ in range(_MOST_LINES):
        line = lines()
        text += line
        bare = text.strip().rstrip(",")  # of a spreadsheet that filled the row
        inner = bare[1:-1] if bare.startswith('"') and bare.endswith('"') else bare
        for form in (inner, inner.replace('""', '"')):
            try:
                found = json.loads(form)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                return {key: "" if value is None else str(value) for key, value in found.items()}
        if not line:
            break
    raise ValueError("begins like the metadata of an OAS file, and is no JSON")
