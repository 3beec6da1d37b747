"""muP: the table is a rescaling of a plainly written one, and goes with the width as it should."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from biometro.alphabet import PROTEIN
from biometro.data.batch import Batch, pack
from biometro.errors import UserError
from biometro.model import mup
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.load import load
from biometro.model.mup import Ratios, Shares
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.mlm import MLM
from biometro.objectives.objective import Objective
from biometro.training import optimizer as optim
from biometro.training.optimizer import OptimizerConfig

BASE = EncoderConfig(vocab_size=PROTEIN.size, width=32, depth=2, head_size=16, mup=True, base_width=32, base_depth=2)
WIDE = dataclasses.replace(BASE, width=128, depth=8)


def test_at_the_base_nothing_changes() -> None:
    for objective in (MLM, Metro):
        torch.manual_seed(0)
        plain = objective(dataclasses.replace(BASE, mup=False), PROTEIN)
        torch.manual_seed(0)
        scaled = objective(BASE, PROTEIN)
        for (name, a), (_, b) in zip(plain.named_parameters(), scaled.named_parameters(), strict=True):
            assert torch.equal(a, b), name
        assert groups(plain, OptimizerConfig()) == groups(scaled, OptimizerConfig())


def groups(goal: Objective, config: OptimizerConfig) -> dict[str, tuple[float, float, float]]:
    """Share, decay and epsilon of each parameter."""
    names = {id(p): name for name, p in goal.named_parameters()}
    found = {}
    for group in optim.build(goal, config).param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["share"], group["weight_decay"], group["eps"])
    return found


@pytest.mark.parametrize(
    ("name", "share", "eps"),
    [
        ("encoder.embedding.weight", 1, 1 / 4), ("encoder.blocks.3.attention.qkv.weight", 1 / 4, 1 / 16),
        ("encoder.blocks.0.ffn.up.weight", 1 / 4, 1 / 16), ("encoder.blocks.7.ffn.down.weight", 1 / 16, 1 / 4),
        ("encoder.blocks.0.attention.out.weight", 1 / 16, 1 / 4), ("encoder.blocks.0.attention.out.bias", 1 / 4, 1 / 4),
        ("encoder.blocks.0.ffn.up.bias", 1, 1 / 16), ("encoder.norm.weight", 1, 1 / 4),
        ("vocabulary.dense.weight", 1 / 4, 1 / 4), ("vocabulary.norm.weight", 1 / 4, 1), ("vocabulary.bias", 1, 1 / 4),
        ("rtd.out.weight", 1 / 4, 1), ("auxiliary.blocks.0.attention.out.weight", 1 / 8, 1 / 4),
    ],
)  # fmt: skip
def test_shares_of_a_model_four_times_as_wide_and_deep(name: str, share: float, eps: float) -> None:
    """The auxiliary of 8 layers has 2 where the base's has 1."""
    found = groups(Metro(WIDE, PROTEIN), OptimizerConfig(weight_decay=0.1))[name]
    matrix = name.endswith("weight") and "norm" not in name
    assert found == pytest.approx((share, 0.1 / share if matrix else 0.0, eps * 1e-6))


def test_weights_start_as_the_table_says() -> None:
    torch.manual_seed(0)
    encoder = Encoder(WIDE)
    expected = {
        "embedding.weight": 0.02, "blocks.1.attention.qkv.weight": 0.02 / 2, "blocks.1.ffn.up.weight": 0.02 / 2,
        "blocks.1.ffn.down.weight": 0.02 / 2 / math.sqrt(2 * 2) / 4,
    }  # fmt: skip
    for name, std in expected.items():
        assert float(encoder.get_parameter(name).std()) == pytest.approx(std, rel=0.05), name
    goal = Metro(WIDE, PROTEIN)
    assert torch.equal(goal.vocabulary.norm.weight, torch.full((128,), 1 / 4))  # type: ignore[union-attr]
    assert float(goal.rtd.out.weight.std()) == pytest.approx(0.02 / 4, rel=0.3)


class Multiplied(nn.Module):
    """A layer as the papers write it: an activation multiplied by a constant after a weight of the base's size."""

    def __init__(self, layer: nn.Linear, factor: float):
        super().__init__()
        self.layer, self.factor = copy.deepcopy(layer), factor
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter /= factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.factor * self.layer(x)
        return out


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_folded_multiplier_is_the_multiplier(name: str) -> None:
    """A residual branch times 1 / depth ratio, and ours that starts so much smaller and learns so much slower, go the
    same way for ten updates: the multiplier is in the weight."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    ours, theirs = copy.deepcopy(layer), Multiplied(layer, 1 / 4)
    x, y = torch.randn(64, 8), torch.randn(64, 8)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Muon
    settings = {"eps": 1e-30} if name == "adamw" else {}
    slow = kind([ours.weight], lr=0.01 / 4, weight_decay=0.1 * 4, **settings)  # type: ignore[arg-type]
    fast = kind([theirs.layer.weight], lr=0.01, weight_decay=0.1, **settings)  # type: ignore[arg-type]
    for _ in range(10):
        for model, step in ((ours, slow), (theirs, fast)):
            step.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            step.step()
    loose = {"rtol": 1e-4, "atol": 1e-5} if name == "adamw" else {"rtol": 0.05, "atol": 2e-3}  # Muon's bfloat16
    torch.testing.assert_close(ours(x), theirs(x), **loose)
    assert not torch.allclose(ours.weight, layer.weight, atol=1e-3)


def test_what_mup_cannot_scale_is_refused() -> None:
    with pytest.raises(UserError, match="linear head lacks"):
        Metro(BASE, PROTEIN, MetroConfig(clm_head="linear"))
    with pytest.raises(UserError, match="embedding_width"):
        MLM(dataclasses.replace(BASE, embedding_width=16), PROTEIN)
    with pytest.raises(UserError, match=r"encoder\.base_width is 0"):
        dataclasses.replace(BASE, base_width=0)


def test_a_narrow_auxiliary_keeps_the_ratio() -> None:
    goal = Metro(WIDE, PROTEIN, MetroConfig(auxiliary_width=64, auxiliary_depth=4))
    assert goal.auxiliary.ratios == Ratios(4, 4)
    assert groups(goal, OptimizerConfig())["auxiliary.lift.weight"][0] == 1 / 4


def test_a_model_folder_keeps_the_base_and_lora_learns_by_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from biometro.model import adapters

    goal = MLM(WIDE, PROTEIN)
    Bundle(PROTEIN, goal.bundle_modules()).save(tmp_path / "model")
    bundle = load(tmp_path / "model")
    assert bundle.encoder.config == dataclasses.replace(WIDE, attention="auto")
    packed = pack([PROTEIN.encode(b"MKVLAAG")], PROTEIN.begin_ids, PROTEIN.end_ids)
    torch.testing.assert_close(bundle.encoder(packed), goal.encoder(packed))
    adapters.add(bundle.encoder, adapters.LoraConfig())
    found = mup.of_parameters(bundle.encoder)
    trained = {name: found[name] for name, p in bundle.encoder.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[1][0] for name in trained} == {"A", "B"}
    writes = ("attention.out.", "ffn.down.")
    assert all(
        own.adam == (1 / 4 if "lora_A" in name or any(layer in name for layer in writes) else 1)
        for name, own in trained.items()
    )  # B of what writes to the stream by the depth
    assert trained["blocks.0.ffn.down.lora_B.default.weight"].eps == 1 / 4
    assert found["blocks.0.ffn.down.base_layer.weight"].adam == 1 / 16


@pytest.mark.parametrize("name", ["ffn.up", "ffn.down", "attention.out"])
def test_decay_of_adam_keeps_its_size_beside_the_gradient(name: str) -> None:
    """It is added to it; the decay of AdamW, eight times as large at eight times the width, would be 22 times."""
    packed = pack([PROTEIN.encode(b"MKVLAAGIVGLCTWQDERNHFPSYMKVLAAG")] * 4, PROTEIN.begin_ids, PROTEIN.end_ids)
    found = {}
    for width in (32, 256):
        torch.manual_seed(0)
        goal = MLM(dataclasses.replace(BASE, width=width), PROTEIN)
        goal.backward([goal.prepare(Batch({"sequence": packed}), torch.Generator().manual_seed(0))])
        weight = goal.get_parameter(f"encoder.blocks.1.{name}.weight")
        decay = groups(goal, OptimizerConfig(name="adam", weight_decay=0.1))[f"encoder.blocks.1.{name}.weight"][1]
        assert weight.grad is not None
        found[width] = float(decay * weight.detach().norm() / weight.grad.norm())
    assert 1 / 2 < found[256] / found[32] < 2


def test_what_does_not_grow_is_refused_where_the_width_varies() -> None:
    mup.check_growth({"encoder.mup": True, "metro.auxiliary_width": 64, "metro.auxiliary_depth": 1}, {"training.steps"})
    mup.check_growth({"encoder.mup": False, "metro.auxiliary_width": 64}, {"encoder.width"})
    mup.check_growth({"encoder.mup": True, "metro.auxiliary_depth": 1}, {"encoder.width"})
    for key, varied in (
        ("metro.auxiliary_width", "encoder.width"), ("encoder.ffn_width", "encoder.width"),
        ("metro.auxiliary_depth", "encoder.depth"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{key} is 64 at every {varied}"):
            mup.check_growth({"encoder.mup": True, key: 64}, {varied})


def test_a_standard_model_has_no_shares() -> None:
    found = mup.of_parameters(MLM(dataclasses.replace(WIDE, mup=False), PROTEIN))
    assert {(own.adam, own.eps) for own in found.values()} == {(1.0, 1.0)}
    assert found["encoder.blocks.0.ffn.up.weight"].muon == 1 and Shares().muon is None
