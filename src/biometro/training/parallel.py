"""Many processes as one: who takes part, what they agree on, and how the model is laid over them.

    torchrun ─▶ join ─▶ World(rank, size, device) ─▶ lay_out(objective) ─▶ the same loop on every rank

The engine is PyTorch's: process groups, and FSDP2 (`fully_shard`) over a device mesh of (replicas, shards).
Replication is a mesh of (ranks, 1), sharding one of (1, ranks), hybrid sharding (nodes, ranks of a node): one way for
all three, with the gradient summed, not averaged, because losses are divided by their counts over all ranks already.
A single process is a world of one, with nothing wrapped.
"""

from __future__ import annotations

import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from biometro.device import pick_device
from biometro.errors import EchoedError, UserError
from biometro.model.encoder import Encoder

T = TypeVar("T")
Sharding = Literal["auto", "replicate", "shard", "hybrid"]
_LONG = timedelta(days=1)
_MEETING = timedelta(minutes=5)  # that ranks wait for one another to start
_REPLICATED_UP_TO = 200_000_000  # parameters: 16 bytes of each (weight, gradient, two moments) are 3.2 GB


@dataclass(frozen=True)
class ParallelConfig:
    """How many processes share one model. None of it changes what is computed, beyond rounding.

    Args:
        sharding: replicate (every rank holds the whole model), shard (every rank holds its share of weights, gradients
            and moments), hybrid (shared among the ranks of a node, replicated over nodes), or auto: replicate up to
            200 million parameters, shard beyond, hybrid beyond on several nodes.
        reshard: when sharded, let go of a block's gathered weights between forward and backward pass: less memory, one
            more gathering.
        recompute: keep only the input of each block for the backward pass and compute the rest again (activation
            checkpointing): a third more arithmetic for much less memory.
        timeout_minutes: a rank that stands still for this long ends the run, which names it.
    """

    sharding: Sharding = "auto"
    reshard: bool = True
    recompute: bool = False
    timeout_minutes: float = 15

    def __post_init__(self) -> None:
        if self.timeout_minutes <= 0:
            raise UserError(f"parallel.timeout_minutes is {self.timeout_minutes}; it must be above 0")


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees them. `World()` is a process alone, on the CPU."""

    rank: int = 0
    size: int = 1
    node_size: int = 1
    """Ranks on each node; 0 where nodes differ."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: dist.Store | None = None
    control: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None
    """Process groups on the CPU: for agreements, and for what a thread does beside training (checkpoints). One group
    would mix up what two threads send."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes figures, recipes and reports."""
        return self.rank == 0

    @property
    def hardware(self) -> str:
        """What it computes on, in words."""
        if self.device.type == "cuda":
            one = torch.cuda.get_device_name(self.device)
        else:
            one = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        return one if self.size == 1 else f"{self.size} x {one}"

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def most(self, values: list[int]) -> list[int]:
        """The largest of each number over ranks. A meeting point: no rank passes before all have come."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        result: list[int] = tensor.tolist()
        return result

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def first(self, action: Callable[[], T]) -> T:
        """What rank 0 gets from `action`, which the others do not run. Its UserError is raised on every rank."""
        if self.size == 1:
            return action()
        answer: list[Any] = [None, None]
        if self.leads:
            try:
                answer[0] = action()
            except UserError as error:
                dist.broadcast_object_list([None, str(error)], group=self.control)
                raise
        dist.broadcast_object_list(answer, group=self.control)
        if answer[1] is not None:
            raise EchoedError(answer[1])
        result: T = answer[0]
        return result


@contextmanager
def join(device: str = "auto", timeout_minutes: float = 15) -> Iterator[World]:
    """The world that torchrun started this process in, or a world of one without it.

    Args:
        device: as for `pick_device`; with several ranks, cuda means each rank's own GPU.
        timeout_minutes: how long ranks wait for one another (`watch` names the one that is late before that).

    Raises UserError where the device is missing, or another rank is lost on the way.
    """
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if size == 1:
        yield World(device=pick_device(device))
        return
    local_rank, node_size = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    place = pick_device(device)
    if place.type == "cuda" and place.index is None:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank} is number {local_rank} on {socket.gethostname()}, which has "
                f"{torch.cuda.device_count()} GPUs; start one process for each GPU"
            )
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    patience = timedelta(minutes=max(30, 2 * timeout_minutes))
    try:
        shared, _, _ = next(dist.rendezvous("env://", timeout=_MEETING))
        attempt = meet(shared, rank, size, _MEETING.total_seconds())
        store = dist.PrefixStore(attempt, shared)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=patience,
            device_id=place if place.type == "cuda" else None,
        )  # fmt: skip
        # Rank 0 may read digests of terabytes or write a model while the others wait: `watch` finds those that hang.
        control, background = (dist.new_group(backend="gloo", timeout=_LONG) for _ in range(2))
        # A connection of its own for `watch`: a client that waits for a key lets no other thread through.
        notes = dist.PrefixStore(attempt, shared.clone())
        world = World(rank, size, node_size, place, notes, control, background)
        if len({*world.gather(node_size)}) > 1:
            world = replace(world, node_size=0)
        yield world
    except (RuntimeError, ValueError) as error:  # torch has no narrower class for what gloo and NCCL report
        if isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST):
            raise UserError(
                f"rank {rank}: lost touch with another rank, whose own message says why "
                f"({' '.join(str(error).split())[:200]}); start the same command again"
            ) from error
        raise
    dist.destroy_process_group()


def meet(store: dist.Store, rank: int, size: int, patience: float) -> str:
    """A name for this attempt that all its ranks know and no earlier attempt had.

    torchrun keeps its store over restarts, and its count of them differs between nodes, so a rank that took up what
    stands there could read the addresses of the attempt before. Each rank asks with a word of its own, and believes
    only an answer that repeats it. Raises UserError where not all come in time.
    """
    mine, end = uuid.uuid4().hex, time.monotonic() + patience
    store.set(f"ask/{rank}", mine)
    while time.monotonic() < end:
        if rank == 0:
            keys = [f"ask/{other}" for other in range(size)]
            for other, key in enumerate(keys):
                if store.check([key]):
                    store.set(f"answer/{other}", f"{store.get(key).decode()} {mine}")
            if all(store.check([f"{mine}/{other}"]) for other in range(1, size)):
                return mine
        elif store.check([f"answer/{rank}"]):
            asked, attempt = store.get(f"answer/{rank}").decode().split()
            if asked == mine:
                store.set(f"{attempt}/{rank}", "here")
                return attempt
        time.sleep(0.02)
    raise UserError(f"rank {rank}: not all {size} ranks came within {patience:,.0f} s; start the same command again")


_LOST = ("Connection closed by peer", "Connection reset by peer", "onnection refused", "gloo", "NCCL", "Broken pipe")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"the environment variable {name} is {text!r}; torchrun sets it to a number")
    return int(text)


def share(world: World, count: int) -> tuple[list[int], int]:
    """Which of `count` micro-batches this rank takes, and how many of those at the end are idle.

    Rank r takes r, r + size, ... Every rank must run as many passes as every other, for they exchange weights in each
    pass; one that has none left repeats its first (or micro-batch 0) with no weight.
    """
    mine = list(range(world.rank, count, world.size))
    idle = -(-count // world.size) - len(mine)
    return mine + [mine[0] if mine else 0] * idle, idle


def lay_out(objective: nn.Module, world: World, config: ParallelConfig, half: bool) -> nn.Module:
    """Spread the objective's weights over the ranks, in place; alone, only move it to the device.

    Every block of every encoder is gathered on its own, all that is left (token tables, heads, norms) as one, so that
    weights tied between encoders stay tied. `half`: gather blocks in bfloat16; gradients are summed in float32.
    """
    if world.size == 1:
        return objective.to(world.device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(world.device.type, _mesh(objective, world, config), mesh_dim_names=("replicate", "shard"))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if half else None
    options: dict[str, Any] = {} if policy is None else {"mp_policy": policy}
    for encoder in (module for module in objective.modules() if isinstance(module, Encoder)):
        for block in encoder.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=config.reshard, **options)
    fully_shard(objective, mesh=mesh)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return objective


def chosen(sharding: Sharding, parameters: int, size: int, node_size: int) -> Sharding:
    """What `auto` stands for; every other word for itself."""
    if sharding != "auto":
        return sharding
    return "replicate" if parameters <= _REPLICATED_UP_TO else "hybrid" if size > node_size > 0 else "shard"


def _mesh(objective: nn.Module, world: World, config: ParallelConfig) -> tuple[int, int]:
    """(replicas, shards), whose product is the number of ranks."""
    parameters = sum(p.numel() for p in objective.parameters())
    sharding = chosen(config.sharding, parameters, world.size, world.node_size)
    if sharding == "replicate":
        return world.size, 1
    if sharding == "shard":
        return 1, world.size
    if world.node_size == 0 or world.size % world.node_size:
        raise UserError(
            f"parallel.sharding hybrid needs the same number of ranks on every node, of {world.size} in all; use shard"
        )
    return world.size // world.node_size, world.node_size


def reduce_gradient(objective: nn.Module, now: bool) -> None:
    """Whether the next backward pass sums the gradient over ranks (it need only do so once a step)."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(now)
        objective.set_is_last_backward(now)
