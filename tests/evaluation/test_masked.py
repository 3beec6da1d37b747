"""Masked residues against a plain loop over one window at a time, and the exam as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.alphabet.amino_acids import BACKGROUND, ORDER
from biometro.data.batch import pack
from biometro.errors import UserError
from biometro.evaluation.masked import MaskedConfig, MaskedExam, read
from biometro.evaluation.protocol import NotAtHandError, Subject
from biometro.evaluation.tasks import read_task
from biometro.jobs.prepare import prepare
from biometro.model.bundle import Bundle
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro
from biometro.objectives.mlm import MLM

SHAPE = EncoderConfig(vocab_size=PROTEIN.size, width=32, depth=2, head_size=16, init_std=0.3)


def sequences(count: int = 4, length: int = 40) -> list[bytes]:
    random = np.random.default_rng(0)
    return ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWYX"), length + 9 * n)).encode() for n in range(count)]


def subject_of(modules: dict[str, torch.nn.Module]) -> Subject:
    return Subject("m", "m", Bundle(PROTEIN, modules), "f", torch.device("cpu"))


@pytest.mark.parametrize("length", [8, 15, 1000])
def test_losses_are_those_of_a_plain_loop(length: int) -> None:
    torch.manual_seed(0)
    goal = MLM(SHAPE, PROTEIN).eval()
    config = MaskedConfig([length, 10], places=5, most=3)
    exam = MaskedExam(sequences(), config, f"loss/{length}", 0, 200)
    found = exam.model(subject_of(goal.bundle_modules()), lambda text: None)["masked one at a time"]
    losses, right = [], []
    for letters, places in zip(exam.test, exam.places, strict=True):
        for place in places:
            start = max(0, min(place - length // 2, len(letters) - length))
            window = PROTEIN.encode(letters[start : start + length]).copy()
            window[place - start] = PROTEIN.id(PROTEIN.mask)
            with torch.no_grad():
                h_TD = goal.encoder(pack([window], PROTEIN.begin_ids, PROTEIN.end_ids))
                logits = goal.vocabulary(h_TD[len(PROTEIN.begin_ids) + place - start], goal.encoder.embedding.weight)
            residue = chr(letters[place])
            losses.append(-float(logits.log_softmax(-1)[PROTEIN.id(residue)]))
            twenty = [float(logits[PROTEIN.id(one)]) for one in ORDER]
            right.append(ORDER[int(np.argmax(twenty))] == residue)
    assert len(losses) == 15 and "X" not in {
        chr(s[p]) for s, some in zip(exam.test, exam.places, strict=True) for p in some
    }
    assert found.figures[f"loss/{length}"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert found.figures[f"perplexity/{length}"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found.figures[f"accuracy/{length}"] == pytest.approx(np.mean(right))
    assert len(found.replicates) == 200 and found.replicates.std() > 0
    assert found.replicates.mean() == pytest.approx(np.mean(losses), rel=0.05)


def test_of_metro_the_auxiliary_is_examined_and_of_detection_alone_too() -> None:
    torch.manual_seed(0)
    modules = Metro(SHAPE, PROTEIN).eval().bundle_modules()
    exam = MaskedExam(sequences(), MaskedConfig(), "loss/1022", 0, 100)
    both = exam.model(subject_of(modules), lambda text: None)["masked one at a time"].figures
    alone = {"encoder": modules["auxiliary"], "vocabulary": modules["auxiliary_vocabulary"]}
    assert exam.model(subject_of(alone), lambda text: None)["masked one at a time"].figures == pytest.approx(both)


def test_baselines_know_composition_alone() -> None:
    exam = MaskedExam([b"A" * 30, b"W" * 29 + b"X"], MaskedConfig([10], places=4), "loss/10", 0, 100)
    found = exam.baselines()
    total = BACKGROUND.sum()
    alanine, tryptophan = 0.074 / total, 0.013 / total
    assert found["background"].figures["loss/10"] == pytest.approx(-np.mean(np.log([alanine, tryptophan])))
    expected = -np.mean(np.log([(29 + 20 * alanine) / 49, (28 + 20 * tryptophan) / 48]))
    assert found["composition"].figures["loss/10"] == pytest.approx(expected, abs=1e-6)
    assert found["composition"].figures["accuracy/10"] == 1.0


def test_a_model_of_proteins_reads_a_chain_without_its_mark() -> None:
    torch.manual_seed(0)
    subject = subject_of(MLM(SHAPE, PROTEIN).eval().bundle_modules())
    chains = [letters.replace(b"X", b"A") for letters in sequences()]
    bare = MaskedExam(chains, MaskedConfig(places=3), "loss/1022", 0, 100)
    marked = MaskedExam([b"|" + c for c in chains], MaskedConfig(places=3, sequences="tcr"), "loss/1022", 0, 100)
    marked.places = [[place + 1 for place in some] for some in bare.places]
    marked.truth_P = bare.truth_P
    found = [exam.model(subject, lambda text: None)["masked one at a time"].figures for exam in (bare, marked)]
    assert found[0] == pytest.approx(found[1])


def test_mistakes_are_said(tmp_path: Path) -> None:
    for more, message in (
        ({"lengths": []}, "lengths is"), ({"lengths": [1]}, "lengths is"), ({"places": 0}, "at least 1"),
        ({"shortest": 1}, "shortest at least 2"), ({"sequences": "molecule"}, "no molecule sequences"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            MaskedConfig(**more)
    (tmp_path / "x.fasta").write_text(">a\nXXXX\n")
    with pytest.raises(UserError, match="has no figure 'loss'; choose from loss/1022"):
        read("masked", [str(tmp_path / "x.fasta")], MaskedConfig(), "loss")
    with pytest.raises(UserError, match="no sequence has a standard residue"):
        read("masked", [str(tmp_path / "x.fasta")], MaskedConfig(), "loss/1022")
    (tmp_path / "y.fasta").write_text(">a\nMKVLAAGIV\n>b\nMKVLAAGIV\n>c\nMK\n")
    exam = read("masked", [str(tmp_path / "y.fasta")], MaskedConfig(shortest=5), "loss/1022")
    assert exam.test == [b"MKVLAAGIV"] and exam.facts["left out (shorter than min_length)"] == "1"
    with pytest.raises(UserError, match="chooses rows of a table"):
        read("masked", [str(tmp_path / "y.fasta")], MaskedConfig(where={"kind": "a"}), "loss/1022")
    (tmp_path / "z.csv").write_text("sequence,kind,of\nMKVLA,a,x\nMKVLC,b,x\nMKVLD,b,y\nMKVLE,c,x\n")
    some = read("masked", [str(tmp_path / "z.csv")], MaskedConfig(where={"kind": ["a", "b"], "of": "x"}), "loss/1022")
    assert some.test == [b"MKVLA", b"MKVLC"]
    subject = subject_of({"encoder": MLM(SHAPE, PROTEIN).encoder})
    with pytest.raises(UserError, match="no head over tokens"):
        exam.model(subject, lambda text: None)


def test_of_a_corpus_the_held_out_side_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [letters.replace(b"X", b"A").decode() for letters in sequences(30)]
    (tmp_path / "some.fasta").write_text("".join(f">s{n}\n{s}\n" for n, s in enumerate(some)))
    corpus = prepare(str(tmp_path / "some.fasta"), str(tmp_path / "corpus"), valid=0.3)
    assert corpus is not None
    held = {corpus.alphabet.decode(tokens).encode() for tokens in corpus.split("valid")}
    exam = read("masked", [str(tmp_path / "corpus")], MaskedConfig(shortest=60), "loss/1022")
    assert {*exam.test} == {letters for letters in held if len(letters) >= 60} != held
    for config, message in (
        (MaskedConfig(sequences="antibody"), "holds protein sequences"),
        (MaskedConfig(where={"a": "b"}), "is a corpus"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read("masked", [str(tmp_path / "corpus")], config, "loss/1022")
    prepare(str(tmp_path / "some.fasta"), str(tmp_path / "whole"), valid=0)
    with pytest.raises(UserError, match="no held-out sequences"):
        read("masked", [str(tmp_path / "whole")], MaskedConfig(), "loss/1022")

    (tmp_path / "recipes").mkdir()
    file = tmp_path / "recipes" / "held.yaml"
    file.write_text("kind: masked\ntitle: Held out\ndata: corpus\nmetric: loss/1022\n")
    task = read_task(file)
    with pytest.raises(NotAtHandError):
        task.locate(None)
    monkeypatch.chdir(tmp_path)  # where a recipe names its corpus from, so does a task
    assert task.digest(task.locate(None))[1] == [corpus.digest]


def test_from_a_task_file_to_the_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Bundle(PROTEIN, MLM(SHAPE, PROTEIN).bundle_modules()).save(tmp_path / "run" / "model")
    (tmp_path / "some.fasta").write_text("".join(f">s{n}\n{s.decode()}\n" for n, s in enumerate(sequences())))
    (tmp_path / "filled.yaml").write_text(
        "kind: masked\ntitle: Masked residues\ndata: some.fasta\nmetric: loss/20\nlengths: [10, 20]\nplaces: 3\n"
    )
    args = ["evaluate", f"--model={tmp_path / 'run' / 'model'}", f"--tasks={tmp_path / 'filled.yaml'}",
            f"--out={tmp_path / 'out'}", "--resamples=100", "--device=cpu"]  # fmt: skip
    assert cli.main(args) == 0
    (task,) = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert not task["larger_is_better"] and {*task["methods"]} == {"background", "composition", "run"}
    assert {*task["methods"]["run"]["figures"]} == {
        f"{figure}/{n}" for figure in ("loss", "perplexity", "accuracy") for n in (10, 20)
    }
    assert "(less is better)" in (tmp_path / "out" / "table.md").read_text()
