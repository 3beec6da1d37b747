"""A wild type, or a start: what variants are made of, as letters or from a file of one record.

letters | FASTA | SMILES | .smi | .sdf ─▶ one record ─▶ letters of its kind, with the marks between chains
"""

from __future__ import annotations

from itertools import chain, islice

from biometro.alphabet import AlphabetError, Reading, immune, protein
from biometro.alphabet.kinds import AnyAlphabet
from biometro.data.sources import ReadOptions, Source, expand, read
from biometro.data.variants import is_file
from biometro.errors import UserError

_SHOWN = 60  # characters of what was given in an error


def read_wildtype(
    data: str, reading: Reading = Reading(), alphabet: AnyAlphabet | None = None
) -> tuple[str, str]:  # fmt: skip
    """Name (empty for plain letters) and letters of a wild type, given as letters or as a FASTA file of one record; of
    a molecule, given as SMILES, or as a .smi or .sdf file of one.

    Args:
        data: letters, or a file.
        reading: what kind of sequence it is.
        alphabet: of the model that reads it: a molecule that it has no tokens for is refused.

    Raises UserError for anything else, and for letters that are no sequence of the kind.
    """
    if not data.strip():
        raise UserError("the wild type is empty; give its letters, or a FASTA file of one record")
    if reading.kind == "molecule":
        return _start(data, reading, alphabet)
    marked = reading.kind != "protein" and bool(immune.MARKS & {*data}) and not is_file(data)
    if data.isascii() and data.isalpha() and not data.isupper() and not is_file(data):
        raise UserError(f"{data:.{_SHOWN}}: there is no such file, and letters of a wild type are capitals")
    sources = [Source(data.strip(), "text")] if marked else expand(data)
    if any(source.format not in ("fasta", "text") for source in sources):
        raise UserError(f"{data}: a wild type is a FASTA file of one record, or plain letters")
    records = list(islice(chain.from_iterable(map(read, sources)), 2))
    if len(records) > 1:
        raise UserError(f"{data}: more than one sequence; a wild type is one record of FASTA, or plain letters")
    try:
        if {*records[0].raw.decode("ascii", "replace")} & immune.MARKS and reading.kind in ("antibody", "tcr"):
            letters = immune.clean(records[0].raw, reading.kind, "as_is").letters.decode()
            tidied = immune.tidy(records[0].raw.strip()).decode()
            letters = tidied if "*" in tidied else letters  # a stop is said below
        else:
            letters = protein.tidy(records[0].raw).decode()
    except AlphabetError as error:
        raise UserError(f"{records[0].where}: {error}") from error
    if "*" in letters or not letters.strip("".join(immune.MARKS)):
        what = f"a stop at position {letters.index('*') + 1}" if "*" in letters else "no residue"
        raise UserError(f"{records[0].where}: {what} in the wild type; give the protein's residues alone")
    return records[0].id, letters


def _start(data: str, reading: Reading, alphabet: AnyAlphabet | None) -> tuple[str, str]:
    """Of a molecule: its name, empty for a SMILES that was given, and its canonical SMILES."""
    options = ReadOptions(kind="molecule")
    sources = expand(data, options) if is_file(data) else [Source(data.strip(), "text")]
    if any(source.format not in ("smi", "sdf", "text") for source in sources):
        raise UserError(f"{data}: a start is a SMILES, or a .smi or .sdf file of one molecule")
    records = list(islice(chain.from_iterable(read(source, options) for source in sources), 2))
    if len(records) != 1:
        many = "more than one molecule" if records else "no molecule"
        raise UserError(f"{data:.{_SHOWN}}: {many}; a start is a SMILES, or a .smi or .sdf file of one molecule")
    (record,) = records
    try:
        cleaned = reading.cleaner(alphabet)(record.raw)
    except AlphabetError as error:
        raise UserError(f"{record.where}: {error}") from error
    if cleaned.dropped or not cleaned.letters:
        raise UserError(f"{record.where}: {cleaned.dropped or 'no molecule'}: {cleaned.detail:.{_SHOWN}}")
    return record.id, cleaned.letters.decode()
