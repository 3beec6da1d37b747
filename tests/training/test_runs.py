"""Run folders: which options may differ when a run goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from biometro.errors import UserError
from biometro.training import runs


def begin(folder: Path, **recipe: Any) -> None:
    with ExitStack() as held:
        runs.begin(folder, {"data": "d", **recipe}, "corpus", "abc", {"free"}, held)


def test_an_option_that_is_new_since_is_no_difference_while_it_is_off(tmp_path: Path) -> None:
    begin(tmp_path, metro={"mask_rate": 0.15}, free=1)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    begin(tmp_path, metro={"mask_rate": 0.15, "auxiliary": None, "auxiliary_frozen": False, "keep_rate": 0.0}, free=2)
    for metro, message in (
        ({"mask_rate": 0.15, "auxiliary": "x"}, "metro.auxiliary: None then, 'x' now"),
        ({"mask_rate": 0.2}, "metro.mask_rate: 0.15 then, 0.2 now"),
        ({}, "metro.mask_rate: 0.15 then, None now"),
    ):
        with pytest.raises(UserError, match=message):
            begin(tmp_path, metro=metro)
