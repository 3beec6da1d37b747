"""The jobs as their users meet them: from raw files to vectors, and every way to be wrong."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import biometro
from biometro import cli
from biometro.data.corpus import Corpus
from biometro.errors import UserError
from biometro.inference import vectors
from biometro.inference.embed import Embedder, windows
from biometro.jobs import embed as embed_job
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from conftest import recipes_of

TINY = [
    "--encoder.width=32", "--encoder.depth=2", "--encoder.head_size=16", "--packing.batch_tokens=2048",
    "--packing.crop=100", "--training.steps=12", "--training.checkpoint_every=6", "--training.valid_every=6",
    "--training.valid_batches=2", "--device=cpu",
]  # fmt: skip


def shell(*arguments: str) -> int:
    return cli.main(list(arguments))


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "tiny"
    assert shell("pretrain", f"--data={corpus}", f"--run={run}", *TINY) == 0
    return run


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "x.fasta"
    path.write_text(">a one\nMKTAYIAKQR\n>b\nGG\n>c\nMKUTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVK\n")
    return path


def test_a_run_leaves_a_model_that_describes_itself(trained: Path, corpus: Path) -> None:
    names = {p.name for p in trained.iterdir()}
    assert {"recipe.yaml", "metrics.jsonl", "checkpoints", "model", "report.html"} <= names
    bundle = biometro.load(trained / "model")
    assert set(bundle.modules) == {"encoder", "vocabulary", "rtd", "auxiliary", "auxiliary_vocabulary"}
    assert bundle.modules["auxiliary"].embedding.weight is bundle.encoder.embedding.weight
    assert bundle.recipe["training"]["steps"] == 12 and bundle.recipe["encoder"]["width"] == 32
    assert bundle.facts["corpus digest"] == Corpus.open(corpus).digest
    card = (trained / "model" / "README.md").read_text()
    for words in ("unigram entropy", "training FLOPs", "held out, step 12: rtd_gain", "example:families", "12 of 12"):
        assert words in card
    page = (trained / "report.html").read_text()
    assert "<svg" in page and "https://" not in page.replace("http://www.w3.org", "")


def test_the_recipe_of_a_run_is_a_config_that_runs(trained: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text())
    recipe["run"] = str(tmp_path / "again")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert shell("pretrain", f"--config={tmp_path / 'r.yaml'}") == 0
    one, two = (biometro.load(p / "model").encoder.state_dict() for p in (trained, tmp_path / "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_same_command_on_a_finished_run_changes_nothing(trained: Path, corpus: Path) -> None:
    before = (trained / "model" / "model.safetensors").read_bytes()
    assert shell("pretrain", f"--data={corpus}", f"--run={trained}", *TINY) == 0
    assert (trained / "model" / "model.safetensors").read_bytes() == before
    assert "held out, step 12: rtd_gain" in (trained / "model" / "README.md").read_text()


def test_stopping_early_has_its_own_exit_status(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["pretrain", f"--data={corpus}", f"--run={tmp_path / 'r'}", *TINY, "--report=false"]
    assert shell(*arguments, "--training.max_minutes=0") == 75
    assert "the same command goes on" in capsys.readouterr().err
    assert shell(*arguments) == 0


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        (["prepare", "--data=x", "--out=y"], {"torch", "matplotlib"}),
        (["embed", "--model=m", "--data=x", "--out=y.npz"], {"torch._dynamo", "sympy", "matplotlib"}),
    ],
)  # fmt: skip
def test_a_job_imports_no_more_than_it_needs(command: list[str], unused: set[str]) -> None:
    said = f"import sys; from biometro import cli; cli.parse({command}); sys.exit(str({unused} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--training.optimizer.lr=0.5", "training.optimizer.lr: 0.001 then, 0.5 now"),
        ("--seed=5", "seed: 0 then, 5 now"),
        ("--objective=mlm", "objective: 'metro' then, 'mlm' now"),
    ],
)
def test_other_options_on_a_begun_run_are_found(
    trained: Path, corpus: Path, capsys: Any, change: str, message: str
) -> None:
    assert shell("pretrain", f"--data={corpus}", f"--run={trained}", *TINY, change) == 1
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


def test_wrong_folders_are_said_in_one_line(trained: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    cases = {
        ("pretrain", f"--data={tmp_path}", f"--run={tmp_path / 'r'}"): "is not a corpus folder",
        ("pretrain", f"--data={corpus}", f"--run={tmp_path / 'full'}"): "is no run folder",
        ("pretrain", f"--data={corpus}", f"--run={tmp_path / 'file'}"): "cannot be made",
        ("pretrain", f"--data={corpus}", f"--run={tmp_path / 'r'}", "--encoder.width=100"): "encoder.head_size",
        ("pretrain", f"--data={corpus}", f"--run={tmp_path / 'r'}", "--device=cuda:7"): "cuda:7",
        ("embed", f"--model={tmp_path}", "--data=MKTA", f"--out={tmp_path / 'v.npz'}"): "is no model folder",
        ("embed", f"--model={trained / 'model'}", "--data=MKTA", f"--out={tmp_path / 'v.txt'}"): "must end in",
        ("embed", f"--model={trained / 'model'}", "--data=MKTA", f"--out={tmp_path / 'no' / 'v.npz'}"): None,
        ("export", f"--model={trained / 'model'}", f"--out={tmp_path / 'full'}"): "exists",
        ("prepare", f"--data={tmp_path / 'file'}", f"--out={tmp_path / 'c'}"): "format",
    }
    for arguments, message in cases.items():
        status = shell(*arguments)
        errors = capsys.readouterr().err
        assert status == (0 if message is None else 1), errors
        assert "Traceback" not in errors
        if message is not None:
            assert errors.startswith("biometro: ") and message in errors, errors
    assert not (tmp_path / "r").exists()


def test_a_wrong_option_ends_with_status_two(capsys: Any) -> None:
    assert shell("embed", "--modle=x") == 2
    errors = capsys.readouterr().err
    assert "modle" in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "models"),
    [
        (["--model", "a", "--model=b"], ["a", "b"]),
        (["--model=[a, b]", "--tasks=x", "--model", "c"], ["a", "b", "c"]),
        (["--model=a"], "a"),
        (["--model", "[a, b]"], ["a", "b"]),
    ],
)
def test_an_option_that_takes_several_may_be_repeated(given: list[str], models: Any) -> None:
    job, options = cli.parse(["evaluate", "--out=o", *given])
    assert job == "evaluate" and options["model"] == models and options["out"] == "o"


def test_a_corpus_that_changed_under_a_run_is_found(trained: Path, tmp_path: Path, capsys: Any) -> None:
    assert shell("prepare", "--data=example:families", f"--out={tmp_path / 'c'}", "--valid=0.2") == 0
    assert shell("pretrain", f"--data={tmp_path / 'c'}", f"--run={trained}", *TINY) == 1
    assert "another corpus" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "residues"])
def test_embeddings_in_every_format(trained: Path, fasta: Path, tmp_path: Path, suffix: str, pooling: Any) -> None:
    out = tmp_path / f"v{suffix}"
    model = str(trained / "model")
    assert biometro.embed(model, str(fasta), str(out), pooling=pooling) == out
    found = vectors.read(out)
    assert found.ids == ["a", "b", "c"]
    assert found.per_residue == (pooling == "residues")
    memory = biometro.embed(model, str(fasta), pooling=pooling)
    assert isinstance(memory, vectors.Embeddings)
    for a, b, length in zip(found.vectors, memory.vectors, (10, 2, 59), strict=True):
        assert a.dtype == np.float32 and a.shape == ((length, 32) if pooling == "residues" else (32,))
        np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, "x.fasta"]


def test_mean_is_that_of_residues_without_specials(trained: Path, fasta: Path) -> None:
    model = str(trained / "model")
    mean = biometro.embed(model, str(fasta))
    residues = biometro.embed(model, str(fasta), pooling="residues")
    for a, b in zip(mean.vectors, residues.vectors, strict=True):
        np.testing.assert_allclose(a, b.mean(0), atol=1e-5)


def test_vectors_do_not_depend_on_company_order_or_budget(trained: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    letters = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in random.integers(1, 300, 40)]
    model = str(trained / "model")
    together = biometro.embed(model, letters)
    assert together.matrix.shape == (40, 32)
    small = biometro.embed(model, letters, batch_tokens=64)
    backwards = biometro.embed(model, letters[::-1])
    np.testing.assert_allclose(small.matrix, together.matrix, atol=1e-5)
    np.testing.assert_allclose(backwards.matrix[::-1], together.matrix, atol=1e-5)
    for i in (0, 7, 39):
        alone = biometro.embed(model, [letters[i]])
        np.testing.assert_allclose(alone.matrix[0], together.matrix[i], atol=1e-5)


def test_an_interrupted_embedding_goes_on(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_job, "_CHUNK_SEQUENCES", 10)
    path = tmp_path / "x.fasta"
    path.write_text("".join(f">s{i}\n{'MKTAYIAKQRGG'[: i % 11 + 1]}{'A' * i}\n" for i in range(45)))
    model, out = str(trained / "model"), tmp_path / "v.parquet"
    expected = biometro.embed(model, str(path))
    write, calls = vectors.write_part, []

    def failing(limit: int) -> Callable[..., None]:
        def part(*args: Any) -> None:
            calls.append(args[0].name)
            if len(calls) > limit:
                raise UserError("No space left on device")
            write(*args)

        return part

    monkeypatch.setattr(vectors, "write_part", failing(2))
    with pytest.raises(UserError, match=r"No space left on device.*kept for the next try"):
        biometro.embed(model, str(path), str(out))
    assert not out.exists()
    calls.clear()
    monkeypatch.setattr(vectors, "write_part", failing(100))
    biometro.embed(model, str(path), str(out))
    assert len(calls) == 3  # of five parts, two were there
    found = vectors.read(out)
    assert found.ids == [f"s{i}" for i in range(45)]
    np.testing.assert_array_equal(found.matrix, expected.matrix)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.parquet", "x.fasta"]


def test_parts_of_other_input_or_options_are_not_taken_up(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = str(trained / "model"), tmp_path / "v.npz"
    monkeypatch.setattr(vectors, "join", lambda *args: (_ for _ in ()).throw(UserError("full")))
    with pytest.raises(UserError):
        biometro.embed(model, ["MKTA", "GGGG"], str(out))
    monkeypatch.undo()
    biometro.embed(model, ["MKTA", "WWWW"], str(out), pooling="cls")
    np.testing.assert_array_equal(
        vectors.read(out).matrix, biometro.embed(model, ["MKTA", "WWWW"], pooling="cls").matrix
    )


def test_long_sequences_by_policy(trained: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    letters = "".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 250))
    model = str(trained / "model")
    path = tmp_path / "x.fasta"
    path.write_text(f">short\nMKTA\n>long\n{letters}\n")
    with pytest.raises(UserError, match=r"x\.fasta, line 3 \(long\): 250 residues, more than max_length 100"):
        biometro.embed(model, str(path), long="error", max_length=100)
    full = biometro.embed(model, str(path), pooling="residues", max_length=100)
    window = biometro.embed(model, str(path), pooling="residues", long="window", max_length=100)
    np.testing.assert_allclose(full.vectors[0], window.vectors[0], atol=1e-5)
    assert not np.allclose(full.vectors[1], window.vectors[1], atol=1e-3)
    places = windows(250, 100)
    total, cover = np.zeros((250, 32)), np.zeros((250, 1))
    for start, end in places:
        total[start:end] += biometro.embed(model, [letters[start:end]], pooling="residues").vectors[0]
        cover[start:end] += 1
    np.testing.assert_allclose(window.vectors[1], total / cover, atol=1e-5)
    mean = biometro.embed(model, str(path), long="window", max_length=100)
    np.testing.assert_allclose(mean.vectors[1], window.vectors[1].mean(0), atol=1e-5)


@pytest.mark.parametrize(("length", "size"), [(5, 10), (11, 10), (100, 10), (1000, 333), (7, 2)])
def test_windows_cover_and_overlap(length: int, size: int) -> None:
    found = windows(length, size)
    covered = np.zeros(length, dtype=int)
    for start, end in found:
        assert end - start == min(size, length)
        covered[start:end] += 1
    assert covered.min() >= 1
    for (_, end), (start, _) in pairwise(found):
        assert end - start >= size // 2


def test_residue_policies_of_embed(trained: Path, fasta: Path) -> None:
    model = str(trained / "model")
    assert biometro.embed(model, str(fasta), residues="drop_sequence").ids == ["a", "b"]
    with pytest.raises(UserError, match="line 5: non-standard residue 'U'"):
        biometro.embed(model, str(fasta), residues="fail")
    as_is, as_x = (biometro.embed(model, str(fasta), residues=r).matrix for r in ("as_is", "keep_as_x"))
    np.testing.assert_array_equal(as_is[:2], as_x[:2])
    assert not np.allclose(as_is[2], as_x[2])


def test_int8_says_how_near_it_is(trained: Path, fasta: Path, tmp_path: Path, capsys: Any) -> None:
    model = str(trained / "model")
    biometro.embed(model, str(fasta), str(tmp_path / "v.npz"), precision="int8")
    assert "int8: cosine to float32" in capsys.readouterr().err
    exact = biometro.embed(model, str(fasta)).matrix
    near = vectors.read(tmp_path / "v.npz").matrix
    cosine = (exact * near).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    assert cosine.min() > 0.99 and not np.array_equal(exact, near)


def test_int8_does_not_depend_on_company(trained: Path) -> None:
    model, letters = str(trained / "model"), ["MKTAYIAKQR", "W" * 200, "ACDEFGHIKL" * 5]
    together = biometro.embed(model, letters, precision="int8").matrix
    alone = np.concatenate([biometro.embed(model, [s], precision="int8").matrix for s in letters])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_damaged_part_is_made_again(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = str(trained / "model"), tmp_path / "v.npz"
    monkeypatch.setattr(vectors, "join", lambda *args: (_ for _ in ()).throw(UserError("full")))
    with pytest.raises(UserError):
        biometro.embed(model, ["MKTA", "GGGG"], str(out))
    monkeypatch.undo()
    (part,) = tmp_path.rglob("*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 255
    part.write_bytes(bytes(data))
    biometro.embed(model, ["MKTA", "GGGG"], str(out))
    np.testing.assert_array_equal(vectors.read(out).matrix, biometro.embed(model, ["MKTA", "GGGG"]).matrix)


def test_export_replaces_models_only(trained: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "x.tex").write_text("years of work")
    arguments = ["export", f"--model={trained / 'model'}", "--overwrite=true"]
    assert shell(*arguments, f"--out={tmp_path / 'thesis'}") == 1
    assert (tmp_path / "thesis" / "x.tex").read_text() == "years of work"
    assert shell(*arguments, f"--out={tmp_path / 'm'}") == shell(*arguments, f"--out={tmp_path / 'm'}") == 0


def test_what_a_killed_process_left_is_cleared_or_put_back(tmp_path: Path) -> None:
    from biometro.files import new_folder

    dead = 2**22 + 1  # beyond the largest process number of Linux
    (tmp_path / f".c.writing-{dead}" / "spool").mkdir(parents=True)
    (tmp_path / f".c.replaced-{dead}").mkdir()
    (tmp_path / f".c.replaced-{dead}" / "good").write_text("x")
    with pytest.raises(UserError, match="stop"), new_folder(tmp_path / "c"):
        raise UserError("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c" / "good").exists()


@pytest.mark.long
def test_shards_at_a_url_train_like_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("BIOMETRO_CACHE", str(tmp_path / "cache"))
    corpus, near, far = tmp_path / "c", tmp_path / "near", tmp_path / "far"
    arguments = ["prepare", "--data=example:families", f"--out={corpus}", "--valid=0.2"]
    assert shell(*arguments, "--shard_residues=0") == 1
    assert "shard_residues is 0" in capsys.readouterr().err
    assert shell(*arguments, "--shard_residues=20000") == 0
    assert len(list(corpus.glob("train-*.bin"))) > 3 and len(list(corpus.glob("valid-*.bin"))) > 1
    assert shell("pretrain", f"--data={corpus}", f"--run={near}", *TINY) == 0
    stop = ["--training.max_minutes=0"]
    assert shell("pretrain", f"--data=file://{corpus}", f"--run={far}", *TINY, *stop) == 75
    assert shell("pretrain", f"--data=file://{corpus}", f"--run={far}", *TINY) == 0  # report and all
    models = [(run / "model" / "model.safetensors").read_bytes() for run in (near, far)]
    assert models[0] == models[1]


def test_mistakes_in_options_can_be_corrected(corpus: Path, tmp_path: Path) -> None:
    arguments = ["pretrain", f"--data={corpus}", f"--run={tmp_path / 'r'}", *TINY, "--report=false"]
    assert shell(*arguments, "--packing.batch_tokens=50") == 1
    assert shell(*arguments, "--training.optimizer.lr=1e-2", "--training.max_minutes=0") == 75
    assert shell(*arguments, "--training.optimizer.lr=1e-2") == 0


@pytest.mark.parametrize(
    "option",
    [
        "--training.optimizer.beta1=1", "--training.optimizer.eps=-1", "--encoder.ffn_width=-4",
        "--encoder.init_std=-1", "--encoder.depth=1000000", "--encoder.width=1000000000", "--encoder.attention=flex",
        "--seed=-1", "--device=meta", "--seed=99999999999999999999999", "--metro.auxiliary_depth=0",
        "--metro.auxiliary_width=24",
        "--encoder.attention=varlen",
    ],
)  # fmt: skip
def test_absurd_options_are_one_line(corpus: Path, tmp_path: Path, capsys: Any, option: str) -> None:
    arguments = ["pretrain", f"--data={corpus}", f"--run={tmp_path / 'r'}", *TINY, "--report=false"]
    assert shell(*arguments, option) == 1
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].startswith("biometro: ") and "Traceback" not in errors


def test_malformed_configurations_are_one_line(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    for name, content in {"a": b"encoder: 5\n", "b": b"\xff\xfe", "c": b"- 1\n"}.items():
        (tmp_path / f"{name}.yaml").write_bytes(content)
        given = [f"--config={tmp_path / name}.yaml", f"--data={corpus}", f"--run={tmp_path / 'r'}"]
        assert shell("pretrain", *given) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes_of("pretrain"), ids=lambda p: p.stem)
@pytest.mark.parametrize("objective", ["metro", "mlm"])
def test_recipes_run(recipe: Path, objective: str, corpus: Path, tmp_path: Path) -> None:
    options = ["--training.steps=2", "--training.valid_batches=1", "--report=false", f"--objective={objective}"]
    where = [f"--data={corpus}", f"--run={tmp_path / 'r'}", "--device=cpu"]
    assert shell("pretrain", f"--config={recipe}", *where, *options) == 0


def test_embedding_a_compressed_file_from_the_shell(trained: Path, fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "x.faa.gz").write_bytes(gzip.compress(fasta.read_bytes()))
    out = tmp_path / "v.safetensors"
    model = trained / "model"
    assert shell("embed", f"--model={model}", f"--data={tmp_path / 'x.faa.gz'}", f"--out={out}") == 0
    np.testing.assert_array_equal(vectors.read(out).matrix, biometro.embed(str(model), str(fasta)).matrix)


def test_an_export_is_embedded_the_same(trained: Path, fasta: Path, tmp_path: Path) -> None:
    assert shell("export", f"--model={trained / 'model'}", f"--out={tmp_path / 'hf'}") == 0
    a = biometro.embed(str(tmp_path / "hf"), str(fasta)).matrix
    b = biometro.embed(str(trained / "model"), str(fasta)).matrix
    np.testing.assert_array_equal(a, b)


def test_damaged_model_folders_are_one_line(trained: Path, tmp_path: Path) -> None:
    import json
    import shutil

    for name, change in {
        "cut": lambda d: (d / "model.safetensors").write_bytes((trained / "model/model.safetensors").read_bytes()[:-9]),
        "json": lambda d: (d / "config.json").write_text("[]"),
        "format": lambda d: (d / "config.json").write_text(
            json.dumps({**json.loads((d / "config.json").read_text()), "format": 99})
        ),
        "type": lambda d: (d / "config.json").write_text((d / "config.json").read_text().replace("TokenHead", "Os")),
        "shape": lambda d: (d / "config.json").write_text(
            (d / "config.json").read_text().replace('"width": 32', '"width": 64')
        ),
        "gone": lambda d: (d / "recipe.yaml").unlink(),
    }.items():
        copy = tmp_path / name
        shutil.copytree(trained / "model", copy)
        change(copy)
        with pytest.raises(UserError) as error:
            biometro.load(copy)
        assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_bundle_round_trip_with_alibi(tmp_path: Path) -> None:
    from biometro.alphabet import PROTEIN

    torch.manual_seed(0)
    config = EncoderConfig(width=32, depth=2, head_size=16, positions="alibi", norm="rmsnorm", ffn="swiglu", bias=False)
    bundle = Bundle(PROTEIN, {"encoder": Encoder(config).eval()}, facts={"a": "b"}, crop=50)
    bundle.save(tmp_path / "m")
    again = biometro.load(tmp_path / "m")
    assert (again.encoder.config, again.facts, again.crop) == (config, {"a": "b"}, 50)
    tokens = PROTEIN.encode("MKTAYIAKQR")
    np.testing.assert_array_equal(Embedder(bundle).embed([tokens])[0], Embedder(again).embed([tokens])[0])
