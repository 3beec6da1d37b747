"""Alignments against what is written out by hand, Biopython, scipy and plain slow counting."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from Bio import Align, AlignIO
from Bio.Align import substitution_matrices
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from biometro.alphabet import amino_acids
from biometro.alphabet.protein import STANDARD
from biometro.data import families, mmseqs, sequence_weights
from biometro.data.alignment import GAP, OTHER, Alignment, align, read_alignment
from biometro.errors import UserError

LETTERS = STANDARD + "-X"  # by code
BACKGROUND = {residue: amino_acids.BACKGROUND[k] for k, residue in enumerate(amino_acids.ORDER)}


def texts(alignment: Alignment) -> list[str]:
    return ["".join(LETTERS[code] for code in row) for row in alignment.rows.tolist()]


def written(folder: Path, text: str, name: str = "x.a3m") -> str:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def random_rows(seed: int, count: int, length: int, change: float) -> np.ndarray:
    """Descendants of four ancestors with gaps and other letters; one row without any residue, one fragment."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 20, (4, length))[random.integers(0, 4, count)]
    rows = np.where(random.random(rows.shape) < change, random.integers(0, 22, rows.shape), rows)
    rows[1], rows[2, length // 3 :] = GAP, GAP
    return rows.astype(np.uint8)


def slow_weights(rows: np.ndarray, identity: float) -> list[float]:
    weights = []
    for row in rows.tolist():
        own = [k for k, code in enumerate(row) if code < 20]
        alike = [sum(other[k] == row[k] for k in own) >= identity * len(own) - 1e-9 for other in rows.tolist()]
        weights.append(1 / sum(alike) if own else 0.0)
    return weights


# ---- files


def test_columns_are_the_querys_residues(tmp_path: Path) -> None:
    text = "#5\t1\n>q of 5\nMK-TaY\n>insertions\ngMR-T.Yqq\n>broken\nMk\nRWT\nY\n>gaps\n--AXY\n>stop\nMK-T*\n"
    for name in ("x.a3m", "x.a2m", "x.fasta", "x.a3m.gz"):
        found = read_alignment(written(tmp_path, text, name))
        assert found.query == "MKTAY"
        assert texts(found) == ["MKTAY", "MRT-Y", "MRT-Y", "--X-Y", "MKT-X"]
        assert found.covered is not None and found.covered.tolist() == [True, True, True, False, True]
        assert found.found == 5 and found.rows.dtype == np.uint8


def test_a_part_of_the_wild_type_is_placed(tmp_path: Path) -> None:
    found = read_alignment(written(tmp_path, ">q/3-6\nMKtA\n>b\nM-A\n>c\nRKA\n"), "ggMKTAGG")
    assert found.query == "GGMKTAGG"
    assert texts(found) == ["GGMKTAGG", "--M--A--", "--RK-A--"]
    assert found.covered is not None and np.flatnonzero(found.covered).tolist() == [2, 3, 5]
    outside = found.frequencies()[[0, 1, 4, 6, 7]]
    assert np.array_equal(outside, np.tile([BACKGROUND[r] for r in STANDARD], (5, 1)))
    assert np.isnan(found.conservation()).tolist() == [True, True, False, False, True, False, True, True]
    assert found.weights.tolist() == slow_weights(found.rows[:, found.covered], 0.8)


def test_a_query_that_is_not_the_first_record_is_put_first(tmp_path: Path) -> None:
    path = written(tmp_path, ">a\nMRTA-\n>b\nMK-AY\n>c\nM-TAY\n")
    found = read_alignment(path, "MKAY")
    assert texts(found) == ["MKAY", "MRA-", "M-AY"] and found.covered is None


def test_a_long_alignment_is_thinned_evenly(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sequences = ["".join(random.choice(list(STANDARD), 12)) for _ in range(1000)]
    path = written(tmp_path, "".join(f">{i}\n{s}\n" for i, s in enumerate(sequences)))
    found = read_alignment(path, most=50)
    places = [sequences.index(text) for text in texts(found)]
    assert found.found == 1000 and len(places) == 50 and places[0] == 0
    assert np.diff(places[1:]).min() >= 10 and np.diff(places[1:]).max() <= 40
    assert len(read_alignment(path, most=1).rows) == 1
    assert texts(read_alignment(path, most=1000)) == sequences


def test_rows_that_cover_too_little_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, ">q\nMK-TA\n>half\nM-WT-\n>less\n--WT-\n>none\n-----\n")
    assert texts(read_alignment(path, coverage=0.5)) == ["MKTA", "M-T-"]
    everything = read_alignment(path)
    assert len(everything.rows) == 4 and everything.weights[3] == 0


def test_plain_aligned_fasta_is_what_biopython_reads(tmp_path: Path) -> None:
    letters = np.array(list(LETTERS))[random_rows(0, 30, 40, 0.3)]
    path = written(tmp_path, "".join(f">{i}\n{''.join(row)}\n" for i, row in enumerate(letters)), "x.fasta")
    reference = AlignIO.read(path, "fasta")
    query = str(reference[0].seq)
    assert "-" in query
    expected = ["".join(str(record.seq)[k] for k, letter in enumerate(query) if letter != "-") for record in reference]
    assert texts(read_alignment(path)) == expected


ROW = st.lists(st.tuples(st.sampled_from(STANDARD + "-"), st.text("acdy", max_size=3)), min_size=6, max_size=6)


@given(rows=st.lists(ROW, min_size=1, max_size=6))
def test_a3m_and_a2m_are_what_biopython_reads(rows: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("x")
    rows[0] = [(a if a != "-" else "M", "") for a, _ in rows[0]]
    a3m = "".join(f">{i}\n{''.join(a + more for a, more in row)}\n" for i, row in enumerate(rows))
    longest = [max(len(row[k][1]) for row in rows) for k in range(6)]
    padded = ["".join(a + more.ljust(longest[k], ".") for k, (a, more) in enumerate(row)) for row in rows]
    a2m = written(folder, "".join(f">{i}\n{row}\n" for i, row in enumerate(padded)), "x.a2m")
    reference = Align.read(a2m, "a2m")
    state = reference.column_annotations["state"]
    expected = ["".join(c for c, s in zip(reference[i], state, strict=True) if s == "D") for i in range(len(rows))]
    assert texts(read_alignment(a2m)) == texts(read_alignment(written(folder, a3m))) == expected


@pytest.mark.parametrize(
    ("text", "query", "message"),
    [
        ("", None, r"x\.a3m, line 1: the file holds no sequence"),
        ("#1\n", None, r"x\.a3m, line 1: the file holds no sequence"),
        ("MKT\n", None, "line 1: this is not FASTA"),
        ("#\n>q\nMKT\n\n>b\nMKTA\n", None, "line 5: 4 columns where the first record has 3"),
        (">q\nMKT\n>b\nM.T\n", None, "line 3: 2 columns where the first record has 3"),
        (">q\nMKT\n>b\nM|T\n", None, "line 4: the character '|' in a sequence"),
        ("#\n>q\nM1T\n", None, "line 3: the character '1' in a sequence"),
        (">q\n---\n>b\nMKT\n", None, "line 1: the query has no letters"),
        (">q\nmkt\n>b\nmkt\n", None, "line 1: the query is in lower case"),
        (
            ">q\nMKT\n",
            "MRT",
            r"no part of the query \(1 of 3 residues differ, the first at 2: K where the query has R\)",
        ),
        (">q\nMKT\n", "MKK", "no other record is all of it"),
        (">q\nMKTAY\n", "MKT", r"no part of the query \(5 and 3 residues\)"),
        (">q\nMKT\n", "AMKTMKTA", "stands in the query twice, from residues 2 and 5"),
        (">q\nMKT\n", "MK-T", "is not a sequence of letters"),
    ],
)
def test_errors_say_what_and_where(text: str, query: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_alignment(written(tmp_path, text), query)


def test_wrong_options_and_names_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, ">q\nMKT\n")
    for options in ({"coverage": 1.5}, {"coverage": float("nan")}, {"most": 0}):
        with pytest.raises(UserError):
            read_alignment(path, **options)  # type: ignore[arg-type]
    for name in (str(tmp_path / "none.a3m"), "MKT", "example:families", str(tmp_path)):
        with pytest.raises(UserError):
            read_alignment(name)
    whole = (tmp_path / "cut.a3m.gz", gzip.compress(b">q\nMKT\n" * 1000))
    whole[0].write_bytes(whole[1][:-20])
    with pytest.raises(UserError, match="truncated"):
        read_alignment(str(whole[0]))


# ---- weights, frequencies, conservation


@pytest.mark.parametrize("identity", [0.8, 0.5, 1.0])
def test_weights_are_those_of_plain_counting(identity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (random_rows(1, 60, 30, 0.1), random_rows(2, 60, 25, 0.02)):
        expected = slow_weights(rows, identity)
        assert expected[1] == 0 and 0 < sum(expected) <= 59
        assert sequence_weights.sequence_weights(rows, identity).tolist() == expected
        monkeypatch.setattr(sequence_weights, "_BLOCK", 7)
        monkeypatch.setattr(sequence_weights, "_CELLS", 100)
        assert sequence_weights.sequence_weights(rows, identity).tolist() == expected


def test_a_fragment_is_like_the_whole_and_not_the_reverse() -> None:
    rows = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, *[GAP] * 6], [0, 1, 2, 3, *[OTHER] * 6]], np.uint8)
    assert sequence_weights.sequence_weights(rows).tolist() == [1, 1 / 3, 1 / 3]
    with pytest.raises(ValueError, match="share"):
        sequence_weights.sequence_weights(rows, 0.0)


@pytest.fixture(scope="module")
def counted() -> Alignment:
    rows = random_rows(3, 40, 20, 0.3)
    rows[:, 7], rows[:, 8] = GAP, OTHER
    covered = np.arange(20) != 5
    weights = np.random.default_rng(0).random(40)
    return Alignment("".join(LETTERS[c] if c != GAP else "A" for c in rows[0]), rows, weights, covered)


@pytest.mark.parametrize("pseudocount", [0.0, 2.5, 10.0])
def test_frequencies_are_those_of_plain_counting(counted: Alignment, pseudocount: float) -> None:
    scores = substitution_matrices.load("BLOSUM62")
    expected = np.zeros((20, 20))
    for column in range(20):
        n = dict.fromkeys(STANDARD, 0.0)
        for row, weight in zip(texts(counted), counted.weights, strict=True):
            if row[column] in n and column != 5:
                n[row[column]] += weight
        total = sum(n.values())
        for k, a in enumerate(STANDARD):
            if total == 0:
                expected[column, k] = BACKGROUND[a]
                continue
            pseudo = 0.0
            for b in STANDARD:
                joint = {c: BACKGROUND[b] * BACKGROUND[c] * 2 ** (scores[b, c] / 2) for c in STANDARD}
                pseudo += n[b] / total * joint[a] / sum(joint.values())
            expected[column, k] = (n[a] + pseudocount * pseudo) / (total + pseudocount)
    found = counted.frequencies(pseudocount)
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert np.allclose(found.sum(1), 1) and (found > 0).all() == (pseudocount > 0)


def test_frequencies_refuse_a_negative_pseudocount(counted: Alignment) -> None:
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="pseudocount"):
            counted.frequencies(wrong)


def test_conservation_is_the_divergence_that_scipy_finds(counted: Alignment) -> None:
    found = counted.conservation()
    background = [BACKGROUND[a] for a in STANDARD]
    for column in range(20):
        if column == 5:
            assert np.isnan(found[column])
            continue
        rows = counted.rows[:, column]
        observed = np.array([counted.weights[rows == k].sum() for k in range(20)])
        if not observed.sum():
            assert found[column] == pytest.approx(0, abs=1e-12)
            continue
        filled = counted.weights[rows != GAP].sum() / counted.weights.sum()
        expected = filled * jensenshannon(observed / observed.sum(), background, base=2) ** 2
        assert found[column] == pytest.approx(expected, rel=1e-9)
    assert counted.effective == pytest.approx(counted.weights.sum())


def test_motifs_of_simulated_families_are_conserved(tmp_path: Path) -> None:
    family = families.simulate(seed=2, families=1, members=64)[0]
    path = written(tmp_path, "".join(f">{i}\n{m}\n" for i, m in enumerate(family.members)), "x.fasta")
    found = read_alignment(path)
    fast = family.rates > np.median(family.rates)
    assert found.conservation()[family.conserved].min() > found.conservation()[fast].mean()
    assert 1 < found.effective <= 64


# ---- searches


def test_a_search_puts_residues_into_their_columns() -> None:
    simulated = families.simulate(seed=0, families=3, members=32)
    query = simulated[0].members[0]
    found = align(query, [member.encode() for family in simulated for member in family.members])
    rows = texts(found)
    assert rows[0] == query and found.covered is None and found.found == len(rows)
    assert len(rows) > 20  # of 32, and itself a second time
    right = total = 0
    for row in rows[1:]:
        # No member has an insertion or a deletion, so a residue in its column is the one of the member there.
        shares = [sum(a == b for a, b in zip(row, member, strict=True)) for member in simulated[0].members]
        right += max(shares)
        total += sum(letter != "-" for letter in row)
        assert sum(letter != "-" for letter in row) >= 0.5 * len(query)
    assert right / total > 0.97
    assert np.allclose(found.weights, slow_weights(found.rows, 0.8))


def test_hits_are_written_by_their_cigars(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [b"MKTAYIAK", b"KTggYIAK", b"AAAA", b"TAYI"]
    hits = mmseqs.Hits(
        np.zeros(5, int), np.array([0, 1, 3, 2, 1]), np.ones(5, np.float32), np.ones(5, np.float32),
        np.array([50, 40, 30, 1, 0.5], np.float32), np.array([0, 1, 2, 0, 0]), np.array([0, 0, 0, 0, 0]),
        ["8M", "2M1I2D3M", "4M", "4M", "8M"],
    )  # fmt: skip
    monkeypatch.setattr(mmseqs, "search", lambda *args, **options: hits)
    found = align("mktayiak", targets)
    assert texts(found) == ["MKTAYIAK", "MKTAYIAK", "-KT-YIA-", "--TAYI--"]
    assert texts(align("MKTAYIAK", targets, coverage=0.6)) == ["MKTAYIAK", "MKTAYIAK", "-KT-YIA-"]
    assert texts(align("MKTAYIAK", targets, most=2)) == ["MKTAYIAK", "MKTAYIAK"]
    assert texts(align("MKTAYIAK", targets, e_value=1e-10)) == ["MKTAYIAK", "MKTAYIAK"]  # 8 x 24 x 2^-40 is above


def test_a_search_without_relatives_leaves_the_query() -> None:
    for sequences in ([], [b"WWWWWWCCCC"]):
        found = align("MKTAYIAKQRQISFVKSHFSRQ", sequences)
        assert len(found.rows) == 1 and found.weights.tolist() == [1.0]
    with pytest.raises(UserError, match="letters"):
        align("", [b"MK"])
    with pytest.raises(UserError, match="e_value"):
        align("MK", [b"MK"], e_value=0)
