"""What a training step takes, by arithmetic alone: bytes, operations, traffic between GPUs.

Nothing is run: an objective on the meta device, which has shapes and no numbers, is enough. What each formula leaves
out is said where it stands; `tests/training/test_planner.py` compares them with what torch does.

Shape letters: T tokens of a micro-batch, D width, F feed-forward width, H heads, V vocabulary, b bytes of a number in
matrix products (2 in half precision, 4 in single). The residual stream, norms and losses are float32 in either.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from biometro.data.batch import Batch, Packed
from biometro.errors import UserError
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import TokenHead, VocabularyHead
from biometro.model.linear import Linear
from biometro.objectives.metro import Metro
from biometro.objectives.objective import Objective
from biometro.training.parallel import Sharding

NODE = 8  # GPUs that share the fast links of one machine
LINK_SHARE = 0.7  # of a link's peak that a collective operation reaches (assumed)


@dataclass(frozen=True)
class Gpu:
    """Figures of the makers' data sheets, dense (no sparsity), largest version.

    half, single: peak TFLOP/s of bfloat16 with tensor cores (0 where the hardware has none), of float32 without.
    memory: GiB that CUDA reports, a little less than the label. bandwidth: GB/s of that memory. link: GB/s to the
    neighbours in the machine, one way. watts: largest power.
    """

    half: float
    single: float
    memory: float
    bandwidth: float
    link: float
    watts: float


GPUS = {
    "h100": Gpu(989.4, 66.9, 79, 3350, 450, 700),  # NVIDIA H100 data sheet, SXM5
    "h200": Gpu(989.4, 66.9, 139, 4800, 450, 700),  # NVIDIA H200 data sheet, SXM5
    "a100": Gpu(312, 19.5, 79, 2039, 300, 400),  # NVIDIA A100 data sheet, SXM4 80 GB
    "l40s": Gpu(362.05, 91.6, 44, 864, 32, 350),  # NVIDIA L40S data sheet; PCIe 4 x16
    "a10g": Gpu(70, 35, 22, 600, 32, 300),  # NVIDIA A10G data sheet; PCIe 4 x16
    "v100": Gpu(0, 15.7, 31, 900, 150, 300),  # NVIDIA V100 data sheet, SXM2 32 GB; float16 only
    "t4": Gpu(0, 8.1, 14, 320, 16, 70),  # NVIDIA T4 data sheet; PCIe 3 x16; float16 only
    "mi300x": Gpu(1307.4, 163.4, 191, 5300, 448, 750),  # AMD Instinct MI300X data sheet
}
_MFU = ((35e6, 0.25), (150e6, 0.40), (650e6, 0.50))  # (weights of the main model, share of the peak): our targets
CPU_MFU = 0.5  # share of this machine's matmul rate: benchmarks/plan.py


@dataclass(frozen=True)
class Arithmetic:
    """How blocks are computed.

    half: bfloat16 under autocast. compiled: blocks are compiled, so that cheap results are computed again instead of
    kept. attention: the back-end. recompute: blocks keep their input only and run again in the backward pass.
    """

    half: bool = False
    compiled: bool = False
    attention: Literal["sdpa", "varlen", "flex"] = "sdpa"
    recompute: bool = False

    @property
    def width(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.half else 4


def block_bytes(config: EncoderConfig, how: Arithmetic) -> float:
    """Bytes per token that one block keeps for its backward pass, without recomputation.

    norms        2 x (4 D input + b D output + 8 statistics); an uncompiled rmsnorm keeps x / rms as well, 4 D.
    attention    q k v: 3 b D, and rotated q k: 2 b D; output: b D, and b D more where it must be copied for the
                 linear layer (sdpa joins its parts, flex changes the order; varlen needs none); 4 H log-sum-exp
    gelu         2 b F (input, output); swiglu: 3 b F compiled (gate, value, product), 4 b F else (silu of the gate)
    dropout      2 x D masks: a byte compiled, else b
    """
    b, d, f = how.width, config.width, config.hidden
    statistics = 8 if config.norm == "layernorm" else 4
    extra = 4 * d if config.norm == "rmsnorm" and not how.compiled else 0
    norms = 2 * (4 * d + b * d + statistics + extra)
    rotated = 2 * b * d if config.positions == "rotary" else 0
    attention = 3 * b * d + rotated + b * d * (1 if how.attention == "varlen" else 2) + 4 * config.heads
    ffn = b * f * (2 if config.ffn == "gelu" else 3 if how.compiled else 4)
    dropout = 2 * d * (1 if how.compiled else b) if config.dropout else 0
    return float(norms + attention + ffn + dropout)


def encoder_bytes(config: EncoderConfig, how: Arithmetic, tokens: float, run_pairs: float = 0) -> float:
    """Bytes that an encoder keeps for its backward pass over `tokens` tokens.

    Blocks (with recomputation their float32 inputs only), token numbers, the rotary table, the input of the last norm.
    run_pairs: sum of squared lengths over runs of equal length; ALiBi on sdpa keeps a bias of H numbers for each,
    one for all blocks in single precision, one more for each block in half.
    """
    table_width = config.embedding_width or config.width
    lift = how.width * table_width if table_width != config.width else 0
    rotary = 4 * config.head_size if config.positions == "rotary" else 0
    last = 4 * config.width + 8 + (4 * config.width if config.norm == "rmsnorm" else 0)
    blocks = config.depth * (4.0 * config.width if how.recompute else block_bytes(config, how))
    kept = tokens * (blocks + 8 + lift + rotary + last)
    if config.positions == "alibi" and how.attention == "sdpa":
        casts = 0 if not how.half else 1 if how.recompute else config.depth
        kept += config.heads * run_pairs * (2 * casts + (4 if how.recompute or not how.half else 0))
    return kept


def _vocabulary_bytes(head: VocabularyHead, how: Arithmetic) -> float:
    """Per position: index, input; GELU's and the norm's input, statistics, the table's input; log-probabilities."""
    config, b = head.config, how.width
    dense = 3 * b * (config.table_width or config.width) + 8 if config.dense else 0
    return float(8 + b * config.width + dense + 4 * config.vocab_size)


def _token_bytes(head: TokenHead, how: Arithmetic) -> float:
    """Per position: index, input, the dense layer's and GELU's output; score and target of the loss."""
    config = head.config
    return float(8 + how.width * config.width * (3 if config.dense else 1) + 8 * config.outputs)


def _restored(goal: Metro) -> float:
    """Share of tokens at which the CLM learns."""
    if goal.config.clm_weight == 0:
        return 0.0
    return 1.0 if goal.config.clm_positions == "all" else goal.config.mask_rate


def activation_bytes(goal: Objective, how: Arithmetic, tokens: float, run_pairs: float = 0) -> dict[str, float]:
    """Bytes kept for the backward pass of one micro-batch, by part: auxiliary, main, heads.

    Start and end tokens are counted as residues. Raises UserError for an objective other than METRO and MLM.
    """
    main = getattr(goal, "encoder", None)
    vocabulary = getattr(goal, "vocabulary", None)
    if not isinstance(main, Encoder) or not isinstance(vocabulary, VocabularyHead):
        raise UserError(f"no memory is planned for {type(goal).__name__}; METRO and MLM are")
    rate = float(getattr(goal.config, "mask_rate", 0.15))
    parts = {"main": encoder_bytes(main.config, how, tokens, run_pairs)}
    if not isinstance(goal, Metro):
        return {**parts, "heads": tokens * rate * _vocabulary_bytes(vocabulary, how)}
    heads = _token_bytes(goal.rtd, how) + _restored(goal) * _vocabulary_bytes(vocabulary, how)
    if goal.config.auxiliary_frozen:  # keeps nothing
        return {**parts, "heads": tokens * heads}
    heads += rate * _vocabulary_bytes(goal.auxiliary_vocabulary, how)
    auxiliary = encoder_bytes(goal.auxiliary.config, how, tokens, run_pairs)
    return {"auxiliary": auxiliary, **parts, "heads": tokens * heads}


def working_bytes(goal: Objective, how: Arithmetic, tokens: float) -> float:
    """Bytes that come and go on top of what is kept, at the moment when most is kept: the first blocks of the backward
    pass. Gradients of the residual stream (three of 4 D: the stream, the norm, the positions that heads chose) and of
    the feed-forward (b F, twice that for swiglu). With recomputation also all that one block keeps, by when the heads
    have let go of theirs. Up to a fifth too much where a model has few layers and recomputes.
    """
    heads = activation_bytes(goal, how, tokens)["heads"]
    largest = 0.0
    for config in (m.config for m in goal.modules() if isinstance(m, Encoder)):
        gradients = (8 if how.recompute else 12) * config.width + how.width * config.hidden * (
            1 if config.ffn == "gelu" else 2
        )
        block = tokens * (block_bytes(config, how) - 4 * config.width)
        again = max(block - heads, 0.0) if how.recompute else 0.0
        largest = max(largest, tokens * gradients + again)
    return largest


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    weights, gradients, optimizer: float32, 4 for a parameter, 4 + 8 for one that learns, divided among the shards.
    copies: weights in the precision of matrix products: all of them (autocast keeps its casts for the whole step), or
    under sharding two gathered blocks, and one block's whole gradient.
    activations, working: of one micro-batch. batches: the step's prepared micro-batches.
    overhead: assumed: 2 GB for the context, libraries and NCCL, and 5 % of the rest lost to fragmentation.
    """

    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    working: float
    batches: float
    overhead: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory(
    goal: Objective,
    how: Arithmetic,
    tokens: float,
    *,
    shards: int = 1,
    micro_batches: int = 1,
    run_pairs: float = 0,
    gpu: bool = True,
) -> Memory:
    """Memory of one process that trains `micro_batches` a step, of `tokens` tokens each; on a CPU without overhead."""
    parameters = sum(p.numel() for p in goal.parameters())
    products = sum(m.weight.numel() for m in goal.modules() if isinstance(m, nn.Linear))
    block = max((sum(p.numel() for p in b.parameters()) for b in blocks(goal)), default=0)
    if shards > 1:
        rest = parameters - sum(p.numel() for b in blocks(goal) for p in b.parameters())
        copies = how.width * (2.0 * block + rest) + 4.0 * block
    else:
        copies = 2.0 * products if how.half else 0.0
    kept = sum(activation_bytes(goal, how, tokens, run_pairs).values())
    working = working_bytes(goal, how, tokens)
    batches = 60.0 * tokens * micro_batches  # clean and corrupted tokens, positions, places, noise of sampling
    part = 4.0 * parameters / shards
    learnt = 4.0 * trained(goal) / shards
    needed = part + 3 * learnt + copies + kept + working + batches
    overhead = 2e9 + 0.05 * needed if gpu else 0.0
    return Memory(part, learnt, 2 * learnt, copies, kept, working, batches, overhead)


def trained(goal: Objective) -> int:
    """Parameters that learn."""
    return sum(p.numel() for p in goal.parameters() if p.requires_grad)


def blocks(goal: Objective) -> list[nn.Module]:
    """The transformer blocks of all encoders."""
    return [block for m in goal.modules() if isinstance(m, Encoder) for block in m.blocks]


def forward_flops(goal: Objective, packed: Packed) -> dict[str, float]:
    """A third of what training takes, by part, as `Objective.flops` counts it: the operations of one forward pass, but
    a third of them for a frozen auxiliary."""
    parts = {}
    if isinstance(goal, Metro):
        parts["auxiliary"] = goal.auxiliary.flops(packed) / (3 if goal.config.auxiliary_frozen else 1)
    if isinstance(main := getattr(goal, "encoder", None), Encoder):
        parts["main"] = main.flops(packed)
    return {**parts, "heads": goal.flops(Batch({"sequence": packed})) - sum(parts.values())}


@dataclass(frozen=True)
class Traffic:
    """Bytes of a step that pass each GPU's link inside the machine, and that each machine sends to the others."""

    inside: float
    between: float

    def seconds(self, link: float, network: float) -> float:
        """Time on links of so many GB/s (one way), at `LINK_SHARE` of their peak."""
        return (self.inside / link + self.between / network) / (LINK_SHARE * 1e9)


def traffic(parameters: int, how: Arithmetic, sharding: Sharding, gpus: int, micro_batches: int) -> Traffic:
    """Bytes that a step moves, by ring algorithms (Patarasuk & Yuan 2009): an all-reduce of S bytes passes
    2 (n-1)/n S through every link, an all-gather or reduce-scatter (n-1)/n S.

    replicate  gradients reduced once a step, in float32
    shard      in every micro-batch weights gathered twice (b bytes) and gradients scattered (float32)
               (Zhao et al. 2023, arXiv 2304.11277)
    hybrid     `shard` inside each machine, gradients reduced between machines once a step
    A ring over several machines is as fast as what a machine sends.
    """
    if gpus == 1:
        return Traffic(0.0, 0.0)
    local = min(gpus, NODE)
    gathered = (2 * how.width + 4.0) * parameters * micro_batches
    if sharding == "hybrid":
        machines = math.ceil(gpus / NODE)
        return Traffic(gathered * (local - 1) / local, 8.0 * parameters * (machines - 1) / machines)
    moved = (8.0 * parameters if sharding == "replicate" else gathered) * (gpus - 1) / gpus
    return Traffic(moved, 0.0) if gpus <= NODE else Traffic(0.0, moved)


def shards(sharding: Sharding, gpus: int) -> int:
    """Processes among which weights, gradients and optimizer state are divided."""
    return {"shard": gpus, "hybrid": min(gpus, NODE)}.get(sharding, 1)


def assumed_mfu(weights: int) -> float:
    """Share of the peak that training reaches on a GPU, by the main model's weights: targets, not measurements.

    .25, .40 and .50 for the 35M, 150M and 650M shapes, on a line in log(weights) between and below them.
    """
    (a, low), (b, high) = _MFU[:2] if weights < _MFU[1][0] else _MFU[1:]
    found = low + (high - low) * math.log(max(weights, 1) / a) / math.log(b / a)
    return min(max(found, 0.02), _MFU[-1][1])


def matmul_rate(width: int, seconds: float = 0.3, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s of (2048, width) x (width, 4 width) in float32 on this machine's CPU, by the layer that models use.

    The best of many; on a busy machine with one thread, `time.process_time` as the clock leaves the others out.
    """
    layer, x = Linear(width, 4 * width, bias=False), torch.randn(2048, width)
    best = math.inf
    with torch.no_grad():
        layer(x)
        ends = clock() + seconds
        while (began := clock()) < ends:
            layer(x)
            best = min(best, clock() - began)
    return 2.0 * x.numel() * 4 * width / best


def parse_bytes(text: str) -> float:
    """80GiB, 80GB, 512 MiB, ... -> bytes. Raises UserError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?)(i?)b?\s*", text, flags=re.IGNORECASE)
    if not found or not float(found[1]) > 0:
        raise UserError(f"memory is {text!r}; write a size such as 80GiB or 24GB")
    power = " kmgt".index(found[2].lower() or " ")
    return float(found[1]) * (1024 if found[3] else 1000) ** power
