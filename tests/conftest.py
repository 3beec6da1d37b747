"""Shared pieces of the tests: small packs, and an ESM-2 of random weights in the forms of three libraries."""

from __future__ import annotations

import os
import signal

# A shell gives a command in its background SIGINT ignored, and so would every process that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: threads of many processes would wait for one another's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.data.batch import Packed, pack
from biometro.model.bundle import Bundle
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro, MetroConfig

settings.register_profile("biometro", deadline=None, max_examples=30)
settings.load_profile("biometro")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the network, whatever the libraries under it would like."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real" in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker("real")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    # The long modules first, so that at the end no core waits for one of them (--no-loadscope-reorder keeps the order).
    first = ("training", "faults", "notebooks", "jobs")
    items.sort(key=lambda item: next((i for i, name in enumerate(first) if name in item.path.parts), len(first)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, named by $BIOMETRO_DATA."""
    folder = os.environ.get("BIOMETRO_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("$BIOMETRO_DATA names no folder of real data")
    return Path(folder)


def random_sequences(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Token arrays of random standard residues."""
    random = np.random.default_rng(seed)
    return [random.choice(PROTEIN.standard_ids, size=n).astype(np.uint8) for n in lengths]


def packed_of(sequences: list[np.ndarray]) -> Packed:
    return pack(sequences, PROTEIN.begin_ids, PROTEIN.end_ids)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus folder of example:families."""
    folder = tmp_path_factory.mktemp("corpus") / "families"
    assert cli.main(["prepare", "--data=example:families", f"--out={folder}", "--valid=0.05"]) == 0
    return folder


def esm2_folder(folder: Path, seed: int = 0) -> Path:
    """A tiny ESM-2 of random weights, as transformers writes it."""
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        position_embedding_type="rotary", token_dropout=True, mask_token_id=32, pad_token_id=1, initializer_range=0.1,
        max_position_embeddings=1026, emb_layer_norm_before=False, attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    EsmForMaskedLM(config).save_pretrained(folder)
    return folder


_SAID = {"finetune": "labels", "align": "pairs", "tune": "space", "study": "corpora"}


def recipes_of(job: str) -> list[Path]:
    """The recipes of a job: those of `finetune` say where labels stand, those of `align` where pairs do, those
    of `tune` what may vary, those of `study` on what."""
    found = sorted(Path(__file__).parent.parent.glob("recipes/*.yaml"))
    jobs = {
        path: next((name for name, key in _SAID.items() if f"\n{key}:" in path.read_text()), "pretrain")
        for path in found
    }
    return [path for path in found if jobs[path] == job]


def metro_bundle(seed: int = 0, **settings: Any) -> Bundle:
    """A METRO model of random weights, large enough that nothing is near uniform."""
    torch.manual_seed(seed)
    objective = Metro(EncoderConfig(width=32, depth=3, head_size=8), PROTEIN, MetroConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.normal_(std=0.2)
    return Bundle(PROTEIN, objective.bundle_modules(), recipe={"metro": {"temperature": 1.0, **settings}})
