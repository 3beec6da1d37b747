"""`align` from a table of pairs to towers, figures beside controls, and a page; and how it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import biometro
from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.alphabet.molecule import MoleculeAlphabet
from biometro.errors import UserError
from biometro.evaluation import controls, pair_results
from biometro.inference.towers import TowerReader
from biometro.jobs.align import Aligned
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.load import load
from biometro.model.towers import load_towers
from biometro.objectives.pair_losses import LossConfig
from biometro.training.tracking import read_metrics
from model.test_huggingface import a_chemberta_folder

MOTIFS = ["WWHH", "KKRR", "DDEE", "FFYY"]
GROUPS = ["c1ccccc1", "C(=O)O", "CN(C)C", "CCCC"]


@pytest.fixture(scope="module", autouse=True)
def _fewer() -> Iterator[None]:
    """Resamples, and trees of the control: what they are of is tested in tests/evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_results, "SAMPLES", 100)
        patch.setattr(controls, "_TREES", 50)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of proteins and one of molecules, untrained."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    symbols = ["[C]", "[=C]", "[O]", "[=O]", "[N]", "[Ring1]", "[Branch1]", "[=Branch1]"]
    molecules = MoleculeAlphabet.of(symbols, "selfies")
    for name, alphabet in (("protein", PROTEIN), ("molecule", molecules)):
        config = EncoderConfig(
            vocab_size=alphabet.size, mask_token=alphabet.id("<mask>"), width=32, depth=1, head_size=16
        )
        Bundle(alphabet, {"encoder": Encoder(config)}).save(root / name)
    return root


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 proteins of four motifs, 32 molecules of four groups: a pair binds at 1 nM where both are of one number, at
    some uM elsewhere; a third of all pairs is measured."""
    random = np.random.default_rng(0)
    letters = np.array(list("ACGILMNPQSTV"))
    proteins = [(i % 4, "M" + "".join(random.choice(letters, 8)) + 3 * MOTIFS[i % 4]) for i in range(40)]
    molecules = [(i % 4, "C" * (1 + i // 4) + "O" + GROUPS[i % 4]) for i in range(32)]
    rows = ["protein_sequence,smiles,kd,unit,target,fold"]
    for i, (kind, protein) in enumerate(proteins):
        for j, (group, molecule) in enumerate(molecules):
            if random.random() < 0.35:
                value = 1.0 if kind == group else 5000.0
                fold = ["train", "train", "train", "valid", "test"][(i + j) % 5]
                rows.append(f"{protein},{molecule},{value * random.uniform(0.5, 2):.3g},nM,T{i},{fold}")
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def options(models: Path, table: Path, run: Path, *more: str) -> list[str]:
    return [
        "align", f"--model={models / 'protein'}", f"--ligand={models / 'molecule'}", f"--data={table}", f"--run={run}",
        "--pairs.value=kd", "--pairs.measure=Kd", "--pairs.unit=unit", "--pairs.binds_from=8", "--pairs.split=fold",
        "--pairs.group=target", "--width=16", "--tower.hidden=32", "--training.epochs=8", "--training.batch_pairs=64",
        "--training.optimizer.warmup=5", "--training.optimizer.lr=0.01", "--device=cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(models: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "all"
    more = [
        "--compare={clip: {clip: 1}, both: {clip: 1, affinity: 1, cross: 0.5}}",
        "--seeds=2",
        "--split.by=[published, cold_target]",
    ]
    assert cli.main(options(models, table, run, *more)) == 0
    return run


def test_models_and_controls_stand_in_one_table(done: Path) -> None:
    said = json.loads((done / "results.json").read_text())
    assert list(said["splits"]) == ["published", "cold_target"] and said["unit"] == "pKd"
    for by, entry in said["splits"].items():
        methods = entry["methods"]
        assert {"clip", "both", "shuffled partners", "ligand only", "protein only"} <= {*methods}
        assert [len(methods[name]["runs"]) for name in ("clip", "both")] == [2, 2]
        first = methods["both"]["runs"][0]["figures"]
        assert first["auroc"] > 0.9 and first["spearman"] > 0.35 and first["rmse"] < 2, by
        assert "rmse" not in methods["clip"]["runs"][0]["figures"]  # a cosine is no affinity
        assert methods["clip"]["runs"][0]["figures"]["mrr"] > 0.5
        shuffled = methods["both"]["runs"][0]["shuffled"]
        assert abs(shuffled["auroc"] - 0.5) < 0.25
        assert entry["seen_in_train"]["test"]["a"] == (0.0 if by == "cold_target" else 1.0)
        assert {one["figure"] for one in entry["verdicts"]} >= {"spearman", "auroc"}
        assert all({"rival", "low", "better"} <= {*one} for one in entry["verdicts"])
    text = (done / "results.md").read_text()
    assert "partners shuffled" in text and " ± " in text
    facts = load_towers(done / "model").facts
    controls = said["splits"]["published"]["methods"].items()
    best = max(one["runs"][0]["figures"]["auroc"] for _, one in controls if one["control"])
    assert facts["best control, test: auroc"].startswith(f"{best:.4f} (")
    page = (done / "report.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "")


def test_the_towers_left_give_the_figures_that_were_told(done: Path, table: Path) -> None:
    """From the folder alone: cosines of test pairs order them as the results say."""
    import csv

    from scipy.stats import spearmanr

    found = load_towers(done / "model")
    said = json.loads((done / "results.json").read_text())["splits"]["published"]["methods"]
    name, seed = found.facts["aligned by"].split(" (")[0], None
    rows = [row for row in csv.DictReader(table.open()) if row["fold"] == "test"]
    protein, ligand = (TowerReader(bundle) for bundle in found.sides)
    a = protein.embed([protein.alphabet.encode(row["protein_sequence"].encode()) for row in rows])
    from biometro.alphabet import Reading

    clean = Reading("molecule").cleaner(ligand.alphabet)
    b = ligand.embed([ligand.alphabet.encode(clean(row["smiles"].encode()).letters) for row in rows])
    truth = -np.log10([float(row["kd"]) * 1e-9 for row in rows])
    affinity = found.affinity(a, b)
    score = (a * b).sum(1) if affinity is None else affinity
    runs = [run["figures"]["spearman"] for run in said[name]["runs"]]
    assert min(abs(spearmanr(score, truth).statistic - x) for x in runs) < 2e-3, seed
    if affinity is not None:
        assert found.answers.unit == "pKd"
    assert found.answers.probability is not None and found.answers.binds == "pKd of at least 8"
    chance = found.probability(np.array([-0.5, 0.9]))
    assert chance is not None and chance[0] < chance[1]
    assert load(done / "model" / "protein").modules["projection"] is not None


def test_a_tower_cuts_sequences_as_it_did_in_training(models: Path, table: Path, tmp_path: Path) -> None:
    more = ["--controls=false", "--split.by=published", "--training.epochs=1", "--tower.max_length=12"]
    assert cli.main(options(models, table, tmp_path / "run", *more)) == 0
    reader = TowerReader(load_towers(tmp_path / "run" / "model").towers["protein"])
    whole = PROTEIN.encode(b"MACDEFGHIKLMNPQRSTVW")
    assert reader.max_length == 12
    assert np.array_equal(reader.embed([whole]), reader.embed([whole[:12]]))
    assert not np.allclose(
        reader.embed([whole]),
        TowerReader(load_towers(tmp_path / "run" / "model").towers["protein"], max_length=20).embed([whole]),
    )


def test_the_same_command_does_nothing_again_and_other_options_are_refused(
    done: Path, models: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamp = (done / "published" / "clip-0" / "result.json").stat().st_mtime_ns
    more = [
        "--compare={clip: {clip: 1}, both: {clip: 1, affinity: 1, cross: 0.5}}",
        "--seeds=2",
        "--split.by=published",
    ]
    assert cli.main(options(models, table, done, *more)) == 0
    assert (done / "published" / "clip-0" / "result.json").stat().st_mtime_ns == stamp
    assert cli.main(options(models, table, done, *more, "--width=32")) == 1
    assert "width" in capsys.readouterr().err


@pytest.mark.parametrize("depth", [pytest.param("lora", marks=pytest.mark.long), "full"])
def test_encoders_learn_too_in_parts_of_a_batch(models: Path, table: Path, tmp_path: Path, depth: str) -> None:
    more = [f"--tower.depth={depth}", "--training.accumulate=4", "--training.hard_negatives=1", "--training.epochs=1",
            "--controls=false", "--split.by=published"]  # fmt: skip
    assert cli.main(options(models, table, tmp_path / "run", *more)) == 0
    found = load_towers(tmp_path / "run" / "model")
    before = load(models / "protein").encoder.state_dict()
    after = found.towers["protein"].encoder.state_dict()
    changed = [not torch.equal(value, before[name]) for name, value in after.items() if name in before]
    assert any(changed) == (depth == "full")
    assert (tmp_path / "run" / "model" / "protein" / "adapter_config.json").exists() == (depth == "lora")


def test_sequences_with_classes_make_pairs_and_a_shared_tower(models: Path, tmp_path: Path) -> None:
    found = biometro.align(
        str(models / "protein"), families(tmp_path), str(tmp_path / "run"),
        **_typed({"a": "sequence", "b": None, "label": "family"}), partners=3, width=16, device="cpu", pool=50,
    )  # fmt: skip
    assert isinstance(found, Aligned) and found.stopped is None
    entry = found.results["splits"]["random"]
    assert entry["methods"]["clip"]["runs"][0]["figures"]["mrr"] > 0.5
    assert [*load_towers(tmp_path / "run" / "model").towers] == ["shared"]


@pytest.mark.parametrize(
    "loss", ["angle", *(pytest.param(name, marks=pytest.mark.long) for name in ("cosent", "affinity"))]
)
def test_pairs_across_classes_teach_losses_of_values(models: Path, tmp_path: Path, loss: str) -> None:
    def fit(run: str, others: int) -> Aligned:
        return biometro.align(
            str(models / "protein"), families(tmp_path), str(tmp_path / run), losses=LossConfig(**{loss: 1.0}),
            partners=2, others=others, width=16, device="cpu", controls=False,
            **_typed({"a": "sequence", "b": None, "label": "family"}),
        )  # fmt: skip

    with pytest.raises(UserError, match=f"losses.{loss} learns from measured values.*others: 1"):
        fit("without", 0)
    entry = fit("with", 2).results["splits"]["random"]
    assert entry["methods"][loss]["runs"][0]["metric"] == "auroc"
    assert entry["methods"][loss]["runs"][0]["figures"]["auroc"] > 0.8


def families(folder: Path) -> str:
    """Sequences with one of four motifs, which is their class."""
    random = np.random.default_rng(0)
    letters = np.array(list("ACGILMNPQSTV"))
    rows = [f"M{''.join(random.choice(letters, 8))}{3 * MOTIFS[i % 4]},f{i % 4}" for i in range(80)]
    (folder / "x.csv").write_text("\n".join(["sequence,family", *rows]) + "\n")
    return str(folder / "x.csv")


def _typed(pairs: dict[str, Any]) -> dict[str, Any]:
    from biometro.data.pair_config import PairConfig
    from biometro.training.alignment import AlignTraining, TowerConfig
    from biometro.training.optimizer import OptimizerConfig

    return {
        "pairs": PairConfig(**pairs), "tower": TowerConfig(hidden=None),
        "training": AlignTraining(
            epochs=6, batch_pairs=32, optimizer=OptimizerConfig(lr=0.01, warmup=5, schedule="cosine")
        ),
    }  # fmt: skip


def test_further_pairs_tell_nothing_of_held_out_ones(models: Path, table: Path, tmp_path: Path) -> None:
    """Each protein with a molecule that the first table does not have: of held-out proteins none may be trained on."""
    proteins = sorted({line.split(",")[0] for line in table.read_text().splitlines()[1:]})
    rows = ["protein_sequence,smiles,kd,unit", *(f"{protein},CCCCCCCCCCCN,10,nM" for protein in proteins)]
    (tmp_path / "more.csv").write_text("\n".join(rows) + "\n")
    pairs = {"value": "kd", "unit": "unit", "measure": "Kd", "binds_from": 8}
    also = json.dumps([{"data": str(tmp_path / "more.csv"), "share": 0.5, "pairs": pairs}])
    more = ["--also", also, "--controls=false", "--training.epochs=1", "--ligand_tower.hidden=16"]
    for by, left_out in (("cold_target", True), ("cold_drug", False)):
        assert cli.main(options(models, table, tmp_path / by, *more, f"--split.by={by}")) == 0
        entry = json.loads((tmp_path / by / "results.json").read_text())["splits"][by]
        assert sum(entry["added"].values()) == len(proteins)
        assert (entry["added"]["left out"] > 5) == left_out and entry["added"]["trained on"] > 5
    more[1] = json.dumps([{"data": str(table), "pairs": pairs}])  # the very pairs
    assert cli.main(options(models, table, tmp_path / "same", *more, "--split.by=random")) == 0
    entry = json.loads((tmp_path / "same" / "results.json").read_text())["splits"]["random"]
    assert entry["added"]["left out"] == entry["sizes"]["valid"] + entry["sizes"]["test"]


def test_a_run_that_is_stopped_goes_on(models: Path, table: Path, tmp_path: Path) -> None:
    more = ["--split.by=published", "--controls=false"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main(options(models, table, whole, *more)) == 0
    assert cli.main(options(models, table, cut, *more, "--training.max_minutes=1e-9")) == 75
    assert not (cut / "results.json").exists()
    assert cli.main(options(models, table, cut, *more)) == 0
    one, two = (json.loads((run / "published" / "clip-0" / "result.json").read_text()) for run in (whole, cut))
    assert one["figures"] == two["figures"]


def test_mistakes_are_one_clear_line(
    models: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (["--losses.clip=0"], "give at least one of"),
        (["--compare={x: {clap: 1}}"], "there is no loss 'clap'"),
        (
            [
                "--pairs.value=null",
                "--pairs.unit=null",
                "--pairs.measure=null",
                "--pairs.binds_from=null",
                "--losses.affinity=1",
            ],
            "name pairs.value",
        ),
        (["--training.batch_pairs=4", "--training.accumulate=4"], "at least 2 for each"),
        (["--width=7"], "an even number"),
        (["--pairs.b=nothing"], "nothing"),
        (["--model=/no/such"], "there is no such model"),
        (["--training.metric=f1"], "training.metric is f1"),
        (["--losses.clip=-1"], "must be at least 0"),
    ]
    for number, (more, message) in enumerate(cases):
        command = options(models, table, tmp_path / f"r{number}", "--controls=false", "--split.by=published", *more)
        status = cli.main(command)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("biometro: ")]
        assert status in (1, 2) and len(said) == 1 and message in said[0], (more, said)


def test_two_models_are_asked_for_where_kinds_differ(models: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need two models"):
        biometro.align(str(models / "protein"), str(table), str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_see_the_negatives_of_both(models: Path, table: Path, tmp_path: Path) -> None:
    """The losses and the towers of one process, whose step holds what two ranks hold together."""
    more = [
        "--controls=false", "--split.by=published", "--tower.depth=full", "--training.accumulate=2",
        "--training.epochs=1", "--compare={all: {clip: 1, siglip: 0.5, affinity: 1, ranking: 0.1, cosent: 0.1}}",
    ]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
        "biometro",
    ]
    done = subprocess.run(
        [*command, *options(models, table, tmp_path / "two", *more)], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert cli.main(options(models, table, tmp_path / "one", *more)) == 0
    logs = [read_metrics(tmp_path / name / "published" / "all-0" / "metrics.jsonl") for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) > 2
    for one, two in zip(*logs, strict=True):
        for name in [name for name in one if name.endswith(("loss", "norm", "chance"))]:
            assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-4), (one["step"], name)
    towers = [load_towers(tmp_path / name / "model").towers["protein"].encoder.state_dict() for name in ("one", "two")]
    for name, tensor in towers[0].items():
        torch.testing.assert_close(towers[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_the_recipe_runs(models: Path, table: Path, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "affinity-clip.yaml"
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    rows = ["protein_sequence,smiles,value,unit,split,source"]
    rows += [f"{a},{b},{9 - np.log10(float(kd)):.3f},pKd,{side},davis" for a, b, kd, _, _, side in lines]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    own = [f"--model={models / 'protein'}", f"--ligand={models / 'molecule'}", f"--data={tmp_path / 'pairs.csv'}"]
    quick = [
        "--controls=false",
        "--seeds=1",
        "--training.epochs=1",
        "--split.by=published",
        f"--run={tmp_path / 'run'}",
    ]
    assert cli.main(["align", str(recipe), *own, *quick]) == 0
    said = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [*said["splits"]["published"]["methods"]] == ["clip", "affinity", "clip+affinity"]


def test_a_model_of_transformers_with_its_own_tokenizer_is_a_tower(models: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "chemberta").mkdir()
    a_chemberta_folder(tmp_path / "chemberta")
    more = [
        "--controls=false", "--split.by=published", "--training.epochs=1", "--ligand_tower.depth=lora",
        f"--ligand={tmp_path / 'chemberta'}",
    ]  # fmt: skip
    assert cli.main(options(models, table, tmp_path / "run", *more)) == 0
    assert load_towers(tmp_path / "run" / "model").sides[1].alphabet.name == "text"
