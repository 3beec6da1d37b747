"""Which side of the split each labelled sequence is on, and how near the sides are to one another.

labelled sequences ─▶ random | homology | a column ─▶ train, valid, test ─▶ leak, measured whatever made the split
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from biometro.data import splits
from biometro.data.labels import Labelled
from biometro.data.splits import Leak
from biometro.errors import UserError
from biometro.files import new_file, saying

By = Literal["random", "homology", "column"]
SIDES = ("train", "valid", "test")


@dataclass(frozen=True)
class SplitConfig:
    """How labelled sequences are divided.

    Args:
        by: random (classes in like proportions), homology (families of relatives stay together, so that no held-out
            sequence has one in train), or column (the table says it). Several by name compare them.
        column: of tables, the one that names the side.
        train_is: what it says of training sequences; left out, all that is neither of the others. Capitals or not is
            the same in all three; sequences on no side are counted and left out.
        valid_is: what it says of validation sequences; where there are none, a share of train is taken at random.
        test_is: what it says of test sequences.
        valid: share of validation sequences.
        test: share of test sequences.
        identity: share of identical residues from which two aligned sequences count as relatives; 0 leaves relatives
            out of account, and the leak unmeasured.
        coverage: share of the shorter sequence that must be aligned.
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

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("split.by names nothing to split by")
        if ("column" in self.methods) != (self.column is not None):
            raise UserError("split.by: column and split.column go together")
        if not (0 < self.valid < 1 and 0 < self.test < 1 and self.valid + self.test < 1):
            raise UserError("split.valid and split.test are shares above 0, together below 1")
        if not (0 <= self.identity <= 1 and 0 < self.coverage <= 1):
            raise UserError("split.identity lies between 0 and 1, split.coverage above 0 and up to 1")
        if "homology" in self.methods and self.identity == 0:
            raise UserError("split.by: homology needs a split.identity above 0")

    @property
    def methods(self) -> list[By]:
        return list(self.by) if isinstance(self.by, list) else [self.by]


@dataclass(frozen=True)
class Division:
    """One split. train, valid, test: numbers of sequences. families: (N,) of relatives, where the split knows them.

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

    Raises UserError where a side would be empty, and where MMseqs2 is needed and missing.
    """
    families = None
    aligned = labelled.kind in ("protein", "antibody")
    shares = (config.valid, config.test)
    if by == "homology":
        if not aligned:
            raise UserError("split.by: homology aligns proteins; these sequences are read as text")
        side, families = splits.homology_split(
            labelled.letters, labelled.classes, identity=config.identity, coverage=config.coverage, shares=shares,
            seed=seed,
        )  # fmt: skip
    elif by == "random":
        side = splits.random_split(labelled.classes, shares, seed, len(labelled))
    else:
        side = _from_column(labelled, config, seed)
    parts = [np.flatnonzero(side == number) for number in range(3)]
    for name, part in zip(SIDES, parts, strict=True):
        if not len(part):
            raise UserError(f"the split by {by} leaves no sequence in {name}")
    train, valid, test = parts
    leaks = {}
    if aligned and config.identity > 0:
        reference = [labelled.letters[i] for i in train]
        for name, part in (("test", test), ("valid", valid)):
            leaks[name] = splits.leak([labelled.letters[i] for i in part], reference, config.identity, config.coverage)
    return Division(by, train, valid, test, families, leaks)


def _from_column(labelled: Labelled, config: SplitConfig, seed: int) -> np.ndarray:
    """-1 where a sequence is on no side."""
    said = np.array([(side or "").strip().lower() for side in labelled.sides])
    side = np.full(len(said), -1 if config.train_is is not None else 0, dtype=np.int8)
    for number, names in enumerate((config.train_is or [], config.valid_is, config.test_is)):
        side[np.isin(said, [name.lower() for name in names])] = number
    if not (side == 2).any():
        found = ", ".join(sorted({*said.tolist()})[:10])
        raise UserError(
            f"split.column {config.column!r} says {found}; none of these is split.test_is ({config.test_is})"
        )
    if not (side == 1).any():
        inside = np.flatnonzero(side == 0)
        classes = None if labelled.classes is None else labelled.classes[inside]
        drawn = splits.random_split(classes, (config.valid, 0.0), seed, len(inside))
        side[inside[drawn == 1]] = 1
    return side


def kept(path: Path, labelled: Labelled, by: By, config: SplitConfig, seed: int) -> Division:
    """As `divide`, from a Parquet file that holds this very division, or into it.

    Columns: id, side (train, valid, test; empty for none), family (where there are any), and identity: that of the
    nearest training sequence, where it was measured.
    """
    key = _key(labelled, by, config, seed)
    if path.exists():
        found = _read(path, by, key)
        if found is not None:
            return found
    division = divide(labelled, by, config, seed)
    names = np.full(len(labelled), "", dtype=object)
    identity = np.full(len(labelled), np.nan, dtype=np.float32)
    for side in SIDES:
        names[getattr(division, side)] = side
    for side, leak in division.leaks.items():
        identity[getattr(division, side)] = leak.identity
    columns = {"id": labelled.ids, "side": names.tolist(), "identity": pa.array(identity, from_pandas=True)}
    if division.families is not None:
        columns["family"] = division.families
    leaks = {side: [leak.count, leak.of, [list(e) for e in leak.examples]] for side, leak in division.leaks.items()}
    with saying(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as work:
        pq.write_table(pa.table(columns).replace_schema_metadata({"key": key, "leaks": json.dumps(leaks)}), work)
    return division


def _key(labelled: Labelled, by: By, config: SplitConfig, seed: int) -> str:
    """Hex digest of all that a division depends on."""
    settings = dataclasses.asdict(dataclasses.replace(config, by=by))
    digest = hashlib.sha256(json.dumps([settings, seed, labelled.ids, labelled.sides]).encode())
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
        identity = table.column("identity").to_numpy()
        leaks = {}
        for name, (count, of, examples) in json.loads(about[b"leaks"]).items():
            own = np.nan_to_num(identity[parts[name]]).astype(np.float32)
            leaks[name] = Leak(count / max(of, 1), count, of, own, tuple((i, j, x) for i, j, x in examples))
        families = table.column("family").to_numpy() if "family" in table.column_names else None
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None
    return Division(by, parts["train"], parts["valid"], parts["test"], families, leaks)


def describe(leak: Leak, held_out: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
    """A leak in plain numbers and identifiers, for the results."""
    examples = [[held_out[here], reference[there], identity] for here, there, identity in leak.examples]
    return {"share": leak.share, "count": leak.count, "of": leak.of, "examples": examples}
