"""Pairs of sequences, how strongly they bind or whether they do, and what becomes of records that are of no use.

    rows ─▶ letters of a and b, each once ─▶ value on one scale, bound or not ─▶ label ─▶ duplicates ─▶ Pairs
    rows with one sequence and its class  ─▶ read_labelled ─▶ Pairs whose two sequences are one ─▶ of_classes

Everything that is left out is counted by reason, with the first three places. Memory holds every distinct sequence once
and some numbers for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from biometro.alphabet import Reading, SequenceKind
from biometro.alphabet.kinds import AnyAlphabet
from biometro.data.labels import read_labelled
from biometro.data.pair_config import PairConfig
from biometro.data.pair_rows import Letters, PairAccount, Row, name_of, once, read_rows, refuse, unit_of
from biometro.data.sources import ReadOptions, expand
from biometro.data.task import LabelConfig
from biometro.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """N pairs, in input order, of A and B distinct sequences.

    Fields:
        a_letters, b_letters: A and B cleaned sequences. Of one kind, both are one list.
        a, b: (N,) int64 places in these.
        value: (N,) float32, more binds better (but see `higher_binds`); NaN unknown.
        censored: (N,) int8: -1 where the truth lies below the value, 1 above, 0 where it is the value.
        label: (N,) int8: 1 binds, 0 does not, -1 unknown.
        unit: of values: pKd, pKd/pKi, p (of an unknown measure), KIBA, or "" of plain scores or none.
        sides: what the split column says of each; "" without one.
        group: (N,) int64 places in `group_names`: the target of each, for figures per target.
        source: (N,) int64, the number of its data set.
        accounts: what was dropped, one for each data set.
        classes: (N,) int64 places in `class_names`, where pairs are single sequences with a class, a = b; else None.
    """

    a_letters: list[bytes]
    b_letters: list[bytes]
    a: np.ndarray
    b: np.ndarray
    value: np.ndarray
    censored: np.ndarray
    label: np.ndarray
    unit: str
    sides: list[str]
    group: np.ndarray
    group_names: list[str]
    source: np.ndarray
    accounts: tuple[PairAccount, ...]
    kind_a: SequenceKind = "protein"
    kind_b: SequenceKind = "molecule"
    classes: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.a)

    @property
    def shared(self) -> bool:
        """Whether both sequences are of one kind, and of one list."""
        return self.a_letters is self.b_letters

    def take(self, which: Sequence[int] | np.ndarray) -> Pairs:
        """The pairs of these numbers, in this order; lists of sequences stay as they are."""
        at = np.asarray(which, np.int64)
        return replace(
            self, a=self.a[at], b=self.b[at], value=self.value[at], censored=self.censored[at], label=self.label[at],
            sides=[self.sides[i] for i in at.tolist()], group=self.group[at], source=self.source[at],
            classes=None if self.classes is None else self.classes[at],
        )  # fmt: skip

    def of_classes(self, partners: int = 1, others: int = 0, seed: int = 0) -> Pairs:
        """Pairs of different sequences: each sequence with so many partners, which are of its class, and so many of
        other classes, drawn under the seed, or with all there are. A pair stands there once, whichever of the two drew
        it. With others, the value of partners is 1 and that of others 0; without, there are no values.

        Raises ValueError where sequences have no classes, UserError where no class has two sequences, and for others
        where there is one class.
        """
        if self.classes is None:
            raise ValueError("these are pairs already, not sequences with classes")
        random = np.random.default_rng(seed)
        found: dict[tuple[int, int], int] = {}
        for number in np.unique(self.classes).tolist():
            members, rest = (np.flatnonzero(same) for same in (self.classes == number, self.classes != number))
            if others and not len(rest):
                raise UserError("all sequences have one class, so that there are no pairs across classes (others)")
            for place, one in enumerate(members.tolist()):
                for choice, count, label in ((np.delete(members, place), partners, 1), (rest, others, 0)):
                    drawn = random.choice(choice, min(count, len(choice)), replace=False)
                    found.update(dict.fromkeys(((min(one, two), max(one, two)) for two in drawn.tolist()), label))
        labels = np.array(list(found.values()), np.int8)
        if not labels.any():
            raise UserError("no class has two sequences, so that there is no pair of one class")
        one, two = np.array(list(found), np.int64).T
        value = labels.astype(np.float32) if others else np.full(len(one), np.nan, np.float32)
        return replace(self.take(one), b=self.b[two], label=labels, value=value, classes=None, class_names=())

    @staticmethod
    def join(parts: Sequence[Pairs], mixed: bool = False) -> Pairs:
        """Several data sets as one, each with its number; sequences that several have stand there once.

        Args:
            parts: at least one.
            mixed: values of several scales may stand together, as where each source is compared with itself alone.

        Raises UserError for kinds that differ, for sequences with classes beside pairs, and for scales that differ.
        """
        return _join(parts, mixed)

    def to_json(self) -> dict[str, Any]:
        """Counts, for reports."""
        known = np.isfinite(self.value)
        return {
            "pairs": len(self), "distinct_a": len(np.unique(self.a)), "distinct_b": len(np.unique(self.b)),
            "unit": self.unit, "values": int(known.sum()), "bounds": int((self.censored[known] != 0).sum()),
            "binding": int((self.label == 1).sum()), "not_binding": int((self.label == 0).sum()),
            "targets": len(np.unique(self.group)), "sources": [account.to_json() for account in self.accounts],
        }  # fmt: skip


def read_pairs(
    data: str | list[str],
    config: PairConfig = PairConfig(),
    reading_a: Reading | None = None,
    reading_b: Reading | None = None,
    options: ReadOptions = ReadOptions(),
    alphabet_a: AnyAlphabet | None = None,
    alphabet_b: AnyAlphabet | None = None,
) -> Pairs:
    """All pairs of one data set.

    Args:
        data: tables (CSV, TSV, Parquet), as for `embed`.
        config: where pairs stand.
        reading_a, reading_b: what is done with what is unusual in the sequences; of the config's kinds.
        options: how to read; its columns are the config's.
        alphabet_a, alphabet_b: of the models that read them: molecules that they have no tokens for go by the policy.

    Raises UserError for input that cannot be read, values of different scales, conflicts and bad records where they
    fail, and where nothing is left.
    """
    readings = (reading_a or Reading(config.kind_a), reading_b or Reading(config.kind_b))
    if (readings[0].kind, readings[1].kind) != (config.kind_a, config.kind_b):
        raise UserError(
            f"pairs.kind_a is {config.kind_a} and pairs.kind_b {config.kind_b}, but the models read "
            f"{readings[0].kind} and {readings[1].kind}"
        )
    options = replace(options, column=config.a, split_column=config.split, kind=config.kind_a)
    if config.b is None:
        return _of_classes(data, config, readings[0], options, alphabet_a)
    account = PairAccount()
    one = Letters(readings[0], alphabet_a, config)
    two = Letters(readings[1], alphabet_b, config, one if config.kind_a == config.kind_b else None)
    rows: list[Row] = []
    for number, source in enumerate(expand(data, options)):
        account.source = number
        rows += read_rows(source, config, options, one, two, account)
    if config.bad == "fail":
        refuse(account)
    unit = unit_of(rows, config)
    rows = once(rows, config, one.places is two.places, account)
    if not account.read and config.asked:
        raise UserError(f"no row is what pairs.where asks for ({', '.join(config.asked)})")
    if not rows:
        first = list(account.dropped.items())[:5]
        more = f" and {len(account.dropped) - 5} other reasons" if len(account.dropped) > 5 else ""
        said = "; ".join(f"{reason}: {count:,}" for reason, count in first)
        raise UserError(f"no usable pair is left of {account.read:,}; dropped: {said}{more}")
    account.kept = len(rows)
    account.repaired = sum(row.repaired for row in rows)
    at_a, at_b, letters_a, letters_b = _used(rows, one, two)
    names = {name: place for place, name in enumerate(dict.fromkeys(row.group for row in rows))}
    every = list(one.places)
    return Pairs(
        letters_a,
        letters_b,
        at_a,
        at_b,
        np.array([row.value for row in rows], np.float32),
        np.array([row.censored for row in rows], np.int8),
        np.array([row.label for row in rows], np.int8),
        unit,
        [row.side for row in rows],
        np.array([names[row.group] for row in rows], np.int64),
        [every[name].decode("latin-1") if isinstance(name, int) else name for name in names],
        np.zeros(len(rows), np.int64),
        (account,),
        config.kind_a,
        config.kind_b,
    )


def _used(rows: Sequence[Row], one: Letters, two: Letters) -> tuple[np.ndarray, np.ndarray, list[bytes], list[bytes]]:
    """Places (N,) of both sequences of each pair, and the sequences, without those whose pairs were all dropped."""
    if one.places is two.places:
        (at_a, at_b), letters = _renumbered([[row.a for row in rows], [row.b for row in rows]])
        every = list(one.places)
        shared = [every[place] for place in letters]
        return at_a, at_b, shared, shared
    (at_a,), places_a = _renumbered([[row.a for row in rows]])
    (at_b,), places_b = _renumbered([[row.b for row in rows]])
    every_a, every_b = list(one.places), list(two.places)
    return at_a, at_b, [every_a[place] for place in places_a], [every_b[place] for place in places_b]


# Sequences with classes, and several data sets -----------------------------------------------------------------------


def _of_classes(
    data: str | list[str], config: PairConfig, reading: Reading, options: ReadOptions, alphabet: AnyAlphabet | None
) -> Pairs:
    """Sequences with one class each, as pairs with themselves; classes of one sequence make no pair, and go."""
    assert config.label is not None
    labels = LabelConfig(
        column=config.label, where=config.where, where_not=config.where_not, group=config.group, bad=config.bad,
        conflicts="fail" if config.conflicts == "fail" else "drop", min_per_class=2,
    )  # fmt: skip
    found = read_labelled(data, labels, options, reading, alphabet)
    classes = found.classes
    assert classes is not None
    places = {letters: place for place, letters in enumerate(dict.fromkeys(found.letters))}
    at = np.array([places[letters] for letters in found.letters], np.int64)
    account = PairAccount(**vars(found.account))
    account.kept = len(at)
    letters = list(places)
    named = [name or "" for name in found.groups] or [found.task.names[i] for i in classes.tolist()]
    names = {name: place for place, name in enumerate(dict.fromkeys(named))}
    nothing = np.full(len(at), np.nan, np.float32)
    return Pairs(
        letters, letters, at, at.copy(), nothing, np.zeros(len(at), np.int8), np.full(len(at), -1, np.int8), "",
        [side or "" for side in found.sides], np.array([names[name] for name in named], np.int64), list(names),
        np.zeros(len(at), np.int64), (account,), reading.kind, reading.kind, classes, found.task.names,
    )  # fmt: skip


def _join(parts: Sequence[Pairs], mixed: bool) -> Pairs:
    first = parts[0]
    for part in parts[1:]:
        if (part.kind_a, part.kind_b) != (first.kind_a, first.kind_b):
            raise UserError(
                f"data sets of {first.kind_a} and {first.kind_b}, and of {part.kind_a} and {part.kind_b}, cannot be "
                "read by the same models"
            )
        if (part.classes is None) != (first.classes is None):
            raise UserError("some data sets are pairs and some sequences with classes; make pairs of the classes first")
    units = list(dict.fromkeys(part.unit for part in parts if np.isfinite(part.value).any()))
    if not mixed and len({unit[:1] for unit in units}) > 1:
        raise UserError(f"data sets with values of different scales: {', '.join(unit or 'scores' for unit in units)}")
    at_a, letters_a = _renumbered([part.a_letters for part in parts])
    at_b, letters_b = (at_a, letters_a) if first.shared else _renumbered([part.b_letters for part in parts])
    at_g, names = _renumbered([part.group_names for part in parts])
    at_c, classes = _renumbered([part.class_names for part in parts])
    measures = {name for unit in units if unit[:1] == "p" for name in unit.removeprefix("p").split("/p")}
    scales = {"p" if unit[:1] == "p" else unit for unit in units}
    return Pairs(
        letters_a,
        letters_b,
        np.concatenate([at[part.a] for at, part in zip(at_a, parts, strict=True)]),
        np.concatenate([at[part.b] for at, part in zip(at_b, parts, strict=True)]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.censored for part in parts]),
        np.concatenate([part.label for part in parts]),
        " and ".join(name_of(scale, measures) for scale in sorted(scales, reverse=True)),
        [side for part in parts for side in part.sides],
        np.concatenate([at[part.group] for at, part in zip(at_g, parts, strict=True)]),
        names,
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        tuple(account for part in parts for account in part.accounts),
        first.kind_a,
        first.kind_b,
        None
        if first.classes is None
        else np.concatenate([at[part.classes] for at, part in zip(at_c, parts, strict=True)]),
        tuple(classes),
    )


def _renumbered(lists: Sequence[Sequence[Any]]) -> tuple[list[np.ndarray], list[Any]]:
    """Of each list, the places (n,) of its entries in the list of all, in which each stands once."""
    places: dict[Any, int] = {}
    found = [np.array([places.setdefault(entry, len(places)) for entry in one], np.int64) for one in lists]
    return found, list(places)
