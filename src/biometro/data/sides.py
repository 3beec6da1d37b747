"""Which side of the split each labelled sequence is on, and how near the sides are to one another.

labelled sequences ─┬─▶ random | a column ────────────────────────────────────────┬─▶ train, valid, test ─▶ leak
                    └─▶ homology | cdr3 | scaffold | butina | a group ─▶ families ┘

The leak is measured whatever made the split, by the measure of the kind (`likeness`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from biometro.alphabet import SequenceKind
from biometro.data import edits, fingerprints, splits
from biometro.data.labels import Labelled
from biometro.data.likeness import likeness_of, unmarked
from biometro.data.splits import Leak
from biometro.errors import UserError
from biometro.files import new_file, saying

By = Literal["random", "homology", "column", "group", "cdr3", "scaffold", "butina"]
_WAYS: dict[SequenceKind, tuple[By, ...]] = {
    "protein": ("homology",), "antibody": ("homology", "cdr3"), "tcr": ("cdr3",), "molecule": ("scaffold", "butina"),
}  # fmt: skip
"""By what relatives of a kind are kept together; the ways that are not named here take any kind."""
_NAMES = {"protein": "proteins", "antibody": "antibodies", "tcr": "T-cell receptors", "molecule": "molecules"}
_HINTS = {
    "cdr3": "ask for fewer split.edits between relatives, or a larger share",
    "scaffold": "ask for a larger share, or split by butina",
    "butina": "ask for more split.tanimoto similarity between relatives, or a larger share",
    "group": "ask for a larger share, or group more finely",
}
"""What to do where a side stays empty."""
SIDES = ("train", "valid", "test")


@dataclass(frozen=True)
class SplitConfig:
    """How labelled sequences are divided.

    Args:
        by: random (classes in like proportions), column (the table says the side), or whole families: homology
            (proteins and antibodies that align), cdr3 (receptors of like CDR3s: those of T-cell receptors as they
            stand, or what `column` holds, as antibodies need it), scaffold (molecules with the same rings and linkers),
            butina (molecules of like fingerprints), group (what the table says in one column: an epitope, a patient).
            No family is on two sides. Several by name compare them.
        column: of tables, the one that names the side, or the group, or holds the CDR3.
        train_is: what it says of training sequences; left out, all that is neither of the others. Capitals or not is
            the same in all three; sequences on no side are counted and left out.
        valid_is: what it says of validation sequences; where there are none, a share of train is taken at random.
        test_is: what it says of test sequences.
        valid: share of validation sequences.
        test: share of test sequences.
        identity: share of identical residues from which two aligned proteins or antibodies count as relatives; 0 leaves
            relatives out of account, and the leak unmeasured.
        coverage: share of the shorter sequence that must be aligned.
        edits: letters by which the chains of two T-cell receptors, or two CDR3s, may differ, taken together, to count
            as relatives: 0, 1 or 2.
        tanimoto: similarity of fingerprints (ECFP4) from which two molecules count as relatives.
    """

    by: By | list[By] = "random"
    column: str | None = None
    train_is: list[str] | None = None
    valid_is: list[str] = dataclasses.field(default_factory=lambda: ["valid", "val", "validation", "dev"])
    test_is: list[str] = dataclasses.field(default_factory=lambda: ["test"])
    valid: float = 0.1
    test: float = 0.2
    identity: float = 0.4
    coverage: float = 0.8
    edits: int = 1
    tanimoto: float = 0.6

    def __post_init__(self) -> None:
        check_numbers(self)
        asking = {"column", "group"} & {*self.methods}
        if len(asking) > 1 or (self.column is None) != (not asking and not self.cdr3_column):
            raise UserError(
                "split.column names either sides (split.by: column) or groups (split.by: group), not both"
                if len(asking) > 1
                else "split.by: column (or group) and split.column go together"
            )

    @property
    def methods(self) -> list[By]:
        return list(self.by) if isinstance(self.by, list) else [self.by]

    @property
    def cdr3_column(self) -> str | None:
        """The column that holds CDR3s; None where they are read off the sequences."""
        return self.column if "cdr3" in self.methods and not {"column", "group"} & {*self.methods} else None


def check_numbers(config: Any) -> None:
    """Of a configuration of splits, of sequences or of pairs: raises UserError for shares and thresholds that are
    none."""
    if not config.methods:
        raise UserError("split.by names nothing to split by")
    if not (0 < config.valid < 1 and 0 < config.test < 1 and config.valid + config.test < 1):
        raise UserError("split.valid and split.test are shares above 0, together below 1")
    if not (0 <= config.identity <= 1 and 0 < config.coverage <= 1):
        raise UserError("split.identity lies between 0 and 1, split.coverage above 0 and up to 1")
    if not (0 <= config.edits <= edits.MOST_EDITS and 0 < config.tanimoto <= 1):
        raise UserError(f"split.edits is 0 to {edits.MOST_EDITS}, split.tanimoto above 0 and up to 1")
    if "homology" in config.methods and config.identity == 0:
        raise UserError("split.by: homology needs a split.identity above 0")


@dataclass(frozen=True)
class Division:
    """One split. train, valid, test: numbers of sequences. families: (N,) of relatives, or groups, where the split
    knows them.

    leaks: `test`, `valid` -> how many of these sequences have a relative in train; empty where unmeasured.
    """

    by: By
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    families: np.ndarray | None
    leaks: dict[str, Leak]

    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "valid": len(self.valid), "test": len(self.test)}


def divide(labelled: Labelled, by: By, config: SplitConfig, seed: int) -> Division:
    """Divide the sequences, and measure the leak.

    Args:
        labelled: the sequences; `sides` as the table's column says.
        by: one of the config's ways.
        config: shares and thresholds.
        seed: of the random choices.

    Families go to sides by `splits.family_split`, which keeps classes in proportion, under the seed. MoleculeNet's
    scaffold split (Wu et al. 2018, doi:10.1039/C7SC02664A) sorts scaffolds by size instead, the largest to train and
    the rarest to test, whatever their classes; its published sides are taken by `by: column`.

    Raises UserError where a side would be empty, for a way that the kind does not have, and where MMseqs2 is needed and
    missing.
    """
    shares, families = (config.valid, config.test), None
    _check_way(by, labelled.kind, config)
    if by == "homology":
        side, families = splits.homology_split(
            unmarked(labelled.letters), labelled.classes, identity=config.identity, coverage=config.coverage,
            shares=shares, seed=seed,
        )  # fmt: skip
    elif by == "random":
        side = splits.random_split(labelled.classes, shares, seed, len(labelled))
    elif by == "column":
        side = _from_column(labelled, config, seed)
    else:
        families = _families(labelled, by, config)
        side = np.full(len(labelled), -1, np.int8)
        known = np.flatnonzero(families >= 0)
        classes = None if labelled.classes is None else labelled.classes[known]
        side[known] = splits.family_split(families[known], classes, shares, seed, _HINTS[by])
    parts = [np.flatnonzero(side == number) for number in range(3)]
    for name, part in zip(SIDES, parts, strict=True):
        if not len(part):
            raise UserError(f"the split by {by} leaves no sequence in {name}")
    train, valid, test = parts
    likeness = likeness_of(labelled.kind)
    leaks = {}
    if likeness is not None and (labelled.kind not in ("protein", "antibody") or config.identity > 0):
        reference = [labelled.letters[i] for i in train]
        for name, part in (("test", test), ("valid", valid)):
            leaks[name] = splits.leak(likeness, [labelled.letters[i] for i in part], reference, config)
    return Division(by, train, valid, test, families, leaks)


def _check_way(by: By, kind: SequenceKind, config: SplitConfig) -> None:
    """Raises UserError, naming the ways there are, where sequences of the kind are not compared in this one."""
    own = _WAYS.get(kind, ())
    meant = [name for name, ways in _WAYS.items() if by in ways]
    if meant and by not in own:
        kinds = " and ".join(_NAMES[name] for name in meant)
        others = ", ".join((*own, "random", "column", "group"))
        raise UserError(
            f"split.by: {by} is for {kinds}, and these are {_NAMES.get(kind, 'read as text')}; choose from {others}"
        )
    if by == "cdr3" and kind == "antibody" and config.cdr3_column is None:
        raise UserError("split.by: cdr3 of antibodies goes by a column of the table; name it with split.column")


def _families(labelled: Labelled, by: By, config: SplitConfig) -> np.ndarray:
    """(N,) int64 what stays together; -1 where a sequence has no group, and is on no side."""
    if by == "cdr3" and config.cdr3_column is None:
        return edits.families(labelled.letters, config.edits)
    if by == "scaffold":
        return fingerprints.scaffold_families(labelled.letters)
    if by == "butina":
        return fingerprints.butina(labelled.letters, config.tanimoto)
    names = [(name or "").strip() for name in labelled.sides]
    if by == "cdr3":
        loops = [name.upper().encode("latin-1", "replace") for name in names]
        return np.where([bool(loop) for loop in loops], edits.families(loops, config.edits), -1)
    places: dict[str, int] = {}
    return np.array([places.setdefault(name, len(places)) if name else -1 for name in names], np.int64)


class NamedSides(Protocol):
    """What a table calls its sides, see `SplitConfig`."""

    @property
    def train_is(self) -> list[str] | None: ...

    @property
    def valid_is(self) -> list[str]: ...

    @property
    def test_is(self) -> list[str]: ...


def named_sides(said: Sequence[str | None], config: NamedSides, column: str) -> np.ndarray:
    """(N,) int8 places in `SIDES` by what the cells of a column say; -1 on no side.

    Raises UserError, naming the column and what it says, where nothing is on the test side.
    """
    names_N = np.array([(name or "").strip().lower() for name in said])
    side = np.full(len(names_N), -1 if config.train_is is not None else 0, dtype=np.int8)
    for number, names in enumerate((config.train_is or [], config.valid_is, config.test_is)):
        side[np.isin(names_N, [name.lower() for name in names])] = number
    if not (side == 2).any():
        found = ", ".join(sorted({*names_N.tolist()})[:10])
        raise UserError(f"{column} says {found}; none of these is split.test_is ({config.test_is})")
    return side


def _from_column(labelled: Labelled, config: SplitConfig, seed: int) -> np.ndarray:
    """-1 where a sequence is on no side."""
    side = named_sides(labelled.sides, config, f"split.column {config.column!r}")
    if not (side == 1).any():
        inside = np.flatnonzero(side == 0)
        classes = None if labelled.classes is None else labelled.classes[inside]
        drawn = splits.random_split(classes, (config.valid, 0.0), seed, len(inside))
        side[inside[drawn == 1]] = 1
    return side


def kept(path: Path, labelled: Labelled, by: By, config: SplitConfig, seed: int) -> Division:
    """As `divide`, from a Parquet file that holds this very division, or into it.

    Columns: id, side (train, valid, test; empty for none), family (where there are any), and where it was measured
    similarity (to the nearest training sequence) and related (whether that is a relative).
    """
    key = _key(labelled, by, config, seed)
    if path.exists():
        found = _read(path, by, key)
        if found is not None:
            return found
    division = divide(labelled, by, config, seed)
    names = np.full(len(labelled), "", dtype=object)
    similarity = np.full(len(labelled), np.nan, dtype=np.float32)
    related = np.full(len(labelled), None, dtype=object)
    for side in SIDES:
        names[getattr(division, side)] = side
    for side, leak in division.leaks.items():
        similarity[getattr(division, side)] = leak.similarity
        related[getattr(division, side)] = leak.related
    columns = {"id": labelled.ids, "side": names.tolist(), "similarity": pa.array(similarity, from_pandas=True)}
    columns["related"] = pa.array(related.tolist(), pa.bool_())
    if division.families is not None:
        columns["family"] = division.families
    leaks = {
        side: [[list(e) for e in leak.examples], leak.measure, leak.relatives, leak.threshold]
        for side, leak in division.leaks.items()
    }
    with saying(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as work:
        pq.write_table(pa.table(columns).replace_schema_metadata({"key": key, "leaks": json.dumps(leaks)}), work)
    return division


def _key(labelled: Labelled, by: By, config: SplitConfig, seed: int) -> str:
    """Hex digest of all that a division depends on."""
    settings = dataclasses.asdict(dataclasses.replace(config, by=by))
    digest = hashlib.sha256(json.dumps([settings, seed, labelled.kind, labelled.ids, labelled.sides]).encode())
    for letters, value in zip(labelled.letters, labelled.truth, strict=True):
        digest.update(letters + b" " + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _read(path: Path, by: By, key: str) -> Division | None:
    """The division of a file; None where the file is another's, or damaged."""
    try:
        table = pq.read_table(path)
        about = table.schema.metadata or {}
        if about.get(b"key") != key.encode():
            return None
        side = np.array(table.column("side").to_pylist())
        parts = {name: np.flatnonzero(side == name) for name in SIDES}
        similarity, related = (np.array(table.column(name).to_pylist()) for name in ("similarity", "related"))
        leaks = {}
        for name, (examples, measure, relatives, threshold) in json.loads(about[b"leaks"]).items():
            own, count = parts[name], int(related[parts[name]].astype(bool).sum())
            leaks[name] = Leak(
                count / max(len(own), 1), count, len(own), similarity[own].astype(np.float32),
                tuple((i, j, x) for i, j, x in examples), measure, relatives, threshold, related[own].astype(bool),
            )  # fmt: skip
        families = table.column("family").to_numpy() if "family" in table.column_names else None
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None
    return Division(by, parts["train"], parts["valid"], parts["test"], families, leaks)


def describe(leak: Leak, held_out: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
    """A leak in plain numbers and identifiers, for the results."""
    examples = [[held_out[here], reference[there], similarity] for here, there, similarity in leak.examples]
    return {"share": leak.share, "count": leak.count, "of": leak.of, "examples": examples}


def near(leak: Leak, bins: int = 20) -> dict[str, Any]:
    """How near held-out sequences are to train: of each bin of similarity its low edge, how many, and how many of them
    are relatives."""
    counts, edges = np.histogram(leak.similarity, bins=bins, range=(0, 1))
    related, _ = np.histogram(leak.similarity[leak.related], bins=bins, range=(0, 1))
    return {
        "measure": leak.measure, "threshold": leak.threshold, "low edges": edges[:-1].tolist(),
        "counts": counts.tolist(), "related": related.tolist(),
    }  # fmt: skip
