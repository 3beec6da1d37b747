"""Linear layers at the speed the CPU has.

torch sends float32 products to MKL, which leaves half the speed of AMD processors with AVX-512 unused; oneDNN, which
torch carries as well, does not (`benchmarks/embed.py`), and it adds the bias and GELU on the way. On other processors
that last is all it gains, and in training it loses: it transposes the factors of each gradient first, and compiles for
each length of a pack. Same arithmetic, float32 throughout. In training on such processors, on other devices and dtypes,
under autocast and in compiled code this is `nn.Linear`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _onednn(x: Tensor) -> bool:
    # Asked first: a compiler that stopped at a later question would compile what follows for a True.
    return not torch.compiler.is_compiling() and (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


@lru_cache(maxsize=1)
def _trains_by_onednn() -> bool:
    # An old torch does not tell the processor's name; MKL is then the safe choice: slower at worst.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "AMD" in capabilities.get("cpu_name", "")


def _product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, then: str = "none") -> Tensor:
    """x W^T + b, and exact (erf) GELU after it where `then` is gelu."""
    algorithm = "none" if then == "gelu" else ""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, then, [], algorithm)
    return out


class _Differentiable(torch.autograd.Function):
    """The product with its gradient, all three products by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        ctx.with_bias = bias_O is not None
        return _product(x_TI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable  # a second derivative would be 0 without a word
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_TI, weight_OI = ctx.saved_tensors
        (grad_TO,) = gradients
        grad_x = _product(grad_TO, weight_OI.t(), None) if ctx.needs_input_grad[0] else None
        grad_weight = _product(grad_TO.t(), x_TI.t(), None) if ctx.needs_input_grad[1] else None
        grad_bias = grad_TO.sum(0) if ctx.with_bias and ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


class Linear(nn.Linear):
    """`nn.Linear` on (T, in) vectors; see the file's head."""

    def forward(self, x_TI: Tensor) -> Tensor:
        if not _onednn(x_TI) or (torch.is_grad_enabled() and not _trains_by_onednn()):
            return F.linear(x_TI, self.weight, self.bias)
        if torch.is_grad_enabled():
            out: Tensor = _Differentiable.apply(x_TI, self.weight, self.bias)
            return out
        return _product(x_TI, self.weight, self.bias)


def linear_gelu(layer: nn.Module, x_TI: Tensor) -> Tensor:
    """GELU of a linear layer's output, in one pass over memory where nothing must be kept for a gradient."""
    if isinstance(layer, Linear) and not torch.is_grad_enabled() and _onednn(x_TI):
        return _product(x_TI, layer.weight, layer.bias, then="gelu")
    return F.gelu(layer(x_TI))
