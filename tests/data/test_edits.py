"""Families of receptors are those of all pairs, by a library's edit distance; so are neighbours."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from biometro.data import edits, mmseqs
from biometro.evaluation.baselines import aligned

chain = st.text("ACD", max_size=7)
receptor = st.builds(
    lambda first, second, form, peptide: f"{(first, first + '|', '|' + second, first + '|' + second)[form]}{peptide}",
    chain, chain, st.integers(0, 3), st.sampled_from(["", ":ACC", ":DDA"]),
).map(str.encode)  # fmt: skip


def chains(letters: bytes) -> tuple[bytes, bytes, bytes]:
    receptor, _, peptide = letters.partition(b":")
    first, mark, second = receptor.partition(b"|")
    return (first, second, peptide) if mark else (b"", first, peptide)


def compared(one: bytes, two: bytes, parts: int) -> tuple[int, int]:
    """Distance, and the longer letters, of the parts that both have; (0, 0) where they share none."""
    both = [(a, b) for a, b in zip(chains(one)[:parts], chains(two)[:parts], strict=True) if a and b]
    return sum(Levenshtein.distance(a, b) for a, b in both), sum(max(len(a), len(b)) for a, b in both)


@given(st.lists(receptor, max_size=40), st.integers(0, 2))
def test_families_are_the_components_of_all_pairs(letters: list[bytes], most: int) -> None:
    links = []
    for i, j in combinations(range(len(letters)), 2):
        distance, longest = compared(letters[i], letters[j], 2)
        if (
            letters[i] == letters[j]
            or chains(letters[i])[:2] == chains(letters[j])[:2]
            or (longest and distance <= most)
        ):
            links.append((i, j))
    wanted = mmseqs.components(len(letters), np.array(links, np.int64).reshape(-1, 2).T)
    np.testing.assert_array_equal(edits.families(letters, most), mmseqs.by_first_appearance(wanted))


@pytest.mark.parametrize("most", [0, 1, 2])
def test_two_are_a_family_just_where_they_are_within_reach(most: int) -> None:
    """Of two alone nothing else can join them, so that every kind of step has to be found by itself."""
    random = np.random.default_rng(most)
    seen = set()
    for _ in range(1500):
        first = [list(random.choice(list("ACDEF"), random.integers(1, 8))) for _ in range(2)]
        second = [list(part) for part in first]
        steps = []
        for _ in range(int(random.integers(4))):
            part, step = second[int(random.integers(2))], str(random.choice(["delete", "insert", "replace"]))
            place = int(random.integers(len(part) + (step == "insert"))) if part or step == "insert" else None
            if place is None:
                continue
            part[place : place + (step != "insert")] = [] if step == "delete" else [str(random.choice(list("ACDEF")))]
            steps.append(step)
        forms = [("|".join("".join(part) for part in parts), "".join(parts[1])) for parts in (first, second)]
        one, two = (forms[i][int(random.random() < 0.3)].encode() for i in range(2))
        distance, longest = compared(one, two, 2)
        related = chains(one) == chains(two) or (longest > 0 and distance <= most)
        assert (len({*edits.families([one, two], most).tolist()}) == 1) == related, (one, two)
        if related and distance == len(steps):
            seen.add("+".join(sorted(steps)))
    wanted = [{""}, {"delete", "insert", "replace"}, {"delete+insert", "delete+replace", "delete+delete",
              "insert+replace", "insert+insert", "replace+replace"}]  # fmt: skip
    assert set().union(*wanted[: most + 1]) <= seen


def test_families_of_long_chains_and_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are forgotten as components grow; a chain may be longer than a CDR3."""
    random = np.random.default_rng(0)
    letters = []
    for _ in range(60):
        text = random.choice(list("AC"), 40)
        for _ in range(5):
            place = int(random.integers(len(text)))
            text = np.delete(text, place) if random.random() < 0.5 else np.insert(text, place, "W")
            letters.append("".join(text).encode())
    links = [pair for pair in combinations(range(300), 2) if compared(letters[pair[0]], letters[pair[1]], 2)[0] <= 2]
    wanted = mmseqs.by_first_appearance(mmseqs.components(300, np.array(links).T))
    np.testing.assert_array_equal(edits.families(letters, 2), wanted)
    monkeypatch.setattr(edits, "_PENDING", 3)
    np.testing.assert_array_equal(edits.families(letters, 2), wanted)
    with pytest.raises(ValueError, match="within 0 to 2"):
        edits.families(letters, 3)


@pytest.mark.parametrize("block", [1, 1 << 20])
@given(st.lists(receptor, max_size=12), st.lists(receptor, max_size=12))
def test_the_nearest_has_the_fewest_edits(block: int, queries: list[bytes], references: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edits, "_BLOCK", block)
        found = edits.nearest(queries, references, 1)
    for number, query in enumerate(queries):
        pairs = [compared(query, reference, 2) for reference in references]
        ranked = [(d, -long, i) for i, (d, long) in enumerate(pairs) if long]
        if not ranked:
            assert (found.similarity[number], found.related[number]) == (0, False)
            continue
        distance, longest, place = min(ranked)
        assert found.place[number] == place
        assert found.similarity[number] == pytest.approx(1 - distance / -longest)
        assert found.related[number] == (distance <= 1)


@pytest.mark.parametrize("block", [1, 1 << 20])
@given(st.lists(receptor, max_size=8), st.lists(receptor, max_size=12), st.integers(1, 14))
def test_hits_are_the_most_similar_with_their_peptides(
    block: int, queries: list[bytes], targets: list[bytes], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edits, "_BLOCK", block)
        found = edits.search(queries, targets, most=most, alignments=True)
    assert found.cigar is not None
    wanted = []
    for number, query in enumerate(queries):
        pairs = [(*compared(query, target, 3), i) for i, target in enumerate(targets)]
        near = sorted((-(1 - np.float32(d) / np.float32(long)), i) for d, long, i in pairs if long and d < long)
        wanted += [(number, i, -similarity) for similarity, i in near[:most]]
    assert [(q, t) for q, t, _ in wanted] == list(zip(found.query.tolist(), found.target.tolist(), strict=True))
    np.testing.assert_allclose(found.similarity, [similarity for *_, similarity in wanted], rtol=1e-6)
    for query, target, cigar in zip(found.query.tolist(), found.target.tolist(), found.cigar, strict=True):
        here, there = aligned(cigar, 0, 0)
        one, two = queries[query], targets[target]
        changed = sum(one[i] != two[j] for i, j in zip(here.tolist(), there.tolist(), strict=True))
        assert Levenshtein.distance(one, two) == changed + len(one) - len(here) + len(two) - len(here)


def test_a_chain_that_is_not_said_is_a_beta_chain() -> None:
    assert edits.parts(b"CASS") == edits.parts(b"|CASS") == ("", "CASS", "")
    assert edits.parts(b"CAV|:GIL@MHC") == ("CAV", "", "GIL")
    assert edits.families([b"CASSF", b"|CASSF:GIL", b"CAV|CASSL", b"CASSF|", b"CAV|"], 1).tolist() == [0, 0, 0, 1, 0]


def test_a_letter_does_not_pass_from_one_chain_to_the_other() -> None:
    """Without their marks these are one text; as chains they are four edits apart."""
    assert compared(b"ACD|E", b"A|CDE", 2)[0] == 4
    assert edits.families([b"ACD|E", b"A|CDE"], 2).tolist() == [0, 1]
