"""Transfers that break on the way: every byte once, in its place, of one version of the file, or an error."""

from __future__ import annotations

import gzip
import http.server
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biometro.data import remote
from biometro.data.remote import download, open_binary
from biometro.data.sources import expand, read
from biometro.errors import UserError
from biometro.files import sha256_of
from biometro.jobs.prepare import prepare

pytest.importorskip("aiohttp")


class Unsteady(http.server.ThreadingHTTPServer):
    """Serves files from memory and breaks by plan: one entry of `plan` for each answer with a body, then none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.plan: list[Any] = []  # ("cut", n), ("reset", n), ("stall", n), ("status", code), ("change", bytes), None
        self.ranges = True
        self.marks = {"ETag": '"v1"', "Last-Modified": "Mon, 05 Jan 2026 10:00:00 GMT"}
        self.announced: int | None = None  # in place of the right length
        self.asked: list[str | None] = []  # the Range of each request
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the plan."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Unsteady
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, data = self.server, self.server.files.get(self.path.strip("/"))
        if data is None:
            self.send_error(404)
            return
        server.asked.append(self.headers["Range"])
        step = server.plan.pop(0) if server.plan else None
        what, how = step or (None, 0)
        if what == "status":
            self.send_error(how)
            return
        if what == "change":
            self.server.files[self.path.strip("/")] = data = how
            server.marks = {name: value.replace("1", "2") for name, value in server.marks.items()}
        self.close_connection = what in ("cut", "reset", "stall")
        body = self.head(data)
        if body is None:
            return
        if what not in ("cut", "reset", "stall"):
            self.wfile.write(body)
            return
        self.wfile.write(body[:how])
        self.wfile.flush()
        if what == "stall":
            time.sleep(20)
        if what == "reset":  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            time.sleep(0.05)
            self.connection.close()

    def head(self, data: bytes) -> bytes | None:
        """Answer with status and headers; what is to follow."""
        server, wanted = self.server, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        known = self.headers["If-Range"] in (None, *server.marks.values())
        body, status = data, 200
        if wanted and server.ranges and known:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            if first >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            body, status = data[first : last + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{server.announced or len(data)}")
        for name, value in server.marks.items():
            self.send_header(name, value)
        length = len(body) if server.announced is None or status == 206 else server.announced
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if length > len(body):
            self.close_connection = True
        return body[:length]

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Unsteady]:
    with Unsteady() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT", 1e-4)
    # what a client has received and not yet read is gone with the connection, so a break may look like no progress
    monkeypatch.setattr(remote, "_ATTEMPTS", 10)
    monkeypatch.setenv("BIOMETRO_STALL_SECONDS", "10")


DATA = random.Random(0).randbytes(3_000_000)


def whole(url: str) -> bytes:
    with open_binary(url) as handle:
        return handle.read()


@pytest.mark.parametrize(
    "marks", [{}, {"ETag": 'W/"v1"'}, {"ETag": '"v1"'}, {"Last-Modified": "Mon, 05 Jan 2026"}, None]
)
@pytest.mark.parametrize("ranges", [True, False])
def test_what_breaks_goes_on(server: Unsteady, ranges: bool, marks: dict[str, str] | None) -> None:
    server.files["x"], server.ranges = DATA, ranges
    server.marks = server.marks if marks is None else marks
    server.plan = [("cut", 1_000_000), ("status", 503), ("status", 503), ("reset", 1_200_000), ("cut", 1_300_000)]
    assert whole(f"{server.url}/x") == DATA
    marks = server.marks.values()
    if any(not value.startswith("W/") for value in marks):  # a version that can be asked for, until that proves useless
        assert [asked is not None for asked in server.asked[:4]] == [False, True, True, True]
        assert {asked is not None for asked in server.asked[4:]} == {ranges}
    else:  # in doubt all of it, to be compared
        assert server.asked == [None] * 6
    assert server.plan == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_stall_is_met_with_another_attempt(server: Unsteady, ranges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOMETRO_STALL_SECONDS", "1")
    monkeypatch.setattr(remote, "_ATTEMPTS", 4)
    server.files["x"], server.ranges = DATA, ranges
    server.plan = [("stall", 700_000), ("stall", 1_500_000)]
    assert whole(f"{server.url}/x") == DATA
    server.plan = [("stall", 700_000), ("stall", 0)]  # two silences without a byte between them
    with pytest.raises(UserError, match=rf"{server.url}/x: nothing has come for 1 s"):
        whole(f"{server.url}/x")


def test_patience_ends(server: Unsteady, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote, "_ATTEMPTS", 4)
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    server.files["x"] = DATA
    server.plan = [("cut", 1_000_000), *[("status", 503)] * 10]
    with pytest.raises(UserError, match=r"/x: cannot be read beyond byte [0-9,]+ of 3,000,000 \(503"):
        whole(f"{server.url}/x")
    assert len(server.asked) == 4 and waits == [1e-4, 2e-4, 4e-4]
    monkeypatch.setattr(remote, "_ATTEMPTS", 100)
    monkeypatch.setattr(remote, "_MOST_BREAKS", 5)
    server.asked, server.plan = [], [("cut", 100)] * 50
    with pytest.raises(UserError, match="cannot be read"):
        whole(f"{server.url}/x")
    assert len(server.asked) == 5
    server.plan = [("status", 403)]
    with pytest.raises(UserError, match=r"/x: cannot be read \(403"):
        whole(f"{server.url}/x")
    with pytest.raises(UserError, match=r"/y: no such file"):
        whole(f"{server.url}/y")


@pytest.mark.parametrize("marks", [{}, {"ETag": '"v1"'}, {"Last-Modified": "Mon, 05 Jan 2026 10:00:00 GMT"}])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [3_000_000, 2_900_000, 3_100_000, 500_000])
def test_a_file_that_changes_is_an_error(server: Unsteady, marks: dict[str, str], ranges: bool, size: int) -> None:
    server.files["x"], server.marks, server.ranges = DATA, marks, ranges
    server.plan = [("cut", 1_000_000), ("change", random.Random(1).randbytes(size)), None, None]
    with pytest.raises(UserError, match=rf"{server.url}/x: changed while it was read"):
        whole(f"{server.url}/x")


def test_another_tag_for_the_same_bytes_is_no_change(server: Unsteady) -> None:
    server.files["x"] = DATA  # as of mirrors behind one name
    server.plan = [("cut", 1_000_000), ("change", DATA), None]
    assert whole(f"{server.url}/x") == DATA


def test_a_wrong_length_is_an_error(server: Unsteady, tmp_path: Path) -> None:
    server.files["x"], server.announced = DATA, 3_000_100
    with pytest.raises(UserError, match=r"/x: .*3,000,100 bytes, was wrong: .*no byte 3,000,000"):
        whole(f"{server.url}/x")
    server.ranges = False
    with pytest.raises(UserError, match=r"/x: cannot be read beyond byte [0-9,]+ of 3,000,100"):
        whole(f"{server.url}/x")
    packed = gzip.compress(b">a\nMKTA\n" * 1000)
    server.files["x.fasta.gz"], server.announced = packed, len(packed) - 9
    with pytest.raises(UserError, match=r"x\.fasta\.gz"):
        list(read(expand(f"{server.url}/x.fasta.gz")[0]))


def test_nothing_but_what_was_asked_for_is_fetched(server: Unsteady) -> None:
    server.files["x"] = DATA
    with open_binary(f"{server.url}/x") as handle:
        assert handle.seek(0, 2) == 3_000_000 and handle.seek(2_999_000) == 2_999_000
        assert handle.read(10_000) == DATA[-1000:] and handle.read(1) == b""
        handle.seek(1_500_000)
        assert handle.read(7) == DATA[1_500_000:1_500_007] and handle.tell() == 1_500_007
        assert handle.read(2_000_000) == DATA[1_500_007:]
    assert server.asked[1] == "bytes=2999000-4047575" and server.asked[2] == "bytes=1500000-2548575"
    server.ranges = False
    with open_binary(f"{server.url}/x") as handle:
        handle.seek(5)
        with pytest.raises(UserError, match="knows no ranges"):
            handle.read(1)


@pytest.mark.long
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_breaks_any_reads(server: Unsteady, data: st.DataObject) -> None:
    content = random.Random(2).randbytes(20_000)
    server.files["x"], server.asked = content, []
    server.ranges = data.draw(st.booleans())
    breaks = st.one_of(
        st.tuples(st.sampled_from(["cut", "reset"]), st.integers(0, 20_000)), st.just(("status", 502)), st.none()
    )
    plan = data.draw(st.lists(breaks, max_size=8))
    server.plan = [None if i % 8 == 7 else step for i, step in enumerate(plan)]
    size = data.draw(st.integers(1, 9000))
    with open_binary(f"{server.url}/x") as handle:
        got = b"".join(iter(lambda: handle.read(size), b""))
    server.plan = []
    assert got == content


def test_the_cache_goes_on_too(server: Unsteady, tmp_path: Path) -> None:
    server.files["x"] = DATA
    server.plan = [("cut", 1_000_000), ("reset", 500_000), ("status", 500), None]
    with (tmp_path / "x").open("w+b") as out:
        count, digest = download(f"{server.url}/x", out, len(DATA))
    (tmp_path / "y").write_bytes(DATA)
    assert count == len(DATA) and (tmp_path / "x").read_bytes() == DATA
    assert digest == sha256_of(tmp_path / "y")
    places = [int(asked[6:-1]) for asked in server.asked if asked]
    assert places[0] > 0 and places == sorted(places)  # never from the start


def test_other_file_systems_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/far/x", DATA)
    breaks = [1, 1, 0, 1]
    opening = type(memory)._open

    def unsteady(*args: Any, **kwargs: Any) -> Any:
        handle = opening(*args, **kwargs)
        reading, left = handle.read, [2]

        def broken(size: int = -1) -> bytes:
            left[0] -= 1
            if left[0] <= 0 and breaks and breaks.pop():
                raise OSError("lost")
            return reading(size)

        handle.read = broken
        return handle

    monkeypatch.setattr(type(memory), "_open", unsteady)
    with open_binary("memory://far/x") as handle:
        assert b"".join(iter(lambda: handle.read(100_000), b"")) == DATA
    assert len(breaks) == 0
    with open_binary("memory://far/x") as handle:
        handle.read(100_000)
        memory.pipe_file("/far/x", DATA[::-1])
        breaks.append(1)
        with pytest.raises(UserError, match=r"memory://far/x: changed while it was read"):
            handle.read(100_000)


# A corpus is the same as from a local file -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    draw = random.Random(3)
    sequences = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(20, 400))) for _ in range(4000)]
    text = "".join(f">s{i}\n{sequence}\n" for i, sequence in enumerate(sequences)).encode()
    (folder / "x.fasta").write_bytes(text)
    (folder / "x.fasta.gz").write_bytes(gzip.compress(text))
    table = pa.table({"id": np.arange(len(sequences)), "sequence": sequences, "more": [s[::-1] for s in sequences]})
    pq.write_table(table, folder / "x.parquet", row_group_size=1000)
    return folder


@pytest.mark.parametrize("name", ["x.fasta", "x.fasta.gz", "x.parquet"])
def test_the_corpus_of_a_broken_transfer_is_that_of_the_file(
    server: Unsteady, raw: Path, tmp_path: Path, name: str
) -> None:
    data = (raw / name).read_bytes()
    server.files[name] = data
    prepare(str(raw / name), str(tmp_path / "near"))
    server.plan = [("status", 503), ("status", 503), None]
    for step in (("cut", 50_000), ("reset", 120_000), ("cut", 0), ("status", 502), ("cut", 10_000), ("cut", 1)):
        server.plan.append(step)
    prepare(f"{server.url}/{name}", str(tmp_path / "far"))
    assert server.plan == []
    near, far = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("near", "far"))
    source = json.loads(far.pop("corpus.json"))["sources"][0]
    near.pop("corpus.json")
    assert near == far
    assert source["sha256"] == sha256_of(raw / name) and source["bytes"] == len(data)


def test_parquet_from_a_server_without_ranges_says_what_to_do(server: Unsteady, raw: Path, tmp_path: Path) -> None:
    server.files["x.parquet"], server.ranges = (raw / "x.parquet").read_bytes(), False
    with pytest.raises(UserError, match=r"x\.parquet: .*knows no ranges.*download it first"):
        prepare(f"{server.url}/x.parquet", str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_a_change_under_prepare_leaves_no_corpus(server: Unsteady, raw: Path, tmp_path: Path) -> None:
    data = (raw / "x.fasta").read_bytes()
    server.files["x.fasta"] = data
    server.plan = [None, ("cut", len(data) - 100), ("change", data[::-1]), None]
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(f"{server.url}/x.fasta", str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()
