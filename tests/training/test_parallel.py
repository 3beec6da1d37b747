"""Any number of ranks is one run: same losses, same weights, checkpoints that all can read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import CONFIG, STOP_AT, fresh, loader, run
from safetensors.torch import load_file

from biometro import cli
from biometro.errors import UserError
from biometro.jobs.prepare import prepare
from biometro.objectives.corruption import generator_for
from biometro.training import checkpoint
from biometro.training.optimizer import build
from biometro.training.parallel import ParallelConfig, World, _mesh, join, meet, share
from biometro.training.tracking import Row, read_metrics
from biometro.training.watch import Note, verdict


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*launcher, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=250
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs by 1 and 2 ranks, and one begun by one and ended by two."""
    root = tmp_path_factory.mktemp("runs")
    run(root / "alone", World())
    run(root / "whole", World(), stop_on=0)
    return _by(2, root)


@pytest.fixture(scope="module")
def four(runs: Path) -> Path:
    """The same by 4 ranks, beside them."""
    run(runs / "alone-disentangled", World(), embeddings="disentangled")
    return _by(4, runs)


def _by(ranks: int, root: Path) -> Path:
    done = torchrun(ranks, str(Path(__file__).with_name("ranks.py")), str(root))
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def rows(folder: Path) -> list[Row]:
    return read_metrics(folder / "metrics.jsonl")


def assert_same_run(one: Path, two: Path) -> None:
    assert [(r["step"], r["split"]) for r in rows(one)] == [(r["step"], r["split"]) for r in rows(two)]
    for a, b in zip(rows(one), rows(two), strict=True):
        for name in [name for name in a if name.endswith(("loss", "norm", "tokens", "flops", "lr"))]:
            assert a[name] == pytest.approx(b[name], abs=1e-5, rel=1e-5), (a["step"], name)


def tensors(folder: Path, embeddings: str = "tied") -> dict[str, torch.Tensor]:
    """Weights and moments of the last checkpoint, as a single process restores them."""
    objective = fresh(embeddings)
    optimizer = build(objective, CONFIG.optimizer)
    saved = checkpoint.Checkpoints(folder / "checkpoints", objective, optimizer, World(), 2)
    progress = saved.load(pytest.fail)
    assert progress is not None and progress.step == CONFIG.steps
    assert {float(state["step"]) for state in optimizer.state.values()} == {float(CONFIG.steps)}
    return {name: tensor.clone() for name, tensor in saved._tensors().items()}


def assert_same_weights(root: Path, name: str) -> None:
    """The run of one process, its losses, weights and moments."""
    assert_same_run(root / "alone", root / name)
    reference = tensors(root / "alone")
    for key, tensor in tensors(root / name).items():
        torch.testing.assert_close(tensor, reference[key], atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2-ranks-replicate", "2-ranks-shard"])
def test_the_number_of_ranks_changes_nothing(runs: Path, name: str) -> None:
    assert_same_weights(runs, name)


@pytest.mark.long
@pytest.mark.parametrize("name", ["4-ranks-replicate", "4-ranks-shard", "4-ranks-hybrid"])
def test_four_ranks_change_nothing(four: Path, name: str) -> None:
    assert_same_weights(four, name)


@pytest.mark.long
def test_sharded_recomputed_and_disentangled(four: Path) -> None:
    assert_same_run(four / "alone-disentangled", four / "recomputed")


@pytest.mark.long
def test_one_process_ends_what_four_ranks_began(four: Path) -> None:
    assert checkpoint.folders(four / "cut" / "checkpoints")[-1].name == f"step-{STOP_AT:08d}"
    run(four / "cut", World())
    assert_same_run(four / "alone", four / "cut")


@pytest.mark.slow
def test_two_ranks_end_what_one_process_began(runs: Path) -> None:
    assert_same_run(runs / "alone", runs / "whole")


@pytest.mark.slow
def test_one_process_reads_the_weights_that_two_wrote(runs: Path) -> None:
    folder = checkpoint.folders(runs / "2-ranks-shard" / "checkpoints")[-1]
    assert len(list(folder.glob("*.safetensors"))) == 2
    objective = fresh()
    checkpoint.read_weights(folder, objective)
    for name, tensor in tensors(runs / "2-ranks-shard").items():
        if name.startswith("weights."):
            assert torch.equal(objective.state_dict()[name.removeprefix("weights.")], tensor), name


@pytest.mark.long
def test_pretrain_by_two_ranks_leaves_the_model_of_one(tmp_path: Path) -> None:
    prepare("example:families", str(tmp_path / "corpus"), valid=0.1)
    options = {
        "data": tmp_path / "corpus", "encoder.width": 32, "encoder.depth": 2, "encoder.head_size": 16,
        "packing.batch_tokens": 512, "packing.crop": 60, "training.steps": 6, "training.accumulate": 2,
        "training.track": "[]", "metro.embeddings": "disentangled", "device": "cpu",
        "training.parallel.sharding": "shard",
    }  # fmt: skip
    arguments = ["pretrain", *(f"--{name}={value}" for name, value in options.items())]
    done = torchrun(2, "-m", "--", "biometro", *arguments, f"--run={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert cli.main([*arguments, f"--run={tmp_path / 'one'}"]) == 0
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    assert (tmp_path / "two" / "exit-status").read_text() == "0\n"
    assert (tmp_path / "two" / "report.html").stat().st_size > 10_000


def test_ranks_meet_in_spite_of_what_an_earlier_attempt_left() -> None:
    store = dist.HashStore()
    for rank in range(3):  # the words of an attempt that is over
        store.set(f"ask/{rank}", f"old-{rank}")
        store.set(f"answer/{rank}", f"old-{rank} old-attempt")
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            late = [pool.submit(meet, store, rank, 3, 20.0) for rank in (1, 2)]
            time.sleep(0.2)  # in which those two see nothing but old answers
            found = {meet(store, 0, 3, 20.0), *(future.result() for future in late)}
        assert len(found) == 1 and found != {"old-attempt"}
    with pytest.raises(UserError, match="not all 3 ranks came"):
        meet(store, 0, 3, 0.2)


def test_shares_cover_everything_once_and_keep_step() -> None:
    for count in range(1, 9):
        for size in range(1, 9):
            shares = [share(World(rank, size), count) for rank in range(size)]
            assert len({len(numbers) for numbers, _ in shares}) == 1
            counted = [n for numbers, idle in shares for n in numbers[: len(numbers) - idle]]
            assert sorted(counted) == list(range(count))


def test_idle_micro_batches_leave_no_trace() -> None:
    torch.set_num_threads(1)
    source = loader()
    gradients, counts = [], []
    for idle in (0, 2):
        objective = fresh()
        batches = [
            objective.prepare(source.batch(n), generator_for(torch.device("cpu"), 0, n))
            for n in (0, 1, 0, 0)[: 2 + idle]
        ]
        torch.manual_seed(0)
        terms = objective.backward(batches, idle, before=lambda turn: torch.manual_seed(turn) and None)
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
        counts.append([float(term.count) for term in terms.values()])
    assert counts[0] == counts[1]
    torch.testing.assert_close(*gradients)


def test_recomputing_changes_nothing_but_memory() -> None:
    held, gradients = [], []
    for recompute in (False, True):
        objective, source = fresh(), loader()
        if recompute:
            objective.encoder.recompute_blocks()  # type: ignore[union-attr, operator]
        prepared = [objective.prepare(source.batch(0), generator_for(torch.device("cpu"), 0, 0))]
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            objective.backward(prepared, before=lambda turn: torch.manual_seed(turn) and None)
        held.append(sum(saved.values()))
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)
    assert held[1] < 0.6 * held[0]


@pytest.mark.parametrize(
    ("sharding", "size", "node_size", "shape"),
    [("auto", 8, 4, (8, 1)), ("shard", 8, 4, (1, 8)), ("hybrid", 8, 4, (2, 4)), ("replicate", 8, 4, (8, 1))],
)
def test_meshes(sharding: str, size: int, node_size: int, shape: tuple[int, int]) -> None:
    world = World(0, size, node_size)
    assert _mesh(fresh(), world, ParallelConfig(sharding=sharding)) == shape  # type: ignore[arg-type]
    with pytest.raises(UserError, match="same number of ranks on every node"):
        _mesh(fresh(), World(0, 6, 4), ParallelConfig(sharding="hybrid"))


def test_large_models_are_sharded_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biometro.training.parallel._REPLICATED_UP_TO", 1000)
    assert _mesh(fresh(), World(0, 4, 4), ParallelConfig()) == (1, 4)
    assert _mesh(fresh(), World(0, 8, 4), ParallelConfig()) == (2, 4)


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    with join("cpu") as world:
        assert world == World() and world.leads
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"), join("cpu"):
        pass
    with pytest.raises(UserError, match="timeout_minutes"):
        ParallelConfig(timeout_minutes=0)


def test_the_watch_names_the_rank_that_is_late() -> None:
    def note(count: int, sent: int, doing: str = "computing step 3") -> Note:
        return Note(count, sent, doing, 700.0, "node7", 4711)

    waiting = "waiting at the end of step 3"
    text = verdict([note(9, 1, waiting), note(8, 1)], [note(9, 4, waiting), note(8, 4)], 600)
    assert text.startswith("rank 1 (host node7, process 4711) has been computing step 3 for 700 s")
    text = verdict([note(9, 1), note(9, 1), note(9, 1)], [note(9, 4), note(9, 1), note(9, 4)], 600)
    assert text.startswith("rank 1 (host node7, process 4711) has fallen silent, last seen computing step 3")
    text = verdict([note(9, 1), None], [note(9, 4), None], 600)
    assert text.startswith("rank 1 has never reported")
    assert "all ranks have stood still" in verdict([note(9, 1)] * 2, [note(9, 4)] * 2, 600)
