"""Contacts read off models: against transformers and plain loops, and where a model must have learnt a planted rule."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import biometro
from biometro.alphabet import PROTEIN
from biometro.alphabet.protein import STANDARD
from biometro.data.contacts import Protein
from biometro.errors import UserError
from biometro.inference import contacts
from biometro.inference.contacts import ContactReader, Regression, couplings, fit_regression
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import ContactWeights, ContactWeightsConfig, VocabularyHead, VocabularyHeadConfig
from conftest import esm2_folder, packed_of

HALF = 9  # the planted rule: residue i + 9 is residue i


def planted(random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 18) uint8 sequences whose second half repeats the first."""
    first = random.choice(PROTEIN.standard_ids, size=(count, HALF)).astype(np.uint8)
    return np.concatenate([first, first], axis=1)


def protein_of(tokens: np.ndarray) -> Protein:
    pairs = np.array([[i, i + HALF] for i in range(HALF)])
    return Protein("planted", PROTEIN.decode(tokens).encode(), pairs, np.ones(2 * HALF, dtype=bool))


@pytest.fixture(scope="module")
def learnt() -> ContactReader:
    """A model that has learnt the planted rule from masked residues."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    encoder = Encoder(EncoderConfig(width=32, depth=2, head_size=16, init_std=0.1))
    head = VocabularyHead(VocabularyHeadConfig(32, 33))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(250):
        packed = packed_of(list(planted(random, 64)))
        masked = (torch.rand(packed.tokens.shape) < 0.15) & (packed.positions % (2 * HALF + 1) > 0)
        given = packed.with_tokens(packed.tokens.masked_fill(masked, PROTEIN.id("<mask>")))
        loss = F.cross_entropy(head(encoder(given), encoder.embedding.weight)[masked], packed.tokens[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0  # of 3.0
    return ContactReader(Bundle(PROTEIN, {"encoder": encoder, "vocabulary": head}))


def highest(scores_LL: np.ndarray, count: int) -> set[tuple[int, int]]:
    i, j = np.triu_indices(len(scores_LL), contacts.SEPARATION)
    order = np.argsort(-scores_LL[i, j])[:count]
    return set(zip(i[order].tolist(), j[order].tolist(), strict=True))


def test_planted_pairs_are_found_by_attention_and_by_the_jacobian(learnt: ContactReader) -> None:
    train, test = (protein_of(tokens) for tokens in planted(np.random.default_rng(9), 2))
    truth = {(i, i + HALF) for i in range(HALF)}
    assert highest(learnt.jacobian_contacts(test.letters), HALF) == truth
    with pytest.raises(UserError, match="no contact head"):
        learnt.attention_contacts(test.letters)
    probability_LL = learnt.attention_contacts(test.letters, fit_regression(learnt, [train]))
    assert highest(probability_LL, HALF) == truth
    i = np.arange(HALF)
    assert probability_LL[i, i + HALF].min() > 0.5 > np.delete(probability_LL[0], [0, HALF]).max()
    np.testing.assert_allclose(probability_LL, probability_LL.T, atol=1e-6)


def plain_jacobian(theirs: torch.nn.Module, letters: str) -> np.ndarray:
    """As published: one residue at a time, whole arrays, on a model of transformers."""
    numbers = [PROTEIN.id(a) for a in STANDARD]
    tokens = torch.tensor([[0, *(PROTEIN.id(a) for a in letters), 2]])
    L = len(letters)
    J = np.zeros((L, 20, L, 20))
    with torch.inference_mode():
        wild = theirs(input_ids=tokens).logits[0, 1:-1][:, numbers].numpy()
        for i in range(L):
            for a in range(20):
                changed = tokens.clone()
                changed[0, i + 1] = numbers[a]
                J[i, a] = theirs(input_ids=changed).logits[0, 1:-1][:, numbers].numpy() - wild
    return J


def plain_couplings(J: np.ndarray) -> np.ndarray:
    for axis in range(4):
        J = J - J.mean(axis, keepdims=True)
    J = (J + J.transpose(2, 3, 0, 1)) / 2
    norms = np.sqrt((J**2).sum((1, 3)))
    np.fill_diagonal(norms, 0)
    corrected = norms - norms.sum(0, keepdims=True) * norms.sum(1, keepdims=True) / norms.sum()
    np.fill_diagonal(corrected, 0)
    return corrected


def test_the_jacobian_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = esm2_folder(tmp_path / "esm2")
    theirs = transformers.EsmForMaskedLM.from_pretrained(folder).eval()
    letters = "MKTXYIAKQR"  # X is none of the 20, so that all of them are changes there
    J = plain_jacobian(theirs, letters)
    expected = plain_couplings(J)
    assert expected.std() > 1e-3
    for batch_tokens in (1, 100, None):
        reader = ContactReader(biometro.load(folder), batch_tokens=batch_tokens)
        np.testing.assert_allclose(reader.jacobian_contacts(letters.encode()), expected, atol=1e-5)
    places = [7, 0, 3]
    chosen = J[np.ix_(places, range(20), places, range(20))]
    np.testing.assert_allclose(reader.jacobian_contacts(letters.encode(), places), plain_couplings(chosen), atol=1e-5)


def test_couplings_are_those_of_whole_arrays() -> None:
    J = np.random.default_rng(0).normal(size=(6, 20, 6, 20)).astype(np.float32) + 3
    np.testing.assert_allclose(couplings(J.copy()), plain_couplings(J.astype(np.float64)), atol=1e-4)


def test_a_jacobian_costs_twenty_passes_a_place(learnt: ContactReader) -> None:
    letters = protein_of(planted(np.random.default_rng(3), 1)[0]).letters
    passes: list[int] = []
    hook = learnt.encoder.register_forward_hook(lambda module, given, out: passes.append(len(given[0])))
    heard: list[tuple[int, int]] = []
    learnt.jacobian_contacts(letters, [2, 5], lambda done, of: heard.append((done, of)))
    hook.remove()
    assert sum(passes) == 2 * 19 + 1 and heard[-1] == (38, 38)
    assert learnt.jacobian_flops(18, 2) == pytest.approx(learnt.jacobian_flops(18) * 41 / 361, rel=0.2)


def test_the_regression_is_scikit_learns_on_all_pairs(learnt: ContactReader) -> None:
    proteins = [protein_of(tokens) for tokens in planted(np.random.default_rng(1), 2)]
    rows, true = [], []
    for protein in proteins:
        for i in range(18):
            for j in range(i + 6, 18):
                rows.append(learnt.attention_features(protein.letters, np.array([i]), np.array([j]))[0])
                true.append(j - i == HALF)
    model = LogisticRegression(C=1 / 0.15, solver="liblinear", random_state=0, l1_ratio=1.0).fit(np.array(rows), true)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of names that it will drop
        found = fit_regression(learnt, proteins)
    np.testing.assert_allclose(found.weights, model.coef_[0], atol=1e-3)
    assert found.bias == pytest.approx(model.intercept_[0], abs=1e-3)


def test_features_are_symmetric_and_those_of_the_whole_maps(learnt: ContactReader) -> None:
    letters = protein_of(planted(np.random.default_rng(1), 1)[0]).letters
    i, j = np.array([0, 9, 17]), np.array([9, 0, 17])
    features = learnt.attention_features(letters, i, j)
    packed = packed_of([PROTEIN.encode(letters)])
    with torch.inference_mode():
        maps = torch.cat(list(learnt.encoder.attention_maps(packed)))[:, 1:-1, 1:-1].double().numpy()
    for f, each in enumerate(maps):
        both = each + each.T
        both = both - np.outer(both.sum(1), both.sum(0)) / both.sum()
        np.testing.assert_allclose(features[:, f], both[i, j], atol=1e-6)


def test_bfloat16_is_for_the_encoder_alone(learnt: ContactReader) -> None:
    bundle = Bundle(PROTEIN, {"encoder": learnt.encoder})
    reader = ContactReader(bundle, precision="bfloat16")
    letters = STANDARD[:18].encode()
    with torch.inference_mode():
        half, whole = [*reader._maps(letters)], [*learnt._maps(letters)]
    assert not torch.equal(half[0], whole[0]) and all(map_HLL.dtype == torch.float32 for map_HLL in half)
    weights_F = np.linspace(-3, 3, reader.features)
    weights_HF = torch.from_numpy(weights_F).float().split(2)
    logit_LL = sum((w[:, None, None] * map_HLL).sum(0) for w, map_HLL in zip(weights_HF, half, strict=True))
    found = reader.attention_contacts(letters, Regression(weights_F, 0.0))
    np.testing.assert_allclose(found, torch.as_tensor(logit_LL).sigmoid().numpy(), atol=1e-6)


def test_a_sample_of_pairs_keeps_all_contacts_and_the_weight_of_the_rest() -> None:
    known = np.ones(60, dtype=bool)
    known[:5] = False
    protein = Protein("x", b"A" * 60, np.array([[0, 30], [10, 12], [10, 40], [11, 50]]), known)
    i_M, j_M, true_M, weight_M = contacts._sample([protein], 300, 0)[0]
    assert sorted(zip(i_M[true_M], j_M[true_M], strict=True)) == [(10, 40), (11, 50)]
    assert i_M.min() == 5 and (j_M - i_M).min() >= 6 and 200 < len(i_M) < 400
    pairs = (55 - 6) * (55 - 6 + 1) // 2
    assert weight_M.sum() == pytest.approx(pairs, rel=0.2) and set(weight_M[true_M]) == {1.0}


def bundle_of(*roles: str) -> Bundle:
    encoder = Encoder(EncoderConfig(width=16, depth=2, head_size=8))
    heads = {
        "vocabulary": VocabularyHead(VocabularyHeadConfig(16, 33)),
        "contact": ContactWeights(ContactWeightsConfig(4)),
    }
    return Bundle(PROTEIN, {"encoder": encoder, **{role: heads[role] for role in roles}})


def test_what_a_model_cannot_do_is_said() -> None:
    reader = ContactReader(bundle_of("contact"))  # a regression of zeros is none
    with pytest.raises(UserError, match="no contact head"):
        reader.attention_contacts(b"MKT")
    with pytest.raises(UserError, match="no head over tokens"):
        reader.jacobian_contacts(b"MKT")
    reader = ContactReader(bundle_of("vocabulary"), longest=5)
    with pytest.raises(UserError, match=r"6 residues, more than 5, takes 120 passes"):
        reader.jacobian_contacts(b"MKTAYI")
    assert reader.jacobian_contacts(b"MKTAYI", [0, 5]).shape == (2, 2)
    with pytest.raises(UserError, match="longer than 5"):
        reader.attention_contacts(b"MKTAYI", Regression(np.ones(4), 0.0))
    for wrong in ([0, 0], [6], [-1], []):
        with pytest.raises(UserError, match="places"):
            reader.jacobian_contacts(b"MKTAYI", wrong)
    for letters in (b"M7T", b""):
        with pytest.raises(UserError):
            reader.jacobian_contacts(letters)
    with pytest.raises(UserError, match="0 contacts"):
        fit_regression(reader, [])
    nothing = Protein("x", b"MKTAY", np.zeros((0, 2), np.int64), np.ones(5, bool))
    with pytest.raises(UserError, match="0 contacts"):
        fit_regression(reader, [nothing])


def test_one_residue_has_no_couplings() -> None:
    reader = ContactReader(bundle_of("vocabulary"))
    np.testing.assert_array_equal(reader.jacobian_contacts(b"M"), [[0.0]])
