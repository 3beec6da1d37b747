"""The planner's arithmetic against what torch does: saved tensors, live memory, counted operations, known sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from biometro.alphabet import PROTEIN
from biometro.data.batch import Batch, pack
from biometro.errors import UserError
from biometro.model.attention import Runs
from biometro.model.encoder import EncoderConfig
from biometro.objectives.corruption import generator_for
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.mlm import MLM
from biometro.objectives.objective import Objective, total_loss
from biometro.training import planner
from biometro.training.planner import Arithmetic, Traffic

ESM2 = {"8M": (6, 320, 16), "35M": (12, 480, 24), "150M": (30, 640, 32), "650M": (33, 1280, 64)}
VARIANTS: dict[str, dict[str, Any]] = {
    "ESM-2": {"token_dropout": True},
    "swiglu, rmsnorm": {"ffn": "swiglu", "norm": "rmsnorm", "bias": False},
    "ALiBi": {"positions": "alibi"},
    "dropout": {"dropout": 0.1},
    "narrow table": {"embedding_width": 64},
    "narrow and deep": {"width": 64, "head_size": 16, "depth": 6},
}
GOALS: dict[str, Callable[[EncoderConfig], Objective]] = {
    "mlm": lambda c: MLM(c, PROTEIN),
    "metro": lambda c: Metro(c, PROTEIN),
    "metro, all on": lambda c: Metro(
        c, PROTEIN, MetroConfig(rtd_head="dense", clm_positions="all", auxiliary_width=64, auxiliary_depth=3)
    ),
}
CASES = list(itertools.product(GOALS, VARIANTS, (False, True)))


def build(goal: str, variant: str) -> Objective:
    torch.manual_seed(0)
    return GOALS[goal](EncoderConfig(**{"width": 128, "depth": 3, "head_size": 32, **VARIANTS[variant]})).train()


def batch(count: int = 30) -> Batch:
    random = np.random.default_rng(0)
    sequences = [random.choice(PROTEIN.standard_ids, n).astype(np.int64) for n in random.integers(40, 200, count)]
    sequences.sort(key=len)
    return Batch({"sequence": pack(sequences, PROTEIN.begin_ids, PROTEIN.end_ids)})


def run_pairs(clean: Batch) -> float:
    return float(sum(length * length for length in Runs.of(clean.sequence).lengths))


def saved_bytes(goal: Objective, clean: Batch, half: bool) -> int:
    """Bytes of the distinct storages that autograd keeps in one forward pass, parameters aside."""
    prepared = goal.prepare(clean, generator_for(torch.device("cpu"), 0))
    own = {t.untyped_storage().data_ptr() for t in (*goal.parameters(), *goal.buffers())}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with torch.autocast("cpu", torch.bfloat16, enabled=half), hooks:
        loss = total_loss(goal(prepared), goal.counts(prepared))
    assert loss.requires_grad  # alive until here, so that no storage was freed and its address used again
    return sum(seen.values())


@pytest.mark.parametrize(("goal", "variant", "half"), CASES)
def test_kept_activations_are_what_autograd_keeps(goal: str, variant: str, half: bool) -> None:
    model, clean = build(goal, variant), batch()
    how = Arithmetic(half=half)
    planned = sum(planner.activation_bytes(model, how, clean.tokens, run_pairs(clean)).values())
    planned += planner.memory(model, how, 0, gpu=False).copies  # autocast's casts of weights are kept as well
    assert saved_bytes(model, clean, half) == pytest.approx(planned, rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["ESM-2", "swiglu, rmsnorm", "dropout"])
@pytest.mark.long
def test_kept_activations_of_compiled_blocks(variant: str) -> None:
    model, clean = build("mlm", variant), batch()
    for block in planner.blocks(model):
        block.compile(dynamic=True)
    how = Arithmetic(half=True, compiled=True)
    planned = sum(planner.activation_bytes(model, how, clean.tokens).values())
    planned += planner.memory(model, how, 0, gpu=False).copies
    assert saved_bytes(model, clean, True) == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("goal", "variant", "half"),
    [pytest.param(*case, marks=pytest.mark.long if n % 2 else ()) for n, case in enumerate(CASES[::7])],
)
def test_peak_memory_of_a_step(goal: str, variant: str, half: bool, recompute: bool) -> None:
    """Every live tensor of a first step, tracked by torch: weights, gradients and all that comes and goes."""
    model, clean = build(goal, variant), batch()
    for block in planner.blocks(model) if recompute else []:
        forward = block.forward
        block.forward = lambda *a, forward=forward: checkpoint(forward, *a, use_reentrant=False)  # type: ignore[method-assign]
    prepared = model.prepare(clean, generator_for(torch.device("cpu"), 0))
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model.backward([prepared])
    (peak,) = (sizes["Total"] for sizes in tracker.get_tracker_snapshot("peak").values())
    how = Arithmetic(half=half, recompute=recompute)
    found = planner.memory(model, how, clean.tokens, run_pairs=run_pairs(clean), gpu=False)
    share = peak / (found.total - found.optimizer - found.batches)
    assert (0.8 if recompute else 0.88) < share < 1.02  # never much too little


@pytest.mark.parametrize("goal", GOALS)
def test_operations_are_those_that_torch_counts(goal: str) -> None:
    """In forms that it has formulas for: plain linear layers, attention by two products."""
    model, clean = build(goal, "ESM-2"), batch()
    prepared = model.prepare(clean, generator_for(torch.device("cpu"), 0))
    planned = sum(planner.forward_flops(model, clean.sequence).values())
    plain = sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False)
    with plain[0], plain[1]:
        with FlopCounterMode(display=False) as forward:
            loss = total_loss(model(prepared), model.counts(prepared))
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert planned == pytest.approx(model.flops(clean))
    assert forward.get_total_flops() == pytest.approx(planned, rel=0.02)
    assert backward.get_total_flops() == pytest.approx(2 * planned, rel=0.02)


@pytest.mark.parametrize(("name", "millions"), [("8M", 7.5), ("35M", 33.5), ("150M", 148.1), ("650M", 651.0)])
def test_parameters_of_esm2(name: str, millions: float) -> None:
    depth, width, head_size = ESM2[name]
    with torch.device("meta"):
        model = MLM(EncoderConfig(width=width, depth=depth, head_size=head_size), PROTEIN)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.003)


def test_weights_are_divided_among_shards() -> None:
    model = build("metro", "ESM-2")
    parameters = sum(p.numel() for p in model.parameters())
    whole, part = (planner.memory(model, Arithmetic(), 1000, shards=n) for n in (1, 8))
    assert whole.weights + whole.gradients + whole.optimizer == 16 * parameters
    assert part.weights + part.gradients + part.optimizer == 2 * parameters
    assert part.activations == whole.activations


def test_traffic_of_small_rings() -> None:
    """Two GPUs, by hand: each sends half of its gradients, then half of the sums; a gather sends half the weights."""
    single = Arithmetic()
    assert planner.traffic(100, single, "replicate", 1, 3) == Traffic(0, 0)
    assert planner.traffic(100, single, "replicate", 2, 3) == Traffic(2 * 200, 0)
    assert planner.traffic(100, single, "shard", 2, 3) == Traffic(3 * 3 * 200, 0)
    hybrid = planner.traffic(100, single, "hybrid", 16, 1)
    assert hybrid == Traffic(3 * 400 * 7 / 8, 2 * 400 / 2)
    assert planner.traffic(100, single, "shard", 16, 1) == Traffic(0, 3 * 400 * 15 / 16)


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 * 2**30), ("24GB", 24e9), ("512 mib", 2**29), ("1.5g", 1.5e9), ("7KiB", 7168)]
)
def test_sizes(text: str, size: float) -> None:
    assert planner.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "80 apples", "-1GB", "0GB", "GiB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match="write a size such as 80GiB"):
        planner.parse_bytes(text)


def test_assumed_mfu_passes_through_its_points() -> None:
    assert [round(planner.assumed_mfu(int(n)), 3) for n in (35e6, 150e6, 650e6, 15e9)] == [0.25, 0.4, 0.5, 0.5]
    assert 0.02 <= planner.assumed_mfu(8_000_000) < 0.25
