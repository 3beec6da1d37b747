"""`biometro score`: a wild type, variants and a model -> how fit each variant is, by one method or several.

wild type, variants ─▶ Scorer (inference/variants.py) ─▶ scores ─▶ rows in input order ─▶ a table, a page
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from biometro.alphabet import Reading
from biometro.alphabet.kinds import kind_of
from biometro.data.intake import Account
from biometro.data.rows import check_no_input, check_page, check_table, table_writer
from biometro.data.variants import Variant, VariantOptions, read_variants
from biometro.data.wildtype import read_wildtype
from biometro.device import pick_device
from biometro.errors import UserError
from biometro.evaluation.variant_report import Scored, write_variant_report
from biometro.inference.likelihood import Likelihood, Part
from biometro.inference.variants import FEWEST, METHODS, Scorer, average, can_score, chosen, rank_correlation
from biometro.model.load import load

_CHUNK = 4096  # rows written at once


def score(
    model: str,
    wildtype: str,
    data: str | list[str] = "singles",
    out: str | None = None,
    method: str | list[str] = "auto",
    variants: VariantOptions = VariantOptions(),
    measured: str | None = None,
    report: str | None = None,
    part: Part = "auto",
    long: Literal["window", "full"] = "window",
    max_length: int = 1022,
    check: int = 20_000,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
) -> Scored:
    """Say how fit variants of a protein or receptor are, from what a language model holds for likely; higher is fitter.

    Methods: wildtype, masked and mutant marginals, pll (pseudo-log-likelihood), pll_fast (the same from one pass), clm
    and rtd (METRO models only), average (of the ranks of the others). inference/variants.py has each one's formula and
    source. What stands for another, exact one is called an approximation, and how far its ranks agree is told.

    Args:
        model: model folder of biometro, Hugging Face folder of ESM-2, or fair-esm checkpoint (.pt).
        wildtype: letters, or a FASTA file of one record. Of an antibody or T-cell receptor with its marks (heavy|light,
            alpha|beta:peptide@MHC), which count as positions and never change.
        data: variants: texts such as A24G, A24G:K30R, p.Ala24Gly or p.Ala24_Lys30del; files of these (one a line, or
            tables such as ProteinGym's), FASTA files of sequences; or singles, all variants of one substitution.
        out: table to write: .csv, .tsv or .parquet. From Python it may be left out; the scores are returned.
        method: one or several; auto is clm for METRO models (one pass of the model that is kept) and masked for
            others; all is every method that the model can be asked for, but pll.
        variants: how they are read.
        measured: of tables, the column with a measured score, to compare with.
        report: HTML page to write: heat map, sensitivity along the sequence, distributions.
        part: which of a METRO model's two parts is asked: auto (auxiliary for what is masked, main for all else),
            main or auxiliary.
        long: beyond max_length: window (read the residues around each place) or full (read whole).
        max_length: residues.
        check: letters that may be read, with each approximation, to compare it with the exact method; 0 for none.
        precision: of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        device: auto, cpu, cuda, cuda:1, ...
        batch_tokens: tokens read at once; more takes more memory and does not change results.

    Raises UserError for a model without a head over tokens, a method it cannot be asked for, and variants that do not
    fit the wild type, unless variants.bad drops them.
    """
    path = None if out is None else Path(out)
    page = None if report is None else Path(report)
    if path is not None:
        check_table(path)
    if page is not None:
        check_page(page, path)
    for output in filter(None, (path, page)):
        check_no_input(output, [wildtype, *([data] if isinstance(data, str) else data)])
    if check < 0:
        raise UserError(f"check is {check}; it must be at least 0")
    console = Console(stderr=True, quiet=path is None and page is None)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    )
    likelihood = Likelihood(
        load(model), device=pick_device(device), precision=precision, batch_tokens=batch_tokens, part=part,
        max_length=max_length if long == "window" else None, say=lambda n: bar.advance(bar.tasks[-1].id, n),
    )  # fmt: skip
    name, letters = read_wildtype(wildtype, Reading(kind_of(likelihood.alphabet, None, model)))
    options, account = _with_measured(variants, measured), Account()
    found = read_variants(data, letters, options, account)
    bare = next((variant for variant in found if len(variant.fields) < len(options.fields)), None)
    if bare is not None:
        raise UserError(
            f"{bare.name}: no column {', '.join(options.fields)} beside it; only rows of a table have cells"
        )
    found = _of_one_type(found, len(options.fields))
    scorer = Scorer(likelihood, letters)
    scored = Scored(name, letters, likelihood.letters, options.first, found, options.fields, out=path)
    methods = _methods(method, likelihood)
    _check_fields(options.fields, methods)
    with bar:
        _score(scored, scorer, methods, bar, page is not None)
        _agree(scored, scorer, check)
    if measured is not None:
        _compare(scored, measured)
    if path is not None:
        with table_writer(path, []) as put:
            for start in range(0, len(found), _CHUNK):
                put(scored.rows(start, start + _CHUNK))
    if page is not None:
        facts = {"model": model, "wild type": f"{name or 'letters'}, {len(letters):,} residues"}
        write_variant_report(page, scored, facts | {f"dropped ({r})": f"{n:,}" for r, n in account.dropped.items()})
    _tell(scored, account, console, page)
    return scored


def _score(scored: Scored, scorer: Scorer, methods: Sequence[str], bar: Progress, tables: bool) -> None:
    """Every method's scores and time; tables of all single mutants where they are wanted, or mostly computed anyway."""
    places = {change.start for variant in scored.variants for change in variant.changes}
    tables = tables or 2 * len(places) > len(scored.wildtype)
    for method in methods:
        if method == "average":
            scored.scores[method] = average(list(scored.scores.values()))
            continue
        bar.add_task(method, total=scorer.cost(method, scored.variants))
        began = time.perf_counter()
        scored.scores[method] = scorer.score(method, scored.variants)
        if METHODS[method].table and tables:
            scored.tables[method] = scorer.table(method)
        scored.seconds[method] = time.perf_counter() - began


def _agree(scored: Scored, scorer: Scorer, check: int) -> None:
    """Of every approximation its rank agreement with the exact method: whole where that was asked for, too."""
    for method, score_N in scored.scores.items():
        budget = None if METHODS[method].approximates in scored.scores else check
        agreed = scorer.agreement(method, scored.variants, score_N, budget)
        if agreed is not None:
            scored.agreement[method] = agreed


def _methods(method: str | list[str], likelihood: Likelihood) -> list[str]:
    """The methods to run, `average` last. Raises UserError for one that there is not, or that would average one."""
    asked = [method] if isinstance(method, str) else list(method)
    for name in asked:
        if name not in (*METHODS, "auto", "all"):
            raise UserError(f"there is no method {name!r}; choose from {', '.join(METHODS)}, auto, all")
    wanted = chosen(asked, likelihood)
    if wanted == ["average"]:
        wanted = chosen(["all", "average"], likelihood)
    others = [name for name in wanted if name != "average"]
    if not others:
        raise UserError("method names nothing to score by")
    return [*others, "average"] if "average" in wanted else others


def _check_fields(fields: list[str], methods: list[str]) -> None:
    """Raises UserError for a column of the input that has the name of one that is written: one would be lost."""
    for name in fields:
        if name in ("variant", "mutations", *methods):
            raise UserError(
                f"{name}: the column that comes along has the name of one that is written; give it another name"
            )


def _of_one_type(variants: list[Variant], fields: int) -> list[Variant]:
    """Variants whose cells have one type in each column, as Parquet wants it; text where files disagree."""
    mixed = set()
    for number in range(fields):
        kinds = {type(variant.fields[number]) for variant in variants} - {type(None)}
        if len(kinds) > 1 and not kinds <= {int, float}:
            mixed.add(number)
    if not mixed:
        return variants

    def texts(cells: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(str(c) if n in mixed and c is not None else c for n, c in enumerate(cells))

    return [replace(variant, fields=texts(variant.fields)) for variant in variants]


def _uncompared(scored: Scored, exact: str) -> str:
    """Why an approximation was not compared."""
    if len(scored.variants) < FEWEST:
        return f"fewer than {FEWEST} variants"
    if not can_score(exact, scored.variants):
        return f"{exact} scores substitutions only"
    return "all variants score alike" if exact in scored.scores else "ask for both, or raise check"


def _with_measured(options: VariantOptions, measured: str | None) -> VariantOptions:
    if measured is None:
        return options
    return VariantOptions(**{**vars(options), "fields": [*options.fields, measured]})


def _compare(scored: Scored, measured: str) -> None:
    """Spearman correlation of each method with the measured scores, over the variants that have one."""
    values = []
    for variant in scored.variants:
        cell = variant.fields[-1]
        try:
            values.append(math.nan if cell is None or str(cell).strip() == "" else float(cell))
        except ValueError as error:
            raise UserError(f"{variant.where}: {cell!r} in column {measured!r} is no number") from error
    scored.measured_N = np.array(values)
    for method, score_N in scored.scores.items():
        found = rank_correlation(score_N, scored.measured_N)
        if found is not None:
            scored.measured[method] = found


def _tell(scored: Scored, account: Account, console: Console, page: Path | None) -> None:
    for method, score_N in scored.scores.items():
        text = f"{method} ({METHODS[method].summary}): {len(score_N):,} variants"
        if method in scored.seconds:
            text += f" in {scored.seconds[method]:.1f} s"
        exact = METHODS[method].approximates
        if exact and method in scored.agreement:
            rho, count = scored.agreement[method]
            text += f"; an approximation of {exact}, rank agreement {rho:.3f} over {count:,} variants"
        elif exact:
            text += f"; an approximation of {exact}, not compared ({_uncompared(scored, exact)})"
        if method in scored.measured:
            rho, count = scored.measured[method]
            text += f"; Spearman with what was measured {rho:.3f} over {count:,} variants"
        elif scored.measured_N is not None:
            text += "; not compared with what was measured (fewer than three variants, or all alike)"
        console.print(text, highlight=False, soft_wrap=True)
    for reason, count in account.dropped.items():
        console.print(
            f"dropped ({reason}): {count:,}, first: {'; '.join(account.examples[reason])}", markup=False,
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    for made in (scored.out, page):
        if made is not None:
            console.print(f"-> {made}", highlight=False, soft_wrap=True)
