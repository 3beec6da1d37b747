"""`finetune` and `predict` from files to answers, on simulated families and a tiny ESM-2."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import biometro
from biometro import cli
from biometro.data import families, sides
from biometro.data.labels import read_labelled
from biometro.data.sides import SplitConfig
from biometro.data.task import LabelConfig
from biometro.errors import UserError
from biometro.jobs.finetune import Finetuned
from biometro.model.load import load
from conftest import esm2_folder, recipes_of
from fuzz.readers import a_protbert_folder
from model.test_huggingface import a_chemberta_folder

FAMILIES = 4


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOMETRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return esm2_folder(tmp_path_factory.mktemp("base") / "esm2-tiny")


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members of families, whose number stands in the header."""
    path = tmp_path_factory.mktemp("data") / "families.fasta"
    records = list(families.records(seed=3, families=FAMILIES, members=24))
    path.write_text("".join(f">{name.replace('/', '|')} x\n{letters}\n" for name, letters in records))
    return path


def options(fasta: Path, base: Path, run: Path, *more: str) -> list[str]:
    return [
        "finetune", f"--model={base}", f"--data={fasta}", f"--run={run}", "--labels.field=0", "--split.valid=0.2",
        "--training.epochs=4", "--training.optimizer.stages=2", "--training.optimizer.lr=0.01", "--lora.dropout=0",
        "--training.encoder_rate=1", "--training.batch_tokens=2048", "--training.batch_size=8", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(fasta: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all depths with all that comes with it."""
    run = tmp_path_factory.mktemp("run") / "all"
    depths = "--depth=[probe, lora_head, lora, full]"
    assert cli.main(options(fasta, base, run, depths, "--seeds=2", "--lora.layers=all", "--head.hidden=16")) == 0
    return run


def results_of(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def test_all_depths_and_baselines_stand_in_one_table(done: Path) -> None:
    said = results_of(done)
    (split,) = said["splits"].values()
    assert list(split["methods"]) == ["nearest neighbour", "k-mers", "probe", "lora_head", "lora", "full"]
    assert [len(m["runs"]) for m in split["methods"].values()] == [1, 1, 2, 2, 2, 2]
    assert sum(split["sizes"].values()) == 24 * FAMILIES
    # families are simulated: everybody's nearest neighbour is a relative, and a random split leaks all of it
    assert split["leaks"]["test"]["share"] == 1.0
    assert split["methods"]["nearest neighbour"]["summary"]["accuracy"]["mean"] == 1.0
    assert split["methods"]["full"]["summary"]["accuracy"]["mean"] > 0.5
    for method in ("probe", "lora_head", "lora", "full"):
        for fit in split["methods"][method]["runs"]:
            assert {"figures", "intervals", "per_class", "confusion", "reliability", "conformal"} <= {*fit}
            assert fit["temperature"] > 0 and 0 <= fit["threshold"] <= 1
    table = (done / "results.md").read_text()
    assert "| nearest neighbour |" in table and "±" in table and "100.0 % of test has a relative in train" in table
    page = (done / "report.html").read_text()
    assert "</html>" in page and "k-mers" in page
    assert not list(done.rglob("checkpoints/step-*"))


def test_what_is_done_is_not_done_again(done: Path, fasta: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.rglob("result.json")}

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("fitted again")

    monkeypatch.setattr("biometro.training.finetuning.fit", fail)
    depths = "--depth=[probe, lora]"
    assert cli.main(options(fasta, base, done, depths, "--seeds=1", "--lora.layers=all", "--head.hidden=16")) == 0
    assert {p: p.stat().st_mtime_ns for p in done.rglob("result.json")} == before
    with pytest.raises(AssertionError, match="fitted again"):
        cli.main(options(fasta, base, done, "--depth=probe", "--seeds=3", "--lora.layers=all", "--head.hidden=16"))


def test_another_option_or_other_labels_need_another_run(
    done: Path, fasta: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(options(fasta, base, done, "--lora.layers=all", "--head.hidden=32")) == 1
    assert "head.hidden: 16 then, 32 now" in capsys.readouterr().err
    other = tmp_path / "other.fasta"
    other.write_text(fasta.read_text() + ">family-000|more\nMKTAYIAKQR\n")
    assert cli.main(options(other, base, done, "--lora.layers=all", "--head.hidden=16")) == 1
    assert "another labels or model" in capsys.readouterr().err


def test_predictions_are_those_that_were_judged(done: Path, fasta: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    command = ["predict", f"--model={done / 'model'}", f"--data={fasta}", f"--out={out}", "--probabilities=true"]
    assert cli.main(command) == 0
    rows = list(csv.DictReader(out.open()))
    headers = [line[1:].split()[0] for line in fasta.read_text().splitlines() if line.startswith(">")]
    assert [row["id"] for row in rows] == headers
    right = np.mean([row["label"] == row["id"].split("|")[0] for row in rows])
    assert right > 0.6
    for row in rows:
        each = [float(value) for name, value in row.items() if name.startswith("p(")]
        assert abs(sum(each) - 1) < 1e-4 and abs(max(each) - float(row["probability"])) < 1e-5
        assert (row["abstain"] == "true") == (len([n for n in row["set"].split(";") if n]) != 1)
    parquet = biometro.predict(str(done / "model"), str(fasta), str(tmp_path / "p.parquet"))
    table = pq.read_table(tmp_path / "p.parquet")
    assert parquet.rows == [] and table.column("label").to_pylist() == [row["label"] for row in rows]
    told = biometro.predict(str(done / "model"), ["MKTAYIAKQR", "MKT"])
    assert len(told.rows) == 2 and {*told.rows[0]} == {"id", "label", "probability", "abstain", "set"}


def test_answers_are_compared_with_labels_and_unknown_ones_counted(
    done: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "more.fasta"
    data.write_text(fasta.read_text() + ">novel|1\nMKTAYIAKQRMMM\n")
    command = ["predict", f"--model={done / 'model'}", f"--data={data}", f"--out={tmp_path / 'p.csv'}"]
    assert cli.main([*command, "--compare=true", "--labels.field=0"]) == 1
    said = capsys.readouterr().err
    assert "1 of 97 records have no usable label: 1 x label: 'novel' is none of the classes" in said
    assert cli.main([*command, "--compare=true", "--labels.field=0", "--labels.bad=drop"]) == 0
    said = capsys.readouterr().err
    assert (
        "96 sequences with labels: accuracy" in said and "left out (label: 'novel' is none of the classes): 1" in said
    )


@pytest.fixture(scope="module")
def adapted(fasta: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of one base."""
    runs = []
    for number in range(2):
        run = tmp_path_factory.mktemp("lora") / f"r{number}"
        more = ["--depth=lora", f"--seed={number}", "--baselines=false", "--split.identity=0", "--report=false"]
        assert cli.main(options(fasta, base, run, *more)) == 0
        runs.append(run / "model")
    return runs


def test_an_adapter_loads_in_plain_peft_with_the_same_outputs(adapted: list[Path], base: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    letters = ["MKTAYIAKQRQISFVK", "ACDEFGHIKLMNPQRSTVWY"]
    plain = peft.PeftModel.from_pretrained(transformers.EsmModel.from_pretrained(base), adapted[0]).eval()
    bundle = load(adapted[0])
    for sequence in letters:
        tokens = [0, *bundle.alphabet.encode(sequence.encode()).tolist(), 2]
        with torch.no_grad():
            hidden = plain(torch.tensor([tokens])).last_hidden_state[0]
        ours = biometro.embed(str(adapted[0]), [sequence], pooling="residues").vectors[0]  # type: ignore[union-attr]
        np.testing.assert_allclose(ours, hidden[1:-1].numpy(), atol=2e-5)
    without = biometro.embed(str(base), letters[:1], pooling="residues").vectors[0]  # type: ignore[union-attr]
    assert np.abs(without - ours[: len(without)]).max() > 1e-3 if len(without) == len(ours) else True


def test_several_adapters_share_one_base(adapted: list[Path], fasta: Path) -> None:
    """And answer as each does alone, in columns of their own."""
    both = biometro.predict([str(m) for m in adapted], str(fasta))
    for number, model in enumerate(adapted):
        alone = biometro.predict(str(model), str(fasta))
        for row, own in zip(both.rows, alone.rows, strict=True):
            assert row[f"r{number}: label"] == own["label"]
            assert abs(row[f"r{number}: probability"] - own["probability"]) < 1e-5


def test_a_merged_adapter_needs_no_base(adapted: list[Path], fasta: Path, tmp_path: Path) -> None:
    assert cli.main(["export", f"--model={adapted[0]}", f"--out={tmp_path / 'whole'}", "--to=biometro"]) == 0
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    for row, own in zip(
        biometro.predict(str(tmp_path / "whole"), str(fasta)).rows,
        biometro.predict(str(adapted[0]), str(fasta)).rows,
        strict=True,
    ):
        assert row["label"] == own["label"] and abs(row["probability"] - own["probability"]) < 1e-4


def test_an_adapter_for_another_base_is_one_clear_line(
    adapted: list[Path], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = esm2_folder(tmp_path / "other", seed=5)
    command = ["predict", f"--model={adapted[0]}", "--data=MKTAYIAKQR", f"--out={tmp_path / 'p.csv'}"]
    capsys.readouterr()
    assert cli.main([*command, f"--base={other}"]) == 1
    said = capsys.readouterr().err
    assert "an adapter for another base" in said and said.count("\n") == 1
    moved = tmp_path / "moved"
    shutil.copytree(adapted[0], moved)
    text = json.loads((moved / "config.json").read_text())
    text["base"]["path"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(text))
    command[1] = f"--model={moved}"
    assert cli.main(command) == 1
    assert "say with `base` where that model is now" in capsys.readouterr().err
    assert cli.main([*command, f"--base={base}"]) == 0
    assert not (tmp_path / "p.csv.tmp").exists()


def test_a_fit_that_is_stopped_goes_on(fasta: Path, base: Path, tmp_path: Path) -> None:
    """Bit for bit: the answers are those of a run that was never stopped."""
    more = ["--depth=full", "--baselines=false", "--split.identity=0", "--report=false"]
    assert cli.main(options(fasta, base, tmp_path / "whole", *more)) == 0
    status, starts = 75, 0
    while status == 75:
        starts += 1
        status = cli.main(options(fasta, base, tmp_path / "cut", *more, "--training.max_minutes=0.004"))
        assert starts < 200  # on a busy machine each makes one step
    assert status == 0 and starts > 1
    cut, whole = (
        results_of(tmp_path / name)["splits"]["random"]["methods"]["full"]["runs"][0] for name in ("cut", "whole")
    )
    assert cut["figures"] == whole["figures"] and cut["epoch"] == whole["epoch"]


def number_table(path: Path, per_residue: bool) -> str:
    """Share of hydrophobic residues; or, of each residue, whether it is one."""
    random = np.random.default_rng(0)
    letters = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), random.integers(20, 40))) for _ in range(80)]
    marks = ["".join("01"[x in "AILMFVWC"] for x in sequence) for sequence in letters]
    label = marks if per_residue else [100 * mark.count("1") / len(mark) for mark in marks]
    side = ["train"] * 50 + ["val"] * 10 + ["test"] * 20
    pq.write_table(pa.table({"sequence": letters, "label": label, "side": side}), path)
    return str(path)


@pytest.mark.long
@pytest.mark.parametrize("task", ["regression", "residue_classification"])
def test_numbers_and_residues_with_a_split_that_is_given(task: str, base: Path, tmp_path: Path) -> None:
    data = number_table(tmp_path / "x.parquet", task.startswith("residue"))
    run = tmp_path / "run"
    command = [
        "finetune", f"--model={base}", f"--data={data}", f"--run={run}", f"--labels.task={task}", "--split.by=column",
        "--split.column=side", "--depth=[probe, full]", "--training.epochs=12", "--training.optimizer.lr=0.01",
        "--training.encoder_rate=1", "--training.optimizer.stages=2", "--training.batch_tokens=512",
        "--training.batch_size=8", "--training.patience=0",
    ]  # fmt: skip
    assert cli.main(command) == 0
    split = results_of(run)["splits"]["column"]
    assert split["sizes"] == {"train": 50, "valid": 10, "test": 20}
    figures = {name: method["summary"] for name, method in split["methods"].items()}
    metric = "spearman" if task == "regression" else "accuracy"
    assert figures["full"][metric]["mean"] > 0.8, figures["full"]
    assert figures["k-mers"][metric]["mean"] > 0.4
    rows = biometro.predict(str(run / "model"), data).rows
    table = pq.read_table(data).to_pylist()
    if task == "regression":
        inside = [
            row["label low"] <= record["label"] <= row["label high"] for row, record in zip(rows, table, strict=True)
        ]
        assert np.mean(inside) > 0.8
        error = np.mean([abs(row["label"] - record["label"]) for row, record in zip(rows, table, strict=True)])
        assert error < 10
    else:
        same = [
            a == b
            for row, record in zip(rows, table, strict=True)
            for a, b in zip(row["labels"], record["label"], strict=True)
        ]
        assert np.mean(same) > 0.8 and all(len(row["abstain"]) == len(row["labels"]) for row in rows)


@pytest.mark.long
def test_mistakes_are_one_clear_line(
    done: Path, fasta: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (["--labels.key=class"], "exclude one another"),
        (["--split.by=homology"], "no family can be held out"),
        (["--split.by=column"], "split.by: column (or group) and split.column go together"),
        (["--training.metric=f1"], "has no figure 'f1'"),
        (["--split.test=0.9"], "shares above 0, together below 1"),
        (["--training.batch_tokens=50", "--depth=full"], "batch_tokens is 50, too small for sequences"),
        (["--training.balance=sampling", "--labels.task=multilabel", "--depth=full"], "is for classification"),
        (["--training.frozen_layers=9", "--depth=full"], "can be frozen"),
        (["--kind=text", "--split.by=homology"], "homology is for proteins and antibodies"),
        (["--seeds=0"], "seeds must be at least 1"),
    ]
    for number, (more, message) in enumerate(cases):
        assert cli.main(options(fasta, base, tmp_path / f"r{number}", "--baselines=false", *more)) == 1, more
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("biometro: ")]
        assert len(said) == 1 and message in said[0], said
    assert cli.main(["predict", f"--model={base}", "--data=MKT", f"--out={tmp_path / 'x.csv'}"]) == 1
    assert "is not fine-tuned" in capsys.readouterr().err
    assert cli.main(["predict", f"--model={base}", "--data=MKT", f"--out={tmp_path / 'x.txt'}"]) == 1
    inputs = tmp_path / "in.csv"
    inputs.write_text("sequence\nMKT\n")
    assert cli.main(["predict", f"--model={done / 'model'}", f"--data={inputs}", f"--out={inputs}"]) == 1
    assert "is one of the inputs" in capsys.readouterr().err and inputs.read_text() == "sequence\nMKT\n"
    assert cli.main(["predict", f"--model={base}", "--data=MKT", f"--out={tmp_path / 'x.txt'}"]) == 1
    assert "must end in one of .csv" in capsys.readouterr().err and not (tmp_path / "x.csv").exists()


def test_mmseqs_that_is_missing_is_named(
    fasta: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from biometro.data import mmseqs

    def missing() -> str:
        raise UserError("MMseqs2 is not installed: pip install 'biometro[homology]', or put `mmseqs` on PATH")

    monkeypatch.setattr(mmseqs, "find", missing)
    assert cli.main(options(fasta, base, tmp_path / "a")) == 1
    more = ["--split.identity=0", "--report=false", "--depth=probe"]
    assert cli.main(options(fasta, base, tmp_path / "b", *more)) == 0
    assert "leak not measured" in (tmp_path / "b" / "results.md").read_text()


def test_the_function_returns_what_the_file_holds(fasta: Path, base: Path, tmp_path: Path) -> None:
    found = biometro.finetune(
        str(base), str(fasta), str(tmp_path / "r"), LabelConfig(field=0), SplitConfig(identity=0), baselines=False,
        report=False,
    )  # fmt: skip
    assert isinstance(found, Finetuned) and found.stopped is None
    assert json.loads(json.dumps(found.results)) == results_of(tmp_path / "r")


QUICK = ("--baselines=false", "--split.identity=0", "--report=false")


def test_the_best_of_all_fits_stays_when_a_later_command_adds_worse_ones(
    fasta: Path, base: Path, tmp_path: Path
) -> None:
    """A run that was stopped between two fits knows what the first was worth."""
    run = tmp_path / "run"
    assert cli.main(options(fasta, base, run, *QUICK, "--depth=full")) == 0
    kept = (run / "model" / "config.json").read_text()
    result = run / "random" / "full-0" / "result.json"
    said = json.loads(result.read_text())
    said["valid"]["macro_f1"] = 2.0  # better than any
    result.write_text(json.dumps(said))
    assert cli.main(options(fasta, base, run, *QUICK, "--depth=[probe, probe]")) == 0
    assert (run / "model" / "config.json").read_text() == kept
    (split,) = results_of(run)["splits"].values()
    assert len(split["methods"]["probe"]["runs"]) == 1  # named twice, fitted and counted once


def test_a_result_is_kept_before_its_checkpoints_go(
    fasta: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def killed(self: Any, place: Path, said: Any) -> None:
        assert list((place / "checkpoints").glob("step-*"))
        raise RuntimeError("killed")

    command = options(fasta, base, run, *QUICK, "--depth=full")
    with monkeypatch.context() as patch:
        patch.setattr("biometro.jobs.comparison.Comparison._keep", killed)
        with pytest.raises(RuntimeError, match="killed"):
            cli.main(command)
    assert cli.main(command) == 0
    assert not list(run.rglob("checkpoints/step-*")) and (run / "random" / "full-0" / "result.json").exists()


def test_numbers_of_few_sequences_have_no_interval_but_an_answer(base: Path, tmp_path: Path) -> None:
    """Nine validation sequences are needed for an interval of 90 %; the model must load all the same."""
    data = number_table(tmp_path / "x.parquet", per_residue=False)
    pq.write_table(pq.read_table(data).slice(0, 20), data)
    command = ["finetune", f"--model={base}", f"--data={data}", f"--run={tmp_path / 'r'}", "--labels.task=regression"]
    assert cli.main([*command, *QUICK]) == 0
    row = biometro.predict(str(tmp_path / "r" / "model"), ["MKTAYIAKQR"]).rows[0]
    assert np.isfinite(row["label"]) and (row["label low"], row["label high"]) == (-np.inf, np.inf)


def test_what_cannot_be_learnt_or_chosen_by_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = number_table(tmp_path / "x.parquet", per_residue=False)
    found = pq.read_table(data)
    sides = found.column("side").to_pylist()
    only_test = pa.array([1.0 if side == "test" else None for side in sides])
    same_in_valid = pa.array([3.0 if side == "val" else float(i) for i, side in enumerate(sides)])
    pq.write_table(found.append_column("blank", only_test).append_column("same", same_in_valid), data)
    command = [
        "finetune", f"--model={base}", f"--data={data}", f"--run={tmp_path / 'r'}", "--labels.task=regression",
        "--split.by=column", "--split.column=side", *QUICK,
    ]  # fmt: skip
    assert cli.main([*command, "--labels.column=[label, blank]"]) == 1
    assert "blank: no training sequence has a known value" in capsys.readouterr().err
    pq.write_table(pq.read_table(data).append_column("even", pa.array([i % 2 for i in range(len(sides))])), data)
    assert cli.main([*command, "--labels.task=multilabel", "--labels.column=[even, blank]"]) == 1
    assert "blank: no training sequence has a known value" in capsys.readouterr().err
    assert cli.main([*command, "--labels.column=same"]) == 1
    assert "spearman is undefined on the 10 validation sequences" in capsys.readouterr().err
    assert cli.main([*command, "--labels.column=same", "--training.metric=rmse"]) == 0
    assert cli.main([*command[:1], "--model=nowhere", *command[2:]]) == 1
    assert "nowhere: there is no such model" in capsys.readouterr().err


def test_columns_are_compared_with_their_own_answers(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = number_table(tmp_path / "x.parquet", per_residue=False)
    found = pq.read_table(data)
    pq.write_table(found.append_column("more", pa.array([float(i) for i in range(len(found))])), data)
    command = ["finetune", f"--model={base}", f"--data={data}", f"--run={tmp_path / 'r'}", "--labels.task=regression"]
    assert cli.main([*command, *QUICK, "--labels.column=[label, more]"]) == 0
    command = ["predict", f"--model={tmp_path / 'r' / 'model'}", f"--data={data}", f"--out={tmp_path / 'p.csv'}"]
    command += ["--compare=true", "--labels.task=regression"]
    assert cli.main([*command, "--labels.column=[label, more]"]) == 0
    for columns in ("[more, label]", "label"):
        capsys.readouterr()
        assert cli.main([*command, f"--labels.column={columns}"]) == 1
        assert "this model answers, in this order, label, more" in capsys.readouterr().err


@pytest.mark.parametrize("depth", ["probe", "lora", "full"])
def test_a_model_with_an_adapter_can_be_fitted_further(
    depth: str, adapted: list[Path], fasta: Path, tmp_path: Path
) -> None:
    """Its adapter is part of the encoder; what is answered is what was judged."""
    run = tmp_path / "run"
    assert cli.main(options(fasta, adapted[0], run, *QUICK, f"--depth={depth}")) == 0
    (method,) = results_of(run)["splits"]["random"]["methods"].values()
    labels = LabelConfig(field=0)
    whole = biometro.predict(str(run / "model"), str(fasta), compare=True, labels=labels).figures
    assert whole is not None
    letters = biometro.embed(str(adapted[0]), ["MKTAYIAKQR"]).vectors[0]  # type: ignore[union-attr]
    if depth == "probe":  # the encoder is that of the adapted model
        own = biometro.embed(str(run / "model"), ["MKTAYIAKQR"]).vectors[0]  # type: ignore[union-attr]
        np.testing.assert_allclose(own, letters, atol=2e-5)
    test = fasta.with_name(f"{depth}-test.fasta")
    texts = fasta.read_text().split(">")[1:]
    labelled = read_labelled(str(fasta), labels)
    division = sides.divide(labelled, "random", SplitConfig(valid=0.2, identity=0), 0)
    test.write_text("".join(f">{texts[i]}" for i in division.test))
    figures = biometro.predict(str(run / "model"), str(test), compare=True, labels=labels).figures
    assert figures is not None
    for name in ("accuracy", "log_loss"):
        assert abs(figures[name] - method["runs"][0]["figures"][name]) < 1e-4


def test_a_residue_model_with_a_table_of_positions_names_what_is_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Residues beyond have no answer; the encoder's own error names no record."""
    bert = tmp_path / "bert"
    bert.mkdir()
    a_protbert_folder(bert)
    data = number_table(tmp_path / "x.parquet", per_residue=True)
    command = ["finetune", f"--model={bert}", f"--data={data}", f"--run={tmp_path / 'r'}", "--split.valid=0.2"]
    assert cli.main([*command, *QUICK, "--labels.task=residue_classification"]) == 0
    longer = tmp_path / "long.fasta"
    longer.write_text(f">short\nMKT\n>long\n{'MKTAY' * 10}\n")
    capsys.readouterr()
    command = ["predict", f"--model={tmp_path / 'r' / 'model'}", f"--data={longer}", f"--out={tmp_path / 'p.csv'}"]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "long.fasta, line 3 (long): 50 residues, more than the 38 that this model has positions for" in said
    assert not (tmp_path / "p.csv").exists()


def test_attention_over_tokens_that_are_no_letters_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "chemberta"
    folder.mkdir()
    a_chemberta_folder(folder)
    data = tmp_path / "x.csv"
    data.write_text("sequence,label\n" + "".join(f"{'C' * i}O,{'ab'[i % 2]}\n" for i in range(1, 21)))
    command = ["finetune", f"--model={folder}", f"--data={data}", f"--run={tmp_path / 'r'}", "--kind=text", *QUICK]
    assert cli.main([*command, "--head.pooling=attention"]) == 1
    assert "head.pooling must be mean or cls" in capsys.readouterr().err


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(p, marks=pytest.mark.long if p.stem in ("arg-lora", "disorder", "solubility") else ())
        for p in recipes_of("finetune")
    ],
    ids=lambda p: p.stem,
)
def test_recipes_run(recipe: Path, base: Path, tmp_path: Path) -> None:
    """As they are, but for the size: on a table with the columns that the recipe names."""
    said = yaml.safe_load(recipe.read_text())
    labels, split = said["labels"], said["split"]
    random = np.random.default_rng(0)
    letters = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 30)) for _ in range(90)]
    label: Any = {
        "classification": [f"c{i // 3 % 3}" for i in range(90)], "regression": random.normal(size=90).tolist(),
        "residue_regression": random.normal(size=(90, 30)).tolist(),
    }[labels.get("task", "classification")]  # fmt: skip
    columns = {said.get("column", "sequence"): letters, labels["column"]: label}
    columns[said["id_column"]] = [*map(str, range(90))]
    columns |= {name: [value] * 90 for name, value in labels.get("where", {}).items()}
    if split.get("column"):
        columns[split["column"]] = [[*split["test_is"], *split["valid_is"], "other"][i % 3] for i in range(90)]
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    command = [
        "finetune", str(recipe), f"--model={base}", f"--data={tmp_path / 'x.parquet'}", f"--run={tmp_path / 'run'}",
        "--training.epochs=1", "--seeds=1", "--training.optimizer.stages=2",
    ]  # fmt: skip
    assert cli.main(command) == 0
    splits = results_of(tmp_path / "run")["splits"]
    wanted = said["depth"] if isinstance(said["depth"], list) else [said["depth"]]
    for entry in splits.values():
        assert {"nearest neighbour", "k-mers", *wanted} == {*entry["methods"]}


def test_sides_are_read_whatever_their_capitals_and_the_rest_is_counted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = number_table(tmp_path / "x.parquet", per_residue=False)
    table = pq.read_table(data).to_pydict()
    table["side"] = ["Train"] * 45 + ["odd"] * 5 + ["VALIDATION"] * 10 + ["Test "] * 20
    pq.write_table(pa.table(table), data)
    command = [
        "finetune", f"--model={base}", f"--data={data}", f"--run={tmp_path / 'r'}", "--labels.task=regression", *QUICK,
        "--split.by=column", "--split.column=side", "--split.train_is=[train]", "--training.epochs=1",
    ]  # fmt: skip
    assert cli.main(command) == 0
    assert results_of(tmp_path / "r")["splits"]["column"]["sizes"] == {"train": 45, "valid": 10, "test": 20}
    assert "20 test, 5 on no side" in capsys.readouterr().err
