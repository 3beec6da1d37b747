"""Stores of vectors: what is written comes back, bounds of codes hold, and what a stranger writes is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from biometro.errors import UserError
from biometro.inference import store
from biometro.inference.store import About, open_store, quantise, read_note, shard_name, write_about, write_shard

ABOUT = About("model", "digest", "protein", "protein")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make(folder: Path, vectors_NP: np.ndarray, sizes: list[int]) -> Path:
    """A store with shards of these sizes; row i is called `id i` and holds i letters (the first none)."""
    folder.mkdir(parents=True)
    notes, start = [], 0
    for place, size in enumerate(sizes):
        rows = range(start, start + size)
        names, letters = [f"id {i} é" for i in rows], [b"A" * i for i in rows]
        notes.append(write_shard(folder / shard_name(place, [str(start)]), names, letters, vectors_NP[start:][:size]))
        start += size
    write_about(folder, ABOUT, vectors_NP.shape[1], notes)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make(tmp_path / "library", unit(np.random.default_rng(0).standard_normal((12, 5))), [7, 1, 4])


def test_what_was_written_comes_back_by_number(made: Path) -> None:
    found = open_store(made)
    vectors_NP = unit(np.random.default_rng(0).standard_normal((12, 5)))
    assert (found.count, found.width, found.about) == (12, 5, ABOUT)
    assert [shard.first for shard in found.shards] == [0, 7, 8]
    numbers = np.array([11, 0, 7, 8, 6, 0])
    assert np.array_equal(found.vectors(numbers), vectors_NP[numbers])
    assert found.entries(numbers) == [(f"id {i} é", b"A" * i) for i in numbers]


def test_bounds_of_codes_hold_for_every_row() -> None:
    random = np.random.default_rng(1)
    spread = unit(random.standard_normal((500, 33)))
    narrow = unit(1 + 0.01 * random.standard_normal((500, 33)))
    spiked = unit(np.concatenate([spread[:20], np.eye(33)[:5], np.eye(33)[:5]]))
    residuals = {}
    for name, rows_NP in {"spread": spread, "narrow": narrow, "spiked": spiked, "one": spread[:1]}.items():
        codes_NP, scales_N, centre_P, residual, norm = quantise(rows_NP)
        told_NP = codes_NP * scales_N[:, None].astype(np.float64)
        off_N = np.linalg.norm(rows_NP.astype(np.float64) - centre_P - told_NP, axis=1)
        assert off_N.max() <= residual and np.linalg.norm(told_NP, axis=1).max() <= norm
        residuals[name] = residual
    assert residuals["narrow"] < 0.05 * residuals["spread"], "what all rows share must not cost precision"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.5])
def test_rows_of_another_length_are_refused(tmp_path: Path, wrong: float) -> None:
    rows_NP = np.eye(3, dtype=np.float32)
    rows_NP[1, 1] = wrong
    with pytest.raises(ValueError, match="vector 1 has length"):
        write_shard(tmp_path / "s", ["a", "b", "c"], [b"A"] * 3, rows_NP)
    assert not (tmp_path / "s").exists()


def test_a_note_is_read_only_off_a_whole_shard(made: Path) -> None:
    shard = sorted(path for path in made.iterdir() if path.is_dir())[0]
    note = read_note(shard)
    assert note is not None and note.rows == 7
    assert read_note(made / "none") is None
    (shard / "codes.npy").write_bytes((shard / "codes.npy").read_bytes()[:-1])
    assert read_note(shard) is None


DAMAGES = {
    "no json": lambda f, s: (f / "store.json").write_text("{"),
    "a list": lambda f, s: (f / "store.json").write_text("[]"),
    "another format": lambda f, s: change(f, format="biometro store 9"),
    "no shards": lambda f, s: change(f, shards=[]),
    "shards of text": lambda f, s: change(f, shards=["a"]),
    "another count": lambda f, s: change(f, count=13),
    "wide": lambda f, s: change(f, width=1 << 20),
    "no width": lambda f, s: change(f, width=True),
    "another width": lambda f, s: change(f, width=4),
    "no model": lambda f, s: change(f, model=None),
    "outside": lambda f, s: change(f, shards=[{"name": "../x", "rows": 12, "residual": 0.1, "norm": 1.0}]),
    "huge bound": lambda f, s: change(f, shards=[{"name": s.name, "rows": 7, "residual": 1e9, "norm": 1.0}]),
    "vectors cut": lambda f, s: (s / "vectors.npy").write_bytes((s / "vectors.npy").read_bytes()[:-4]),
    "vectors of another type": lambda f, s: np.save(s / "vectors.npy", np.zeros((7, 5), np.float64)),
    "codes of another shape": lambda f, s: np.save(s / "codes.npy", np.zeros((6, 5), np.int8)),
    "no scales": lambda f, s: (s / "scales.npy").unlink(),
    "text cut": lambda f, s: (s / "text.bin").write_bytes(b"A"),
    "a folder for a file": lambda f, s: [(s / "centre.npy").unlink(), (s / "centre.npy").mkdir()],
    "no shard": lambda f, s: shutil.rmtree(s),
}  # fmt: skip


def change(folder: Path, **values: object) -> None:
    found = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(found | values))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_store_that_is_wrong_is_refused_in_words(made: Path, damage: str) -> None:
    first = sorted(path for path in made.iterdir() if path.is_dir())[0]
    DAMAGES[damage](made, first)
    with pytest.raises(UserError, match="library"):
        open_store(made)


def test_a_link_out_of_the_store_is_not_followed(made: Path, tmp_path: Path) -> None:
    first = sorted(path for path in made.iterdir() if path.is_dir())[0]
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not there"):
        open_store(made)


def test_offsets_that_lead_astray_are_found_when_they_are_used(made: Path) -> None:
    first = sorted(path for path in made.iterdir() if path.is_dir())[0]
    offsets = np.load(first / "offsets.npy")
    offsets[3] = -5
    np.save(first / "offsets.npy", offsets)
    found = open_store(made)
    assert found.entries(np.array([8]))[0][0] == "id 8 é"
    with pytest.raises(UserError, match="damaged"):
        found.entries(np.array([1]))


def test_no_store_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no store of vectors"):
        open_store(tmp_path / "none")
    assert store.FORMAT == "biometro store 1"
