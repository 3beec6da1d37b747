"""Embedding on Ray: two workers on a local cluster give what one process gives, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import biometro
from biometro.alphabet import PROTEIN
from biometro.errors import UserError
from biometro.inference import cluster, vectors
from biometro.jobs import embed as embed_job
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    Bundle(PROTEIN, {"encoder": Encoder(EncoderConfig(width=32, depth=2, head_size=16))}).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "x.fasta"
    letters = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in random.integers(1, 200, 125)]
    path.write_text("".join(f">s{i}\n{sequence}\n" for i, sequence in enumerate(letters)))
    return path


@pytest.fixture(scope="module")
def connection() -> Iterator[None]:
    """One cluster for all tests: a job goes on with the connection that its process has."""
    with cluster.connect(2, None, "cpu"):
        yield


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirteen parts of the FASTA file; the size travels to the reader in the plan."""
    monkeypatch.setattr(embed_job, "_CHUNK_SEQUENCES", 10)


@pytest.fixture
def keep_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Lets every run end before its parts are joined, so that they can be looked at."""
    with monkeypatch.context() as patch:
        patch.setattr(vectors, "join", lambda *args: (_ for _ in ()).throw(UserError("full")))
        yield patch


def workers() -> set[int]:
    """Process numbers of the workers that hold the model, of this process' cluster only."""
    found, parents = set(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def ours(process: int) -> bool:
        return process == os.getpid() or (process > 1 and ours(parents.get(process, 0)))

    return {process for process in found if ours(process)}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*.parquet")}


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".parquet", {"pooling": "mean", "residues": "keep_as_x"}),
        pytest.param(".npz", {"pooling": "residues", "long": "window", "max_length": 64}, marks=pytest.mark.long),
    ],
)
def test_two_workers_give_the_bytes_of_one_process(
    connection: None, small_chunks: None, model: str, fasta: Path, tmp_path: Path, suffix: str, options: Any
) -> None:
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    biometro.embed(model, str(fasta), str(one), device="cpu", **options)
    biometro.embed(model, str(fasta), str(two), workers=2, **options)
    for a, b in zip(vectors.read(one).vectors, vectors.read(two).vectors, strict=True):
        np.testing.assert_array_equal(a, b)
    assert vectors.read(one).ids == vectors.read(two).ids == [f"s{i}" for i in range(125)]
    if suffix == ".parquet":  # the others carry the time of writing
        assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([one.name, two.name])


@pytest.mark.long
def test_parts_are_taken_up_by_whoever_goes_on(
    connection: None, small_chunks: None, keep_parts: pytest.MonkeyPatch, model: str, fasta: Path, tmp_path: Path
) -> None:
    out, relative = tmp_path / "v.parquet", os.path.relpath(fasta)
    with pytest.raises(UserError, match="kept for the next try"):
        biometro.embed(model, str(fasta), str(out), device="cpu")
    made_here = stamps(tmp_path)
    assert len(made_here) == 13
    lost = sorted(made_here)[3:12:4]
    for name in lost:
        next(tmp_path.rglob(name)).unlink()
    with pytest.raises(UserError, match="kept for the next try"):
        biometro.embed(model, relative, str(out), workers=2)
    on_ray = stamps(tmp_path)
    assert {name for name in on_ray if on_ray[name] != made_here[name]} == set(lost)
    keep_parts.undo()
    keep_parts.setattr(vectors, "write_part", lambda *args: pytest.fail("no part was missing"))
    biometro.embed(model, str(fasta), str(out), device="cpu")
    assert vectors.read(out).ids == [f"s{i}" for i in range(125)]


@pytest.mark.long
def test_killed_workers_are_replaced(
    connection: None, small_chunks: None, model: str, fasta: Path, tmp_path: Path
) -> None:
    out, killed = tmp_path / "v.parquet", set()

    def kill() -> None:
        while not list(tmp_path.rglob("*.parquet")):
            time.sleep(0.01)
        for process in workers():
            os.kill(process, signal.SIGKILL)
            killed.add(process)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    biometro.embed(model, str(fasta), str(out), workers=2, batch_tokens=64)
    killer.join(10)
    assert killed
    expected = biometro.embed(model, str(fasta), device="cpu", batch_tokens=64)
    np.testing.assert_array_equal(vectors.read(out).matrix, expected.matrix)


@pytest.mark.long
def test_mistakes_read_as_in_one_process(
    connection: None, small_chunks: None, model: str, fasta: Path, tmp_path: Path, capfd: Any
) -> None:
    """One that the reader finds, far from the beginning, and one that a worker finds."""
    long = tmp_path / "long.fasta"
    long.write_text(fasta.read_text() + f">long\n{'M' * 300}\n")
    nan = tmp_path / "nan"
    bundle = biometro.load(model)
    torch.nn.init.constant_(bundle.encoder.embedding.weight, float("nan"))
    bundle.save(nan)
    cases: list[tuple[str, Path, dict[str, Any]]] = [
        (model, long, {"long": "error", "max_length": 250}),
        (str(nan), fasta, {}),
    ]
    for which, data, options in cases:
        said = []
        for more in ({"device": "cpu"}, {"workers": 2}):
            with pytest.raises(UserError) as error:
                biometro.embed(which, str(data), str(tmp_path / "v.npz"), **options, **more)
            said.append(str(error.value))
        assert said[0] == said[1] and "\n" not in said[0]
    assert not (tmp_path / "v.npz").exists()
    shown = capfd.readouterr().err
    assert "Traceback" not in shown and "ray" not in shown.lower()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"workers": 1000}, "workers is 1000 and each needs a CPU; the cluster has 2"),
        ({"workers": 2, "device": "cuda"}, "each needs a GPU; the cluster has 0"),
        ({"workers": 2, "device": "cuda:1"}, "it is auto, cpu or cuda"),
        ({"workers": 2, "cluster": "auto"}, "connected to Ray already"),
        ({"cluster": "auto"}, "say with `workers` how many"),
        ({"workers": 2, "out": None}, "say with `out` where"),
    ],
)
def test_what_cannot_be_had_is_said_at_once(
    connection: None, model: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        biometro.embed(model, ["MKTA"], **({"out": str(tmp_path / "v.npz")} | options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "Ray at 127.0.0.1:1 cannot be reached"),
        ("cluster.example", "must be auto or HOST:PORT"),
        ("ray://127.0.0.1:1", "on a machine of the cluster"),
    ],
)
def test_an_address_without_a_cluster_is_said_at_once(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster._check_address(address)


def test_a_missing_extra_is_named(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'biometro\[ray\]'"):
        biometro.embed(model, ["MKTA"], str(tmp_path / "v.npz"), workers=2)


@pytest.mark.long
def test_a_stopped_command_leaves_no_process_and_goes_on(model: str, fasta: Path, tmp_path: Path) -> None:
    """As a shell starts it, with a cluster of its own, in a session of its own by which its processes are known."""
    out, many = tmp_path / "v.parquet", tmp_path / "many.fasta"
    many.write_text(fasta.read_text() * 300)
    command = [sys.executable, "-m", "biometro", "embed", f"--model={model}", f"--data={many}", f"--out={out}"]
    run = subprocess.Popen([*command, "--workers=2"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    seen: set[str] = set()  # whatever lived in the session at any time: a busy machine may come late to look
    while not list(tmp_path.rglob("*-*.parquet")) and run.poll() is None:
        seen.update(session(run.pid))
        time.sleep(0.05)
    assert run.poll() is None, run.communicate()[1]
    run.terminate()
    _, errors = run.communicate(timeout=60)
    assert any("raylet" in line for line in seen), (seen, errors)
    assert run.returncode == 75 and "start the same command again" in errors, errors
    assert session(run.pid) == []
    begun = len(stamps(tmp_path))
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    assert begun > 0 and "found from before" in again.stderr
    assert len(vectors.read(out).ids) == 125 * 300


def session(leader: int) -> list[str]:
    """The command lines of a session's processes that live."""
    listed = subprocess.run(["ps", "-ww", "-o", "stat=,args=", "-s", str(leader)], stdout=subprocess.PIPE, text=True)
    return [line for line in listed.stdout.splitlines() if not line.startswith("Z")]
