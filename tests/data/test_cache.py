"""Corpora at a URL: the same batches as from the folder, within a bound of disk, and an error rather than a hang."""

from __future__ import annotations

import fcntl
import http.server
import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biometro.alphabet import PROTEIN
from biometro.data import builder, cache, remote
from biometro.data.cache import Cache
from biometro.data.corpus import Corpus
from biometro.data.loader import Loader, PackingConfig
from biometro.data.sources import expand, read
from biometro.data.splits import by_hash
from biometro.data.spool import Spool
from biometro.errors import UserError
from biometro.files import new_folder, sha256_of

pytest.importorskip("aiohttp")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; counts what is asked for, and misbehaves on demand."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, Counter[str]()
        self.silent: dict[str, int] = {}  # name: bytes after which nothing more comes
        self.failing: Counter[str] = Counter()  # name: how many times still
        self.flipped: Counter[str] = Counter()
        self.delay = 0.0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        name, server = self.path.strip("/"), self.server
        path = server.folder / name
        if not path.exists():
            self.send_error(404)
            return
        server.asked[name] += body
        if body and server.failing[name] > 0:
            server.failing[name] -= 1
            self.send_error(503)
            return
        data = path.read_bytes()
        if body and server.flipped[name] > 0:
            server.flipped[name] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            time.sleep(server.delay)
            self.wfile.write(data[: server.silent.get(name, len(data))])
            self.wfile.flush()
            if name in server.silent:
                time.sleep(60)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def make(folder: Path, sequences: list[str], shard_residues: int, valid: float = 0.1) -> Corpus:
    spool = Spool(folder.parent / f"{folder.name}-spool", PROTEIN)
    for sequence in sequences:
        spool.add(sequence.encode())
    spool.flush()
    with new_folder(folder) as work:
        held_out = lambda digests: by_hash(digests, valid)  # noqa: E731
        builder.build(work, [spool.folder], PROTEIN, held_out, {}, shard_residues=shard_residues)
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """About ten shards of 4,000 residues and 1,000 sequences."""
    random.seed(0)
    sequences = ["".join(random.choices(PROTEIN.standard, k=random.randint(5, 70))) for _ in range(1000)]
    return make(tmp_path_factory.mktemp("corpus") / "c", sequences, 4000)


@pytest.fixture
def server(corpus: Corpus) -> Iterator[Server]:
    with Server(Path(corpus.folder)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("BIOMETRO_STALL_SECONDS", "20")
    monkeypatch.setenv("BIOMETRO_CACHE", str(tmp_path / "cache"))


def batches(corpus: Corpus, split: str = "train", epochs: int = 2) -> list[list[int]]:
    loader = Loader(corpus.split(split), PROTEIN, PackingConfig(300, 40, reverse=0.3), 5)
    return [loader.batch(n).sequence.tokens.tolist() for n in range(epochs * loader.batches_per_epoch)]


def in_memory(corpus: Corpus, name: str) -> str:
    """The URL of a copy in fsspec's memory."""
    for path in Path(corpus.folder).iterdir():
        fsspec.filesystem("memory").pipe_file(f"/{name}/{path.name}", path.read_bytes())
    return f"memory://{name}"


def data_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def quiet(corpus: Corpus) -> None:
    """Wait for what is being fetched ahead."""
    if (thread := corpus._files._thread) is not None:  # type: ignore[attr-defined]
        thread.join()


@pytest.mark.parametrize("kind", ["memory", "http", "file"])
def test_a_url_gives_the_batches_of_the_folder(corpus: Corpus, server: Server, kind: str) -> None:
    url = {"memory": in_memory(corpus, "same"), "http": server.url, "file": f"file://{corpus.folder}"}[kind]
    far = Corpus.open(url)
    assert far.digest == corpus.digest
    far.verify()
    far.check_unchanged()
    assert batches(far) == batches(corpus)
    quiet(far)
    near, there = corpus.split("valid"), far.split("valid")
    assert [there[i].tolist() for i in range(len(there))] == [near[i].tolist() for i in range(len(near))]
    if kind == "http":  # each file once, though there were two epochs
        assert set(server.asked.values()) == {1} and len(server.asked) == len(list(server.folder.iterdir()))


def test_only_what_is_needed_is_fetched(corpus: Corpus, server: Server, tmp_path: Path) -> None:
    far = Corpus.open(server.url)
    loader = Loader(far.split("train"), PROTEIN, PackingConfig(300, 40), 5)
    assert set(server.asked) == {"corpus.json", "lengths.npy"}
    loader.batch(0)
    quiet(far)
    first, second = loader._epoch(0)[0][:2]
    expected = [f"train-{number:05d}{end}" for number in (first, second) for end in (".bin", ".npy")]
    assert sorted(server.asked) == sorted(["corpus.json", "lengths.npy", *expected])
    assert sorted(p.name for p in data_files(tmp_path / "cache")) == sorted(
        sha256_of(Path(corpus.folder) / name) for name in expected
    )


@settings(max_examples=10)
@given(st.integers(0, 100), st.integers(20, 400), st.integers(1, 50))
@pytest.mark.long
def test_the_number_of_shards_does_not_change_the_set(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shard_residues: int, crop: int
) -> None:
    draw = random.Random(seed)
    sequences = ["".join(draw.choices(PROTEIN.standard, k=draw.randint(1, 60))) for _ in range(80)]
    folder = tmp_path_factory.mktemp("s")
    pieces, whole = make(folder / "pieces", sequences, shard_residues), make(folder / "whole", sequences, 1 << 30)
    url = in_memory(pieces, folder.name)
    sets = []
    for one in (whole, pieces, Corpus.open(url, cache=folder / "cache")):
        split = one.split("train")
        loader = Loader(split, PROTEIN, PackingConfig(200, crop), seed)
        found: Counter[bytes] = Counter()
        tokens = 0
        for n in range(loader.batches_per_epoch):
            shard, numbers = loader.members(n)
            found.update(split.shard(shard)[int(i)].tobytes() for i in numbers)
            tokens += (size := loader.batch(n).tokens)
            assert size <= 200
        assert tokens == loader.tokens_per_epoch
        sets.append(found)
    assert sets[0] == sets[1] == sets[2] and set(sets[0].values()) == {1}


def test_the_cache_stays_within_its_bound_while_training_goes_on(
    corpus: Corpus, server: Server, tmp_path: Path
) -> None:
    limit = 3 * max(sum(size for _, size, _ in s.files) for s in corpus.shards["train"]) + 100
    far = Corpus.open(server.url, cache_bytes=limit)
    loader = Loader(far.split("train"), PROTEIN, PackingConfig(300, 40, reverse=0.3), 5)
    expected, sizes = batches(corpus, epochs=3), []
    for n, tokens in enumerate(expected):
        assert loader.batch(n).sequence.tokens.tolist() == tokens
        quiet(far)  # so that no file is being renamed while they are counted
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()))
    assert limit / 2 < max(sizes) <= limit
    assert max(server.asked.values()) == 3  # had to go, and come again


def test_too_small_a_cache_says_what_it_takes(corpus: Corpus, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cache: no room for http.*train-\d+\.npy .*limit is 4,500 bytes.*two shards"):
        batches(Corpus.open(server.url, cache_bytes=4500))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"no room for .*the disk has 10 bytes free"):
        batches(Corpus.open(server.url))
    monkeypatch.setenv("BIOMETRO_CACHE_BYTES", "a lot")
    with pytest.raises(UserError, match="BIOMETRO_CACHE_BYTES is 'a lot'"):
        Corpus.open(server.url)
    monkeypatch.setenv("BIOMETRO_CACHE_BYTES", "1")
    monkeypatch.setenv("BIOMETRO_CACHE", f"{corpus.folder}/corpus.json/x")
    with pytest.raises(UserError, match="the cache cannot be used"):
        batches(Corpus.open(server.url))


def test_what_is_mapped_is_not_deleted_and_the_longest_unused_goes_first(
    corpus: Corpus, server: Server, tmp_path: Path
) -> None:
    names = ["train-00000.bin", "train-00001.bin", "train-00002.bin", "train-00003.bin"]
    files = {name: (size, sha) for shard in corpus.shards["train"] for name, size, sha in shard.files}
    kept = Cache(tmp_path / "k", sum(files[name][0] for name in names[:3]) + 100)

    def fetch(name: str) -> Any:
        size, sha = files[name]
        return kept.open(f"{server.url}/{name}", sha, size)

    held = np.memmap(fetch(names[0]), dtype=np.uint8, mode="r")  # the handle is closed, the map lives
    content = held.tobytes()
    for name in (*names[1:3], names[1]):  # the second again: so the third is the longest unused
        fetch(name).close()
    fetch(names[3]).close()
    there = {path.name for path in data_files(kept.folder)}
    assert there == {files[name][1] for name in (names[0], names[1], names[3])}
    for path in data_files(kept.folder):
        path.unlink()  # as a user may
    assert held.tobytes() == content
    del held
    fetch(names[0]).close()
    assert server.asked[names[0]] == 2


def test_damage_on_the_way_is_met_with_one_more_attempt(corpus: Corpus, server: Server, tmp_path: Path) -> None:
    server.flipped["train-00002.bin"] = 1
    assert batches(Corpus.open(server.url)) == batches(corpus)
    assert server.asked["train-00002.bin"] == 2
    server.flipped["train-00002.bin"] = 100
    far = Corpus.open(server.url, cache=tmp_path / "other")
    with pytest.raises(UserError, match=rf"{server.url}/train-00002\.bin: damaged, or changed since"):
        batches(far)
    quiet(far)
    assert not [p for p in (tmp_path / "other").iterdir() if "writing" in p.name]


@pytest.mark.parametrize("name", ["corpus.json", "lengths.npy"])
def test_damage_of_the_small_files_is_found_at_once(server: Server, name: str) -> None:
    server.flipped[name] = 100
    with pytest.raises(UserError, match="damaged corpus"):
        Corpus.open(server.url)


def test_a_shard_that_is_too_large_or_too_small_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    url = in_memory(corpus, "sizes")
    memory = fsspec.filesystem("memory")
    whole = memory.cat_file("/sizes/train-00000.bin")
    for data, message in ((whole + b"x" * 5000, "larger than the"), (whole[:-1], "damaged, or changed")):
        memory.pipe_file("/sizes/train-00000.bin", data)
        far = Corpus.open(url, cache=tmp_path / "c")
        with pytest.raises(UserError, match=rf"sizes/train-00000\.bin: {message}"):
            batches(far)
        quiet(far)
    memory.rm_file("/sizes/train-00000.bin")
    with pytest.raises(UserError, match=r"train-00000\.bin: no such file"):
        batches(Corpus.open(url, cache=tmp_path / "c"))
    with pytest.raises(UserError, match=r"memory://nowhere/corpus\.json: no such file"):
        Corpus.open("memory://nowhere")
    with pytest.raises(UserError, match=r"nosuchprotocol://x/corpus\.json: cannot be read"):
        Corpus.open("nosuchprotocol://x")


def test_passing_failures_pass(corpus: Corpus, server: Server) -> None:
    server.failing.update({"corpus.json": 2, "train-00001.bin": 3})
    assert batches(Corpus.open(server.url)) == batches(corpus)
    server.failing["corpus.json"] = 100
    with pytest.raises(UserError, match=r"corpus\.json: cannot be read \(503"):
        Corpus.open(server.url)


@pytest.mark.parametrize("after", [0, 100])
@pytest.mark.parametrize("name", ["corpus.json", "train-00001.npy"])
def test_a_silent_server_is_an_error_within_the_limit(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, after: int
) -> None:
    monkeypatch.setenv("BIOMETRO_STALL_SECONDS", "0.4")
    server.silent[name] = after
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"{server.url}/{name}: nothing has come for 0.4 s"):
        batches(Corpus.open(server.url))
    assert time.monotonic() - began < 10  # fetched ahead, and then in earnest
    monkeypatch.setenv("BIOMETRO_STALL_SECONDS", "soon")
    with pytest.raises(UserError, match="BIOMETRO_STALL_SECONDS is 'soon'"):
        Corpus.open(server.url)


def test_raw_files_from_a_silent_server_too(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOMETRO_STALL_SECONDS", "0.4")
    server.folder = tmp_path
    (tmp_path / "x.fasta").write_text(">a\nMKTA\n" * 1000)
    source = expand(f"{server.url}/x.fasta")[0]
    assert sum(1 for _ in read(source)) == 1000
    server.silent["x.fasta"] = 500
    began = time.monotonic()
    with pytest.raises(UserError, match=r"x\.fasta: nothing has come for 0.4 s"):
        list(read(expand(f"{server.url}/x.fasta")[0]))
    assert time.monotonic() - began < 8


def _read_all(url: str, cache: str, answers: Any) -> None:
    far = Corpus.open(url, cache=cache)
    answers.put(batches(far))
    quiet(far)


def test_two_processes_fetch_once(corpus: Corpus, server: Server, tmp_path: Path) -> None:
    server.delay = 0.02
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=_read_all, args=(server.url, str(tmp_path / "shared"), answers)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    expected = batches(corpus)
    assert [answers.get(timeout=120) for _ in processes] == [expected, expected]
    for process in processes:
        process.join(30)
    shards = {name: count for name, count in server.asked.items() if name.startswith("train")}
    assert len(shards) == 2 * len(corpus.shards["train"]) and set(shards.values()) == {1}


def test_a_process_that_stands_still_holds_up_nobody_for_long(
    corpus: Corpus, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIOMETRO_STALL_SECONDS", "0.2")
    monkeypatch.setattr(cache, "_GRACE", 0.1)
    name, size, sha256 = corpus.shards["train"][0].files[0]
    (tmp_path / "cache").mkdir()
    with (tmp_path / "cache" / f".{sha256}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"{name}: another process has been fetching it"):
            Cache().open(f"{server.url}/{name}", sha256, size)


def test_what_a_killed_process_left_is_cleared(corpus: Corpus, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / f".{'a' * 64}.writing-999999").write_bytes(b"half")
    (folder / corpus.shards["train"][0].digests[0]).write_bytes(b"cut short")
    assert batches(Corpus.open(server.url)) == batches(corpus)
    assert not [path for path in folder.iterdir() if "writing" in path.name]
