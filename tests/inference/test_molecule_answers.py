"""Molecules from a model: the chain draws from the model's distribution, and says what RDKit says of the results."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from biometro.alphabet.molecule import MoleculeAlphabet
from biometro.data.batch import frame
from biometro.errors import UserError
from biometro.inference import molecules
from biometro.inference.generate import Sampling
from biometro.inference.likelihood import Likelihood
from biometro.inference.molecules import Analogues, FromMasks
from biometro.model.bundle import Bundle
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro

Chem = pytest.importorskip("rdkit.Chem")
SELFIES = MoleculeAlphabet.of(["[C]", "[N]", "[O]", "[=C]", "[Branch1]", "[Ring1]", "[F]"], "selfies")
SMILES = MoleculeAlphabet.of(["C", "N", "O", "(", ")", "1", "=", "c"], "smiles")
LENGTHS = np.array([[4, 1], [7, 2], [0, 5]])


class Joint:
    """A model that knows a joint distribution of three places of three symbols, whatever is masked."""

    has_auxiliary = has_detector = has_restorer = False

    def __init__(self, alphabet: MoleculeAlphabet, seed: int = 0):
        self.alphabet, self.ids = alphabet, molecules.symbols(alphabet)
        self.p = np.random.default_rng(seed).dirichlet(np.full(27, 0.7)).reshape(3, 3, 3)

    def masked(self, sequences: Sequence[Any], places: Sequence[Sequence[int]], together: bool = False) -> Any:
        found = []
        for tokens, some in zip(sequences, places, strict=True):
            rows = []
            for place in some:
                hidden = {*some} if together else {place}
                at = tuple(
                    slice(None) if i in hidden or t not in self.ids else int(np.flatnonzero(self.ids == t)[0])
                    for i, t in enumerate(tokens)
                )
                kept = [i for i in range(3) if isinstance(at[i], slice)]
                p = self.p[at].sum(tuple(n for n, i in enumerate(kept) if i != place))
                rows.append(np.log(p / p.sum()))
            found.append(np.array(rows))
        return found

    seen = detected = masked


@pytest.fixture(scope="module")
def toy() -> Joint:
    return Joint(MoleculeAlphabet.of(["C", "N", "O"], "smiles"))


@pytest.mark.parametrize(("method", "sweeps"), [("masked", None), ("gibbs", 2)])
def test_without_a_start_the_models_distribution_is_drawn_from(toy: Joint, method: Any, sweeps: int | None) -> None:
    drawing = FromMasks(toy, toy.alphabet, np.array([[3, 1]]), Sampling(method, rounds=3, sweeps=sweeps))
    drawn = [tokens for b in range(40) for tokens in drawing.block(3, range(b * 32, b * 32 + 32))]
    counts = Counter("".join(toy.alphabet.tokens[t] for t in tokens) for tokens in drawn)
    rows = ["".join(row) for row in itertools.product("CNO", repeat=3)]
    assert {*counts} <= {*rows}
    expected = toy.p.ravel() * len(drawn)
    large = expected > 4
    observed = np.array([counts[row] for row in rows])
    pairs = [np.append(values[large], values[~large].sum()) for values in (observed, expected)]
    assert chisquare(*pairs).pvalue > 1e-3


def metro(alphabet: MoleculeAlphabet, seed: int = 0) -> Likelihood:
    torch.manual_seed(seed)
    config = EncoderConfig(
        width=16, depth=1, head_size=8, vocab_size=alphabet.size, mask_token=alphabet.id(alphabet.mask)
    )
    objective = Metro(config, alphabet).eval()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.normal_(std=0.3)
    return Likelihood(Bundle(alphabet, objective.bundle_modules()), tokens=True)


@pytest.mark.parametrize("method", ["auto", "masked", "proposals"])
@pytest.mark.parametrize("alphabet", [SELFIES, SMILES], ids=["selfies", "smiles"])
def test_only_symbols_are_drawn_and_a_smaller_count_begins_alike(alphabet: MoleculeAlphabet, method: Any) -> None:
    model = metro(alphabet)
    drawing = FromMasks(model, alphabet, LENGTHS, Sampling(method, sweeps=1))
    many, few = (molecules.collect(drawing, alphabet, count, 5) for count in (9, 3))
    assert [many.smiles[n] for n in many.kept][:3] == [few.smiles[n] for n in few.kept]
    assert {*np.concatenate(many.tokens).tolist()} <= {*molecules.symbols(alphabet).tolist()}
    assert {len(tokens) for tokens in many.tokens} == {4, 7}
    for tokens, smiles in zip(many.tokens, many.smiles, strict=True):
        mol = Chem.MolFromSmiles(alphabet.smiles(tokens))
        text = "" if mol is None or not mol.GetNumAtoms() else Chem.MolToSmiles(mol)
        assert smiles == text and (text or alphabet.notation == "smiles")
    kept = [many.smiles[n] for n in many.kept]
    assert len({*kept}) == len(kept) and all(kept)
    assert (method == "proposals") == (0 <= many.accepted <= 1)


def test_analogues_replace_as_many_symbols_as_asked_for() -> None:
    model = metro(SELFIES)
    start = molecules.start_of(SELFIES, b"CCNCO", mutations="1-2")
    own = SELFIES.encode(b"CCNCO")
    for sampling in (Sampling(), Sampling("gibbs"), Sampling("proposals", tries=2), Sampling(positions="entropy")):
        made = molecules.collect(Analogues(model, start, sampling), SELFIES, 5, 1, "CCNCO")
        assert all(1 <= (tokens != own).sum() <= 2 for tokens in made.tokens) and "CCNCO" not in kept_of(made)
    control = molecules.random_analogues(start, [1, 2, 2], 3)
    assert [(tokens != own).sum() for tokens in control.tokens] == [1, 2, 2]
    with pytest.raises(UserError, match="6 mutations are asked for, but the start has 5 tokens"):
        molecules.start_of(SELFIES, b"CCNCO", mutations=6)


def kept_of(made: molecules.Molecules) -> list[str]:
    return [made.smiles[n] for n in made.kept]


def test_scores_are_those_of_one_mask_at_a_time() -> None:
    model = metro(SELFIES)
    found = molecules.scores(model, SELFIES, ["CCO", "", "CCN"])
    tokens = SELFIES.encode(b"CCO")
    auxiliary = model.bundle.modules["auxiliary"], model.bundle.modules["auxiliary_vocabulary"]
    logs = []
    for place in range(3):
        masked = tokens.copy()
        masked[place] = SELFIES.id("<mask>")
        framed = torch.tensor([*SELFIES.begin_ids, *masked.tolist(), *SELFIES.end_ids])
        packed = frame(framed.numpy(), np.array([0, len(framed)]))
        with torch.no_grad():
            h_TD = auxiliary[0](packed)
            logits = auxiliary[1](h_TD, auxiliary[0].embedding.weight)
        logs.append(float(logits[place + 1].log_softmax(-1)[int(tokens[place])]))
    assert found[0] == pytest.approx(np.mean(logs), abs=1e-5) and np.isnan(found[1]) and found[2] < 0


def test_lengths_are_drawn_as_they_are_had() -> None:
    drawn = [molecules.draw_length(LENGTHS[:2], u) for u in np.linspace(0, 1, 300, endpoint=False)]
    assert Counter(drawn) == {4: 100, 7: 200}
