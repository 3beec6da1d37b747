"""Objectives: corruption is uniform and keyed, losses are what their formulae say, gradients do not see the cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from biometro.alphabet import PROTEIN
from biometro.data.batch import Batch
from biometro.errors import UserError
from biometro.model.encoder import EncoderConfig
from biometro.objectives.corruption import choose, generator_for, gumbel, letter_mask, sample
from biometro.objectives.metro import Metro, MetroConfig, average_precision
from biometro.objectives.mlm import MLM, MLMConfig
from biometro.objectives.objective import Objective, total_loss
from conftest import packed_of, random_sequences

ENCODER = EncoderConfig(width=32, depth=3, head_size=16)
CPU = torch.device("cpu")
METRO_VARIANTS: list[dict[str, Any]] = [
    {},
    {"embeddings": "disentangled"},
    {"embeddings": "separate", "rtd_head": "dense"},
    {"clm_positions": "masked", "clm_head": "linear", "rtd_weight": 50.0, "mask_rate": 0.15},
    {"auxiliary_width": 16, "auxiliary_depth": 3},
    {"clm_weight": 0.0},
    {"keep_rate": 0.3},
]


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    return Batch({"sequence": packed_of(random_sequences(lengths, seed))})


def objective_of(kind: str, **options: Any) -> Objective:
    torch.manual_seed(0)
    return (
        MLM(ENCODER, PROTEIN, MLMConfig(**options))
        if kind == "mlm"
        else Metro(ENCODER, PROTEIN, MetroConfig(**options))
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.floats(0.05, 0.6), st.integers(0, 1000))
def test_the_chosen_share_holds_in_every_sequence(lengths: list[int], rate: float, seed: int) -> None:
    sequences = random_sequences(lengths, seed)
    for sequence in sequences[::2]:
        sequence[::3] = PROTEIN.id("X")  # not eligible
    packed = packed_of(sequences)
    eligible = letter_mask(PROTEIN)[packed.tokens]
    chosen = choose(packed, eligible, rate, generator_for(CPU, seed))
    assert eligible[chosen].all()
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    for number in range(len(packed)):
        mine = packed.owners == number
        available = int((mine & eligible).sum())
        taken = int(mine[chosen].sum())
        assert np.floor(available * rate) <= taken <= np.ceil(available * rate)


def test_choice_is_uniform_and_has_the_right_mean() -> None:
    packed = packed_of(random_sequences([10]))
    eligible = letter_mask(PROTEIN)[packed.tokens]
    counts = torch.zeros(12)
    for i in range(4000):
        counts[choose(packed, eligible, 0.15, generator_for(CPU, i))] += 1
    assert counts[0] == counts[11] == 0
    share = counts[1:11] / 4000
    assert share.mean().item() == pytest.approx(0.15, abs=0.01)
    assert share.max() - share.min() < 0.04


def test_sampling_follows_the_softmax_and_the_allowed_tokens() -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(0))
    allowed = torch.tensor([True, True, False, True, True])
    rows = logits.expand(60000, 5)
    drawn = sample(rows, allowed, 0.7, gumbel(60000, 5, generator_for(CPU, 1)))
    expected = (logits / 0.7).masked_fill(~allowed, -torch.inf).softmax(0)
    torch.testing.assert_close(torch.bincount(drawn, minlength=5) / 60000, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["mlm", "metro"])
def test_corruption_is_a_function_of_its_key(kind: str) -> None:
    objective, batch = objective_of(kind), batch_of([30, 50])
    one = objective.prepare(batch, generator_for(CPU, 3, 8))
    two = objective.prepare(batch, generator_for(CPU, 3, 8))
    other = objective.prepare(batch, generator_for(CPU, 3, 9))
    assert one.views["masked"].tokens.equal(two.views["masked"].tokens)
    assert not one.views["masked"].tokens.equal(other.views["masked"].tokens)
    assert batch.sequence.tokens.equal(one.sequence.tokens)


def test_mlm_writes_mask_random_and_kept_in_their_shares() -> None:
    objective, batch = objective_of("mlm", mask_rate=0.5), batch_of([5000])
    prepared = objective.prepare(batch, generator_for(CPU, 0))
    chosen = prepared.targets["chosen"]
    before, after = batch.sequence.tokens[chosen], prepared.views["masked"].tokens[chosen]
    mask = PROTEIN.id("<mask>")
    assert chosen.numel() == 2500
    assert (after == mask).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (after == before).float().mean().item() == pytest.approx(0.1 + 0.1 / 20, abs=0.02)
    assert letter_mask(PROTEIN)[after[after != mask]].all()
    untouched = torch.ones(5002, dtype=torch.bool).index_fill(0, chosen, False)
    assert prepared.views["masked"].tokens[untouched].equal(batch.sequence.tokens[untouched])


def test_the_auxiliary_reads_a_share_of_the_chosen_as_they_are() -> None:
    batch, mask = batch_of([5000]), PROTEIN.id("<mask>")
    plain = objective_of("metro").prepare(batch, generator_for(CPU, 0))
    keeping = objective_of("metro", keep_rate=0.15).prepare(batch, generator_for(CPU, 0))
    for target in ("chosen", "gumbel"):
        assert keeping.targets[target].equal(plain.targets[target])
    hidden = (keeping.views["masked"].tokens == mask).sum() / (plain.views["masked"].tokens == mask).sum()
    assert float(hidden) == pytest.approx(0.85, abs=0.04)


def test_mlm_loss_is_the_cross_entropy_at_the_chosen_positions() -> None:
    objective = objective_of("mlm")
    assert isinstance(objective, MLM)
    prepared = objective.prepare(batch_of([40, 9, 77]), generator_for(CPU, 0))
    terms = objective(prepared)
    h = objective.encoder(prepared.views["masked"])
    logits = objective.vocabulary(h, objective.encoder.embedding.weight)
    labels = torch.full_like(prepared.sequence.tokens, -100)
    labels[prepared.targets["chosen"]] = prepared.sequence.tokens[prepared.targets["chosen"]]
    torch.testing.assert_close(terms["mlm_loss"].mean, F.cross_entropy(logits, labels))
    assert float(objective.counts(prepared)["mlm_loss"]) == (labels != -100).sum()


@pytest.mark.parametrize("options", METRO_VARIANTS)
def test_metro_against_its_formulae_written_out(options: dict[str, Any]) -> None:
    objective = objective_of("metro", **options)
    assert isinstance(objective, Metro)
    prepared = objective.prepare(batch_of([40, 9, 77]), generator_for(CPU, 0))
    original, chosen = prepared.sequence.tokens, prepared.targets["chosen"]
    read = prepared.views["masked"].tokens
    hidden = read == PROTEIN.id("<mask>")
    assert set(hidden.nonzero().squeeze(1).tolist()) <= set(chosen.tolist())
    assert read[~hidden].equal(original[~hidden])
    assert hidden.sum() < len(chosen) if objective.config.keep_rate else hidden.sum() == len(chosen)
    terms = objective(prepared)
    logits = objective.auxiliary_vocabulary(
        objective.auxiliary(prepared.views["masked"]), objective.auxiliary.embedding.weight
    )
    torch.testing.assert_close(terms["aux_loss"].mean, F.cross_entropy(logits[chosen], original[chosen]))
    if objective.config.keep_rate:
        torch.testing.assert_close(terms["aux_masked_loss"].mean, F.cross_entropy(logits[hidden], original[hidden]))
    else:
        assert "aux_masked_loss" not in terms
    corrupted, _ = objective._corrupt(prepared)
    replaced = (corrupted.tokens != original).float()
    assert set(replaced.nonzero().squeeze(1).tolist()) <= set(chosen.tolist())
    letters = letter_mask(PROTEIN)[original]
    h = objective.encoder(corrupted)
    scores = objective.rtd(h).squeeze(-1)
    expected = F.binary_cross_entropy_with_logits(scores[letters], replaced[letters])
    torch.testing.assert_close(terms["rtd_loss"].mean, expected)
    torch.testing.assert_close(terms["replaced"].mean, replaced[letters].mean())
    total = terms["aux_loss"].mean + objective.config.rtd_weight * expected
    if objective.config.clm_weight:
        logits = objective.vocabulary(h, objective.encoder.embedding.weight)
        places = letters.nonzero().squeeze(1) if objective.config.clm_positions == "all" else chosen
        torch.testing.assert_close(terms["clm_loss"].mean, F.cross_entropy(logits[places], original[places]))
        torch.testing.assert_close(terms["clm_masked_loss"].mean, F.cross_entropy(logits[chosen], original[chosen]))
        right = (logits.argmax(-1) == original)[places]
        changed = replaced[places].bool()
        torch.testing.assert_close(terms["clm_accuracy_replaced"].mean, right[changed].float().mean())
        torch.testing.assert_close(terms["clm_accuracy_kept"].mean, right[~changed].float().mean())
        total = total + terms["clm_loss"].mean
    else:
        assert "clm_loss" not in terms
    torch.testing.assert_close(total_loss(terms, objective.counts(prepared)), total)


def test_the_sample_carries_no_gradient_and_the_auxiliary_no_dropout() -> None:
    torch.manual_seed(0)
    objective = Metro(
        EncoderConfig(width=32, depth=3, head_size=16, dropout=0.4), PROTEIN, MetroConfig(embeddings="separate")
    )
    prepared = objective.prepare(batch_of([60]), generator_for(CPU, 0))
    assert objective._corrupt(prepared)[0].tokens.equal(objective._corrupt(prepared)[0].tokens)
    terms = objective(prepared)
    (terms["rtd_loss"].sum + terms["clm_loss"].sum).backward()
    assert all(p.grad is None for p in objective.auxiliary.parameters())
    assert all(p.grad is None for p in objective.auxiliary_vocabulary.parameters())


def test_tied_and_disentangled_tables() -> None:
    tied = objective_of("metro")
    assert isinstance(tied, Metro)
    assert tied.auxiliary.embedding is tied.encoder.embedding
    apart = objective_of("metro", embeddings="disentangled")
    assert isinstance(apart, Metro)
    assert torch.equal(apart.encoder.embedding.weight, apart.auxiliary.embedding.weight)
    prepared = apart.prepare(batch_of([60]), generator_for(CPU, 0))
    apart(prepared)["rtd_loss"].sum.backward()
    assert apart.auxiliary.embedding.weight.grad is None
    assert apart.encoder.embedding.difference.grad.abs().sum() > 0
    names = [name for name, _ in apart.named_parameters()]
    assert names.count("auxiliary.embedding.weight") == 1 and "encoder.embedding.difference" in names
    plain = apart.bundle_modules()["encoder"]
    with torch.no_grad():
        torch.testing.assert_close(plain(prepared.sequence), apart.encoder(prepared.sequence))


@pytest.mark.parametrize(("kind", "options"), [("mlm", {}), *(("metro", v) for v in METRO_VARIANTS)])
def test_gradient_of_micro_batches_is_that_of_one_batch(kind: str, options: dict[str, Any]) -> None:
    """The same corrupted sequences in one pack, or in three unequal ones."""
    sequences = random_sequences([20, 35, 35, 50])
    whole = objective_of(kind, **options)
    one = whole.prepare(Batch({"sequence": packed_of(sequences)}), generator_for(CPU, 5))

    def part(members: list[int]) -> Batch:
        starts = one.sequence.cu_seqlens.tolist()
        places = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in members])
        inverse = {int(old): new for new, old in enumerate(places)}
        targets: dict[str, torch.Tensor] = {}
        inside = [j for j, c in enumerate(one.targets["chosen"].tolist()) if c in inverse]
        for name, target in one.targets.items():
            if name in ("chosen", "letters"):
                targets[name] = torch.tensor([inverse[c] for c in target.tolist() if c in inverse])
            else:
                targets[name] = target[inside]
        clean = packed_of([sequences[i] for i in members])
        masked = clean.with_tokens(one.views["masked"].tokens[places])
        return Batch({"sequence": clean, "masked": masked}, targets)

    terms = whole.backward([one])
    pieces = objective_of(kind, **options)
    found = pieces.backward([part([0]), part([1, 3]), part([2])])
    for name, term in terms.items():
        if name != "rtd_ap":  # an average over batches by nature
            torch.testing.assert_close(found[name].mean, term.mean, atol=1e-5, rtol=1e-5)
    for (name, a), b in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", ["mlm", "metro"])
def test_it_learns_a_toy_set_by_heart(kind: str) -> None:
    torch.manual_seed(0)
    shape = EncoderConfig(width=64, depth=2, head_size=16, init_std=0.15)
    objective: Objective = MLM(shape, PROTEIN, MLMConfig(random_rate=0, keep_rate=0))
    if kind == "metro":
        objective = Metro(shape, PROTEIN, MetroConfig(rtd_weight=10.0, clm_positions="all"))
    batch = batch_of([12, 12, 12])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    losses = []
    for step in range(300):
        terms = objective.backward([objective.prepare(batch, generator_for(CPU, step))])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(terms["mlm_loss" if kind == "mlm" else "rtd_loss"].mean.item())
    # chance: the entropy of 20 residues, and of the base rate of replacements
    assert np.mean(losses[-50:]) < (1.5 if kind == "mlm" else 0.3)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_average_precision_is_that_of_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    from sklearn.metrics import average_precision_score

    score = torch.tensor([float(s) for s, _ in pairs])
    label = torch.tensor([float(y) for _, y in pairs])
    expected = average_precision_score(label.numpy(), score.numpy()) if label.any() else 0.0
    assert average_precision(score, label).item() == pytest.approx(expected, abs=1e-6)


def test_rtd_gain_is_measured_from_the_entropy_of_the_base_rate() -> None:
    share = 0.14
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    derive = objective_of("metro").derive
    assert derive({"rtd_loss": 0.3, "replaced": share})["rtd_gain"] == pytest.approx(entropy - 0.3)
    assert derive({"rtd_loss": 0.1, "replaced": 0.0})["rtd_gain"] == pytest.approx(-0.1)


@pytest.mark.parametrize(("kind", "options"), [("mlm", {}), *(("metro", v) for v in METRO_VARIANTS)])
def test_flops_are_those_that_torch_counts(kind: str, options: dict[str, Any]) -> None:
    """Against torch's own counter, for one long sequence; heads run over a whole number of positions, hence 2 %."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    objective, batch = objective_of(kind, **options), batch_of([400])
    prepared = objective.prepare(batch, generator_for(CPU, 0))
    mkldnn = torch.backends.mkldnn.flags(enabled=False)  # the counter does not know its products
    with mkldnn, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(prepared)
    assert objective.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: MLMConfig(mask_rate=0), r"mlm\.mask_rate"),
        (lambda: MLMConfig(random_rate=0.9, keep_rate=0.2), r"mlm\.random_rate"),
        (lambda: MetroConfig(mask_rate=1.5), r"metro\.mask_rate"),
        (lambda: MetroConfig(keep_rate=1.0), r"metro\.keep_rate"),
        (lambda: MetroConfig(temperature=0), r"metro\.temperature"),
        (lambda: MetroConfig(rtd_weight=-1), r"metro\.rtd_weight"),
    ],
)
def test_impossible_settings_are_refused(make: Any, key: str) -> None:
    with pytest.raises(UserError, match=key):
        make()
