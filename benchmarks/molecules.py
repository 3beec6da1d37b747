"""SMILES to tokens: molecules a second, on all cores and by peers in one process; and whether they come back.

Speed: the same SMILES, as they stand in public files, go through what `biometro prepare` does with them (read by RDKit,
policies, canonical SMILES, SELFIES, one number a symbol), through plain selfies (encoder and split_selfies, which reads
no molecule and makes nothing canonical), and through RDKit alone. Processes have started and nothing is remembered from
one round to the next.

--round-trip asks of every distinct SMILES of the data whether canonical SMILES -> SELFIES -> canonical SMILES is the
same text, and names the cause where it is not. What RDKit cannot read is counted and is no molecule.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pyarrow.parquet as pq

import common
from biometro.alphabet import MoleculePolicy, Reading, molecule
from biometro.alphabet.molecule import (
    Growing,
    NoSelfiesError,
    canonical,
    chem,
    from_selfies,
    parse,
    smiles_tokens,
    to_selfies,
)
from biometro.processes import Processes

FOLDERS = ("molecules", "moleculenet", "affinity")
COLUMNS = ("smiles", "mol", "Drug")
CHUNK = 500  # molecules to a task
MUST, AIM = 0.999, 0.9999


class Convert:
    """SMILES -> tokens, as the reading of a corpus does it; gives the number of tokens. Runs in a process."""

    def __init__(self) -> None:
        self.alphabet = Growing("selfies")
        self.clean = Reading("molecule", molecules=MoleculePolicy()).cleaner(self.alphabet)

    def __call__(self, smiles: list[bytes]) -> int:
        molecule._encode_selfies.cache_clear()  # another round brings the same molecules
        found = [self.clean(one).letters for one in smiles]
        return sum(len(self.alphabet.encode_bytes(letters)) // 2 for letters in found if letters)

    def finish(self) -> None:
        return None


class Trip(NamedTuple):
    """What became of some molecules of a file."""

    file: str
    counts: Counter[str]
    failures: list[tuple[str, str, str, str]]  # cause, SMILES, letters, what came back


class Judge:
    """SMILES -> SELFIES -> SMILES. Runs in a process."""

    def __call__(self, task: tuple[str, list[str]]) -> Trip:
        file, texts = task
        trip = Trip(file, Counter(), [])
        for text in texts:
            cause, letters, back = judge(text)
            trip.counts[cause] += 1
            if cause:
                trip.failures.append((cause, text, letters, back))
        return trip

    def finish(self) -> None:
        return None


def judge(text: str) -> tuple[str, str, str]:
    """Cause ("" where all is well), canonical SMILES, and what comes back of it."""
    mol = parse(text)
    if mol is None:
        return f"unread: {why_unread(text)}", "", ""
    letters = canonical(mol)
    if "".join(smiles_tokens(letters)) != letters:
        return "SMILES tokens differ", letters, ""
    try:
        back = from_selfies(to_selfies(letters.encode()))
    except NoSelfiesError as error:
        return f"SELFIES refuses: {str(error).split(':')[0]}", letters, ""
    if back == letters:
        return "", letters, back
    return difference(letters, back), letters, back


def why_unread(text: str) -> str:
    """What RDKit has against a SMILES."""
    Chem = chem()
    if len(text) > molecule.LONGEST_SMILES:
        return "too long"
    mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None:
        return "no SMILES"
    problems = Chem.DetectChemistryProblems(mol)
    return problems[0].GetType() if problems else "empty" if not mol.GetNumAtoms() else "other"


def difference(letters: str, back: str) -> str:
    """In what the two molecules differ."""
    Chem = chem()
    ours, theirs = parse(letters), parse(back, 2 * molecule.LONGEST_SMILES)
    if canonical(ours) != letters:
        return "RDKit: canonical SMILES, read again, are others"
    if theirs is None:
        return "nothing comes back"
    if canonical(theirs) == canonical(parse(canonical(theirs))) == letters:
        return "RDKit: canonical SMILES, read again, are others"
    flat = [Chem.MolToSmiles(mol, isomericSmiles=False) for mol in (ours, theirs)]
    if flat[0] == flat[1]:
        same = ours.HasSubstructMatch(theirs, useChirality=True) and theirs.HasSubstructMatch(ours, useChirality=True)
        return "RDKit: two canonical SMILES of one molecule" if same else "differs: stereo"
    for name, value in (
        ("atoms", lambda mol: sorted(atom.GetSymbol() for atom in mol.GetAtoms())),
        ("charge", lambda mol: sorted(atom.GetFormalCharge() for atom in mol.GetAtoms())),
        ("hydrogens", lambda mol: sorted(atom.GetTotalNumHs() for atom in mol.GetAtoms())),
        ("rings", lambda mol: mol.GetRingInfo().NumRings()),
    ):
        if value(ours) != value(theirs):
            return f"differs: {name}"
    return "differs: bonds"


# Data ------------------------------------------------------------------------------------------------------------


def files(data: Path) -> list[tuple[str, Path, str]]:
    """Name, path and column of every table of molecules."""
    found = []
    for path in [path for folder in FOLDERS for path in sorted((data / folder).glob("*.parquet"))]:
        columns = pq.ParquetFile(path).schema_arrow.names
        column = next((name for name in COLUMNS if name in columns), None)
        if column is not None:
            found.append((f"{path.parent.name}/{path.stem}", path, column))
    return found


def smiles_of(path: Path, column: str) -> Iterator[str]:
    for batch in pq.ParquetFile(path).iter_batches(1 << 16, columns=[column]):
        yield from filter(None, batch.column(0).to_pylist())


def sample(data: Path, count: int, seed: int) -> list[bytes]:
    """SMILES of all files in proportion, in random order."""
    draw, kept = random.Random(seed), []
    for number, text in enumerate(text for _, path, column in files(data) for text in smiles_of(path, column)):
        place = number if number < count else draw.randrange(number + 1)
        if place < count:
            kept[place:place + 1] = [text.encode()]  # fmt: skip
    draw.shuffle(kept)
    return kept


def tasks(data: Path, each: int | None, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Distinct SMILES, file by file: of each all, or so many at random."""
    seen: set[bytes] = set()
    for name, path, column in files(data):
        found: Iterator[str] = smiles_of(path, column)
        if each is not None:
            distinct = sorted(set(found))
            found = iter(random.Random(seed).sample(distinct, min(each, len(distinct))))
        while chunk := list(islice(found, CHUNK)):
            digests = {hashlib.blake2b(text.encode(), digest_size=8).digest(): text for text in chunk}
            fresh = [text for digest, text in digests.items() if digest not in seen]
            seen.update(digests)
            if fresh:
                yield name, fresh


# Tables ----------------------------------------------------------------------------------------------------------


def round_trip(options: argparse.Namespace) -> None:
    began, by_file, causes = time.perf_counter(), {}, Counter()
    with ExitStack() as stack:
        rows: Any = None
        if options.failures:
            rows = csv.writer(stack.enter_context(Path(options.failures).open("w", newline="", encoding="utf-8")))
            rows.writerow(("file", "cause", "smiles", "canonical", "back"))
        processes = stack.enter_context(Processes([Judge] * options.threads))
        last = began
        for trip in processes.run(tasks(options.data, options.each, options.seed), ahead=64 * options.threads):
            by_file.setdefault(trip.file, Counter()).update(trip.counts)
            causes.update(trip.counts)
            for cause, *texts in trip.failures if rows else ():
                rows.writerow((trip.file, cause, *texts))
            if time.perf_counter() - last > 60:
                last = time.perf_counter()
                print(f"{last - began:,.0f} s: {sum(causes.values()):,} SMILES, at {trip.file}; "
                      f"{share(causes):.4%} of molecules", file=sys.stderr, flush=True)  # fmt: skip
    seconds, total = time.perf_counter() - began, sum(causes.values())
    table = [
        [
            name,
            f"{sum(c.values()):,}",
            f"{unread(c):,}",
            f"{sum(c.values()) - unread(c):,}",
            f"{c['']:,}",
            f"{share(c):.4%}",
        ]
        for name, c in [*by_file.items(), ("all", causes)]
    ]
    header = ["", "distinct SMILES", "unread by RDKit", "molecules", "equal", "share"]
    common.print_table("SMILES -> SELFIES -> SMILES, equal in canonical form", header, table)
    print(f"\n{common.verdict(share(causes), MUST, AIM)}\n")
    found = sorted(((n, cause) for cause, n in causes.items() if cause), reverse=True)
    common.print_table("What is not equal, by cause", ["", "molecules"], [[cause, f"{n:,}"] for n, cause in found])
    print_machine(options, f"{total / seconds:,.0f} SMILES/s there and back")


def unread(counts: Counter[str]) -> int:
    return sum(number for cause, number in counts.items() if cause.startswith("unread"))


def share(counts: Counter[str]) -> float:
    """Of the molecules, how many come back the same."""
    return counts[""] / max(1, sum(counts.values()) - unread(counts))


def speed(options: argparse.Namespace) -> None:
    import selfies

    Chem = chem()
    smiles = sample(options.data, options.count, options.seed)
    texts = [one.decode() for one in smiles]
    chunks = [smiles[i : i + CHUNK] for i in range(0, len(smiles), CHUNK)]

    def plain() -> int:
        selfies.set_semantic_constraints("default")
        return sum(map(encoded, texts))

    def encoded(text: str) -> int:
        try:
            return len(list(selfies.split_selfies(selfies.encoder(text))))
        except selfies.EncoderError:
            return 0

    def canonical_only() -> int:
        return sum(1 for text in texts if (mol := Chem.MolFromSmiles(text)) is not None and Chem.MolToSmiles(mol))

    def both() -> int:
        selfies.set_semantic_constraints("default")
        found = (Chem.MolToSmiles(mol) for text in texts if (mol := Chem.MolFromSmiles(text)) is not None)
        return sum(map(encoded, found))

    many = f"biometro, {options.threads} processes"
    with Processes([Convert] * options.threads) as all_cores, Processes([Convert]) as one:
        contenders = {
            many: partial(run, all_cores, chunks),
            "biometro, 1 process": partial(run, one, chunks),
            "selfies": plain,
            "RDKit, canonical SMILES": canonical_only,
            "RDKit and selfies": both,
        }
        for processes, size in ((all_cores, options.threads), (one, 1)):
            run(processes, [smiles[:CHUNK]] * 2 * size)  # so that libraries are loaded
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        results, shuffle = {}, random.Random(options.seed)
        for _ in range(options.rounds):
            for name in shuffle.sample(list(contenders), len(contenders)):
                began = time.perf_counter()
                results[name] = contenders[name]()
                seconds[name].append(time.perf_counter() - began)
    rows = []
    for name in contenders:
        ratios = [theirs / ours for theirs, ours in zip(seconds["selfies"], seconds[name], strict=True)]
        rates = [len(texts) / each for each in seconds[name]]
        rows.append([name, f"{median(rates):,.0f}", common.spread(ratios), f"{results[name]:,}"])
    header = ["", "molecules/s", "ratio to selfies", "tokens (RDKit: molecules)"]
    common.print_table(f"{len(texts):,} SMILES to tokens, {options.rounds} rounds", header, rows)
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    print_machine(options, f"load of the machine {load}; seed {options.seed}")


def run(processes: Processes, chunks: list[list[bytes]]) -> int:
    return sum(processes.run(chunks))


def print_machine(options: argparse.Namespace, what: str) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("biometro", "rdkit", "selfies"))
    print(f"\n{what}; {common.processor()}, {options.threads} of {os.cpu_count()} cores; Python "
          f"{platform.python_version()}, {versions}; {time.strftime('%Y-%m-%d %H:%M %Z')}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=common.DATA, help="folder with " + ", ".join(FOLDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--count", type=int, default=10_000, help="SMILES of the speed test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round-trip", action="store_true", help="of all distinct SMILES of the data")
    parser.add_argument("--each", type=int, help="in the round trip, at most so many of each file")
    parser.add_argument("--failures", help="CSV to write what is not equal to, with its cause")
    arguments = parser.parse_args()
    (round_trip if arguments.round_trip else speed)(arguments)


if __name__ == "__main__":
    import molecules  # under a name that worker processes can find

    molecules.main()
