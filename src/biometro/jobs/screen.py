"""`biometro screen`: queries, a model and a store -> the best of the store for each query, ranked.

queries ─▶ the other tower ─▶ rank (here, on Ray, or approximately) ─▶ answers, known binders ─▶ table, page
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console

from biometro.alphabet import AlphabetError, MoleculePolicy, Reading, ResiduePolicy, SequenceKind, kind_of
from biometro.data.intake import Account, clean
from biometro.data.layouts import Region
from biometro.data.likeness import likeness_of
from biometro.data.pair_config import PairConfig
from biometro.data.pairs import read_pairs
from biometro.data.rows import Rows, check_no_input, check_page, check_table, table_writer
from biometro.data.sides import SplitConfig
from biometro.data.sources import Format, ReadOptions, expand
from biometro.device import pick_device
from biometro.errors import UserError
from biometro.evaluation import screen_report
from biometro.evaluation.screen_report import Asked
from biometro.inference import approximate as faiss_search
from biometro.inference import cluster as ray_cluster
from biometro.inference import screen as exact_search
from biometro.inference.embed import Precision
from biometro.inference.screen import Ranking
from biometro.inference.screen_ray import rank_on
from biometro.inference.screening import Answering, Hit, binders
from biometro.inference.store import Store, check_unit, open_store
from biometro.inference.towers import TowerReader
from biometro.jobs.index import ALONE
from biometro.model.bundle import Bundle
from biometro.model.load import load
from biometro.model.towers import SHARED, Towers, fingerprint_of, is_towers, load_towers

_SAMPLE = 64  # queries that are ranked exactly too, to measure an approximate ranking's recall


@dataclass(frozen=True)
class Screened:
    """What `screen` leaves: the rows where `out` is not given, its files, and of an approximate ranking the recall."""

    rows: Rows
    out: Path | None
    report: Path | None
    recall: float | None = None


@dataclass
class _Queries:
    ids: list[str] = field(default_factory=list)
    letters: list[bytes] = field(default_factory=list)


def screen(
    model: str,
    index: str,
    data: str | list[str],
    out: str | None = None,
    top: int = 100,
    tower: str | None = None,
    known: str | list[str] | None = None,
    pairs: PairConfig = PairConfig(),
    approximate: bool = False,
    report: str | None = None,
    max_length: int | None = None,
    precision: Precision = "auto",
    kind: SequenceKind | None = None,
    residues: ResiduePolicy = "as_is",
    molecules: MoleculePolicy = MoleculePolicy(),
    format: Format = "auto",
    column: str | dict[str, str] = "sequence",
    region: Region = "auto",
    id_column: str | None = None,
    device: str = "auto",
    batch_tokens: int | None = None,
    workers: int | None = None,
    cluster: str | None = None,
) -> Screened:
    """Rank a library for each query: ligands for a protein, proteins for a ligand, or what is like the query.

    The ranking is exact, ties by the order of the library, unless `approximate` is asked for. Columns: query, rank, id,
    smiles (or sequence), score (cosine), where the model learnt them the affinity in its unit and the probability, and
    of `known` the nearest known binder and its similarity (Tanimoto of molecules, identity of proteins).

    Args:
        model: the model that the index was made with.
        index: folder that `index` wrote.
        data: queries: FASTA, CSV, TSV, Parquet, SMILES or SDF files: a path, a pattern, a URL, a list of these, or
            sequences themselves.
        out: file to write: .csv, .tsv or .parquet. From Python it may be left out; the rows are returned.
        top: hits of each query.
        tower: that reads the queries. Left out, the one that did not read the library, where there are two.
        known: table of pairs, as of `align`: each hit is told the nearest of the query's known binders among them
            (those that bind by pairs.label or pairs.binds_from; without these, all), and how alike they are.
        pairs: where these stand in the table.
        approximate: look only into a part of the library, by faiss, and tell the recall on up to 64 of the queries,
            which are ranked exactly too. It pays for libraries of many millions.
        report: page with the hits of the first queries, structures drawn; by default beside `out`, as .html.
        max_length: residues (tokens) of queries; longer ones are cut to their first ones; default: as in training.
        precision: of the arithmetic that reads queries; auto is bfloat16 on CUDA and float32 elsewhere.
        kind: what the queries are, as of `embed`. Left out, what the tower reads.
        residues: what to do with non-standard residues: as_is, keep_as_x, drop_sequence or fail.
        molecules: what to do with salts, stereochemistry and molecules that cannot be read.
        format: of the files; auto goes by their names.
        column: of tables, the one that holds the sequence.
        region: of the chains in a table of receptors: full, cdr3 or cdrs.
        id_column: of tables, the one that holds the identifier; without it rows are numbered.
        device: that reads queries: auto, cpu, cuda, cuda:1, ... The library is ranked by the CPU.
        batch_tokens: tokens read at once; more takes more memory and does not change results.
        workers: processes that rank, on Ray; without it, this process does. The result is the same.
        cluster: address of a running Ray cluster (auto or HOST:PORT) whose machines all see `index`; without it,
            workers run on this machine.

    Raises UserError for an index of another model, input that cannot be read, and workers that cannot be had.
    """
    path = None if out is None else Path(out)
    page = Path(report) if report is not None else None if path is None else path.with_suffix(".html")
    _check(path, page, top, approximate, workers, cluster)
    store = open_store(index)
    name, bundle, towers = _query_tower(model, store, tower)
    reading = Reading(kind_of(bundle.alphabet, kind, model), residues, molecules)
    reader = TowerReader(
        bundle, max_length=max_length, precision=precision, device=pick_device(device), batch_tokens=batch_tokens
    )
    if reader.width != store.width:
        raise UserError(
            f"{index}: has vectors of {store.width} numbers, and the model gives {reader.width}; index again"
        )
    console, account = Console(stderr=True, quiet=path is None), Account()
    options = ReadOptions(format, column, id_column, kind=reading.kind, region=region)
    queries = _read(data, options, reading, reader, account, path, _hint(towers, name))
    known_binders = {}
    if known is not None:
        known_binders = _known(known, pairs, reading.kind, store, towers, name, console)
        some = sum(letters in known_binders for letters in queries.letters)
        console.print(
            f"{some:,} of {len(queries.letters):,} queries have known binders (a query is looked up letter by letter)",
            highlight=False,
        )
    queries_QP = _embed(model, reader, queries)
    began = time.perf_counter()
    how, recall = _how(store, approximate, workers, console), None
    ranking = how(queries_QP, top) if workers is None else _on_ray(store, queries_QP, top, workers, cluster)
    took = f"{len(queries.ids):,} queries, {store.count:,} rows in {time.perf_counter() - began:.2f} s"
    if approximate:
        recall = _recall(store, queries_QP, ranking, top)
        took += f"; recall of an approximate ranking, on {min(len(queries_QP), _SAMPLE)} queries: {recall:.4f}"
    console.print(took, highlight=False, markup=False)
    answering = Answering(
        store, None if towers is None else towers, _is_first(towers, name), cast(SequenceKind, store.about.kind),
        SplitConfig(), known_binders,
    )  # fmt: skip
    rows: Rows = []
    asked: list[Asked] = []
    with table_writer(path, rows) as write:
        for id_, letters, hits in zip(
            queries.ids, queries.letters, answering.hits(queries.letters, queries_QP, ranking), strict=True
        ):
            write([_row(id_, hit, store, towers, known is not None) for hit in hits])
            few = list(hits[: screen_report.SHOWN]) if len(asked) < screen_report.QUERIES else []
            shown = letters.decode("utf-8", "backslashreplace")
            asked.append(Asked(id_, shown, few, len(known_binders.get(letters, ()))))
    if page is not None:
        _write_page(page, model, index, store, name, asked, towers, took, recall)
    if path is not None:
        console.print(f"the best {ranking.numbers.shape[1]:,} of each query -> {path}, {page}", highlight=False)
    for reason, count in account.dropped.items():
        console.print(f"dropped ({reason}): {count:,}, first: {'; '.join(account.examples[reason])}", markup=False)
    return Screened(rows, path, page, recall)


def _check(
    path: Path | None, page: Path | None, top: int, approximate: bool, workers: int | None, cluster: str | None
) -> None:
    """Raises UserError for options that do not go together, before any work."""
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    if path is not None:
        check_table(path)
    if page is not None:
        check_page(page, path)
    if cluster is not None and workers is None:
        raise UserError("`cluster` says where workers run; say with `workers` how many")
    if workers is not None and approximate:
        raise UserError("an approximate ranking runs in one process; leave out `workers` or `approximate`")


def _query_tower(model: str, store: Store, asked: str | None) -> tuple[str, Bundle, Towers | None]:
    """The tower that reads queries: its name, itself, and the model of pairs, where scores are those of pairs.

    Raises UserError where the store is another model's, or there is no tower of the name.
    """
    if fingerprint_of(model) != store.about.weights:
        raise UserError(
            f"{store.folder}: was made by another model ({store.about.model}) than {model}; their vectors cannot be "
            "compared. Name that model, or index the library with this one"
        )
    if not is_towers(model):
        if asked not in (None, ALONE):
            raise UserError(f"{model}: is no folder of towers, and has no tower {asked!r}")
        return ALONE, load(model), None
    towers = load_towers(model)
    others = [name for name in towers.towers if name != store.about.tower]
    name = asked or (others[0] if others else store.about.tower)
    if name not in towers.towers:
        raise UserError(f"{model}: there is no tower {name!r}; say with `tower`: {' or '.join(towers.towers)}")
    paired = name != store.about.tower or name == SHARED
    return name, towers.towers[name], towers if paired else None


def _hint(towers: Towers | None, name: str) -> str:
    """What may be wrong where queries are none that the tower reads."""
    others = [] if towers is None else [other for other in towers.towers if other != name]
    return f" (queries are read by the tower {name}; --tower {others[0]} reads the other kind)" if others else ""


def _is_first(towers: Towers | None, name: str) -> bool:
    return towers is None or name == next(iter(towers.towers))


def _read(
    data: str | list[str], options: ReadOptions, reading: Reading, reader: TowerReader, account: Account,
    path: Path | None, hint: str,
) -> _Queries:  # fmt: skip
    """All queries. Raises UserError, with the hint, where there is none, or one that the tower has no tokens for."""
    sources = expand(data, options)
    if path is not None:
        check_no_input(path, [source.name for source in sources])
    queries = _Queries()
    try:
        for record, letters in clean(sources, options, reading, account, alphabet=cast(Any, reader.alphabet)):
            try:
                reader.alphabet.encode(letters)
            except AlphabetError as error:
                raise UserError(f"{record.where} ({record.id}): {error}") from error
            queries.ids.append(record.id or f"query {len(queries.ids) + 1}")
            queries.letters.append(letters)
        if not queries.ids:
            raise UserError(f"there is no query; dropped: {account.dropped}")
    except UserError as error:
        raise UserError(f"{error}{hint}") from error
    return queries


def _embed(model: str, reader: TowerReader, queries: _Queries) -> np.ndarray:
    found_QP = reader.embed([reader.alphabet.encode(letters) for letters in queries.letters])
    try:
        check_unit(found_QP)
    except ValueError as error:
        raise UserError(f"{model}: this model gives vectors without a direction ({error}); it is damaged") from error
    return found_QP


def _how(
    store: Store, approximate: bool, workers: int | None, console: Console
) -> Callable[[np.ndarray, int], Ranking]:
    if approximate:
        search = faiss_search.Approximate(store, lambda line: console.print(line, highlight=False, markup=False))
        console.print(f"approximate: {search.looked_at} are looked into", highlight=False)
        return search.rank
    return lambda queries_QP, top: exact_search.rank(store, queries_QP, top)


def _on_ray(store: Store, queries_QP: np.ndarray, top: int, workers: int, cluster: str | None) -> Ranking:
    with ray_cluster.connect(workers, cluster, "cpu") as connection:
        return rank_on(store, queries_QP, top, connection)


def _recall(store: Store, queries_QP: np.ndarray, ranking: Ranking, top: int) -> float:
    """Of an approximate ranking, on queries from all over."""
    which = np.unique(np.linspace(0, len(queries_QP) - 1, _SAMPLE).astype(np.int64))
    expected = exact_search.rank(store, queries_QP[which], top)
    found = Ranking(ranking.numbers[which], ranking.scores[which])
    return float(faiss_search.recall(found, expected).mean())


def _known(
    known: str | list[str], pairs: PairConfig, kind: SequenceKind, store: Store, towers: Towers | None, name: str,
    console: Console,
) -> dict[bytes, list[bytes]]:  # fmt: skip
    """Known binders by query; says what of the table is of no use, and where nothing says what binds.

    Raises UserError where the pairs are not of what asks and what answers.
    """
    both = towers is None or name == SHARED
    first = both or _is_first(towers, name)
    kinds = (kind, store.about.kind) if first else (store.about.kind, kind)
    if (pairs.kind_a, pairs.kind_b) != kinds:
        raise UserError(
            f"pairs.kind_a is {pairs.kind_a} and pairs.kind_b {pairs.kind_b}, but here pairs are of {kinds[0]} and "
            f"{kinds[1]}; known binders are read of the same kinds"
        )
    found = read_pairs(known, pairs)
    if (found.label != 0).all():
        console.print(
            "every pair of `known` counts as one that binds: say with pairs.binds_from, or pairs.label, which do",
            style="yellow", highlight=False,
        )  # fmt: skip
    for account in found.accounts:
        for reason, count in account.dropped.items():
            console.print(f"known: dropped ({reason}): {count:,}", highlight=False, markup=False)
    return binders(found, (True, False) if both else (first,))


def _letters_name(store: Store) -> str:
    return "smiles" if store.about.kind == "molecule" else "sequence"


def _row(query: str, hit: Hit, store: Store, towers: Towers | None, known: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "query": query, "rank": hit.rank, "id": hit.id, _letters_name(store): hit.letters, "score": hit.score,
    }  # fmt: skip
    if hit.affinity is not None and towers is not None:
        row[f"affinity ({towers.answers.unit})"] = hit.affinity
    if hit.probability is not None:
        row["probability"] = hit.probability
    if known:
        row |= {"nearest known": hit.known, "similarity": hit.similarity}
    return row


def _write_page(
    page: Path, model: str, index: str, store: Store, name: str, asked: list[Asked], towers: Towers | None, took: str,
    recall: float | None,
) -> None:  # fmt: skip
    likeness = likeness_of(cast(SequenceKind, store.about.kind))
    facts = {
        "model": model, "library": index, "rows": f"{store.count:,}", "queries": f"{len(asked):,}",
        "towers": f"{name} asks, {store.about.tower} answers",
        "ranking": "exact" if recall is None else f"approximate, recall {recall:.4f}",
    }  # fmt: skip
    unit = "" if towers is None else towers.answers.unit
    if towers is not None and unit and towers.answers.deviation is not None:
        facts["affinity"] = f"{unit}, off by {towers.answers.deviation:.2f} on validation pairs (root mean square)"
    if towers is not None and towers.answers.probability is not None:
        facts["probability"] = f"of: {towers.answers.binds}" if towers.answers.binds else "that a pair binds"
    screen_report.write_page(
        page, title=f"Screen: {took.partition(';')[0]}", facts=facts, asked=asked,
        molecules=store.about.kind == "molecule", unit=unit, measure=likeness.measure if likeness else "",
    )  # fmt: skip
