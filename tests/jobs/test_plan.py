"""`biometro plan`: reads what `pretrain` reads, and tells what it takes."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import biometro
from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.data.corpus import Corpus
from biometro.data.loader import Loader, PackingConfig
from biometro.errors import UserError
from biometro.jobs.plan import Plan
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro
from biometro.training.parallel import ParallelConfig, World, _mesh
from biometro.training.trainer import TrainingConfig
from conftest import recipes_of

ESM2_650M = EncoderConfig(width=1280, depth=33, head_size=64)


def shell(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_options_are_those_of_pretrain() -> None:
    """Declared twice, since `plan` needs neither data nor a run folder; this keeps them one."""
    ours, theirs = (inspect.signature(job).parameters for job in (biometro.plan, biometro.pretrain))
    assert set(theirs) <= set(ours)
    for name, parameter in theirs.items():
        assert ours[name].annotation == parameter.annotation
        assert ours[name].default == ("" if name in ("data", "run") else parameter.default)


@pytest.mark.parametrize("recipe", recipes_of("pretrain"), ids=lambda p: p.stem)
def test_a_recipe_right_after_the_job(
    recipe: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from corpora that a developer may have
    assert shell("plan", str(recipe), "--gpus=8", "--encoder.width=256", "--price=2") == 0
    shown = capsys.readouterr().out
    options = yaml.safe_load(recipe.read_text())
    with torch.device("meta"):
        config = EncoderConfig(**{**options["encoder"], "width": 256})
        from biometro.objectives.metro import MetroConfig

        goal = Metro(config, PROTEIN, MetroConfig(**options.get("metro", {})))
    assert f"{sum(p.numel() for p in goal.parameters()):,}" in shown
    for words in ("fits", "tokens per second", "cost", "8 share 1 micro-batches", f"no corpus at {options['data']}"):
        assert words in " ".join(shown.split())


def test_a_recipe_right_after_pretrain(corpus: Path, tmp_path: Path) -> None:
    options = ["--training.steps=1", "--training.valid_batches=1", "--report=false", "--encoder.width=32"]
    where = [f"--data={corpus}", f"--run={tmp_path / 'r'}", "--device=cpu"]
    assert shell("pretrain", "recipes/quickstart.yaml", *where, *options) == 0
    assert yaml.safe_load((tmp_path / "r" / "recipe.yaml").read_text())["encoder"]["depth"] == 3


@pytest.mark.parametrize(
    ("recipe", "words"),
    [("encoder: {widht: 3}\n", "widht"), ("encoder: {width: wide}\n", "width"), (None, "File does not exist")],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, capsys: Any, recipe: str | None, words: str) -> None:
    path = tmp_path / "r.yaml"
    if recipe is not None:
        path.write_text(recipe)
    errors = []
    for job in ("plan", "pretrain"):
        assert shell(job, str(path)) == 2
        errors.append(capsys.readouterr().err)
    assert words in errors[0] and len(errors[0].splitlines()) == 1
    assert errors[0] == errors[1].replace("pretrain", "plan")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--gpus=0", "gpus is 0"), ("--memory=lots", "memory is 'lots'"), ("--mfu=0", "mfu is 0"),
        ("--packing.batch_tokens=300", "too small"), ("--encoder.width=100", "no multiple"),
        ("--price=-1", "price is -1"), ("--mean_length=0", "mean_length is 0"),
    ],
)  # fmt: skip
def test_absurd_options_are_one_line(capsys: Any, option: str, words: str) -> None:
    assert shell("plan", "recipes/quickstart.yaml", option) == 1
    errors = capsys.readouterr().err
    assert words in errors and len(errors.splitlines()) == 1


def test_a_damaged_corpus_is_not_passed_over(tmp_path: Path, capsys: Any) -> None:
    assert shell("plan", f"--data={tmp_path}") == 1
    assert "is not a corpus folder" in capsys.readouterr().err


def test_a_corpus_gives_its_own_lengths(corpus: Path) -> None:
    """Tokens and operations of the plan are those of the batches that the loader gives."""
    packing, training = PackingConfig(batch_tokens=2048, crop=254), TrainingConfig(steps=10, accumulate=4)
    encoder = EncoderConfig(width=32, depth=2, head_size=16)
    found = biometro.plan(data=str(corpus), packing=packing, training=training, encoder=encoder, gpus=2)
    opened = Corpus.open(corpus)
    loader = Loader(opened.split("train"), opened.alphabet, packing)
    batches = [loader.batch(number) for number in range(loader.batches_per_epoch)]
    tokens = sum(batch.tokens for batch in batches)
    assert found.tokens == pytest.approx(40 * tokens / len(batches))
    assert found.epochs == pytest.approx(40 / len(batches))
    goal = Metro(encoder, opened.alphabet)
    assert found.training == pytest.approx(3 * 40 / len(batches) * sum(map(goal.flops, batches)), rel=0.005)


def big(**options: Any) -> Plan:
    parallel = ParallelConfig(sharding=options.pop("sharding", "auto"), recompute=options.pop("recompute", False))
    training = TrainingConfig(steps=1000, accumulate=options.pop("accumulate", 64), parallel=parallel)
    packing = PackingConfig(batch_tokens=options.pop("batch_tokens", 16384))
    return biometro.plan(encoder=ESM2_650M, training=training, packing=packing, **options)


def test_figures_hang_together() -> None:
    found = big(gpus=64, price=2.5)
    assert found.hours * 3600 == pytest.approx(1000 * found.step_seconds)
    assert found.tokens_per_second == pytest.approx(found.tokens_per_step / found.step_seconds)
    assert found.gpu_hours == pytest.approx(64 * found.hours) and found.cost == pytest.approx(2.5 * found.gpu_hours)
    used = found.training / (64 * 989.4e12 * 1000 * found.compute_seconds)
    assert used == pytest.approx(found.mfu)
    assert found.checkpoint == 12 * sum(found.parameters.values())
    alone = big(gpus=1)
    assert alone.compute_seconds == pytest.approx(64 * found.compute_seconds)
    assert alone.communication_seconds == 0 and alone.warnings == []


def test_recomputation_takes_time_and_saves_memory() -> None:
    plain, again = (big(gpus=8, recompute=r) for r in (False, True))
    assert again.compute_seconds / plain.compute_seconds == pytest.approx(4 / 3, rel=0.01)
    assert again.layouts[0].memory.activations < plain.layouts[0].memory.activations / 5


def test_the_layout_is_the_one_that_training_takes() -> None:
    with torch.device("meta"):
        goal = Metro(dataclasses.replace(ESM2_650M, vocab_size=PROTEIN.size), PROTEIN)
    for gpus, sharding in ((8, "shard"), (64, "hybrid")):
        assert big(gpus=gpus).layouts[0].sharding == sharding
        shards = {"shard": gpus, "hybrid": 8}[sharding]
        assert _mesh(goal, World(0, gpus, 8), ParallelConfig()) == (gpus // shards, shards)
    forced = big(gpus=8, memory="18GiB", batch_tokens=4096, sharding="replicate")
    assert not forced.layouts[0].fits and "does not fit: --training.parallel.sharding shard" in forced.warnings[0]
    (lone,) = big(memory="24GiB").warnings
    assert lone.startswith("does not fit: --packing.batch_tokens ")
    assert lone.endswith(" or less, or --training.parallel.recompute true")


def test_the_largest_batch_is_the_largest_that_fits() -> None:
    largest = big(memory="40GiB").layouts[0].largest
    assert big(memory="40GiB", batch_tokens=largest).layouts[0].fits
    assert not big(memory="40GiB", batch_tokens=largest + 100).layouts[0].fits
    assert big(memory="10GiB").layouts[0].largest == 0


def test_what_would_waste_a_cluster_is_said() -> None:
    (idle, slow) = big(gpus=64, accumulate=16, network=1).warnings
    assert "75% of the GPUs' time is idle" in idle and "--training.accumulate 64 --packing.batch_tokens 4096" in idle
    assert "communication takes" in slow
    (uneven,) = big(gpus=8, accumulate=12).warnings
    assert "25% of the GPUs' time is idle" in uneven and "--training.accumulate 16" in uneven


def test_nothing_in_python_by_position() -> None:
    with pytest.raises(TypeError):
        biometro.plan("recipes/quickstart.yaml")  # type: ignore[misc]
    with pytest.raises(UserError):
        biometro.plan(peak_tflops=-1)


@pytest.mark.parametrize("objective", ["mlm", "metro"])
def test_runs_of_equal_flops(corpus: Path, tmp_path: Path, objective: Any) -> None:
    """`training.flops` in place of steps: the run takes as many as it is told, and `plan` says the same."""
    training = TrainingConfig(flops=3e9, valid_batches=1, track=[])
    encoder = EncoderConfig(width=32, depth=3, head_size=16)
    packing = PackingConfig(batch_tokens=512, crop=60)
    options: dict[str, Any] = {"objective": objective, "encoder": encoder, "packing": packing, "training": training}
    done = biometro.pretrain(str(corpus), str(tmp_path / "r"), **options, device="cpu", report=False)
    assert done.stopped is None and done.progress.flops == pytest.approx(3e9, rel=0.05)
    assert yaml.safe_load((tmp_path / "r" / "recipe.yaml").read_text())["training"]["steps"] == done.progress.step
    planned = biometro.plan(data=str(corpus), gpu="cpu", peak_tflops=1.0, **options)
    assert planned.training == pytest.approx(3e9, rel=0.05)
    again = biometro.pretrain(str(corpus), str(tmp_path / "r"), **options, device="cpu", report=False)
    assert again.progress.step == done.progress.step
