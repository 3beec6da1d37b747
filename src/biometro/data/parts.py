"""One corpus from many machines: each leaves its part beside the corpus, and whoever finds all of them assembles it.

    .corpus.parts/
        part-1-of-16-5f0c2a9e/   spool-0/ spool-1/ ... part.json     appears whole or not at all
        part-3-of-16-5f0c2a9e/                                       the digest is that of the command's options
        assembling                                                   host and process number of who does

The folder needs to be shared, and nothing else: machines do not talk to each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from biometro.data.intake import Account
from biometro.data.sources import Source
from biometro.errors import UserError
from biometro.files import alive, new_folder, write_file

_ABOUT = "part.json"


def numbers(text: str) -> tuple[int, int]:
    """`3/16` -> (3, 16). Raises UserError where it is anything else."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise UserError(f"part is {text!r}; say which of how many, from 1/16 to 16/16 for sixteen")
    return number, of


class Parts:
    """The parts of one corpus.

    Args:
        corpus: the folder that it will be.
        of: how many parts there are.
        settings: all that decides what the parts hold; parts of other settings are refused. Goes to JSON.
    """

    def __init__(self, corpus: Path, of: int, settings: dict[str, Any]):
        self.folder, self.of = corpus.with_name(f".{corpus.name}.parts"), of
        text = json.dumps({"parts": of, **settings}, sort_keys=True)
        self.settings: dict[str, Any] = json.loads(text)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:8]

    def path(self, number: int) -> Path:
        """Where a part stands, 1-based."""
        return self.folder / f"part-{number}-of-{self.of}-{self.digest}"

    def check(self) -> None:
        """Raises UserError where a part of other settings stands here, naming the first that differs."""
        for path in sorted(self.folder.glob("part-*")):
            if path.name.endswith(f"-of-{self.of}-{self.digest}"):
                continue
            then = _about(path)["settings"]
            key = next(key for key in {**self.settings, **then} if then.get(key) != self.settings.get(key))
            before, now = then.get(key), self.settings.get(key)
            if isinstance(before, list) and isinstance(now, list):  # of many files, the first that differs
                before, now = next((a, b) for a, b in itertools.zip_longest(before, now) if a != b)
            raise UserError(
                f"{path} was made with other options ({key}: {before} then, {now} now); "
                f"give the same, or remove {self.folder}"
            )

    @contextmanager
    def adding(self, number: int) -> Iterator[Path]:
        """A folder to fill with spools and to `describe`; the part is there when the block ends well."""
        with new_folder(self.path(number)) as work:
            yield work

    def describe(self, work: Path, account: Account, sources: list[Source]) -> None:
        """Leave a part's account and its sources, as far as it has read them, in its folder."""
        about = {
            "settings": self.settings,
            "account": dataclasses.asdict(account),
            "sources": [dataclasses.asdict(source) for source in sources],
        }
        write_file(work / _ABOUT, json.dumps(about, indent=1))

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there yet."""
        return [number for number in range(1, self.of + 1) if not self.path(number).exists()]

    def claim(self) -> str | None:
        """Take on the assembly: None, or in words who has taken it on before.

        A claim of a process of this machine that is no more is void. Should two assemble in the end, after a claim was
        removed by hand, both make the same corpus and one replaces the other's.
        """
        claim = self.folder / "assembling"
        me = socket.gethostname()
        while True:
            try:
                with claim.open("x", encoding="utf-8") as handle:
                    handle.write(f"{me} {os.getpid()}")
                return None
            except FileExistsError:
                host, _, process = _text(claim).partition(" ")
                if host == me and process.isdigit() and not alive(int(process)):
                    claim.unlink(missing_ok=True)
                    continue
                return f"process {process or '?'} on {host or '?'} is assembling; if it was killed, remove {claim}"
            except FileNotFoundError:
                return "the corpus has just been assembled"
            except OSError as error:
                raise UserError(f"{claim}: could not be written ({error.strerror})") from error

    def release(self) -> None:
        """Give the assembly up, so that another may take it on."""
        (self.folder / "assembling").unlink(missing_ok=True)

    def load(self, sources: list[Source]) -> tuple[Account, list[Path]]:
        """The account of all parts together, and all spools; fills in the sources.

        Raises UserError where a part is damaged, or where machines have read different files under one name.
        """
        account, spools = Account(), []
        for number in range(1, self.of + 1):
            about = _about(self.path(number))
            part = Account(**about["account"])
            part.places = {r: [(s, line, words) for s, line, words in places] for r, places in part.places.items()}
            account.add(part)
            for source, read in zip(sources, about["sources"], strict=True):
                source.records += read["records"]
                if source.sha256 is not None and read["sha256"] not in (None, source.sha256):
                    raise UserError(
                        f"{source.name}: part {number} has read other bytes than a part before it; remove "
                        f"{self.folder} and start again with files that do not change"
                    )
                if read["sha256"] is not None:
                    source.bytes, source.sha256 = read["bytes"], read["sha256"]
            spools += sorted(self.path(number).glob("spool-*"))
        return account, spools

    def remove(self) -> None:
        """Remove all parts, in one stroke for who looks on."""
        gone = self.folder.with_name(f"{self.folder.name}.done-{os.getpid()}")
        if self.folder.exists():
            self.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _about(part: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((part / _ABOUT).read_text(encoding="utf-8"))
        if not {"settings", "account", "sources"} <= set(about):
            raise ValueError
    except (OSError, ValueError) as error:
        raise UserError(f"{part}: damaged; remove it and prepare this part again") from error
    return about


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # it went in the meantime
        return ""
