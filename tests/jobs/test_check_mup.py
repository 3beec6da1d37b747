"""`biometro check-mup`: options of pretrain, a page, and a status that says whether muP drifts."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import biometro
from biometro import cli
from biometro.model import encoder as encoder_module
from biometro.model import mup
from biometro.training.coordinates import Coordinates


def shell(corpus: Path, out: Path, *more: str) -> int:
    return cli.main([
        "check-mup", f"--data={corpus}", f"--run={out}", "--widths=[16, 32, 64, 128]", "--encoder.depth=3",
        "--encoder.head_size=16", "--encoder.base_width=32", "--encoder.base_depth=2", "--training.optimizer.lr=3e-3",
        "--encoder.init_std=0.05", "--tokens=512", *more,
    ])  # fmt: skip


def test_options_are_those_of_pretrain() -> None:
    ours, theirs = (inspect.signature(job).parameters for job in (biometro.check_mup, biometro.pretrain))
    assert set(theirs) <= set(ours)
    assert all(ours[n].annotation == p.annotation and ours[n].default == p.default for n, p in theirs.items())


@pytest.mark.parametrize("objective", [pytest.param("mlm", marks=pytest.mark.long), "metro"])
def test_mup_is_flat_where_the_standard_one_drifts(corpus: Path, tmp_path: Path, objective: str, capsys: Any) -> None:
    assert shell(corpus, tmp_path, f"--objective={objective}") == 0
    said = json.loads((tmp_path / "mup.json").read_text())
    assert said["drifts"]["muP"] == [] and "encoder, layer 3 stream" in said["drifts"]["standard"]
    powers = said["standard"]["powers"]["encoder, layer 3 stream"]
    assert min(powers) > 0.8  # of the first scale alone: one more power of the width in each product
    page = (tmp_path / "mup.html").read_text()
    assert page.count("<svg role") == 4 and "encoder, layer 3 stream" in page
    assert "encoder, layer 3 stream" in capsys.readouterr().err


def test_a_wrong_table_ends_with_status_1(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As if hidden matrices learnt at the full rate."""
    right = mup.shares

    def wrong(role: mup.Role, ratios: mup.Ratios) -> mup.Shares:
        return mup.Shares(right(role, ratios).start) if role == "hidden" else right(role, ratios)

    monkeypatch.setattr(mup, "shares", wrong)
    monkeypatch.setattr(encoder_module, "shares", wrong)
    assert shell(corpus, tmp_path, "--objective=mlm", "--report=false", "--seeds=1") == 1
    assert "drift under muP: " in capsys.readouterr().err
    assert json.loads((tmp_path / "mup.json").read_text())["drifts"]["muP"]


def test_nothing_proved_is_said(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    assert shell(corpus, tmp_path, "--objective=mlm", "--tolerance=9", "--report=false", "--steps=1", "--seeds=1") == 0
    assert "this proves nothing" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("widths", ["[64]", "[64, 256]"])
def test_widths_that_tell_nothing_are_refused(corpus: Path, tmp_path: Path, capsys: Any, widths: str) -> None:
    assert cli.main(["check-mup", f"--data={corpus}", f"--run={tmp_path}", f"--widths={widths}"]) == 1
    assert "eight times the first" in capsys.readouterr().err


@pytest.mark.parametrize("fixed", ["encoder.ffn_width", "metro.auxiliary_width"])
def test_parts_that_do_not_grow_are_refused(corpus: Path, tmp_path: Path, capsys: Any, fixed: str) -> None:
    assert shell(corpus, tmp_path, f"--{fixed}=64") == 1
    assert f"{fixed} is 64 at every encoder.width" in capsys.readouterr().err


def test_seeds_are_averaged() -> None:
    each = [Coordinates({"a": np.array([1.0, x])}, {"a": np.array([0.0, x])}) for x in (1.0, 4.0)]
    found = Coordinates.mean(each)
    assert found.size["a"].tolist() == pytest.approx([1.0, 2.0]) and found.moved["a"][1] == pytest.approx(2.0)
