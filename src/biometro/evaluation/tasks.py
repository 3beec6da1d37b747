"""Tasks by name: each is one small YAML file that says what is measured, on which data, and whose they are.

    names ─▶ suites (folders of files), files ─▶ TaskFile, checked ─▶ data at hand? digest right? ─▶ Exam

The files that come with biometro stand beside this module, in tasks/SUITE/NAME.yaml; one of your own is given by its
path. A kind of task is a line of `KINDS`: the dataclass of what its files say, and the function that reads them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from biometro.data import strict
from biometro.data.corpus import Corpus
from biometro.data.remote import is_url, open_binary
from biometro.data.task import TaskKind
from biometro.errors import UserError
from biometro.evaluation import contacts, masked, probes, retrieval, variant_effects
from biometro.evaluation.protocol import RESAMPLES, Exam, NotAtHandError
from biometro.files import sha256_of
from biometro.untrusted import read_yaml

SHIPPED = Path(__file__).parent / "tasks"
VERSION = 1
"""Of what is computed from a task: a change makes results that were kept be computed again."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    config: the frozen dataclass of the keys that its files have beside `TaskHead`'s. read: called as
    `read(kind, data, config, metric, seed=, resamples=, keep=)`; see `probes.read`.
    """

    config: type
    read: Callable[..., Exam]


_PROBE = Kind(probes.ProbeConfig, probes.read)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(get_args(TaskKind), _PROBE),
    "retrieval": Kind(retrieval.RetrievalConfig, retrieval.read),
    "pairs": Kind(retrieval.PairsConfig, retrieval.read_pairs),
    "variants": Kind(variant_effects.VariantsConfig, variant_effects.read),
    "contacts": Kind(contacts.ContactsConfig, contacts.read),
    "masked": Kind(masked.MaskedConfig, masked.read),
}


@dataclass(frozen=True)
class TaskHead:
    """What every task file says.

    Args:
        kind: one of `KINDS`.
        title: a line for people.
        data: file or files: a path inside the data folder, a URL, or example:families; of a file of your own also a
            path beside it, or inside the folder where the command runs. Tasks of variants and contacts take folders,
            too, and of masked residues corpora.
        metric: the figure by which methods are compared.
        sha256: of each file of data, in their order; left out, what is found is believed, and recorded.
        url: where the data come from.
        licence: of the data.
        citation: what to cite.
    """

    kind: str
    title: str
    data: str | list[str]
    metric: str
    sha256: str | list[str] | None = None
    url: str = ""
    licence: str = ""
    citation: str = ""

    @property
    def files(self) -> list[str]:
        return [self.data] if isinstance(self.data, str) else list(self.data)

    @property
    def digests(self) -> list[str] | None:
        return [self.sha256] if isinstance(self.sha256, str) else self.sha256


@dataclass(frozen=True)
class TaskFile:
    """One task, its file read and checked; `suite` is empty for a file of your own."""

    name: str
    suite: str
    path: Path
    head: TaskHead
    config: Any

    def locate(self, folder: Path | None) -> list[str]:
        """Where each file of data is.

        Raises NotAtHandError where one is not at hand; UserError for a path that leads out of the folder.
        """
        return [self._place(name, folder) for name in self.head.files]

    def _place(self, name: str, folder: Path | None) -> str:
        if name.startswith("example:") or is_url(name):
            return name
        if not name.isprintable() or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{self.path}: data is {name!r}; it must be a path inside the data folder, or a URL")
        own = [] if self.suite else [self.path.parent]
        places = [*own, *([] if folder is None else [folder]), *([] if self.suite else [Path()])]
        for place in places:
            if (place / name).exists():
                return str(place / name)
        where = f"not in {folder}" if folder is not None else "no data folder was named (--data, or $BIOMETRO_DATA)"
        source = f"; from {self.head.url}" if self.head.url else ""
        raise NotAtHandError(f"{name}: {where}{source}")

    def digest(self, places: Sequence[str]) -> tuple[str, list[str]]:
        """Of all that figures depend on but model and options, and of each file of data (empty for an example).

        Raises UserError where a file is not the one that the task is about.
        """
        found = [_sha256(place) for place in places]
        for place, own, wanted in zip(places, found, self.head.digests or found, strict=True):
            if own != wanted.strip().lower():
                raise UserError(
                    f"{place}: is not the file that {self.path.name} is about (sha256 {own[:16]}..., expected "
                    f"{wanted[:16]}...); get it again{f' from {self.head.url}' if self.head.url else ''}"
                )
        said = [VERSION, self.head.kind, self.head.metric, dataclasses.asdict(self.config), found, self.head.files]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(), found

    def read(
        self, places: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES, keep: Path | None = None
    ) -> Exam:
        """The exam, its data read. Raises UserError for data that cannot be read as the file says."""
        reader = KINDS[self.head.kind].read
        try:
            return reader(
                self.head.kind, places, self.config, self.head.metric, seed=seed, resamples=resamples, keep=keep
            )
        except UserError as error:
            raise type(error)(f"{self.name}: {error}") from error


def read_task(path: Path, suite: str = "") -> TaskFile:
    """A task file. Raises UserError, naming file and key, for whatever it may not say."""
    try:
        found = read_yaml(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    where = str(path)
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: a task file maps keys to values")
    kind = found.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{where}: there is no kind {str(kind)[:60]!r}{strict.nearest(str(kind), list(KINDS))}")
    cls = KINDS[kind].config
    own = {field.name for field in dataclasses.fields(TaskHead)}
    theirs = {field.name for field in dataclasses.fields(cls)}
    for key in found:
        if key not in own | theirs:
            raise UserError(f"{where}: there is no key {str(key)!r}{strict.nearest(str(key), sorted(own | theirs))}")
    head = strict.build(TaskHead, {key: value for key, value in found.items() if key in own}, where)
    if not head.files or not all(head.files):
        raise UserError(f"{where}: data names no file")
    if head.digests is not None and len(head.digests) != len(head.files):
        raise UserError(f"{where}: data names {len(head.files)} files and sha256 {len(head.digests)}")
    labels = found.get("labels")
    if isinstance(labels, Mapping) and labels.get("file") is not None:
        raise UserError(f"{where}: labels.file is not for task files, whose data have a sha256; put labels into data")
    if isinstance(labels, Mapping) and labels.get("task", kind) != kind:
        raise UserError(f"{where}: labels.task is {labels['task']!r}, but kind says {kind}; leave labels.task out")
    settings = {key: value for key, value in found.items() if key not in own}
    if KINDS[kind] is _PROBE and isinstance(labels, Mapping):
        settings["labels"] = {**labels, "task": kind}
    return TaskFile(path.stem, suite, path, head, strict.build(cls, settings, where))


def suites() -> dict[str, list[Path]]:
    """The files of each suite that comes with biometro."""
    folders = sorted(path for path in SHIPPED.iterdir() if path.is_dir()) if SHIPPED.is_dir() else []
    found = {folder.name: sorted(folder.glob("*.yaml")) for folder in folders}
    return {name: files for name, files in found.items() if files}


def find(names: Sequence[str]) -> list[TaskFile]:
    """The tasks of these names: suites, tasks of suites, and paths of files; each once, in order.

    Raises UserError for a name that stands for nothing, two files of one name, and files that are wrong.
    """
    there = suites()
    by_name = {path.stem: (suite, path) for suite, files in there.items() for path in files}
    chosen: dict[Path, str] = {}
    for name in names:
        if name in there:
            chosen |= dict.fromkeys(there[name], name)
        elif name in by_name:
            chosen[by_name[name][1]] = by_name[name][0]
        elif Path(name).suffix in (".yaml", ".yml"):
            chosen.setdefault(Path(name), "")
        else:
            known = [*there, *by_name]
            raise UserError(f"there is no task or suite {name!r}{strict.nearest(name, known)}; or give a file's path")
    if not chosen:
        raise UserError("no task was named; name suites, tasks or files")
    found = [read_task(path, suite) for path, suite in chosen.items()]
    seen: dict[str, TaskFile] = {}
    for task in found:
        if seen.setdefault(task.name, task) is not task:
            raise UserError(f"{task.path} and {seen[task.name].path} have one name; rename one of them")
    return found


def _sha256(place: str) -> str:
    """Of a file or URL, of a corpus, or of a folder's files and their names; empty for data that come with biometro."""
    if place.startswith("example:"):
        return ""
    digest = hashlib.sha256()
    if (Path(place) / "corpus.json").is_file():
        return Corpus.open(place).digest
    if Path(place).is_dir():
        for path in sorted(path for path in Path(place).iterdir() if path.is_file()):
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
        return digest.hexdigest()
    if not is_url(place):
        return sha256_of(Path(place))
    try:
        with open_binary(place) as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
    except (OSError, ImportError, ValueError) as error:
        raise NotAtHandError(f"{place}: cannot be fetched ({error})") from error
    return digest.hexdigest()
