"""biometro: METRO-pretrained language models of biochemical sequences.

Every job is a function here and a subcommand of `biometro`: prepare, plan, pretrain, finetune, align, predict,
evaluate, embed, index, screen, score, generate, export, check_mup,
tune, study. `load` opens a model.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# oneDNN, and torch in front of it, keep a compiled product for each shape: a thousand by default, of up to megabytes
# each. Every pack has a shape of its own, so a run would fill gigabytes with what is never used again; within a step,
# layers share theirs. Read when the first product is computed.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "64")

if TYPE_CHECKING:
    from biometro.errors import UserError
    from biometro.jobs.align import align
    from biometro.jobs.check_mup import check_mup
    from biometro.jobs.embed import embed
    from biometro.jobs.evaluate import evaluate
    from biometro.jobs.export import export
    from biometro.jobs.finetune import finetune
    from biometro.jobs.generate import generate
    from biometro.jobs.index import index
    from biometro.jobs.plan import plan
    from biometro.jobs.predict import predict
    from biometro.jobs.prepare import prepare
    from biometro.jobs.pretrain import pretrain
    from biometro.jobs.score import score
    from biometro.jobs.screen import screen
    from biometro.jobs.study import study
    from biometro.jobs.tune import tune
    from biometro.model.load import load

__all__ = [
    "UserError",
    "align",
    "check_mup",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "generate",
    "index",
    "load",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "score",
    "screen",
    "study",
    "tune",
]

_HOMES = {
    "UserError": "biometro.errors",
    "align": "biometro.jobs.align",
    "check_mup": "biometro.jobs.check_mup",
    "embed": "biometro.jobs.embed",
    "evaluate": "biometro.jobs.evaluate",
    "export": "biometro.jobs.export",
    "finetune": "biometro.jobs.finetune",
    "generate": "biometro.jobs.generate",
    "index": "biometro.jobs.index",
    "load": "biometro.model.load",
    "predict": "biometro.jobs.predict",
    "plan": "biometro.jobs.plan",
    "prepare": "biometro.jobs.prepare",
    "pretrain": "biometro.jobs.pretrain",
    "score": "biometro.jobs.score",
    "screen": "biometro.jobs.screen",
    "study": "biometro.jobs.study",
    "tune": "biometro.jobs.tune",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import biometro` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'biometro' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
