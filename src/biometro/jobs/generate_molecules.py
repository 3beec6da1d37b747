"""`biometro generate` for a model of molecules: analogues of a start, or new molecules without one.

start, mutations | lengths of the corpus ─▶ candidates ─▶ distinct molecules ─▶ scores ─▶ rows
                                          controls drawn alike, known molecules ┴─▶ figures ─▶ page
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biometro.alphabet import Reading
from biometro.alphabet.molecule import MoleculeAlphabet
from biometro.data.corpus import Corpus
from biometro.data.intake import Account, clean
from biometro.data.rows import Rows
from biometro.data.sources import ReadOptions, Source, expand, table_columns
from biometro.data.wildtype import read_wildtype
from biometro.errors import UserError
from biometro.evaluation import molecule_generation as generation
from biometro.evaluation import overlap
from biometro.evaluation.generation import GENERATED
from biometro.evaluation.molecule_report import write_page
from biometro.inference import molecules
from biometro.inference.generate import Sampling
from biometro.inference.likelihood import Likelihood
from biometro.inference.molecules import Analogues, Drawing, FromMasks, Molecules, Start

_COLUMNS = ("smiles", "SMILES", "sequence")  # of tables of known molecules; the first that is there
_SCORED = 200  # molecules of a control whose scores are compared with


def generate_molecules(
    likelihood: Likelihood,
    model: str,
    wildtype: str | None,
    count: int,
    mutations: int | str | None,
    identity: float | None,
    sampling: Sampling,
    known: Sequence[str],
    page: Path | None,
    seed: int,
    say: Callable[[int, int], None],
) -> tuple[Rows, dict[str, dict[str, float]], str]:
    """Rows, figures by group and name, and why there are fewer rows than wanted; see `generate` for the arguments.

    Raises UserError for a start that cannot be read, options that only a start has, and, without one, where no length
    is known.
    """
    alphabet = likelihood.alphabet
    assert isinstance(alphabet, MoleculeAlphabet)
    molecules.check_sampling(likelihood, count, sampling, seed, start=wildtype is not None)
    corpus = overlap.Corpora().find(overlap.training_of(likelihood.bundle))
    others = _known(known)
    start: Start | None = None
    drawing: Drawing
    name, smiles = "", ""
    if wildtype is not None:
        name, smiles = read_wildtype(wildtype, Reading("molecule"), alphabet)
        start = molecules.start_of(alphabet, smiles.encode(), mutations, identity)
        drawing = Analogues(likelihood, start, sampling)
    elif mutations is not None or identity is not None:
        raise UserError("mutations and identity count from a start; give wildtype, or leave them out")
    else:
        drawing = FromMasks(likelihood, alphabet, _lengths(alphabet, corpus, others, likelihood), sampling)
    made = molecules.collect(drawing, alphabet, count, seed, smiles, say)
    if not made.kept:
        raise UserError(f"no molecule was found; {made.note}")
    kept = [made.smiles[n] for n in made.kept]
    groups = [generation.Group(GENERATED, made.smiles, molecules.scores(likelihood, alphabet, kept))]
    counts = None if corpus is None else corpus.info["splits"]["train"]["token_counts"]
    control, drawn = generation.control(made, alphabet, start, seed, counts)
    groups.append(_scored(generation.Group(control, drawn.smiles), likelihood, alphabet))
    there = _evenly(others) or _of_corpus(corpus)
    if there:
        groups.append(_scored(generation.Group(generation.KNOWN, there), likelihood, alphabet))
    found = {
        one.name: generation.figures(one, others, corpus, smiles, drawn=one.name != generation.KNOWN) for one in groups
    }
    rows = _rows(made, alphabet, groups[0].scores, smiles)
    if page is not None:
        facts = _facts(model, name, smiles, start, sampling, made, corpus, len(others), seed)
        title = f"Analogues of {name or smiles}" if smiles else f"Molecules from {Path(model).name}"
        write_page(page, title=title, facts=facts, groups=groups, found=found, rows=rows, start=smiles, note=made.note)
    return rows, found, made.note


def _known(names: Sequence[str]) -> list[str]:
    """Canonical SMILES of files, each once. Of a table the column smiles, SMILES or sequence is read."""
    reading, found = Reading("molecule"), dict[str, None]()
    for source in expand(list(names), ReadOptions(kind="molecule")) if names else ():
        options = ReadOptions(column=_column(source), kind="molecule")
        found.update((letters.decode(), None) for _, letters in clean([source], options, reading, Account()))
    return list(found)


def _column(source: Source) -> str:
    if source.format not in ("csv", "tsv", "parquet"):
        return "sequence"
    there = table_columns(source)
    return next((name for name in _COLUMNS if name in there), "sequence")


def _evenly(smiles: Sequence[str]) -> list[str]:
    """At most so many as are compared, from the first to the last."""
    size = min(len(smiles), generation.MOST_COMPARED)
    return [smiles[n] for n in np.linspace(0, len(smiles) - 1, size).astype(int)] if size else []


def _of_corpus(corpus: Corpus | None) -> list[str]:
    """Molecules of a corpus' training side: its order is that of digests, so that its first ones are a random draw."""
    if corpus is None:
        return []
    side, alphabet = corpus.split("train"), corpus.alphabet
    assert isinstance(alphabet, MoleculeAlphabet)
    some = (molecules.read(alphabet, side[n]) for n in range(min(len(side), generation.MOST_COMPARED)))
    return [text for text in some if text]


def _lengths(
    alphabet: MoleculeAlphabet, corpus: Corpus | None, known: Sequence[str], likelihood: Likelihood
) -> np.ndarray:
    """(K, 2) int64 lengths in tokens, and how many molecules have each: of the corpus, or of known molecules."""
    if corpus is not None:
        return np.concatenate(corpus.split("train").histograms)
    if known:
        return np.stack(np.unique([len(alphabet.encode(text)) for text in known], return_counts=True), axis=1)
    folder = overlap.training_of(likelihood.bundle).folder
    raise UserError(
        f"how long molecules are is not known: the model's corpus{f' {folder}' if folder else ''} is not at hand; give "
        "known, a file of molecules such as are wanted, or wildtype, a molecule to start from"
    )


def _scored(one: generation.Group, likelihood: Likelihood, alphabet: MoleculeAlphabet) -> generation.Group:
    return dataclasses.replace(one, scores=molecules.scores(likelihood, alphabet, one.distinct[:_SCORED]))


def _rows(made: Molecules, alphabet: MoleculeAlphabet, scores: np.ndarray, start: str) -> Rows:
    kept = [made.smiles[n] for n in made.kept]
    similar = generation.similarities(start, kept).tolist() if start else []
    rows: Rows = []
    for n, number in enumerate(made.kept):
        row: dict[str, Any] = {
            "id": f"molecule-{n + 1}",
            "smiles": kept[n],
            "drawn": alphabet.decode(made.tokens[number]),
        }
        row |= {"score": float(scores[n])}
        rows.append(row | {"similarity": similar[n]} if start else row)
    return rows


def _facts(
    model: str, name: str, smiles: str, start: Start | None, sampling: Sampling, made: Molecules,
    corpus: Corpus | None, known: int, seed: int,
) -> dict[str, str]:  # fmt: skip
    facts = {"model": model}
    if start is not None:
        least, most = start.least, start.most
        facts["start"] = f"{name} {smiles}".strip() + f", {len(start.codes):,} tokens"
        facts["mutations"] = f"{most}" if least == most else f"{least} to {most}"
    facts |= {
        "candidates drawn": f"{len(made.tokens):,}",
        "known molecules": f"{known:,} given" + (", and the model's corpus" if corpus is not None else ""),
        "seed": str(seed),
    }
    facts |= sampling.told(start is not None)
    return facts if math.isnan(made.accepted) else facts | {"proposals accepted": f"{made.accepted:.3f}"}
