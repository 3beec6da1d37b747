"""A store ranked by many processes, on one machine or many, through Ray Data.

    runs of shards ─▶ workers, each with the store's maps and the queries ─▶ the best of each run ─▶ merged

Rankings of shards merge in any order (`screen.merge`), so the result is that of one process. An error that a user is
meant to read travels as a row, as in `cluster.py`.
"""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from biometro.errors import UserError
from biometro.inference.cluster import Cluster
from biometro.inference.screen import Ranking, merge, rank
from biometro.inference.store import Store, open_store

_RUNS = 4  # of shards for each worker, so that a slow one does not keep the others waiting
_ROW = pa.schema([("numbers", pa.binary()), ("scores", pa.binary()), ("error", pa.string())])


def rank_on(store: Store, queries_QP: np.ndarray, top: int, cluster: Cluster) -> Ranking:
    """As `rank` of all shards. Raises UserError also where a worker does not see this very store."""
    import ray

    count = len(store.shards)
    runs = np.array_split(np.arange(count), min(count, _RUNS * cluster.workers))
    context = ray.data.DataContext.get_current()
    quiet = {"enable_progress_bars": False, "print_on_execution_start": False}
    before = {name: getattr(context, name) for name in quiet}
    for name, value in quiet.items():
        setattr(context, name, value)
    try:
        data = ray.data.from_items([{"shards": run.tolist()} for run in runs], override_num_blocks=len(runs))
        rows = data.map_batches(
            _Ranker,
            fn_constructor_args=(store.folder.absolute(), store.digest, queries_QP, top, cluster.threads),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(cluster.workers, len(runs)), max_tasks_in_flight_per_actor=2),
            num_cpus=cluster.threads,
        )
    finally:
        for name, value in before.items():  # a data set keeps the context it was made in
            setattr(context, name, value)
    best = Ranking(np.empty((len(queries_QP), 0), np.int64), np.empty((len(queries_QP), 0), np.float32))
    for table in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in table.to_pylist():
            if row["error"] is not None:
                raise UserError(row["error"])
            found = (np.frombuffer(row["numbers"], np.int64), np.frombuffer(row["scores"], np.float32))
            best = merge([best, Ranking(*(each.reshape(len(queries_QP), -1) for each in found))], top)
    return best


class _Ranker:
    """In a worker: opens the store at its first shards, since a constructor's error would be tried again and again."""

    def __init__(self, folder: Path, digest: str, queries_QP: np.ndarray, top: int, threads: int):
        self.folder, self.digest, self.queries_QP, self.top, self.threads = folder, digest, queries_QP, top, threads
        self._store: Store | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        (row,) = table.to_pylist()
        try:
            found = rank(self._ready(), self.queries_QP, self.top, row["shards"])
        except UserError as error:
            return pa.Table.from_pylist([{"numbers": None, "scores": None, "error": str(error)}], _ROW)
        told = {"numbers": found.numbers.tobytes(), "scores": found.scores.tobytes(), "error": None}
        return pa.Table.from_pylist([told], _ROW)

    def _ready(self) -> Store:
        if self._store is None:
            host = socket.gethostname()
            if not self.folder.exists():
                raise UserError(f"{self.folder} is not there on {host}; every machine must see the index")
            store = open_store(self.folder)
            if store.digest != self.digest:
                raise UserError(f"{self.folder} holds another index on {host} than where the command was started")
            torch.set_num_threads(self.threads)
            self._store = store
        return self._store
