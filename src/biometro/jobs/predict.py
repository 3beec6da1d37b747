"""`biometro predict`: sequences and a fine-tuned model -> labels, how sure, and when to abstain.

records ─▶ a thousand at a time ─▶ Predictor ─▶ rows ─▶ CSV or Parquet, in input order
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from biometro.alphabet import AlphabetError
from biometro.alphabet.kinds import AnyAlphabet
from biometro.data.intake import Account, clean
from biometro.data.labels import read_labelled
from biometro.data.layouts import Region
from biometro.data.rows import Rows, check_no_input, check_table, table_writer
from biometro.data.sources import Format, ReadOptions, Record, expand
from biometro.data.task import Answers, LabelConfig
from biometro.device import pick_device
from biometro.errors import UserError
from biometro.evaluation import calibration, metrics, results
from biometro.inference.predict import Predictor
from biometro.model.load import load_all

_CHUNK = 1024


@dataclass(frozen=True)
class Predicted:
    """What `predict` leaves: the rows where `out` is not given, and figures where labels are."""

    rows: Rows
    out: Path | None
    figures: dict[str, float] | None


def predict(
    model: str | list[str],
    data: str | list[str],
    out: str | None = None,
    compare: bool = False,
    labels: LabelConfig = LabelConfig(),
    probabilities: bool = False,
    format: Format = "auto",
    column: str | dict[str, str] = "sequence",
    region: Region = "auto",
    id_column: str | None = None,
    base: str | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
) -> Predicted:
    """Answer for every sequence, in input order, in a stream.

    Columns by task: of classes label, probability (calibrated), abstain (whether the conformal set has not exactly one
    class) and set; of several labels labels and the probability of each; of numbers each with low and high (conformal
    interval); of residues a letter, or a number, for each.

    Args:
        model: folder that `finetune` left (run/model); of several, each answers in columns of its own, and adapters of
            one base share it.
        data: FASTA, CSV, TSV, Parquet, SMILES or SDF files: a path, a pattern, a URL, a list of these, or sequences
            themselves.
        out: file to write: .csv, .tsv or .parquet. From Python it may be left out; the rows are returned.
        compare: compare the answers with labels that stand in the data, and tell the figures.
        labels: where these stand; the task is the model's.
        probabilities: also the probability of every class.
        format: of the files; auto goes by their names.
        column: of tables, the one that holds the sequence; of receptors, columns by part, as in {heavy: VH, light: VL}.
            Tables of public sources are known by their columns.
        region: of such a table's chains: full (the V domain), cdr3, or cdrs (CDR1, CDR2, CDR3); auto is full for
            antibodies and cdr3 for T-cell receptors.
        id_column: of tables, the one that holds the identifier; without it rows are numbered.
        base: folder of the base model, where an adapter's is no longer where it was.
        precision: of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        device: auto, cpu, cuda, cuda:1, ...
        batch_tokens: tokens read at once; more takes more memory and does not change results.

    Raises UserError for a model that is not fine-tuned, an adapter for another base, input that cannot be read, and
    labels that the model does not know, unless labels.bad drops them.
    """
    names = [model] if isinstance(model, str) else list(model)
    path = None if out is None else Path(out)
    if path is not None:
        check_table(path)
    if compare and len(names) > 1:
        raise UserError("labels are compared with the answers of one model; name one")
    predictors = [Predictor(bundle, pick_device(device), precision, batch_tokens) for bundle in load_all(names, base)]
    asked = predictors[0].asked
    for name, other in zip(names, predictors, strict=True):
        if other.asked.reading != asked.reading:
            raise UserError(
                f"{name} reads other sequences, or in another way, than {names[0]}: {_said(other.asked)} and "
                f"{_said(asked)}"
            )
    titles = [""] if len(names) == 1 else [f"{Path(name).parent.name or Path(name).name}: " for name in names]
    if len({*titles}) < len(titles):
        titles = [f"{name}: " for name in names]
    console = Console(stderr=True, quiet=path is None)
    options = ReadOptions(format, column, id_column, kind=asked.reading.kind, region=region)
    sources = expand(data, options)
    if path is not None:
        check_no_input(path, [source.name for source in sources])
    account = Account()
    kept: dict[bytes, Any] = {}
    rows: Rows = []
    count = 0
    with table_writer(path, rows) as write:
        for chunk in _chunks(sources, options, asked, account, predictors[0].bundle.alphabet):
            found = [_answer(predictor, chunk) for predictor in predictors]
            told = [_tell(p.asked, f, probabilities, t) for p, f, t in zip(predictors, found, titles, strict=True)]
            write(
                [
                    {"id": record.id} | {name: value for part in told for name, value in part[i].items()}
                    for i, (record, _) in enumerate(chunk)
                ]
            )
            count += len(chunk)
            if compare:
                kept |= {letters: answer for (_, letters), answer in zip(chunk, found[0], strict=True)}
        if not count:
            raise UserError(f"there is no sequence to answer for; dropped: {account.dropped}")
    figures = None
    if compare:
        figures = _compare(kept, data, labels, options, asked, predictors[0].bundle.alphabet, console)
    if path is not None:
        console.print(f"{count:,} sequences -> {path}", highlight=False)
    for reason, number in account.dropped.items():
        console.print(f"dropped ({reason}): {number:,}, first: {'; '.join(account.examples[reason])}", markup=False)
    return Predicted(rows, path, figures)


def _said(asked: Answers) -> str:
    reading = asked.reading
    return f"{reading.kind}, {reading.residues if reading.kind != 'molecule' else reading.molecules}"


def _chunks(
    sources: Any, options: ReadOptions, asked: Answers, account: Account, alphabet: AnyAlphabet
) -> Iterator[list[tuple[Record, bytes]]]:
    chunk: list[tuple[Record, bytes]] = []
    for pair in clean(sources, options, asked.reading, account, alphabet=alphabet):
        chunk.append(pair)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _answer(predictor: Predictor, chunk: Sequence[tuple[Record, bytes]]) -> Any:
    longest = predictor.bundle.longest
    if predictor.task.per_residue and longest is not None:
        for record, letters in chunk:
            if len(letters) > longest:
                raise UserError(
                    f"{record.where} ({record.id}): {len(letters):,} residues, more than the {longest:,} that this "
                    "model has positions for; cut the sequence into pieces"
                )
    try:
        return predictor([letters for _, letters in chunk])
    except AlphabetError:
        for record, letters in chunk:
            try:
                predictor.bundle.alphabet.encode(letters)
            except AlphabetError as error:
                raise UserError(f"{record.where} ({record.id}): {error}") from error
        raise


# Rows -----------------------------------------------------------------------------------------------------------


def _tell(asked: Answers, found: Any, probabilities: bool, title: str) -> Rows:
    """A row for each sequence; `title` stands before the name of each column."""
    tell: Any = {
        "classification": _tell_class, "multilabel": _tell_labels, "regression": _tell_numbers,
        "residue_classification": _tell_residues, "residue_regression": _tell_residue_numbers,
    }[asked.task.kind]  # fmt: skip
    return [{title + name: value for name, value in row.items()} for row in tell(asked, found, probabilities)]


def _each(asked: Answers, p_K: np.ndarray) -> dict[str, float]:
    return {f"p({name})": float(p) for name, p in zip(asked.task.names, p_K, strict=True)}


def _tell_class(asked: Answers, p_NK: np.ndarray, probabilities: bool) -> Rows:
    names, threshold = asked.task.names, asked.calibration.threshold
    sets_NK = calibration.conformal_sets(p_NK, 1.0 if threshold is None else threshold)
    return [
        {
            "label": names[int(p_K.argmax())],
            "probability": float(p_K.max()),
            "abstain": bool(set_K.sum() != 1),
            "set": ";".join(name for name, inside in zip(names, set_K, strict=True) if inside),
            **(_each(asked, p_K) if probabilities else {}),
        }
        for p_K, set_K in zip(p_NK, sets_NK, strict=True)
    ]


def _tell_labels(asked: Answers, p_NK: np.ndarray, probabilities: bool) -> Rows:
    names = asked.task.names
    return [
        {"labels": ";".join(n for n, p in zip(names, p_K, strict=True) if p >= 0.5), **_each(asked, p_K)}
        for p_K in p_NK
    ]


def _tell_numbers(asked: Answers, found_NK: np.ndarray, probabilities: bool) -> Rows:
    radii = asked.calibration.radius or (np.inf,) * asked.task.outputs
    rows = []
    for found_K in found_NK:
        row: dict[str, Any] = {}
        for name, value, radius in zip(asked.task.names, found_K.tolist(), radii, strict=True):
            row |= {name: value, f"{name} low": value - radius, f"{name} high": value + radius}
        rows.append(row)
    return rows


def _tell_residues(asked: Answers, found: Sequence[np.ndarray], probabilities: bool) -> Rows:
    names, threshold = asked.task.names, asked.calibration.threshold
    mark = "" if all(len(name) == 1 for name in names) else ";"
    rows = []
    for p_LK in found:
        row: dict[str, Any] = {
            "labels": mark.join(names[k] for k in p_LK.argmax(1).tolist()),
            "abstain": "".join(
                "01"[int(a)] for a in calibration.abstains(p_LK, 1.0 if threshold is None else threshold)
            ),
            "mean probability": float(p_LK.max(1).mean()),
        }
        if probabilities:
            row |= {f"p({name})": p_LK[:, k].tolist() for k, name in enumerate(names)}
        rows.append(row)
    return rows


def _tell_residue_numbers(asked: Answers, found: Sequence[np.ndarray], probabilities: bool) -> Rows:
    radius = float("inf") if asked.calibration.radius is None else asked.calibration.radius[0]
    return [{asked.task.names[0]: value.reshape(-1).tolist(), "radius": radius} for value in found]


def _compare(
    kept: dict[bytes, Any], data: str | list[str], labels: LabelConfig, options: ReadOptions, asked: Answers,
    alphabet: AnyAlphabet, console: Console,
) -> dict[str, float]:  # fmt: skip
    """Figures of the answers against labels."""
    task = asked.task
    labels = dataclasses.replace(labels, task=task.kind)
    # one column of names serves several labels, and the column of one number may have another name here
    several = len(labels.columns) > 1 or (task.kind == "regression" and task.outputs > 1)
    if several and tuple(labels.columns) != task.names:
        raise UserError(
            f"labels.column is {', '.join(labels.columns)}; this model answers, in this order, {', '.join(task.names)}"
        )
    labelled = read_labelled(data, labels, options, asked.reading, alphabet, task)
    found = [kept[letters] for letters in labelled.letters]
    figures = metrics.measure(task.kind, labelled.truth, found if task.per_residue else np.stack(found), task.names)
    shown = ", ".join(f"{name} {figures[name]:.4f}" for name in results.MAIN[task.kind] if name in figures)
    console.print(f"{len(labelled):,} sequences with labels: {shown}", highlight=False)
    for reason, count in labelled.account.dropped.items():
        where = "; ".join(labelled.account.examples[reason])
        console.print(f"left out ({reason}): {count:,}, first: {where}", markup=False, highlight=False)
    return figures
