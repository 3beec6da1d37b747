"""Task files: what they may say, and that those that come with biometro say it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from biometro.data import strict
from biometro.data.task import LabelConfig
from biometro.errors import UserError
from biometro.evaluation import tasks
from biometro.evaluation.protocol import NotAtHandError

GOOD: dict[str, Any] = {
    "kind": "classification", "title": "x", "data": "t.csv", "metric": "accuracy", "url": "https://example.org/t",
    "labels": {"column": "label"}, "split": {"by": "random", "identity": 0},
}  # fmt: skip


def written(folder: Path, name: str = "own.yaml", **changes: Any) -> Path:
    said = {key: value for key, value in (GOOD | changes).items() if value is not None}
    (folder / name).write_text(yaml.safe_dump(said))
    return folder / name


def test_shipped_tasks_can_be_read_and_say_whose_they_are() -> None:
    found = tasks.suites()
    assert {"protein", "example"} <= set(found) and len(found["protein"]) >= 10
    for task in tasks.find(list(found)):
        assert task.head.title and task.head.licence and task.head.citation
        if task.suite != "example":
            assert task.head.url.startswith("https://")
            pinned = task.suite != "proteingym"  # which is whatever release was unpacked, and recorded
            assert not pinned or len(task.head.digests or []) == len(task.head.files)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "clasification"}, "no kind 'clasification'; did you mean 'classification'"),
        ({"kind": 3}, "no kind '3'"),
        ({"titel": "x"}, "no key 'titel'; did you mean 'title'"),
        ({"labels": {"colum": "label"}}, "no key 'labels.colum'; did you mean 'column'"),
        ({"split": {"by": "homologie"}}, "split.by is 'homologie'; it must be one of random, homology, column"),
        ({"split": {"valid": "much"}}, "split.valid is 'much'; it must be a number"),
        ({"split": {"by": ["random", "homology"]}}, "several ways"),
        ({"title": None}, "'title' is missing"),
        ({"sha256": ["a", "b"]}, "data names 1 files and sha256 2"),
        ({"data": []}, "data names no file"),
        ({"labels": {"task": "regression"}}, "leave labels.task out"),
        ({"labels": {"file": "x.csv"}}, "labels.file is not for task files"),
        ({"labels": ["label"]}, "labels must map keys to values"),
        ({"labels": {"at_most": 0}}, "labels.at_most is 0"),
        ({"unrelated": ["x"]}, "no key 'unrelated'"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        tasks.read_task(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "kind: !!python/object:os.system x"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        tasks.read_task(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        tasks.read_task(tmp_path / "nothing.yaml")


def test_names_stand_for_suites_tasks_and_files(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert [task.name for task in tasks.find(["family", "example", str(path)])] == [
        "family",
        "contacts",
        "relatives",
        "own",
    ]
    with pytest.raises(UserError, match="no task or suite 'exampel'; did you mean 'example'"):
        tasks.find(["exampel"])
    with pytest.raises(UserError, match="have one name"):
        tasks.find(["family", str(written(tmp_path, "family.yaml"))])
    with pytest.raises(UserError, match="no task was named"):
        tasks.find([])


def test_data_are_looked_for_beside_the_file_and_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    task = tasks.read_task(written(tmp_path))
    with pytest.raises(NotAtHandError, match=r"t\.csv: not in .*data; from https://example.org/t"):
        task.locate(tmp_path / "data")
    with pytest.raises(NotAtHandError, match="no data folder was named"):
        task.locate(None)
    (tmp_path / "data" / "t.csv").write_text("x")
    assert task.locate(tmp_path / "data") == [str(tmp_path / "data" / "t.csv")]
    (tmp_path / "t.csv").write_text("x")
    assert task.locate(tmp_path / "data") == [str(tmp_path / "t.csv")]
    for name in ("/etc/passwd", "../t.csv", "a/../../t.csv", "a\0b"):
        with pytest.raises(UserError, match="inside the data folder"):
            tasks.read_task(written(tmp_path, "odd.yaml", data=name)).locate(tmp_path)


def test_other_data_are_refused_and_change_the_digest(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("one")
    digest = hashlib.sha256(b"one").hexdigest()
    task = tasks.read_task(written(tmp_path, sha256=digest))
    first, own = task.digest(task.locate(None))
    assert own == [digest]
    (tmp_path / "t.csv").write_text("two")
    with pytest.raises(UserError, match=r"is not the file that own\.yaml is about .*get it again from https"):
        task.digest(task.locate(None))
    free = tasks.read_task(written(tmp_path))
    assert free.digest(free.locate(None))[0] != first
    other = tasks.read_task(written(tmp_path, metric="mcc"))
    assert other.digest(other.locate(None))[0] != free.digest(free.locate(None))[0]
    named = tasks.read_task(written(tmp_path, title="another"))
    assert named.digest(named.locate(None))[0] == free.digest(free.locate(None))[0]


# Strict dataclasses ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    share: float = 0.5
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outer:
    count: int
    way: Literal["one", "two"] | list[Literal["one", "two"]] = "one"
    inner: Inner | None = None
    where: dict[str, str] | None = None
    on: bool = False


def test_types_are_checked_and_numbers_become_floats() -> None:
    found = strict.build(Outer, {"count": 3, "way": ["one", "two"], "inner": {"share": 1}, "where": {"a": "b"}}, "f")
    assert found == Outer(3, ["one", "two"], Inner(1.0), {"a": "b"}) and isinstance(found.inner.share, float)  # type: ignore[union-attr]
    assert strict.build(Outer, {"count": 3, "inner": None}, "f") == Outer(3)
    wrong: list[dict[str, Any]] = [
        {"count": True}, {"count": 1.5}, {"count": "1"}, {"count": 1, "way": "three"}, {"count": 1, "way": ["three"]},
        {"count": 1, "inner": {"share": True}}, {"count": 1, "inner": {"names": "a"}}, {"count": 1, "where": {"a": 1}},
        {"count": 1, "on": 1}, {}, {"count": 1, "inner": {"share": 10**400}},
    ]  # fmt: skip
    for said in wrong:
        with pytest.raises(UserError, match=r"^f: "):
            strict.build(Outer, said, "f")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["task", "column", "field", "unknown", "where", "at_most", "bad", "several", "min_per_class"])


@given(st.dictionaries(NAMES | st.text(max_size=8), PLAIN, max_size=4))
def test_whatever_stands_there_makes_labels_or_one_error(said: dict[str, Any]) -> None:
    try:
        found = strict.build(LabelConfig, said, "f", "labels")
    except UserError as error:
        assert str(error).startswith("f: ")
    else:
        assert all(getattr(found, name) == value or value != value for name, value in said.items())
