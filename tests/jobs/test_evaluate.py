"""`evaluate` from models and task files to tables, on simulated families and tiny models."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import biometro
from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.data import families
from biometro.data.corpus import Corpus
from biometro.errors import UserError
from biometro.evaluation import probes, tasks
from biometro.evaluation.overlap import Trained, training_of
from biometro.evaluation.protocol import Subject
from biometro.inference.embed import Embedder
from biometro.jobs.evaluate import Evaluated
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from conftest import esm2_folder
from fuzz.readers import a_protbert_folder
from model.test_huggingface import a_chemberta_folder


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOMETRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("BIOMETRO_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> list[Path]:
    """A Hugging Face folder, and one of ours that says which corpus it was trained on."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    encoder = Encoder(EncoderConfig(width=32, depth=2, head_size=16))
    Bundle(PROTEIN, {"encoder": encoder}, {"data": str(corpus)}, {"corpus digest": Corpus.open(corpus).digest}).save(
        folder / "ours" / "model"
    )
    return [esm2_folder(folder / "esm2"), folder / "ours" / "model"]


def run(out: Path, models: list[Path], names: list[str], **options: Any) -> Evaluated:
    options = {"resamples": 400, "device": "cpu"} | options
    return biometro.evaluate([str(path) for path in models], str(out), names, **options)


@pytest.fixture(scope="module")
def done(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluated]:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return out, run(out, models, ["family", "relatives"])


def task_of(found: Evaluated, name: str) -> Any:
    return next(task for task in found.results["tasks"] if task["task"] == name)


def test_models_and_baselines_stand_in_one_table(done: tuple[Path, Evaluated]) -> None:
    out, found = done
    assert list(found.results["models"]) == ["esm2", "ours"]
    family, relatives = task_of(found, "family"), task_of(found, "relatives")
    assert list(family["methods"]) == ["composition", "k-mers", "alignment", "esm2", "ours"]
    assert list(relatives["methods"]) == ["composition", "k-mers", "alignment", "esm2", "ours"]
    for task in (family, relatives):
        assert len(task["pairs"]) == 10 and task["resamples"] == 400
        for method in task["methods"].values():
            assert method["low"] <= method["value"] <= method["high"]
    assert family["methods"]["k-mers"]["value"] > 0.95 and relatives["methods"]["alignment"]["value"] > 0.95
    assert relatives["verdicts"] == {"esm2": "below", "ours": "below"}  # random weights find no relatives
    text = (out / "table.md").read_text()
    assert "| relatives | map |" in text and " < |" in text and "mean rank" in text
    assert json.loads((out / "results.json").read_text()) == found.results
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 2 and "Models over all tasks" in page and "CC BY" not in page
    assert not list(out.glob(".*writing*"))


def test_overlap_is_counted_where_the_corpus_is_at_hand(done: tuple[Path, Evaluated], corpus: Path) -> None:
    said = task_of(done[1], "relatives")["overlap"]
    assert said["esm2"]["text"] == "training corpus not recorded"
    side = Corpus.open(corpus).split("train")
    there = {PROTEIN.decode(side[i]).encode() for i in range(len(side))}
    (task,) = tasks.find(["relatives"])
    test = task.read(task.locate(None)).test
    assert said["ours"]["exact"] == sum(letters in there for letters in test) > 400


@pytest.mark.long
def test_a_tuned_model_says_what_its_encoder_was_trained_on(
    data: Path, models: list[Path], corpus: Path, tmp_path: Path
) -> None:
    command = [
        "finetune", f"--model={models[1]}", f"--data={data / 'own.csv'}", f"--run={tmp_path / 'run'}",
        "--baselines=false", "--labels.task=regression", "--labels.column=length", "--training.epochs=1",
        "--report=false",
    ]  # fmt: skip
    assert cli.main(command) == 0
    said = training_of(biometro.load(tmp_path / "run" / "model"))
    assert said == Trained(Corpus.open(corpus).digest, None, True)


def test_a_second_run_computes_nothing_and_a_new_model_only_its_own(
    done: tuple[Path, Evaluated], models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    first = done[1]
    assert first.computed == 2 + 2 + 4 + 2  # baselines, what models are, scores, one model's overlap

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(tasks.TaskFile, "read", never)
        patch.setattr("biometro.evaluation.harness.load", never)
        again = run(out, models, ["family", "relatives"])
    assert again.computed == 0 and again.results == first.results
    third = esm2_folder(tmp_path / "third", seed=7)
    more = run(out, [*models, third], ["family", "relatives"])
    assert more.computed == 1 + 2  # what it is, and its two scores
    for name in ("family", "relatives"):
        known = task_of(first, name)["methods"]
        assert {key: task_of(more, name)["methods"][key] for key in known} == known
    other = run(out, models[:1], ["family"], seed=1)
    assert other.computed == 2  # baselines and score; what the model is depends on no seed


@pytest.mark.long
def test_two_models_of_one_name_are_told_apart_by_path(models: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "esm2"
    shutil.copytree(models[0], twin)
    found = run(tmp_path / "out", [models[0], twin], ["family"])
    assert list(found.results["models"]) == [str(models[0]), str(twin)]
    assert found.computed == 3  # the same weights: nothing is computed twice
    pair = next(p for p in task_of(found, "family")["pairs"] if {p["a"], p["b"]} == {str(models[0]), str(twin)})
    assert pair["mean"] == 0 and pair["holm"] == 1


# Tasks of one's own ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of family members: a helix letter for each conserved or coupled site, the length, and a split."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "own.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "sequence", "sites", "rate", "length", "even", "side"])
        for number, family in enumerate(families.simulate(seed=4, families=12, members=6)):
            for member, letters in enumerate(family.members):
                sites = "".join("H" if still else "C" for still in family.conserved)
                rates = " ".join(f"{rate:.3f}" for rate in family.rates)
                side = ("train", "train", "valid", "test")[number % 4]
                row = [f"{number}/{member}", letters, sites, rates, len(letters), f"a;{'b' * (number % 3 > 0)}", side]
                writer.writerow(row)
    return folder


def own(folder: Path, name: str, **said: Any) -> Path:
    table = folder / "own.csv"
    split = {"by": "column", "column": "side", "train_is": ["train"], "identity": 0}  # a search takes seconds
    base = {
        "title": name,
        "data": "own.csv",
        "sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
        "id_column": "id",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(base | {"split": split} | said))
    return path


@pytest.mark.long
def test_every_kind_of_probe(data: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probes.RESIDUES, "train", 900)  # fewer than there are, so that they are drawn
    monkeypatch.setitem(probes.SEQUENCES, "train", 20)
    monkeypatch.setattr(probes, "_CHUNK", 5)
    files = [
        own(data, "sites", kind="residue_classification", metric="mcc", labels={"column": "sites"}),
        own(data, "rates", kind="residue_regression", metric="spearman_per_sequence", labels={"column": "rate"}),
        own(data, "lengths", kind="regression", metric="spearman", labels={"column": "length"}),
        own(data, "several", kind="multilabel", metric="macro_f1", labels={"column": "even"}),
        own(data, "homology", kind="residue_classification", metric="accuracy", labels={"column": "sites"},
            split={"by": "homology", "valid": 0.2}),
    ]  # fmt: skip
    found = run(tmp_path / "out", models[:1], [str(path) for path in files], resamples=200)
    for path in files:
        task = task_of(found, path.stem)
        kmers = "windows" if task["kind"].startswith("residue") else "k-mers"
        assert {kmers, "alignment", "esm2"} <= set(task["methods"])
        assert task["methods"]["esm2"]["value"] is not None
    assert task_of(found, "sites")["facts"]["train"] == "20 of 36 sequences, drawn"
    assert task_of(found, "sites")["facts"]["residues"].startswith("900 of train")
    assert task_of(found, "homology")["facts"]["resampled"] == "families"
    assert "0 of" in task_of(found, "homology")["facts"]["relatives in train"]
    # Composition holds the logarithm of the length, so that a probe of it must find the length.
    assert task_of(found, "lengths")["methods"]["composition"]["value"] > 0.9


def test_a_probe_of_residues_sees_the_residues_it_should(data: Path) -> None:
    """Vectors that are the truth must be read out to the last residue, drawn or not, sequence by sequence."""
    task = tasks.read_task(own(data, "sites", kind="residue_classification", metric="mcc", labels={"column": "sites"}))
    exam = task.read(task.locate(None), resamples=100)
    assert isinstance(exam, probes.ProbeExam)
    known = {
        letters: np.eye(2)[np.asarray(value)].astype(np.float32)
        for side in ("train", "valid", "test")
        for letters, value in zip(exam.letters[side], exam.truth[side], strict=True)
    }
    score = exam._probe(lambda letters: [known[each] for each in letters])
    assert score.figures["mcc"] == pytest.approx(1) and (score.replicates == 1).all()


def test_data_that_are_not_there_are_listed_and_no_task_is_an_error(
    data: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = own(data, "missing", kind="regression", metric="rmse", labels={}, data="gone.csv", url="https://e.org/g")
    found = run(tmp_path / "out", models[:1], [str(missing), "family"])
    (left,) = found.results["left_out"]
    assert left["task"] == "missing" and left["url"] == "https://e.org/g" and "gone.csv" in left["reason"]
    for name in ("table.md", "report.html"):
        assert "https://e.org/g" in (tmp_path / "out" / name).read_text()
    capsys.readouterr()
    command = ["evaluate", f"--model={models[0]}", f"--tasks={missing}", f"--out={tmp_path / 'none'}"]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "none of 1 tasks can be run" in said and "https://e.org/g" in said and said.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_wrong_data_and_wrong_files_are_errors(data: Path, models: list[Path], tmp_path: Path) -> None:
    other = own(data, "other", kind="regression", metric="rmse", labels={"column": "length"}, sha256="0" * 64)
    with pytest.raises(UserError, match=r"is not the file that other\.yaml is about"):
        run(tmp_path, models[:1], [str(other)])
    broken = own(data, "broken", kind="regression", metric="rmse", labels={"column": "length"}, splitt={})
    with pytest.raises(UserError, match=r"broken\.yaml: there is no key 'splitt'; did you mean 'split'"):
        run(tmp_path, models[:1], [str(broken)])
    figure = own(data, "figure", kind="regression", metric="accuracy", labels={"column": "length"})
    with pytest.raises(UserError, match="figure: a regression task has no figure 'accuracy'"):
        run(tmp_path, models[:1], [str(figure)])
    with pytest.raises(UserError, match="no such folder of data"):
        run(tmp_path, models[:1], ["family"], data=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="there is no such model"):
        run(tmp_path, [tmp_path / "nothing"], ["family"])
    with pytest.raises(UserError, match=r"no model folder: it has no config.json \(did you mean .*model\?"):
        run(tmp_path, [models[1].parent], ["family"])
    with pytest.raises(UserError, match="is no model; name its folder"):
        run(tmp_path, [other], ["family"])
    nothing = own(data, "nothing", kind="regression", metric="rmse", labels={"column": "length"}, data=[])
    with pytest.raises(UserError, match=r"nothing\.yaml: data names no file"):
        run(tmp_path, models[:1], [str(nothing)])
    with pytest.raises(UserError, match="batch_tokens is 0"):
        run(tmp_path, models[:1], ["family"], batch_tokens=0)
    with pytest.raises(UserError, match="resamples must be at least"):
        run(tmp_path, models[:1], ["family"], resamples=10)


def test_a_model_that_a_task_is_not_for_has_a_dash_and_a_reason(data: Path, models: list[Path], tmp_path: Path) -> None:
    """A model whose tokens are several letters has no vector for each residue."""
    text = tmp_path / "text"
    a_chemberta_folder(text)
    path = own(data, "sites", kind="residue_classification", metric="mcc", labels={"column": "sites"})
    found = run(tmp_path / "out", [text, models[0]], [str(path)], resamples=200)
    task = task_of(found, "sites")
    assert "tokens are not single letters" in task["refused"]["text"] and "text" not in task["methods"]
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| sites |"))
    assert row.split(" | ")[2] == "-"
    assert any("text was not examined" in line for line in lines)
    ranks = {row["model"]: row["tasks"] for row in found.results["standings"]}
    assert ranks == {"esm2": 1, "text": 0}


def test_a_model_with_few_positions_is_read_in_windows_of_as_many(data: Path, tmp_path: Path) -> None:
    """An antibody model, say, that has learnt positions for 150 residues: it is examined, and not refused."""
    few = tmp_path / "few"
    few.mkdir()
    a_protbert_folder(few)
    bundle = biometro.load(few)
    assert bundle.longest is not None and bundle.longest < 1022
    subject = Subject("few", str(few), bundle, "few", torch.device("cpu"))
    letters = b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEK" * 2
    assert len(letters) > bundle.longest
    expected = Embedder(bundle, pooling="mean", long="window", max_length=bundle.longest)
    (vector,) = subject.features("mean").of([letters])
    np.testing.assert_allclose(vector, expected.embed([bundle.alphabet.encode(letters)])[0], atol=1e-6)


@pytest.mark.long
def test_one_model_by_two_paths_is_examined_once(models: list[Path], tmp_path: Path) -> None:
    roundabout = models[0].parent / "." / ".." / models[0].parent.name / models[0].name
    found = biometro.evaluate(
        [str(models[0]), str(models[1]), str(roundabout)], str(tmp_path / "out"), ["family"], resamples=100
    )
    assert list(found.results["models"]) == ["esm2", "ours"]


def test_a_digest_in_capitals_is_the_same(data: Path, models: list[Path], tmp_path: Path) -> None:
    digest = own(data, "digest", kind="regression", metric="rmse", labels={"column": "length"})
    said = yaml.safe_load(digest.read_text())
    file = hashlib.sha256((data / said["data"]).read_bytes()).hexdigest()
    digest.write_text(yaml.safe_dump(said | {"sha256": file.upper()}))
    task = tasks.find([str(digest)])[0]
    assert task.digest(task.locate(data))[1] == [file]


@pytest.mark.long
def test_too_few_resamples_for_a_clear_difference_are_said(models: list[Path], tmp_path: Path) -> None:
    run(tmp_path / "out", models, ["family"], resamples=100)
    assert "ask for more than 400 resamples" in (tmp_path / "out" / "table.md").read_text()


def test_without_mmseqs_its_baseline_is_left_out(
    models: list[Path], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> str:
        raise UserError("MMseqs2 is not installed")

    monkeypatch.setattr("biometro.data.mmseqs.find", gone)
    needs = own(data, "needs", kind="regression", metric="rmse", labels={"column": "length"}, split={"by": "homology"})
    found = run(tmp_path / "out", models[:1], ["family", str(needs)])
    assert "alignment" not in task_of(found, "family")["methods"]
    assert "not installed" in task_of(found, "family")["facts"]["alignment"]
    (left,) = found.results["left_out"]
    assert left["task"] == "needs" and "MMseqs2" in left["reason"]
