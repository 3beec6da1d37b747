"""Baselines find what is there to find, keep to the conventions, and give the same twice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from biometro.errors import UserError
from biometro.evaluation import baselines, linear
from biometro.evaluation.baselines import KmerBaseline, NearestNeighbour, aligned
from biometro.evaluation.fingerprint_baselines import FingerprintBaseline
from biometro.evaluation.metrics import measure

RESIDUES = b"ACDEFGHIKLMNPQRSTVWY"


def sequences(N: int, seed: int = 0, lengths: tuple[int, int] = (20, 60)) -> list[bytes]:
    random = np.random.default_rng(seed)
    alphabet = np.frombuffer(RESIDUES, np.uint8)
    return [random.choice(alphabet, size=random.integers(*lengths)).tobytes() for _ in range(N)]


def motifs(N: int = 600, seed: int = 0) -> tuple[list[bytes], np.ndarray]:
    """Sequences of three classes told apart by a motif of three residues."""
    random = np.random.default_rng(seed)
    truth = random.integers(3, size=N)
    return [
        row[:9] + (b"WCW", b"MHM", b"CYC")[k] + row[9:]
        for row, k in zip(sequences(N, seed, (20, 30)), truth, strict=True)
    ], truth


def test_kmers_tell_motifs_apart() -> None:
    letters, truth = motifs()
    held, held_truth = motifs(100, 1)
    names = ["a", "b", "c", "never there"]
    p = KmerBaseline("classification", names).fit(letters, truth).predict(held)
    assert p.dtype == np.float32
    assert p.shape == (100, 4)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (p[:, 3] == 0).all()
    assert measure("classification", held_truth, p, names)["accuracy"] > 0.9
    again = KmerBaseline("classification", names).fit(letters, truth).predict(held)
    np.testing.assert_array_equal(p, again)


def test_frequencies_of_kmers_by_hand() -> None:
    letters = [b"AAC", b"CA", b"C1c(a)%\xff"]
    features = baselines._Kmers(letters, 1)
    counts = []
    for row in letters:
        kmers = [row[i : i + k] for k in (1, 2, 3) for i in range(len(row) - k + 1)]
        counts.append({kmer: kmers.count(kmer) / len(kmers) for kmer in kmers})
    known = sorted(set().union(*counts))
    table = np.array([[row.get(kmer, 0.0) for kmer in known] for row in counts])
    np.testing.assert_allclose(features(letters).toarray(), table / table.std(0))


def test_kmers_of_one_or_two_sequences_do_not_count() -> None:
    letters = [*sequences(98), b"AC#", b"AC#"]
    assert "#" not in baselines._Kmers(letters, 1)._counter.vocabulary_
    assert "#" in baselines._Kmers([*letters, b"A#"], 1)._counter.vocabulary_
    assert "#" in baselines._Kmers(letters[1:], 1)._counter.vocabulary_


def test_smiles_keep_their_case() -> None:
    letters = [b"CCO", b"ccO", b"CCN", b"ccN"] * 20
    truth = np.array([0, 1, 0, 1] * 20)
    p = KmerBaseline("classification", ["aliphatic", "aromatic"]).fit(letters, truth).predict([b"CCCC", b"cccc"])
    np.testing.assert_array_equal(p.argmax(1), [0, 1])


def test_many_classes_take_shorter_kmers(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = sequences(60)
    monkeypatch.setattr(baselines, "_MOST_WEIGHTS", 1000)
    assert len({row[i : i + 2] for row in letters for i in range(len(row) - 1)}) == 397
    sizes = [baselines._Kmers(letters, classes)(letters).shape[1] for classes in (1, 2, 3, 1000)]
    assert sizes == [397 + 20, 397 + 20, 20, 20]


def test_labels_are_learnt_where_known() -> None:
    letters, classes = motifs(600)
    held, held_classes = motifs(100, 1)
    truth = np.stack([classes == 0, classes != 1, classes == 9, classes == 9], 1).astype(np.float32)
    truth[::3, 0] = 1 - truth[::3, 0]  # wrong, but unknown next
    truth[::3, 0] = np.nan
    truth[:, 3] = np.nan
    p = KmerBaseline("multilabel", list("abcd")).fit(letters, truth).predict(held)
    assert (
        measure("multilabel", np.stack([held_classes == 0, held_classes != 1], 1), p[:, :2], ["a", "b"])["auroc"] > 0.94
    )
    np.testing.assert_allclose(p[:, 2], 1 / 602)
    np.testing.assert_allclose(p[:, 3], 0.5)


def test_columns_are_learnt_where_known() -> None:
    letters, held = sequences(2000), sequences(100, 1)

    def values(rows: list[bytes]) -> np.ndarray:
        tryptophan = [row.count(b"W") / len(row) for row in rows]
        return np.stack([1000 + 500 * np.array(tryptophan), -np.array(tryptophan), np.full(len(rows), 3.0)], 1)

    truth = np.pad(values(letters), ((0, 0), (0, 1)), constant_values=np.nan).astype(np.float32)
    truth[::2, 1] = np.nan
    predicted = KmerBaseline("regression", list("abcd")).fit(letters, truth).predict(held)
    assert predicted.dtype == np.float32
    found = measure("regression", values(held)[:, :2], predicted[:, :2], ["a", "b"])
    assert found["pearson"] > 0.9
    assert found["r2"] > 0.7
    np.testing.assert_array_equal(predicted[:, 2], np.full(100, 3, np.float32))
    assert np.isnan(predicted[:, 3]).all()


def test_the_penalty_follows_the_noise() -> None:
    random = np.random.default_rng(0)
    asked: list[float] = []
    ridge = linear._ridge
    features = random.normal(size=(200, 40))
    for noise in (0.01, 30.0):
        truth = features @ random.normal(size=(40, 1)) + noise * random.normal(size=(200, 1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear, "_ridge", lambda x, y, penalty: asked.append(penalty) or ridge(x, y, penalty))
            linear.columns(features, truth, 0)
    assert asked[:4] == asked[5:9] == list(linear.PENALTIES)
    assert asked[4] < asked[9]


def test_windows_see_seven_residues_to_either_side() -> None:
    """Each residue is labelled by the one seven places on, or as the end of the chain."""
    letters, held = sequences(300), sequences(40, 1)

    def truth(rows: list[bytes]) -> list[np.ndarray]:
        return [np.array([("W" in chr(c)) + 0 for c in row[7:]] + [2] * 7) for row in rows]

    names = ["other", "W", "end"]
    known = [np.where(np.arange(len(row)) % 5 == 0, -1, row) for row in truth(letters)]
    p = KmerBaseline("residue_classification", names).fit(letters, known).predict(held)
    assert [row.shape for row in p] == [(len(row), 3) for row in held]
    assert measure("residue_classification", truth(held), p, names)["accuracy"] > 0.999
    values = [np.where(np.arange(len(row)) % 5 == 0, np.nan, row).astype(np.float32) for row in truth(letters)]
    v = KmerBaseline("residue_regression", []).fit(letters, values).predict(held)
    assert [row.shape for row in v] == [(len(row),) for row in held]
    assert measure("residue_regression", [row.astype(np.float32) for row in truth(held)], v, [])["pearson"] > 0.9


def test_windows_by_hand() -> None:
    letters = [b"AC", b"", b"ACAAAAAAAAAC"]
    windows = baselines._Windows(letters)
    shape = baselines.WINDOW, 4  # A, C, letters not seen, past an end
    found = windows([b"AX", b"", *letters]).toarray().reshape(-1, *shape).argmax(2)
    everything = [b"AX", b"", *letters]
    code = {"A": 0, "C": 1, "X": 2, "-": 3}
    wanted = []
    for row in everything:
        padded = "-" * 7 + row.decode() + "-" * 7
        wanted += [[code[c] for c in padded[i : i + 15]] for i in range(len(row))]
    np.testing.assert_array_equal(found, wanted)
    rows = np.array([0, 3, 9])
    np.testing.assert_array_equal(windows(everything, rows).toarray(), windows(everything).toarray()[rows])


def test_residues_are_drawn_under_the_seed_and_predicted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = sequences(80)
    truth = [np.array([c % 2 for c in row]) for row in letters]
    names, held = ["even", "odd"], sequences(20, 1)
    whole = KmerBaseline("residue_classification", names).fit(letters, truth)
    expected = whole.predict(held)
    monkeypatch.setattr(baselines, "_BLOCK", 100)
    for a, b in zip(expected, whole.predict(held), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    monkeypatch.setattr(baselines, "MOST_RESIDUES", 500)
    drawn = [
        np.concatenate(KmerBaseline("residue_classification", names, s).fit(letters, truth).predict(held))
        for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_logistic_regression_is_scikit_learns_on_the_classes_there_are() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 4)), random.choice([0, 2, 5], size=60)
    p = linear.classes(x, y, 7, C=1.0, balanced=False)(x)
    wanted = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(p[:, [0, 2, 5]], wanted, atol=1e-2)
    assert (p[:, [1, 3, 4, 6]] == 0).all()
    np.testing.assert_array_equal(linear.classes(x, np.full(60, 3), 7, 1.0, True)(x[:2]), np.eye(7)[[3, 3]])


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(UserError, match="no kind of task"):
        KmerBaseline("ranking", [])
    with pytest.raises(UserError, match="no kind of task"):
        NearestNeighbour("ranking", [], slow_search)
    with pytest.raises(ValueError, match="2 sequences but 1 truths"):
        KmerBaseline("classification", ["a"]).fit([b"A", b"C"], np.zeros(1, int))
    with pytest.raises(ValueError, match="residues of a sequence"):
        KmerBaseline("residue_regression", []).fit([b"AC"], [np.zeros(3)])
    with pytest.raises(ValueError, match="nothing to learn"):
        KmerBaseline("residue_classification", ["a", "b"]).fit([b"AC"], [np.full(2, -1)])


@dataclass
class SlowHits:
    query: np.ndarray
    target: np.ndarray
    query_start: np.ndarray | None
    target_start: np.ndarray | None
    cigar: list[str] | None
    similarity: np.ndarray | None = None


def slow_search(queries: list[bytes], targets: list[bytes], *, most: int = 1, alignments: bool = False) -> SlowHits:
    """Every local alignment by Biopython with more than 60 (half bits), best first, as MMseqs2 would tell it."""
    aligner = PairwiseAligner(mode="local", open_gap_score=-11, extend_gap_score=-1)
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    rows = []
    for q, query in enumerate(queries):
        found = [(aligner.score(query.decode(), target.decode()), t) for t, target in enumerate(targets)]
        for score, t in sorted(found, key=lambda pair: (-pair[0], pair[1])):
            if score > 60:
                best = aligner.align(targets[t].decode(), query.decode())[0]  # the target is the reference
                (target_start, *_), (query_start, *_) = best.coordinates
                cigar, last = "", None
                for (t0, q0), (t1, q1) in zip(best.coordinates.T[:-1], best.coordinates.T[1:], strict=True):
                    last = "M" if t1 > t0 and q1 > q0 else "I" if q1 > q0 else "D"
                    cigar += f"{max(t1 - t0, q1 - q0)}{last}"
                rows.append((q, t, query_start, target_start, cigar))
    q, t, a, b, cigars = zip(*rows, strict=True) if rows else ((),) * 5
    numbers = [np.array(column, np.int64) for column in (q, t, a, b)]
    return SlowHits(*numbers, list(cigars)) if alignments else SlowHits(numbers[0], numbers[1], None, None, None)


def family() -> tuple[list[bytes], list[bytes]]:
    """Three training sequences; and the second with changes, a piece of the third, a stranger."""
    train = sequences(3, 5, (60, 61))
    second = b"MK" + train[1][:20] + train[1][21:40] + b"GGG" + train[1][40:]
    return train, [second, train[2][10:50], b"GSGSGSGS"]


def test_the_nearest_neighbours_class() -> None:
    train, queries = family()
    p = NearestNeighbour("classification", list("abcd"), slow_search).fit(train, np.array([0, 1, 1])).predict(queries)
    frequencies = np.array([2, 3, 1, 1]) / 7
    wanted = [0.95 * np.eye(4)[1] + 0.05 * frequencies] * 2 + [frequencies]
    np.testing.assert_allclose(p, wanted, rtol=1e-6)
    assert p.dtype == np.float32
    never = measure("classification", np.array([3, 3, 3]), p, list("abcd"))
    assert math.isfinite(never["log_loss"])


def test_the_nearest_neighbours_labels_and_values() -> None:
    train, queries = family()
    truth = np.array([[1, 0, np.nan], [0, 1, np.nan], [np.nan, 1, np.nan]], np.float32)
    p = NearestNeighbour("multilabel", list("abc"), slow_search).fit(train, truth).predict(queries)
    rates = np.array([2 / 4, 3 / 5, 1 / 2])
    wanted = [[0.05 * rates[0], 0.95 + 0.05 * rates[1], 0.5], [0.5, 0.95 + 0.05 * rates[1], 0.5], rates]
    np.testing.assert_allclose(p, wanted, rtol=1e-6)
    values = np.array([[1, 5, np.nan], [2, np.nan, np.nan], [6, 7, np.nan]], np.float32)
    v = NearestNeighbour("regression", list("abc"), slow_search).fit(train, values).predict(queries)
    np.testing.assert_allclose(v, [[2, 6, np.nan], [6, 7, np.nan], [3, 6, np.nan]])


def test_labels_of_residues_are_carried_over_the_alignment() -> None:
    train, queries = family()
    truth = [np.array([RESIDUES.index(c) for c in row]) for row in train]
    truth[2][15] = -1
    names = [chr(c) for c in RESIDUES]
    model = NearestNeighbour("residue_classification", names, slow_search).fit(train, truth)
    p = model.predict(queries)
    counts = np.bincount(np.concatenate(truth)[np.concatenate(truth) >= 0], minlength=20) + 1
    frequencies = (counts / counts.sum()).astype(np.float32)
    assert [row.shape for row in p] == [(len(row), 20) for row in queries]
    np.testing.assert_array_equal(p[2], np.tile(frequencies, (8, 1)))
    np.testing.assert_array_equal(p[1][5], frequencies)  # aligned with the residue that is not known
    carried = p[1].max(1) > 0.9
    assert carried.sum() == 39
    for row, query in zip(p, queries, strict=True):
        sure = row.max(1) > 0.9
        named = np.array([RESIDUES[k] for k in row.argmax(1)])
        letters = np.frombuffer(query, np.uint8)
        assert query == queries[2] or (named[sure] == letters[sure]).mean() > 0.95
    assert (p[0].max(1) > 0.9).sum() >= 55
    assert (p[0].max(1) < 0.9).sum() >= 3  # the residues that the neighbour lacks

    values = [np.arange(60, dtype=np.float32) + 100 * i for i in range(3)]
    v = NearestNeighbour("residue_regression", [], slow_search).fit(train, values).predict(queries)
    np.testing.assert_array_equal(v[1], np.arange(210, 250))
    np.testing.assert_allclose(v[2], np.full(8, np.concatenate(values).mean()))


def test_only_the_best_hit_counts() -> None:
    def search(queries: list[bytes], targets: list[bytes], *, most: int = 1, alignments: bool = False) -> SlowHits:
        return SlowHits(np.array([1, 1, 0]), np.array([2, 0, 1]), None, None, None)

    model = NearestNeighbour("regression", ["x"], search).fit([b"A"] * 3, np.array([[1.0], [2], [3]], np.float32))
    np.testing.assert_array_equal(model.predict([b"A", b"C"]), [[2], [3]])


def test_an_alignment_that_leaves_its_sequence_is_refused() -> None:
    def search(queries: list[bytes], targets: list[bytes], *, most: int = 1, alignments: bool = False) -> SlowHits:
        return SlowHits(np.array([0]), np.array([0]), np.array([0]), np.array([1]), ["3M"])

    model = NearestNeighbour("residue_regression", [], search).fit([b"AAA"], [np.zeros(3)])
    with pytest.raises(ValueError, match="query 0 with target 0 leaves"):
        model.predict([b"AAA"])


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from("MID"))), st.integers(0, 50), st.integers(0, 50))
def test_cigars_step_by_step(pieces: list[tuple[int, str]], q: int, t: int) -> None:
    text = "".join(f"{n}{move}" for n, move in pieces)
    if not pieces:
        with pytest.raises(ValueError, match="not an alignment"):
            aligned(text, q, t)
        return
    here, there = aligned(text, q, t)
    pairs: list[Any] = []
    for n, move in pieces:
        for _ in range(n):
            if move == "M":
                pairs.append((q, t))
            q, t = q + (move != "D"), t + (move != "I")
    assert list(zip(here.tolist(), there.tolist(), strict=True)) == pairs


@pytest.mark.parametrize("text", ["M", "3X", "3M ", "3M-2D", "\n", "3M2"])
def test_what_is_no_cigar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an alignment"):
        aligned(text, 0, 0)


# By kind of sequence ----------------------------------------------------------------------------------------------


def votes(similarity: list[float]) -> np.ndarray:
    weight = 1 / (1.05 - np.array(similarity))
    return weight / weight.sum()


def test_several_neighbours_vote_by_their_similarity() -> None:
    def search(queries: list[bytes], targets: list[bytes], *, most: int = 1, alignments: bool = False) -> SlowHits:
        near = np.array([1, 0.8, 0.5, 0.9], np.float32)
        return SlowHits(np.array([0, 0, 0, 2]), np.array([2, 0, 1, 3]), None, None, None, near)

    letters = [b"A"] * 4
    p = (
        NearestNeighbour("classification", list("ab"), search, 2)
        .fit(letters, np.array([1, 0, 0, 1]))
        .predict([b""] * 3)
    )
    share = votes([1, 0.8])[1]
    assert p[0, 1] == pytest.approx(0.95 * share + 0.05 / 2, rel=1e-5)  # the third is not asked
    np.testing.assert_allclose(p[1:], [[0.5, 0.5], [0.025, 0.975]])
    truth = np.array([[np.nan, 2], [1, 7], [4, np.nan], [np.nan, 3]], np.float32)
    v = NearestNeighbour("regression", list("ab"), search, 3).fit(letters, truth).predict([b""] * 3)
    first, second = votes([1, 0.5]) @ [4, 1], votes([0.8, 0.5]) @ [2, 7]  # of those that are known
    np.testing.assert_allclose(v, [[first, second], [2.5, 4], [2.5, 3]], rtol=1e-5)


def molecules() -> list[bytes]:
    rings = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCNCC1", "c1ccsc1"]
    tails = ["", "C", "CC", "CO", "CCO", "C(=O)O", "CN", "C#N", "Cl", "CCl", "C(F)(F)F", "S(=O)(=O)C"]
    return [(ring + tail).encode() for ring in rings for tail in tails]


def test_fingerprints_tell_aromatic_molecules_apart() -> None:
    letters = molecules()
    truth = np.array([row.startswith(b"c") for row in letters]).astype(np.int64)
    random = np.random.default_rng(0).permutation(len(letters))
    train, test = random[:40], random[40:]
    labels = np.stack([truth, 1 - truth, np.zeros(len(truth)), np.full(len(truth), np.nan)], 1).astype(np.float32)
    labels[train[::4], 0] = np.nan
    values = np.stack([3.0 * truth, np.full(len(truth), np.nan)], 1).astype(np.float32)
    for task, names, told in (("classification", ["no", "yes", "never"], truth), ("multilabel", list("abcd"), labels),
                              ("regression", list("ab"), values)):  # fmt: skip
        found = baselines.beside("molecule", task, names, 0)
        regression = "ridge" if task == "regression" else "logistic"
        assert [*found] == [f"ECFP4 + {regression} regression", "ECFP4 + random forest", "Tanimoto neighbour"]
        for name, make in found.items():
            p = make().fit([letters[i] for i in train], told[train]).predict([letters[i] for i in test])
            assert p.shape == (len(test), len(names)) and p.dtype == np.float32
            if task == "classification":
                assert measure(task, truth[test], p, names)["accuracy"] > 0.85, name
                assert "ECFP4" not in name or (p[:, 2] == 0).all()
            elif task == "multilabel":
                for k in (0, 1):
                    assert measure(task, labels[test, k : k + 1], p[:, k : k + 1], ["x"])["auroc"] > 0.9, name
                np.testing.assert_allclose(p[:, 3], 0.5)
                assert (p[:, 2] < 0.05).all()
            else:
                assert measure(task, values[test][:, :1], p[:, :1], ["a"])["pearson"] > 0.7, name
                assert np.isnan(p[:, 1]).all()
        assert make().fit(letters, told).predict([]).shape == (0, len(names))


def test_forests_and_linear_models_are_scikit_learns() -> None:
    from rdkit import Chem
    from rdkit.Chem import rdFingerprintGenerator
    from sklearn.ensemble import RandomForestClassifier

    letters = molecules()
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    bits = np.array([generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(row.decode())) for row in letters])
    truth = np.arange(len(letters)) % 2
    found = baselines.beside("molecule", "classification", ["a", "b"], 3)
    forest = RandomForestClassifier(300, random_state=3).fit(bits[::2], truth[::2] * 0 + np.arange(30) % 2)
    p = found["ECFP4 + random forest"]().fit(letters[::2], np.arange(30) % 2).predict(letters)
    np.testing.assert_allclose(p, forest.predict_proba(bits), atol=1e-6)
    logistic = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(bits, truth)
    p = found["ECFP4 + logistic regression"]().fit(letters, truth).predict(letters)
    np.testing.assert_allclose(p, logistic.predict_proba(bits), atol=2e-2)


def test_receptors_are_answered_for_by_receptors_that_bind_the_same_peptide() -> None:
    train = [b"CAV|CASSLG:GIL", b"CAV|CASSLG:NLV", b"CIL|CASRPW:NLV", b"CIL|CASRPW:GIL"]
    found = baselines.beside("tcr", "classification", ["no", "yes"], 0)
    assert [*found] == ["edit-distance neighbour", "k-mers"]
    p = (
        found["edit-distance neighbour"]()
        .fit(train, np.array([1, 0, 1, 0]))
        .predict([b"CAV|CASSLA:GIL", b"CAV|CASSLA:NLV", b"CIL|CASRPA:NLV"])
    )
    assert (p.argmax(1) == [1, 0, 1]).all()
    residues = baselines.beside("tcr", "residue_classification", ["other", "W"], 0)["edit-distance neighbour"]()
    letters = [b"|CASSWG", b"|CAWSRRG"]
    truth = [np.array([int(c == ord("W")) for c in row]) for row in letters]
    p = residues.fit(letters, truth).predict([b"|CASSAWG", b"|CAWSRG"])
    assert [row.argmax(1).tolist() for row in p] == [[0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0]]


def test_every_kind_has_its_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "installed", lambda: True)
    for kind in ("protein", "antibody"):
        assert [*baselines.beside(kind, "classification", ["a"], 0)] == ["nearest neighbour", "k-mers"]  # type: ignore[arg-type]
        assert [*baselines.beside(kind, "classification", ["a"], 0, aligned=False)] == ["k-mers"]  # type: ignore[arg-type]
    assert [*baselines.beside("text", "regression", ["a"], 0)] == ["k-mers"]
    assert baselines.beside("molecule", "residue_regression", ["a"], 0) == {}
    with pytest.raises(UserError, match="molecules have no residues"):
        FingerprintBaseline("residue_regression", ["a"], "forest")
    monkeypatch.setattr(baselines, "installed", lambda: False)
    assert [*baselines.beside("protein", "classification", ["a"], 0)] == ["k-mers"]
