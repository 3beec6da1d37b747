"""Log-probabilities of letters: against plain transformers, one sequence and one mask at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import biometro
from biometro.alphabet import PROTEIN
from biometro.alphabet.protein import STANDARD
from biometro.errors import UserError
from biometro.inference.likelihood import Likelihood
from biometro.model.bundle import Bundle
from conftest import esm2_folder, metro_bundle, packed_of

LETTERS = [b"MKTAYIAKQRQISFVKSH", b"ACDXEFG", b"W", b"MKTAYIAKQRQISFVKSHMKTAYIAKQR"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return esm2_folder(tmp_path_factory.mktemp("esm2") / "model")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import EsmForMaskedLM

    return EsmForMaskedLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def metro() -> Bundle:
    return metro_bundle()


def plain(theirs: Any, letters: bytes, masked: Sequence[int] = ()) -> np.ndarray:
    """(L, 20) log-probabilities of one pass of transformers' model over one sequence."""
    ids = [PROTEIN.id("<cls>"), *PROTEIN.encode(letters).tolist(), PROTEIN.id("<eos>")]
    for place in masked:
        ids[place + 1] = PROTEIN.id("<mask>")
    with torch.inference_mode():
        logits = theirs(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits[0]
    return logits.log_softmax(-1)[1:-1, [PROTEIN.id(letter) for letter in STANDARD]].numpy()


def test_masks_one_at_a_time_as_transformers_in_a_loop(folder: Path, theirs: Any) -> None:
    found = Likelihood(biometro.load(folder), batch_tokens=64).masked(LETTERS)
    for letters, table in zip(LETTERS, found, strict=True):
        expected = np.stack([plain(theirs, letters, [place])[place] for place in range(len(letters))])
        np.testing.assert_allclose(table, expected, atol=1e-5)


def test_masks_together_and_none_as_transformers(folder: Path, theirs: Any) -> None:
    likelihood = Likelihood(biometro.load(folder))
    places = [[3, 0, 17], [2], [], [27, 5]]
    together = likelihood.masked(LETTERS, places, together=True)
    seen, some = likelihood.seen(LETTERS), likelihood.seen(LETTERS, places)
    for number, letters in enumerate(LETTERS):
        wanted = places[number]
        np.testing.assert_allclose(together[number], plain(theirs, letters, wanted)[wanted], atol=1e-5)
        np.testing.assert_allclose(seen[number], plain(theirs, letters), atol=1e-5)
        np.testing.assert_allclose(some[number], plain(theirs, letters)[wanted], atol=1e-5)
        assert some[number].shape == (len(wanted), 20)


def test_what_is_asked_beside_changes_nothing(metro: Bundle) -> None:
    together = Likelihood(metro).masked(LETTERS)
    alone = [Likelihood(metro, batch_tokens=1).masked([letters])[0] for letters in LETTERS]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_windows_stand_around_their_places(folder: Path, theirs: Any) -> None:
    """A window of 10 residues: the masked place in its middle; as it stands, the place from the nearest window."""
    letters = LETTERS[3]
    likelihood = Likelihood(biometro.load(folder), max_length=10)
    [masked], [seen] = likelihood.masked([letters]), likelihood.seen([letters])
    for place in range(28):
        start = min(max(0, place - 5), 18)
        expected = plain(theirs, letters[start : start + 10], [place - start])[place - start]
        np.testing.assert_allclose(masked[place], expected, atol=1e-5)
    starts = [0, 4, 9, 14, 18]  # 28 residues in windows of 10 that share at least 5
    for place in range(28):
        start = min(starts, key=lambda s: abs(s + 4.5 - place))
        np.testing.assert_allclose(seen[place], plain(theirs, letters[start : start + 10])[place - start], atol=1e-5)
    near = likelihood.masked([letters], [[2, 4, 27]], together=True)[0]
    np.testing.assert_allclose(near[1], plain(theirs, letters[:10], [2, 4])[4], atol=1e-5)
    np.testing.assert_allclose(near[2], plain(theirs, letters[18:], [9])[9], atol=1e-5)


def test_the_auxiliary_reads_masks_and_the_main_model_letters(metro: Bundle) -> None:
    letters = LETTERS[0]
    tokens = packed_of([PROTEIN.encode(letters)])
    with_mask = tokens.with_tokens(tokens.tokens.index_fill(0, torch.tensor([6]), PROTEIN.id("<mask>")))
    columns = [PROTEIN.id(letter) for letter in STANDARD]
    m = metro.modules
    with torch.inference_mode():

        def told(encoder: str, head: str, packed: Any) -> np.ndarray:
            h = m[encoder](packed)
            return m[head](h, m[encoder].embedding.weight).log_softmax(-1)[:, columns].numpy()

        auxiliary, main = told("auxiliary", "auxiliary_vocabulary", with_mask), told("encoder", "vocabulary", tokens)
        main_masked = told("encoder", "vocabulary", with_mask)
        logit = m["rtd"](m["encoder"](tokens))[1:-1, 0].numpy()
    likelihood = Likelihood(metro)
    np.testing.assert_allclose(likelihood.masked([letters], [[5]])[0][0], auxiliary[6], atol=1e-5)
    np.testing.assert_allclose(likelihood.seen([letters])[0], main[1:-1], atol=1e-5)
    np.testing.assert_allclose(Likelihood(metro, part="main").masked([letters], [[5]])[0][0], main_masked[6], atol=1e-5)
    np.testing.assert_allclose(likelihood.detected([letters])[0], logit, atol=1e-5)
    np.testing.assert_allclose(likelihood.detected([letters], [[4]])[0], logit[4:5], atol=1e-5)
    assert abs(auxiliary[6] - main_masked[6]).max() > 0.01


def test_models_that_cannot_say_so(folder: Path) -> None:
    masked_only = biometro.load(folder)
    with pytest.raises(UserError, match="no detector"):
        Likelihood(masked_only).detected([b"MKT"])
    with pytest.raises(UserError, match="has none"):
        Likelihood(masked_only, part="auxiliary")
    electra = metro_bundle(clm_weight=0.0)
    assert Likelihood(electra).masked([b"MKT"])[0].shape == (3, 20)
    with pytest.raises(UserError, match="restores nothing"):
        Likelihood(electra).seen([b"MKT"])
    bare = Bundle(PROTEIN, {"encoder": masked_only.encoder})
    with pytest.raises(UserError, match="no head over tokens"):
        Likelihood(bare)


def test_progress_is_told_to_the_end(metro: Bundle) -> None:
    heard: list[int] = []
    Likelihood(metro, batch_tokens=64, say=heard.append).masked(LETTERS)
    assert sum(heard) == sum(len(letters) ** 2 for letters in LETTERS) and len(heard) > 3


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_says_the_same(metro: Bundle, precision: Any) -> None:
    within = 1e-4 if precision == "float32" else 0.2
    here, there = Likelihood(metro_bundle()), Likelihood(metro_bundle(), device="cuda", precision=precision)
    for ask in ("masked", "seen"):
        for a, b in zip(getattr(here, ask)(LETTERS), getattr(there, ask)(LETTERS), strict=True):
            np.testing.assert_allclose(a, b, atol=within)
    for a, b in zip(here.detected(LETTERS), there.detected(LETTERS), strict=True):
        np.testing.assert_allclose(a, b, atol=within)


def test_in_bfloat16_the_head_still_answers_in_float32(metro: Bundle) -> None:
    """Else a logit of 8 or more would be a multiple of 1/16, and so would scores, which are differences."""
    m, columns = metro.modules, [PROTEIN.id(letter) for letter in STANDARD]
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            h_TD = m["encoder"](packed_of([PROTEIN.encode(LETTERS[0])]))
        logits_TV = m["vocabulary"](h_TD.float(), m["encoder"].embedding.weight)
        detected_T1 = m["rtd"](h_TD.float())
    likelihood = Likelihood(metro, precision="bfloat16")
    np.testing.assert_allclose(
        likelihood.seen(LETTERS[:1])[0], logits_TV.log_softmax(-1)[1:-1, columns].numpy(), atol=1e-4
    )
    np.testing.assert_allclose(likelihood.detected(LETTERS[:1])[0], detected_T1[1:-1, 0].numpy(), atol=1e-4)
