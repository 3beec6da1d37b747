"""One interface for all kinds; of proteins and antibodies, what MMseqs2 says."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from test_mmseqs import mutated, random_sequence

from biometro.alphabet import SequenceKind
from biometro.data import mmseqs
from biometro.data.likeness import likeness_of
from biometro.data.sides import SplitConfig

LETTERS: dict[Any, list[bytes]] = {
    "tcr": [b"|CASSLG", b"|CASSLA:GIL", b"|CWWWWWWW", b"CAV|CASSLGF"],
    "molecule": [b"CCCCCCCO", b"CCCCCCCCO", b"c1ccccc1", b"CCCCCCCCCO"],
}


@pytest.fixture(scope="module")
def antibodies() -> list[bytes]:
    """Two pairs that are relatives, the heavy chain of one alone, and a stranger."""
    random = np.random.default_rng(0)
    heavy, light = random_sequence(random, 110), random_sequence(random, 105)
    other = random_sequence(random, 110) + b"|" + random_sequence(random, 105)
    return [heavy + b"|" + light, mutated(random, heavy, 0.9) + b"|" + mutated(random, light, 0.9), heavy + b"|", other]


def test_every_kind_but_text_has_a_measure() -> None:
    assert {kind for kind in get_args(SequenceKind) if likeness_of(kind) is None} == {"text"}
    config = SplitConfig(identity=0.35, edits=2, tanimoto=0.55)
    kinds = [likeness for kind in LETTERS if (likeness := likeness_of(kind)) is not None]
    said = [(likeness.relatives(config), likeness.threshold(config)) for likeness in kinds]
    assert said == [("within 2 edits of its chains", None), ("from 0.55 Tanimoto similarity", 0.55)]


@pytest.mark.parametrize("kind", ["tcr", "molecule", pytest.param("antibody", marks=pytest.mark.long)])
def test_relatives_stand_together_and_find_one_another(kind: Any, antibodies: list[bytes]) -> None:
    letters, likeness, config = (
        LETTERS.get(kind, antibodies),
        likeness_of(kind),
        SplitConfig(identity=0.7, tanimoto=0.5),
    )
    assert likeness is not None
    strangers = [letters[2]] if kind != "antibody" else [letters[3]]
    families = likeness.families(letters, config)
    assert len({*families.tolist()}) == 2
    alone = [row for row, family in zip(letters, families, strict=True) if (families == family).sum() == 1]
    assert alone == strangers
    found = likeness.nearest(letters, letters, config)
    np.testing.assert_array_equal(found.similarity, np.ones(4))
    others = likeness.nearest(letters[:1], letters[1:], config)
    assert letters[1 + int(others.place[0])] not in strangers
    assert others.related.tolist() == [True] and 0.5 < others.similarity[0] <= 1
    far = likeness.nearest(strangers, [row for row in letters if row not in strangers], config)
    assert not far.related.any() and far.similarity[0] < 0.7
    assert likeness.nearest([], letters, config).place.shape == (0,)
    assert likeness.nearest(letters, [], config).similarity.tolist() == [0] * 4
    hits = likeness.search(letters[:2], letters, most=2)
    assert hits.query.tolist() == [0, 0, 1, 1] and hits.similarity[::2].tolist() == [1, 1]


@pytest.mark.long
def test_places_in_antibodies_are_those_of_their_letters(antibodies: list[bytes]) -> None:
    likeness = likeness_of("antibody")
    assert likeness is not None
    hits = likeness.search([antibodies[1]], antibodies[:1], alignments=True)
    assert hits.cigar == [f"{len(antibodies[0])}M"] or hits.cigar is not None
    assert hits.query_start is not None and hits.target_start is not None
    assert hits.query_start.tolist() == hits.target_start.tolist()
    plain = mmseqs.search([antibodies[1].replace(b"|", b"X")], [antibodies[0].replace(b"|", b"X")])
    np.testing.assert_array_equal(hits.similarity, plain.identity)
