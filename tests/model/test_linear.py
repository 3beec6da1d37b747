"""Our linear layer is torch's, whichever library multiplies."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from biometro.model import linear
from biometro.model.linear import Linear, linear_gelu


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3, 257])
def test_values_and_gradients_are_those_of_torch(
    rows: int, bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_trains_by_onednn", lambda: onednn)
    torch.manual_seed(0)
    layer = Linear(48, 80, bias=bias)
    x = torch.randn(rows, 48, requires_grad=True)
    y = torch.randn(rows, 48, dtype=torch.float64).copy_(x.detach()).requires_grad_()
    weight = layer.weight.detach().double().requires_grad_()
    offset = layer.bias.detach().double().requires_grad_() if bias else None
    probe = torch.randn(rows, 80)
    out, expected = layer(x), F.linear(y, weight, offset)
    by_onednn = onednn and rows > 0 and torch.backends.mkldnn.is_available()
    assert ("Differentiable" in out.grad_fn.name()) == by_onednn
    (out * probe).sum().backward()
    (expected * probe).sum().backward()
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), y.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, atol=1e-4, rtol=1e-5)
    if bias:
        torch.testing.assert_close(layer.bias.grad.double(), offset.grad, atol=1e-4, rtol=1e-5)


def test_gelu_on_the_way_is_the_exact_one() -> None:
    torch.manual_seed(0)
    layer, x = Linear(48, 80), 3 * torch.randn(100, 48)
    expected = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    torch.testing.assert_close(linear_gelu(layer, x).double(), expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(linear_gelu(layer, x).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("onednn", [True, False])
def test_frozen_weights_get_no_gradient_and_autocast_is_obeyed(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_trains_by_onednn", lambda: onednn)
    layer = Linear(8, 8)
    layer.weight.requires_grad_(False)
    x = torch.randn(5, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.long
def test_a_second_derivative_is_refused_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_trains_by_onednn", lambda: True)
    x = torch.randn(3, 48, requires_grad=True)
    (slope,) = torch.autograd.grad(Linear(48, 8)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_memory_does_not_grow_with_every_new_shape() -> None:
    """Each pack has a length of its own, and what oneDNN keeps for a length must not stay for ever."""
    script = """
import biometro, torch
from pathlib import Path
from biometro.model import linear
from biometro.model.linear import Linear
linear._trains_by_onednn = lambda: True
layers = [Linear(256, 256) for _ in range(4)]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

for number in range(400):
    x = torch.ones(1000 + number, 256)
    for layer in layers:
        x = layer(x)
    x.sum().backward()
    if number == 100:
        before = resident()
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert float(done.stdout) < 60, done.stdout
