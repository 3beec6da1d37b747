"""An auxiliary that was pretrained: where it starts, whether it stays, a temperature that falls, what it costs."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.alphabet.immune import ANTIBODY
from biometro.data.batch import Batch
from biometro.errors import UserError
from biometro.files import sha256_of
from biometro.model.bundle import Bundle
from biometro.model.encoder import EncoderConfig
from biometro.model.load import load
from biometro.objectives.corruption import generator_for
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.mlm import MLM, MLMConfig
from biometro.objectives.pretraining import for_alphabet, pretraining
from biometro.training import planner
from conftest import packed_of, random_sequences

SHAPE = for_alphabet(EncoderConfig(width=32, depth=2, head_size=8, dropout=0.1), PROTEIN)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model folder of MLM, with weights large enough that it says something."""
    torch.manual_seed(1)
    made = MLM(replace(SHAPE, depth=1), PROTEIN)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("filler") / "model"
    Bundle(PROTEIN, made.bundle_modules()).save(folder)
    return folder


def metro(**options: Any) -> Metro:
    torch.manual_seed(0)
    made = pretraining("metro", SHAPE, PROTEIN, MetroConfig(**options), MLMConfig())
    assert isinstance(made, Metro)
    return made


def batch() -> Batch:
    return Batch({"sequence": packed_of(random_sequences([30, 50, 40]))})


def step(goal: Metro) -> dict[str, float]:
    torch.manual_seed(0)  # dropout
    terms = goal.backward([goal.prepare(batch(), generator_for(CPU, 0))])
    return {name: float(term.mean) for name, term in terms.items()}


@pytest.mark.parametrize("embeddings", ["tied", "disentangled", "separate"])
def test_it_starts_as_the_model_of_the_folder(filler: Path, embeddings: str) -> None:
    goal, source = metro(auxiliary=str(filler), embeddings=embeddings), load(filler)
    prepared = goal.prepare(batch(), generator_for(CPU, 0))
    masked = prepared.views["masked"]
    with torch.no_grad():
        hidden = source.encoder(masked)[prepared.targets["chosen"]]
        logits = source.modules["vocabulary"](hidden, source.encoder.embedding.weight)
    truth = prepared.sequence.tokens[prepared.targets["chosen"]]
    expected = torch.nn.functional.cross_entropy(logits, truth)
    assert goal.training and goal.auxiliary.config.dropout == 0  # as it reads in training, too
    assert step(goal)["aux_loss"] == pytest.approx(float(expected), rel=1e-5)
    shared = torch.equal(goal.encoder.embedding.weight, source.encoder.embedding.weight)
    assert shared == (embeddings != "separate")
    assert all(p.grad is not None for p in goal.auxiliary.parameters())


def test_of_a_metro_model_it_is_the_auxiliary(tmp_path: Path) -> None:
    before = metro(auxiliary_depth=1)
    Bundle(PROTEIN, before.bundle_modules()).save(tmp_path / "model")
    goal = metro(auxiliary=str(tmp_path / "model"))
    for (name, a), b in zip(before.auxiliary.named_parameters(), goal.auxiliary.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("embeddings", ["disentangled", "separate"])
def test_frozen_it_has_no_gradient_and_costs_a_third(filler: Path, embeddings: str) -> None:
    free = metro(auxiliary=str(filler), embeddings=embeddings)
    frozen = metro(auxiliary=str(filler), embeddings=embeddings, auxiliary_frozen=True)
    a, b = step(free), step(frozen)
    assert a == b  # the same samples, the same figures
    kept = [*frozen.auxiliary.parameters(), *frozen.auxiliary_vocabulary.parameters()]
    assert all(p.grad is None for p in kept)
    for name in ("encoder.blocks.0", "rtd", "vocabulary"):
        pairs = zip(free.named_parameters(), frozen.named_parameters(), strict=True)
        found = [(p.grad, q.grad) for (n, p), (_, q) in pairs if n.startswith(name)]
        assert all(p is not None and q is not None and torch.equal(p, q) for p, q in found)
    packed = batch().sequence
    auxiliary = frozen.auxiliary.flops(packed) + frozen.auxiliary_vocabulary.flops(int(packed.tokens.numel() * 0.4))
    assert free.flops(batch()) - frozen.flops(batch()) == pytest.approx(2 / 3 * auxiliary)


def test_the_temperature_falls_from_its_start_to_its_end(filler: Path) -> None:
    goal = metro(auxiliary=str(filler), temperature=1.0, temperature_from=2.0)
    found = []
    for share in (0.0, 0.1, 1.0):
        goal.at(share)
        found.append(goal.temperature)
    goal.at(0.0)
    assert goal.eval().temperature == 1.0  # of validation
    assert found == pytest.approx([2.0, 1 + 1 / math.e, 1.0], abs=1e-4)
    accuracy = []
    for temperature in (50.0, 0.001):  # nearly uniform; nearly the most probable
        hot = metro(auxiliary=str(filler), temperature_from=temperature)
        hot.at(0.0)
        many = Batch({"sequence": packed_of(random_sequences([400] * 4))})
        prepared = hot.prepare(many, generator_for(CPU, 0))
        corrupted, _ = hot._corrupt(prepared)
        hidden = hot.auxiliary(prepared.views["masked"])[prepared.targets["chosen"]]
        best = hot.auxiliary_vocabulary(hidden, hot.auxiliary.embedding.weight)
        best = best.masked_fill(~hot.letters_V, -torch.inf).argmax(-1)
        accuracy.append(float((corrupted.tokens[prepared.targets["chosen"]] == best).float().mean()))
    assert accuracy[0] < 0.2 and accuracy[1] > 0.99


def test_mistakes_are_said(filler: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"auxiliary_frozen": True}, "name the model"), ({"temperature_from": 0.0}, "must be above 0"),
        ({"auxiliary": str(filler), "auxiliary_frozen": True}, "disentangled or separate"),
        ({"auxiliary": str(filler), "auxiliary_depth": 1}, "a shape of its own"),
        ({"auxiliary": str(tmp_path)}, "is no model folder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            metro(**options)
    wide = replace(SHAPE, width=64)
    with pytest.raises(UserError, match="its token table has width 32, that of the main model 64"):
        pretraining("metro", wide, PROTEIN, MetroConfig(auxiliary=str(filler)), MLMConfig())
    pretraining("metro", wide, PROTEIN, MetroConfig(auxiliary=str(filler), embeddings="separate"), MLMConfig())
    with pytest.raises(UserError, match="its tokens are not those of the corpus"):
        pretraining("metro", for_alphabet(SHAPE, ANTIBODY), ANTIBODY, MetroConfig(auxiliary=str(filler)), MLMConfig())
    encoder = load(filler)
    Bundle(PROTEIN, {"encoder": encoder.encoder}).save(tmp_path / "bare")
    with pytest.raises(UserError, match="a head over tokens"):
        metro(auxiliary=str(tmp_path / "bare"))


def test_plan_takes_a_frozen_one_for_what_it_is(filler: Path) -> None:
    free = metro(auxiliary=str(filler), embeddings="separate")
    frozen = metro(auxiliary=str(filler), embeddings="separate", auxiliary_frozen=True)
    packed = batch().sequence
    parts = {name: planner.forward_flops(goal, packed) for name, goal in (("free", free), ("frozen", frozen))}
    assert sum(parts["frozen"].values()) == pytest.approx(frozen.flops(batch()))
    assert parts["frozen"]["auxiliary"] == pytest.approx(parts["free"]["auxiliary"] / 3)
    assert 0 < parts["frozen"]["heads"] < parts["free"]["heads"]
    how = planner.Arithmetic()
    learnt = sum(p.numel() for p in frozen.parameters() if p.requires_grad)
    a, b = (planner.memory(goal, how, 1000, gpu=False) for goal in (free, frozen))
    assert a.weights == b.weights and b.optimizer == 8 * learnt < a.optimizer and b.gradients == 4 * learnt
    kept = planner.activation_bytes(frozen, how, 1000)
    assert "auxiliary" not in kept and b.activations < a.activations


def test_a_run_keeps_it_and_goes_on_only_with_the_same(
    filler: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "filler"
    load(filler).save(here)
    command = [
        "pretrain", f"--data={corpus}", f"--run={tmp_path / 'run'}", "--device=cpu", "--report=false",
        "--encoder.width=32", "--encoder.depth=2", "--encoder.head_size=8", "--packing.batch_tokens=512",
        "--packing.crop=60", "--training.steps=4", "--training.checkpoint_every=2", "--training.valid_batches=1",
        f"--metro.auxiliary={here}", "--metro.auxiliary_frozen=true", "--metro.embeddings=disentangled",
        "--metro.temperature_from=2.0", "--training.track=[]",
    ]  # fmt: skip
    assert cli.main(command) == 0
    made, source = load(tmp_path / "run" / "model"), load(filler)
    for (name, a), b in zip(made.modules["auxiliary"].named_parameters(), source.encoder.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert "as it is" in made.facts["auxiliary"] and "not in the FLOPs" in made.facts["auxiliary"]
    assert cli.main(["plan", *command[1:]]) == 0
    before = sha256_of(tmp_path / "run" / "model" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")  # step 2's checkpoint lacks it
    assert cli.main(command) == 0
    assert sha256_of(tmp_path / "run" / "model" / "model.safetensors") == before
    with torch.no_grad():
        source.encoder.embedding.weight.add_(1)
    source.save(here)
    capsys.readouterr()
    assert cli.main(command) == 1
    assert "another corpus or auxiliary" in capsys.readouterr().err
