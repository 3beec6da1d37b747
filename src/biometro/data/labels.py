"""Labelled sequences: where labels stand, what they mean, and what becomes of records whose label is of no use.

    records ─▶ raw label (header | second file | columns) ─▶ Task (classes, columns) ─▶ duplicates ─▶ Labelled

Everything that is left out is counted by reason, with the first three places; under `bad: fail` and
`conflicts: fail` that is the error.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from biometro.alphabet import Reading, SequenceKind
from biometro.alphabet.kinds import AnyAlphabet
from biometro.data import layouts
from biometro.data.intake import Account, clean_records
from biometro.data.sources import TABLES, ReadOptions, Record, Source, expand, read, table_columns
from biometro.data.task import LabelConfig, Task, Truth
from biometro.data.truth import LABEL, BadLabelError, Cells, find_task, parse
from biometro.errors import UserError

_CONFLICT = LABEL + "identical sequences with different labels"


@dataclass(frozen=True)
class Labelled:
    """Sequences with labels, in input order.

    ids, letters, sides: one each; `sides` is what the split column says, None without one. truth: (N,) int64 class
    numbers; (N, K) float32 0, 1 or NaN (multilabel); (N, K) float32, NaN unknown (regression); a list of (L,) int64, -1
    unknown, or (L,) float32, NaN unknown (residues). before, after: sequences of each class, in the order of the
    classes, before and after grouping (empty where there are none). account: what was dropped. kind: what the
    sequences are. groups: what `labels.group` says of each, None where it says nothing; empty without one.
    """

    task: Task
    ids: list[str]
    letters: list[bytes]
    sides: list[str | None]
    truth: Truth
    before: dict[str, int]
    after: dict[str, int]
    account: Account
    kind: SequenceKind = "protein"
    groups: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: Sequence[int] | np.ndarray) -> Labelled:
        """The sequences of these numbers, in this order."""
        return Labelled(
            self.task, [self.ids[i] for i in which], [self.letters[i] for i in which], [self.sides[i] for i in which],
            take(self.truth, which), self.before, self.after, self.account, self.kind,
            [self.groups[i] for i in which] if self.groups else [],
        )  # fmt: skip

    @property
    def group_numbers(self) -> np.ndarray | None:
        """(N,) int64, the group of each sequence, -1 where it has none; None without groups."""
        names = sorted({name for name in self.groups if name})
        places = {name: number for number, name in enumerate(names)}
        return np.array([places.get(name or "", -1) for name in self.groups], np.int64) if self.groups else None

    @property
    def classes(self) -> np.ndarray | None:
        """(N,) int64, the class of each sequence; None where sequences have none."""
        return self.truth if self.task.kind == "classification" and isinstance(self.truth, np.ndarray) else None


def take(truth: Truth, which: Sequence[int] | np.ndarray) -> Truth:
    """Rows of a truth, or of predictions that are laid out alike."""
    return truth[np.asarray(which, dtype=np.int64)] if isinstance(truth, np.ndarray) else [truth[i] for i in which]


def read_labelled(
    data: str | list[str],
    config: LabelConfig,
    options: ReadOptions = ReadOptions(),
    reading: Reading = Reading(),
    alphabet: AnyAlphabet | None = None,
    task: Task | None = None,
) -> Labelled:
    """All sequences and their labels.

    Args:
        data: as for `embed`.
        config: where labels stand.
        options: how to read; its split column comes back as `sides`.
        reading: what the records hold, and what to do with what is unusual.
        alphabet: of the model that reads them: molecules that it has no tokens for go by the policy.
        task: of a trained model: the classes are its, and another label is bad. Default: from the labels found.

    Raises UserError for input that cannot be read, labels that stand nowhere, bad labels and conflicts where they fail,
    and where nothing is left.
    """
    account = Account()
    sources = expand(data, options)
    found = list(_records(sources, config, options, reading, alphabet, account))
    fixed = task is not None
    task = task or find_task(((letters, raw) for _, letters, raw in found), config)
    items: list[_Item] = []
    groups: dict[int, str | None] = {}
    for record, letters, raw in found:
        groups[id(record)] = _group_of(raw, config)
        try:
            items.append((record, letters, parse(raw, task, config, len(letters))))
        except BadLabelError as error:
            shorter = error.length and len(letters) < len(record.raw.strip())
            account.drop(f"{error}, of which gaps and stops were taken out" if shorter else str(error), record)
    if config.bad == "fail":
        _refuse(account, len(found), "labels.bad: drop leaves such records out")
    if task.kind == "residue_classification" and not fixed and items and task.outputs < 2:
        raise UserError(f"all residues have one class, {task.names[0]!r}; classification takes two")
    keep = _once(items, groups, config, task, account)
    if not keep:
        raise UserError(f"no sequence with a usable label is left of {len(found)}; dropped: {account.dropped}")
    before = _count(keep, task)
    if task.kind == "classification" and not fixed:
        keep, task = _group(keep, config, task, account)
    if config.at_most is not None and len(keep) > config.at_most:
        chosen = {
            id(item) for item in sorted(keep, key=lambda item: hashlib.sha256(item[1]).digest())[: config.at_most]
        }
        for item in keep:
            if id(item) not in chosen:
                account.drop("above at_most", item[0])
        keep = [item for item in keep if id(item) in chosen]
    values = [value for _, _, value in keep]
    truth: Truth = values if task.per_residue else np.stack(values)
    return Labelled(
        task,
        [record.id for record, _, _ in keep],
        [letters for _, letters, _ in keep],
        [record.split for record, _, _ in keep],
        truth,
        before,
        _count(keep, task),
        account,
        reading.kind,
        [] if config.group is None else [groups[id(record)] for record, _, _ in keep],
    )


_Item = tuple[Record, bytes, np.ndarray]


def _records(
    sources: list[Source], config: LabelConfig, options: ReadOptions, reading: Reading,
    alphabet: AnyAlphabet | None, account: Account,
) -> Iterator[tuple[Record, bytes, Cells | None]]:  # fmt: skip
    """Records, their letters, and the cells of their label (and mask); None where there is no label."""
    table = None if config.file is None else _label_file(config)
    asked = config.asked
    for number, source in enumerate(sources):
        account.source = number
        from_header = source.format not in TABLES
        if from_header and table is None and (config.field, config.key, config.pattern) == (None, None, None):
            raise UserError(
                f"{source.name}: where are the labels? Say the header's labels.field, labels.key or labels.pattern, or "
                "a table of them with labels.file"
            )
        if table is not None and not from_header and options.id_column is None:
            raise UserError(
                f"{source.name}: labels.file goes by identifiers; say with id_column where this table has them"
            )
        if from_header and (asked or config.classes):
            name = "labels.classes reads" if config.classes else "labels.where chooses"
            raise UserError(f"{source.name}: {name} rows of a table, and this is none")
        cells = () if from_header or table is not None else config.cells
        fields = (*cells, *asked)
        if cells and options.kind in ("antibody", "tcr"):
            _check_label_unread(source, config, options)
        own = replace(options, fields=fields)
        rows = (r for r in read(source, own) if config.chosen(dict(zip(asked, r.fields[len(cells) :], strict=False))))
        for record, letters in clean_records(rows, reading, account, alphabet=alphabet):
            if table is not None:
                yield record, letters, table.get(record.id)
            else:
                cell = _from_header(record, config) if from_header else config.label(record.fields[: len(cells)])
                yield record, letters, cell


def _check_label_unread(source: Source, config: LabelConfig, options: ReadOptions) -> None:
    """Raises UserError where a column of the label is a part of the sequences that are read, as the epitope of VDJdb
    is: its letters would tell the answer."""
    layout = layouts.find(table_columns(source), options.column, options.kind, options.region, source.name)
    named = [config.column] if isinstance(config.column, str) else config.column or []
    told = [name for name in named if layout is not None and name in layout.columns]
    if told:
        raise UserError(
            f"{source.name}: the label {told[0]!r} is read as a part of the sequences, which tells the answer; "
            "say with `column` which parts to read, as in {alpha: cdr3.alpha, beta: cdr3.beta}"
        )


def _group_of(raw: Cells | None, config: LabelConfig) -> str | None:
    """What the column `labels.group` says; None where there is none, or it says nothing."""
    cell = None if raw is None or config.group is None else raw[-1]
    return None if cell is None or str(cell).strip() in config.unknown else str(cell).strip()


def _label_file(config: LabelConfig) -> dict[str, Cells]:
    """The labels of a table by identifier."""
    assert config.file is not None
    table: dict[str, Cells] = {}
    for source in expand(config.file):
        if source.format not in TABLES or source.format == "sdf":
            raise UserError(f"{config.file}: labels.file must be a CSV, TSV or Parquet table")
        for record in read(source, ReadOptions(column=config.file_id, fields=config.cells, identifiers=True)):
            name = record.raw.decode().strip()
            label = config.label(record.fields)
            if table.setdefault(name, label) != label:
                raise UserError(f"{record.where}: a second label for {name!r}, and another one")
    return table


def _from_header(record: Record, config: LabelConfig) -> Cells | None:
    text = record.header
    if config.field is not None:
        parts = text.split(config.separator)
        return (parts[config.field].strip(),) if -len(parts) <= config.field < len(parts) else None
    if config.key is not None:
        found = re.search(rf"(?:^|[\s{re.escape(config.separator)}]){re.escape(config.key)}=", text)
        value = (
            None if found is None else re.split(rf"\s|{re.escape(config.separator)}", text[found.end() :], maxsplit=1)
        )
        return None if value is None else (value[0],)
    assert config.pattern is not None
    found = re.search(config.pattern, text)
    return None if found is None or found[1] is None else (found[1].strip(),)


def _refuse(account: Account, total: int, hint: str, kind: str = LABEL) -> None:
    """Raises UserError with all reasons that begin so, how often each was met, and where first, if there are any."""
    bad = {reason: count for reason, count in account.dropped.items() if reason.startswith(kind)}
    if bad:
        told = "; ".join(f"{count:,} x {r} ({', '.join(account.examples[r])})" for r, count in bad.items())
        raise UserError(f"{sum(bad.values()):,} of {total:,} records have no usable label: {told}; {hint}")


# Duplicates and groups ------------------------------------------------------------------------------------------


def _once(
    items: list[_Item], named: dict[int, str | None], config: LabelConfig, task: Task, account: Account
) -> list[_Item]:
    """Identical sequences of one side (and one named group) once; what their labels disagree about is settled by the
    policy."""
    groups: dict[tuple[bytes, str | None, str | None], list[_Item]] = {}
    for item in items:
        groups.setdefault((item[1], item[0].split, named[id(item[0])]), []).append(item)
    for group in groups.values():
        if len(group) > 1 and any(
            not np.array_equal(group[0][2], v, equal_nan=v.dtype.kind == "f") for _, _, v in group
        ):
            if config.conflicts == "merge" and task.kind in ("classification", "residue_classification"):
                raise UserError(
                    f"{group[0][0].where}: classes of identical sequences cannot be merged; labels.conflicts may be "
                    "drop, first or fail"
                )
            if config.conflicts in ("drop", "fail"):
                for record, _, _ in group:
                    account.drop(_CONFLICT, record)
                group.clear()
            elif config.conflicts == "merge":
                merged = _merge([value for _, _, value in group], task)
                group[:] = [(group[0][0], group[0][1], merged)]
        for record, _, _ in group[1:]:
            account.drop("identical sequence, counted once", record)
        del group[1:]
    if config.conflicts == "fail":
        _refuse(account, len(items), "labels.conflicts: drop or first settles it", _CONFLICT)
    return [group[0] for group in groups.values() if group]


def _merge(values: list[np.ndarray], task: Task) -> np.ndarray:
    """Mean of what is known; of labels, any."""
    stack = np.stack(values)
    known = ~np.isnan(stack)
    total = np.where(known, stack, 0).sum(0)
    mean = np.divide(total, known.sum(0), out=np.full(total.shape, np.nan, np.float32), where=known.any(0))
    return np.where(mean > 0, 1, mean).astype(np.float32) if task.kind == "multilabel" else mean.astype(np.float32)


def _count(items: Sequence[_Item], task: Task) -> dict[str, int]:
    """Sequences of each class or label; residues for classes of residues."""
    if not task.discrete:
        return {}
    if task.kind == "multilabel":
        totals = np.nansum(np.stack([value for _, _, value in items]), axis=0)
        return {name: int(total) for name, total in zip(task.names, totals, strict=True)}
    numbers = np.concatenate([np.atleast_1d(value) for _, _, value in items])
    found = Counter(numbers[numbers >= 0].tolist())
    return {name: found.get(number, 0) for number, name in enumerate(task.names)}


def _group(items: list[_Item], config: LabelConfig, task: Task, account: Account) -> tuple[list[_Item], Task]:
    """Without classes that are too small, and at most `max_per_class` of each of the others, chosen by digest."""
    counts = Counter(int(value) for _, _, value in items)
    small = {number for number, count in counts.items() if count < config.min_per_class}
    numbers = [number for number in range(task.outputs) if number not in small and counts[number]]
    if len(numbers) < 2:
        raise UserError(
            f"{len(numbers)} of {task.outputs} classes has at least {config.min_per_class} sequences "
            "(labels.min_per_class); classification takes two"
        )
    allowed = {number: _chosen(items, number, config.max_per_class) for number in numbers}
    new = {old: fresh for fresh, old in enumerate(numbers)}
    kept = []
    for place, (record, letters, value) in enumerate(items):
        number = int(value)
        if number in small:
            account.drop(f"class of fewer than {config.min_per_class} sequences", record)
        elif not allowed[number](place):
            account.drop("above max_per_class", record)
        else:
            kept.append((record, letters, np.array(new[number], dtype=np.int64)))
    return kept, Task(task.kind, tuple(task.names[number] for number in numbers))


def _chosen(items: Sequence[_Item], number: int, most: int | None) -> Callable[[int], bool]:
    """Which places of the list are kept of a class: those of the smallest digests."""
    places = [place for place, (_, _, value) in enumerate(items) if int(value) == number]
    if most is not None and len(places) > most:
        places = sorted(places, key=lambda place: hashlib.sha256(items[place][1]).digest())[:most]
    return set(places).__contains__
