"""Parts of embeddings made by many processes, on one machine or many, through Ray Data.

    reader ─▶ chunks, as fast as they are taken ─▶ workers, each with the model ─▶ part files in the shared folder
       └───── a part that is there already: its name alone ─────────────────────▶ names to the driver

The reader is one task on the driver's machine: it reads, cleans and cuts exactly as a single process does, so the parts
are the same. Ray Data holds it back when workers are behind, and gives a lost worker's chunk to another. An error that
a user is meant to read travels as a row, like any result: no exception has to be unwrapped on the way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch

from biometro.data.intake import Account
from biometro.errors import UserError
from biometro.inference import vectors
from biometro.inference.embed import Embedder
from biometro.inference.plan import Chunk, Done, Plan
from biometro.model.load import fingerprint, load

_STORE_BYTES = 256 << 20  # of a local cluster; chunks that wait for a worker, about a megabyte each
_NO_CLIENT = "Ray Data does not run through ray://; start the command on a machine of the cluster, with its HOST:PORT"


# What travels, a row each: a `chunk` to embed, a part `found` or `made`, and at the end the `account`; or an `error`.
# `text` is the part's name, the account as JSON, or the error's line.
Kind = Literal["chunk", "found", "made", "account", "error"]
_ROW = pa.schema(
    [
        ("kind", pa.string()), ("text", pa.string()), ("ids", pa.list_(pa.string())),
        ("letters", pa.list_(pa.binary())), ("sequences", pa.int64()), ("residues", pa.int64()),
    ]
)  # fmt: skip


def _row(kind: Kind, text: str, chunk: Chunk | None = None) -> pa.Table:
    row: dict[str, Any] = {
        "kind": kind,
        "text": text,
        "ids": None,
        "letters": None,
        "sequences": None,
        "residues": None,
    }
    if chunk is not None:
        row |= {"sequences": len(chunk.ids), "residues": chunk.residues}
    if chunk is not None and kind == "chunk":
        row |= {"ids": chunk.ids, "letters": chunk.letters}
    return pa.Table.from_pylist([row], _ROW)


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray: `device` is the type that workers compute on, `threads` what each of them uses."""

    workers: int
    device: str
    threads: int


@contextlib.contextmanager
def connect(workers: int, address: str | None, device: str) -> Iterator[Cluster]:
    """Ray for the length of the block.

    A process that is connected to Ray already goes on with that connection, and keeps it. Otherwise the cluster at
    `address` (auto or HOST:PORT); without one, a cluster on this machine that ends with the block.

    Raises UserError where Ray is not installed, cannot be reached, or has less than the workers need.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1 (leave it out to embed in this process)")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {device!r}; with workers it is auto, cpu or cuda, and Ray shares out the GPUs")
    ray = _import_ray(local=address is None)
    ours = not ray.is_initialized()
    if not ours and address is not None:
        raise UserError("this process is connected to Ray already; leave `cluster` out to go on with that connection")
    if not ours and ray.util.client.ray.is_connected():
        raise UserError(_NO_CLIENT)
    try:
        if ours:
            _start(ray, address, max(workers, torch.get_num_threads()))
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(has.get("GPU", 0)) for has in machines)
        kind = device if device != "auto" else "cuda" if gpus else "cpu"
        if kind == "cuda" and gpus < workers:
            raise UserError(f"workers is {workers} and each needs a GPU; the cluster has {gpus}")
        yield Cluster(workers, kind, 1 if kind == "cuda" else _threads(workers, machines))
    finally:
        if ours:
            ray.shutdown()


def _threads(workers: int, machines: list[dict[str, float]]) -> int:
    """The most threads, up to this process' own, that all workers can have at once; none is spread over machines."""
    cpus = [int(has.get("CPU", 0)) for has in machines]
    for threads in range(torch.get_num_threads(), 0, -1):
        if sum(have // threads for have in cpus) >= workers:
            return threads
    raise UserError(f"workers is {workers} and each needs a CPU; the cluster has {sum(cpus)}")


def make_parts(plan: Plan, folder: Path, cluster: Cluster, account: Account) -> Iterator[Done]:
    """Every part of the plan, made or found, in the order in which they are done; fills in the account at the end.

    Only names pass through this process. Raises UserError, as a single process would, for input that cannot be read
    and a model that cannot be used; and for folders that not all machines see.
    """
    import ray

    home = Path.cwd()
    context = ray.data.DataContext.get_current()
    quiet = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": 1,  # every row a block of its own: a chunk goes to whoever is free
    }
    before = {name: getattr(context, name) for name in quiet}
    for name, value in quiet.items():
        setattr(context, name, value)
    try:
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        # The reader asks for no CPU, since workers may hold all of them; and asking for something else than the workers
        # keeps Ray Data from running both in one process.
        chunks = ray.data.from_items([0]).map_batches(
            _read,
            fn_kwargs={"plan": plan, "folder": folder, "home": home},
            batch_size=None,
            num_cpus=0,
            label_selector=here,
        )
        rows = chunks.map_batches(
            _Worker,
            fn_constructor_args=(plan, Path(plan.model).absolute(), folder, cluster),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=cluster.workers, max_tasks_in_flight_per_actor=2),
            num_cpus=cluster.threads,
            num_gpus=1 if cluster.device == "cuda" else 0,
        )
    finally:
        for name, value in before.items():  # a data set keeps the context it was made in
            setattr(context, name, value)
    names = set()
    for table in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in table.to_pylist():
            if row["kind"] == "error":
                raise UserError(row["text"])
            if row["kind"] == "account":
                for name, value in json.loads(row["text"]).items():
                    setattr(account, name, value)
                continue
            names.add(row["text"])
            yield Done(row["text"], row["sequences"], row["residues"], row["kind"] == "found")
    unseen = names - {path.name for path in folder.iterdir()}
    if unseen:
        raise UserError(f"{folder}: {len(unseen)} parts that workers wrote are not there; every machine must see `out`")


def _read(batch: Any, plan: Plan, folder: Path, home: Path) -> Iterator[pa.Table]:
    """In the reader: every chunk whose part is not there, the name of every part that is, and the account."""
    account = Account()
    try:
        if not home.is_dir():
            raise UserError(f"{home} is not there on {socket.gethostname()}, where the input would be read")
        with contextlib.chdir(home):  # names of files mean what they mean to the user
            for chunk in plan.chunks(account):
                yield _row("found" if vectors.sound(folder / chunk.part) else "chunk", chunk.part, chunk)
    except UserError as error:
        yield _row("error", str(error))
    else:
        yield _row("account", json.dumps(asdict(account)))


class _Worker:
    """In a worker: holds the model, turns chunks into part files, and passes on whatever else comes."""

    def __init__(self, plan: Plan, model: Path, folder: Path, cluster: Cluster):
        self.plan, self.model, self.folder, self.cluster = plan, model, folder, cluster
        self._embedder: Embedder | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        (row,) = table.to_pylist()
        if row["kind"] != "chunk":
            return table
        chunk = Chunk(row["text"], row["ids"], row["letters"])
        try:
            embedder = self._ready()
            vectors.write_part(self.folder / chunk.part, self.plan.run(chunk, embedder), embedder.width)
        except UserError as error:
            return _row("error", str(error))
        return _row("made", chunk.part, chunk)

    def _ready(self) -> Embedder:
        """The model, loaded at the first chunk: what fails here reaches the user, where a constructor's error would
        be tried again and again."""
        if self._embedder is None:
            host = socket.gethostname()
            for path in (self.model, self.folder):
                if not path.exists():
                    raise UserError(f"{path} is not there on {host}; every machine must see the model and the output")
            if fingerprint(self.model) != self.plan.weights:
                raise UserError(f"{self.model} holds another model on {host} than where the command was started")
            torch.set_num_threads(self.cluster.threads)
            self._embedder = self.plan.embedder(load(self.model), self.cluster.device)
        return self._embedder


def _import_ray(local: bool) -> Any:
    """Ray, told to keep quiet: no statistics over the network, no log lines but errors of Python."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if local and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on all interfaces; without a token whoever reaches a port could run code here. Its own default
        # leaves one in the user's home, which changes how clusters started later must be reached.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("workers need Ray, which is not installed: pip install 'biometro[ray]'") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _start(ray: Any, address: str | None, cpus: int) -> None:
    """Connect, or start a cluster on this machine; signals go on meaning what they meant."""
    if address not in (None, "auto"):
        _check_address(str(address))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        with _hushed():
            ray.init(address="local" if address is None else address, **options)
    except Exception as error:  # of many kinds, by address
        what = "could not be started" if address is None else f"at {address} cannot be reached"
        text = " ".join(str(error).split())[:300]
        if address is not None and "RAY_AUTH_MODE" not in os.environ:  # Ray sends no token to an address unasked
            text += "; if it asks for a token, set RAY_AUTH_MODE=token"
        raise UserError(f"Ray {what} ({text})") from error
    finally:
        if main:  # Ray's own would end the process without a word
            signal.signal(signal.SIGTERM, handler)


def _check_address(address: str) -> None:
    """Ray itself would try an address where nobody listens for many minutes."""
    if address.startswith("ray://"):
        raise UserError(_NO_CLIENT)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"cluster is {address!r}; it must be auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"Ray at {address} cannot be reached ({error.strerror or error})") from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Ray's C++ part says on file descriptor 2 that it was told to be silent; it is spared that here."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
