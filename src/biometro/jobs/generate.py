"""`biometro generate`: a wild type and a model -> new variants, and how they compare with mutants by chance.

wild type, options ─▶ Space ─▶ samplers ─▶ distinct variants ─▶ scores ─▶ FASTA or a table
                                  controls drawn alike ──────────┴─▶ figures ─▶ page
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from biometro.alphabet import Reading, SequenceKind
from biometro.alphabet.kinds import kind_of
from biometro.alphabet.molecule import MoleculeAlphabet
from biometro.data.alignment import read_alignment
from biometro.data.intake import Account, clean
from biometro.data.rows import Rows, check_no_input, check_page, check_table, table_writer
from biometro.data.sources import ReadOptions, expand
from biometro.data.wildtype import read_wildtype
from biometro.device import pick_device
from biometro.errors import UserError
from biometro.evaluation import generation
from biometro.evaluation.generation_report import write_page
from biometro.files import write_file
from biometro.inference.generate import Generated, Sampling
from biometro.inference.generate import generate as sample
from biometro.inference.likelihood import Likelihood
from biometro.inference.space import Space, encode, space_of
from biometro.jobs.generate_molecules import generate_molecules
from biometro.model.load import load

_FASTA = (".fasta", ".fa", ".faa")
_SMILES = (".smi",)


@dataclass(frozen=True)
class Variants:
    """What `generate` leaves: a row for each variant or molecule, figures by group and name, and the file if written.

    note: why there are fewer than wanted; empty where there are not.
    """

    rows: Rows
    figures: dict[str, dict[str, float]]
    out: Path | None
    note: str


def generate(
    model: str,
    wildtype: str | None = None,
    out: str | None = None,
    count: int = 100,
    mutations: int | str | None = None,
    identity: float | None = None,
    sampling: Sampling = Sampling(),
    fixed: str = "",
    exclude: str = "",
    exclude_at: str = "",
    first: int = 1,
    known: str | list[str] | None = None,
    alignment: str | None = None,
    report: str | None = None,
    seed: int = 0,
    base: str | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
) -> Variants:
    """Generate variants of a wild type at a set number of mutations, or new molecules; all distinct.

    Of proteins, antibodies and T-cell receptors: substitutions only; marks between chains stay, and count as positions.

    One sequence is enough (the One-N setting of Ankh, Elnaggar et al. 2023, arXiv 2301.06568); a family's alignment
    (High-N) is not sampled from, but says how far the variants agree with it. With the same seed, a smaller count
    gives the first of a larger one. Columns: id, sequence, mutations (A24G:K30R), count, identity (to the wild type),
    score (masked marginals: the sum over mutations of log p(mutant) - log p(wild type), all mutated places of the wild
    type masked, in nats; read by a METRO model's auxiliary), and, of METRO models, detector (mean logit of "replaced"
    at mutated places). In FASTA they stand in the header.

    A model of molecules makes analogues of a start (`wildtype`, of which `mutations` tokens are replaced), or without
    one molecules of lengths as in its corpus, from masks. Columns: id, smiles (canonical), drawn (the tokens that were
    drawn), score (the mean log-probability of a token given the others, of the canonical molecule, in nats), and
    similarity to the start (Tanimoto, ECFP4). `inference/molecules.py` has the sampling.

    Args:
        model: folder of a model with a head over tokens: what `pretrain` leaves, or ESM-2.
        wildtype: the sequence itself (capital letters; a SMILES), or a file with one. Only molecules can do without.
        out: file to write: .fasta (molecules: .smi), .csv, .tsv or .parquet. From Python it may be left out; rows are
            returned.
        count: variants or molecules wanted. If there are fewer, or no more are found, that is said.
        mutations: how many, or a range as in 3-8, of which each variant draws one, uniformly.
        identity: to the wild type, as a share, instead of mutations.
        sampling: how variants are drawn.
        fixed: positions that stay, as in 1-10,45.
        exclude: residues that are never put in, as in CM; those of the wild type stay.
        exclude_at: the same for some positions, as in 24:CP,30-35:G.
        first: number of the wild type's first residue, in all options and in what is written.
        known: files of sequences that are not new: novelty is told against these, and against the alignment; of
            molecules also against the model's corpus where it is at hand. Without that, new molecules have the lengths
            of these.
        alignment: of the family, in aligned FASTA, a2m or a3m.
        report: HTML page to write.
        seed: of all draws.
        base: folder of the base model, where an adapter's is no longer where it was.
        precision: of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        device: auto, cpu, cuda, cuda:1, ...
        batch_tokens: tokens read at once; more takes more memory and does not change results.

    Figures of the variants stand beside those of random mutants, BLOSUM62-weighted mutants and, with an alignment,
    mutants drawn from its columns, all with as many mutations; those of molecules beside random symbols. Raises
    UserError for a model that cannot sample so, a wild type that cannot be read, and options that no variant fits.
    """
    path, page = (None if name is None else Path(name) for name in (out, report))
    bundle = load(model, base)
    molecules = isinstance(bundle.alphabet, MoleculeAlphabet)
    if path is not None:
        check_table(path, _SMILES if molecules else _FASTA)
    if page is not None:
        check_page(page, path)
    for output in filter(None, (path, page)):
        check_no_input(output, [*_list(wildtype), *_list(known), *_list(alignment)])
    likelihood = Likelihood(
        bundle, device=pick_device(device), precision=precision, batch_tokens=batch_tokens, tokens=molecules
    )
    console = Console(stderr=True, quiet=path is None)
    bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
    task = bar.add_task("generating")

    def say(found: int, of: int) -> None:
        bar.start()  # not before: mistakes in the options are one line
        bar.update(task, description=f"{found:,} of {of:,}")

    try:
        if molecules:
            _only_residues(fixed=fixed, exclude=exclude, exclude_at=exclude_at, alignment=alignment)
            rows, found, note = generate_molecules(
                likelihood, model, wildtype, count, mutations, identity, sampling, _list(known), page, seed, say
            )
        else:
            if wildtype is None:
                raise UserError(f"{model}: reads residues, and makes variants of a wild type; give wildtype")
            name, text = read_wildtype(wildtype, Reading(kind := kind_of(likelihood.alphabet, None, model)))
            space = space_of(text.encode(), mutations, identity, fixed, exclude, exclude_at, first)
            rows, found, note = _variants(
                likelihood, model, name, space, count, sampling, _sequences(_list(known), kind), alignment, page, seed,
                say,
            )  # fmt: skip
    finally:
        if bar.live.is_started:
            bar.stop()
    if path is not None:
        _write(path, rows)
        unit = "molecules" if molecules else "variants"
        console.print(f"{len(rows):,} {unit} -> {path}", highlight=False, soft_wrap=True)
    if page is not None:
        console.print(f"report -> {page}", highlight=False, soft_wrap=True)
    if note:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return Variants(rows, found, path, note)


def _only_residues(**options: str | None) -> None:
    """Raises UserError for an option that is about residues."""
    for name, value in options.items():
        if value:
            raise UserError(f"{name} is about residues, and this model reads molecules; leave it out")


def _variants(
    likelihood: Likelihood,
    model: str,
    name: str,
    space: Space,
    count: int,
    sampling: Sampling,
    known: Sequence[bytes],
    alignment: str | None,
    page: Path | None,
    seed: int,
    say: Callable[[int, int], None],
) -> tuple[Rows, dict[str, dict[str, float]], str]:
    """Rows, figures by group and name, and why there are fewer rows than wanted; writes the page."""
    name = name or "the given sequence"
    family = None if alignment is None else read_alignment(alignment, space.wildtype.decode())
    made = sample(likelihood, space, count, sampling, seed, say)
    if not made.sequences:
        raise UserError(f"no variant was found; {made.note}")
    groups = [
        generation.group(generation.GENERATED, likelihood, space, made.sequences),
        *generation.controls(likelihood, space, made.sequences, seed, family),
    ]
    found = {one.name: generation.figures(one, space, known, family) for one in groups}
    if page is not None:
        facts = _facts(model, name, space, sampling, made, seed)
        if family is not None:
            facts["alignment"] = (
                f"{len(family.rows):,} of {family.found:,} sequences, as good as {family.effective:,.0f} that differ"
            )
        write_page(
            page, title=f"Variants of {name}", facts=facts, space=space, groups=groups, found=found, note=made.note,
            conservation=None if family is None else family.conservation(),
        )  # fmt: skip
    return _rows(groups[0], space), found, made.note


def _list(names: str | list[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else names


def _sequences(names: Sequence[str], kind: SequenceKind) -> list[bytes]:
    options = ReadOptions(kind=kind)
    found = clean(expand(list(names), options), options, Reading(kind), Account()) if names else ()
    return [letters for _, letters in found]


def _rows(one: generation.Group, space: Space) -> Rows:
    rows: Rows = []
    for n, (variant, score) in enumerate(zip(one.variants, one.scores.tolist(), strict=True)):
        same_L = encode(variant) == space.codes
        row: dict[str, Any] = {
            "id": f"variant-{n + 1}",
            "sequence": variant.decode(),
            "mutations": space.names(variant),
            "count": int((~same_L).sum()),
            "identity": float(same_L.mean()),
            "score": score,
        }
        rows.append(row if one.logits is None else row | {"detector": float(one.logits[n])})
    return rows


def _write(path: Path, rows: Rows) -> None:
    if path.suffix in _SMILES:
        write_file(path, "".join(f"{row['smiles']} {row['id']}\n" for row in rows))
        return
    if path.suffix not in _FASTA:
        with table_writer(path, []) as write:
            write(rows)
        return
    lines = []
    for row in rows:
        told = " ".join(
            f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in row.items() if name not in ("id", "sequence")
        )  # fmt: skip
        lines.append(f">{row['id']} {told}\n{row['sequence']}\n")
    write_file(path, "".join(lines))


def _facts(model: str, name: str, space: Space, sampling: Sampling, made: Generated, seed: int) -> dict[str, str]:
    least, most = space.least, space.most
    facts = {
        "model": model,
        "wild type": f"{name}, {len(space.wildtype):,} residues",
        "mutations": str(most) if least == most else f"{least} to {most}",
        "free positions": f"{len(space.free):,}",
        "candidates drawn": f"{made.drawn:,}",
        "seed": str(seed),
    }
    facts |= sampling.told()
    return facts if math.isnan(made.accepted) else facts | {"proposals accepted": f"{made.accepted:.3f}"}
