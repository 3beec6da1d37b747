"""Files are data: nothing in them runs, leads elsewhere, or unfolds without bound."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import biometro
from biometro import cli
from biometro.data.bounds import GRACE, LONGEST_RECORD, RATIO
from biometro.data.sources import ReadOptions, expand, read
from biometro.errors import UserError
from biometro.inference import vectors
from biometro.options import OptionError
from biometro.untrusted import MOST_NODES, check_yaml, inside, read_json, read_npy, read_yaml
from fuzz.readers import a_huggingface_folder, a_model, a_sharded_folder, reseal_model


def consume(path: Path) -> int:
    """Read a file to its end, holding one record at a time."""
    return sum(1 for source in expand(str(path)) for _ in read(source, ReadOptions()))


# Nothing runs ----------------------------------------------------------------------------------------------------


class _Writes:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_the_pickle_would_write(tmp_path: Path) -> None:
    """The trap itself works; else the tests below would prove nothing."""
    pickle.loads(pickle.dumps(_Writes(tmp_path / "trap"))).close()
    assert (tmp_path / "trap").exists()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"model": _Writes(trap)}, tmp_path / "new.pt")
    torch.save({"model": _Writes(trap)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(_Writes(trap)))
    for name, message in {"new.pt": "safely", "old.pt": "since version 1.6", "bare.pt": "since version 1.6"}.items():
        with pytest.raises(UserError, match=message):
            biometro.load(tmp_path / name)
    array = np.array([_Writes(trap)], dtype=object)
    np.savez(tmp_path / "x.npz", ids=array, embeddings=array)
    with pytest.raises(UserError, match="holds no embeddings"):
        vectors.read(tmp_path / "x.npz")
    a_huggingface_folder(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save({"x": _Writes(trap)}, tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        biometro.load(tmp_path / "hf")
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["esm", "esm_of_our_own"])
def test_code_in_a_huggingface_folder_never_runs(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "hf"
    a_huggingface_folder(folder)
    trap = tmp_path / "trap"
    (folder / "modeling.py").write_text(f"open({str(trap)!r}, 'w')\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "auto_map": {"AutoModel": "modeling.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"auto_map.*never run"):
        biometro.load(folder)
    assert not trap.exists()


@pytest.mark.parametrize("value", ["{class_path: evil.Model}", "evil.Model", "{class_path: evil.Model, init_args: {}}"])
def test_a_recipe_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Model: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for option in ("encoder", "training"):
        (tmp_path / "recipe.yaml").write_text(f"data: x\nrun: y\n{option}: {value}\n")
        assert cli.main(["pretrain", "--config", str(tmp_path / "recipe.yaml")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not trap.exists() and "evil" not in sys.modules


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "recipe.yaml").write_text(f"a: !!python/object/apply:os.mknod ['{trap}']\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(OptionError):
        cli.parse(["pretrain", "--config", str(tmp_path / "recipe.yaml")])
    assert not trap.exists()


# Nothing leads elsewhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "", ".", "a/b", "x\0y", "x\n"])
def test_an_index_cannot_name_files_outside_its_folder(tmp_path: Path, name: str) -> None:
    a_sharded_folder(tmp_path / "hf")
    shutil.copy(tmp_path / "hf" / "part.safetensors", tmp_path / "secret.safetensors")
    index = {"weight_map": {"esm.embeddings.word_embeddings.weight": name}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="nothing outside it is read"):
        biometro.load(tmp_path / "hf")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "recipe.yaml"])
def test_links_out_of_a_model_folder_are_refused(tmp_path: Path, name: str) -> None:
    a_model(tmp_path / "model")
    (tmp_path / "model" / name).rename(tmp_path / name)
    (tmp_path / "model" / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match="link out of its folder"):
        biometro.load(tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    (tmp_path / "model" / name).symlink_to(name)
    with pytest.raises(UserError):
        biometro.load(tmp_path / "model")


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    """A link to the folder, one within it, and the layout of Hugging Face's cache."""
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    a_huggingface_folder(snapshot)
    (tmp_path / "models--x" / "blobs").mkdir()
    for file in ("config.json", "model.safetensors"):
        (snapshot / file).rename(tmp_path / "models--x" / "blobs" / file)
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    (tmp_path / "link").symlink_to(snapshot)
    assert biometro.load(tmp_path / "link").encoder.config.width == 16
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    assert inside(tmp_path, "b") == tmp_path / "b"


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    a_model(tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").unlink()
    os.mkfifo(tmp_path / "model" / "recipe.yaml")
    with pytest.raises(UserError, match="no regular file"):
        biometro.load(tmp_path / "model")


# Nothing unfolds without bound -----------------------------------------------------------------------------------

_FLAT = b">a\n" + b"MKTAYIAKQR" * 10_000 + b"\n"


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("zst", lambda data: pa.Codec("zstd").compress(data, asbytes=True))],
)
def test_a_bomb_of_many_records_is_refused(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"bomb.fasta.{suffix}"
    piece = _FLAT * 40
    path.write_bytes(compress(piece) * (4 * GRACE // len(piece)))  # members may stand one after the other
    with pytest.raises(UserError, match=f"over {RATIO} times as many"):
        consume(path)


def test_data_that_compress_well_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta.gz"
    path.write_bytes(gzip.compress(_FLAT * ((GRACE // 2) // len(_FLAT))))
    assert consume(path) == (GRACE // 2) // len(_FLAT)


def peak_megabytes(script: str, *arguments: str) -> int:
    """Peak memory of a fresh process that runs a script, beyond what its imports take."""
    head = "import sys\nfrom test_security import *\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    tail = "\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)"
    code = head + script + tail
    command = [sys.executable, "-c", code, *arguments]
    tests = str(Path(__file__).parent)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([tests, str(Path(biometro.__file__).parents[1])])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
    return int(done.stdout.split()[-1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "head"), [("x.fasta", b">a\n"), ("x.fasta", b""), ("x.csv", b"sequence\n"), ("x.csv", b'sequence\n"')]
)
@pytest.mark.parametrize("filling", [b"A", b"A\n"])
@pytest.mark.slow
def test_one_endless_record_is_refused_in_little_memory(tmp_path: Path, name: str, head: bytes, filling: bytes) -> None:
    if filling == b"A\n" and head in (b"", b"sequence\n"):
        pytest.skip("these are many records, or none")
    path = tmp_path / f"{name}.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        out.write(head)
        for _ in range(64):
            out.write(filling * ((1 << 20) // len(filling)))
    script = "with pytest.raises(UserError, match='record of more than|not FASTA'):\n    consume(Path(sys.argv[1]))"
    assert peak_megabytes(script, str(path)) < 12 * LONGEST_RECORD >> 20


def test_the_longest_record_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\n" + b"A" * (LONGEST_RECORD - 1) + b"\n>b\nMK\n")
    assert consume(path) == 2
    (tmp_path / "x.csv").write_bytes(b"sequence\n" + b"A" * (LONGEST_RECORD - 1) + b"\n")
    assert consume(tmp_path / "x.csv") == 1


@pytest.mark.slow
def test_a_value_repeated_by_a_parquet_dictionary_is_not_held_in_every_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    value = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["A" * (1 << 20)]))
    pq.write_table(pa.table({"sequence": value}), path, dictionary_pagesize_limit=1 << 22)
    assert path.stat().st_size < 1 << 20  # and 20 GB when written out
    script = "records = read(expand(sys.argv[1])[0])\nfor _ in range(300):\n    next(records)"
    assert peak_megabytes(script, str(path)) < 600


def test_a_parquet_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"sequence": pa.array(["A" * 1000] * (4 * GRACE // 1000))})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match="times as many"):
        consume(path)


def test_billion_laughs(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    path = tmp_path / "recipe.yaml"
    for text, message in {
        "\n".join(lines): f"more than {MOST_NODES:,}",
        "a: &a [*a]": "inside what it names",
        "[" * 5000: "nested",
        "a: " * 60 + "1": "cannot be read|nested",
        "{a: " * 60 + "1" + "}" * 60: "nested",
        "x" * (1 << 19): "longer",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_yaml(path)
        with pytest.raises(OptionError):
            cli.parse(["pretrain", "--config", str(path)])
    check_yaml("base: &b {x: 1}\nmore: [*b, *b]\n")  # ordinary aliases stay


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100 + "]" * 100, "nested"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "no number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
        (" " * 200, "longer than 100 bytes"),
    ],
)
def test_json_out_of_bounds(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(path, 100 if text.isspace() else 1 << 20)


def set_at(config: dict[str, Any], place: str, value: Any) -> None:
    *above, last = place.split("/")
    for key in above:
        config = config[key]
    config[last] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("modules/vocabulary/config/vocab_size", 10**12),
        ("modules/vocabulary/config/vocab_size", 2**17),
        ("modules/vocabulary/config/norm_eps", -1.0),
        ("modules/vocabulary/config/dense", "no"),
        ("modules/encoder/config/width", True),
        ("modules/encoder/config/depth", 1000),
        ("modules/encoder/config/vocab_size", 131072),
        ("modules/encoder/config/norm", "batchnorm"),
        ("modules/encoder/config/positions", "none"),
        ("modules/encoder/config/norm_eps", "1"),
        ("modules/encoder/config/mask_token", -1),
        ("modules/encoder/config/bias", "no"),
        ("modules/encoder/type", "os.system"),
        ("modules", {f"m{n}": {} for n in range(17)}),
        ("modules", {}),
        ("crop", 0),
        ("crop", "254"),
        ("crop", True),
        ("facts", ["x"]),
        ("facts", {"x": 1}),
        ("tied", {"x": ["y"]}),
        ("alphabet/tokens", ["é"]),
        ("alphabet/tokens", [1, 2]),
    ],
)
def test_a_model_configuration_is_checked_before_anything_is_built(tmp_path: Path, place: str, value: Any) -> None:
    a_model(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    set_at(config, place, value)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        biometro.load(tmp_path / "model")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_weights_that_do_not_fit_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_model(tmp_path / "model")
    save_file({"encoder.embedding.weight": torch.zeros(1 << 20)}, tmp_path / "model" / "model.safetensors")
    reseal_model(tmp_path / "model")
    monkeypatch.setattr("biometro.model.bundle.read_safetensors", lambda path: pytest.fail("weights were read"))
    with pytest.raises(UserError, match="disagree about encoder"):
        biometro.load(tmp_path / "model")


def test_a_checkpoint_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    names = ["embed_tokens.weight", "layers.0.fc1.weight"]
    state = {name: torch.zeros(1, 1).expand(1 << 16, 1 << 16) for name in names}  # 16 GiB of one number
    torch.save({"model": state | {"layers.0.rot_emb.inv_freq": torch.zeros(4)}}, tmp_path / "views.pt")
    with pytest.raises(UserError, match="larger than the file"):
        biometro.load(tmp_path / "views.pt")
    torch.save({"model": {"x": torch.zeros(1 << 20)}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is compressed"):
        biometro.load(tmp_path / "packed.pt")


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("<f4", (10**12,)), ("<f4", (-1,)), ("<U0", (9,)), ("|O", (1,)), ("<f4", (3,)), ("|V8", (1,))],
)
def test_array_headers_that_do_not_fit(dtype: str, shape: tuple[int, ...]) -> None:
    import io

    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    data = out.getvalue() + b"\0" * 8
    with pytest.raises(ValueError, match=r"claims|is not what|cannot have"):
        read_npy(io.BytesIO(data), len(data))


def test_compressed_embeddings_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", ids=np.array(["a"]), embeddings=np.zeros((1, 1 << 24), np.float32))
    with pytest.raises(UserError, match="compressed"):
        vectors.read(tmp_path / "x.npz")


# Nothing but a line reaches the screen ---------------------------------------------------------------------------


def test_what_a_file_says_cannot_drive_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.csv").write_bytes(b"\x1b[2J\x07\n" + "‮".encode() + b"A" * 5000 + b"\n")
    assert cli.main(["prepare", "--data", str(tmp_path / "x.csv"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.rstrip("\n").isprintable() and len(said) < 2000
    assert str(UserError("a\nb\x1b[0m" + "x" * 10_000))[:12] == "a b\\x1b[0mxx"
