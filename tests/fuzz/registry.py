"""What a reader promises, and the one list of readers.

The promise: for any bytes it returns or raises UserError with one line, within CPU_SECONDS and MEMORY_BYTES. Anything
else (another exception, a crash of native code, a hang, a large allocation) is a finding.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from biometro.errors import UserError

CPU_SECONDS = 5
MEMORY_BYTES = 768 << 20  # growth of the resident set by one case of a few kilobytes
LONGEST_MESSAGE = 2000
CASES = Path(__file__).parent / "cases"

Build = Callable[[Path], None]
Run = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """Bytes are put at `file` in a folder that `build` filled; `run` gets the path of what a user would name."""

    name: str
    file: str
    run: Run
    build: Build | None = None
    given: Sequence[bytes] = ()
    seal: Build | None = None

    @cached_property
    def cases(self) -> list[Path]:
        """Inputs that once broke this reader."""
        return sorted(path for path in (CASES / self.name).glob("*") if path.is_file())

    def seeds(self, folder: Path) -> list[bytes]:
        """Valid inputs to start from."""
        if self.build is None:
            return list(self.given)
        valid = folder / "valid"
        if not valid.exists():
            valid.mkdir(parents=True)
            self.build(valid)
        return [(valid / self.file).read_bytes(), *self.given]

    def judge(self, data: bytes, folder: Path) -> str | None:
        """What is wrong with the way the reader takes `data`, or None. `folder` is kept between calls."""
        place = folder / "work"
        seed = self.seeds(folder)[0]
        if not place.exists():
            place.mkdir(parents=True)
            if self.build is not None:
                self.build(place)
        target = place / self.file
        target.write_bytes(data)
        if self.seal is not None:
            self.seal(place)
        try:
            self.run(place if self.build is not None else target)
        except UserError as error:
            text = str(error)
            if not text or "\n" in text or len(text) > LONGEST_MESSAGE:
                return f"UserError of {len(text)} characters and {text.count(chr(10)) + 1} lines: {text[:200]!r}"
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "biometro" in frame.filename] or list(frames)
            where = f"{Path(ours[-1].filename).name}:{ours[-1].name}:{ours[-1].lineno}"
            return f"{type(error).__name__} at {where}: {str(error)[:200]}"
        finally:
            target.write_bytes(seed)
            if self.seal is not None:
                self.seal(place)
        return None


READERS: dict[str, Reader] = {}


def reader(name: str, *, suffix: str, seeds: Sequence[bytes], run: Run) -> None:
    """Register a reader of one file."""
    READERS[name] = Reader(name, f"input{suffix}", run, given=seeds)


def folder_reader(name: str, *, build: Build, files: Sequence[str], run: Run, seal: Build | None = None) -> None:
    """Register a reader of a folder, once for each of its files: that one is damaged, the others are valid.

    `build` fills a new folder with valid content, the same each time; `seal` renews digests after a change, as
    someone who means harm would.
    """
    for file in files:
        READERS[f"{name}/{file}"] = Reader(f"{name}/{file}", file, run, build=build, seal=seal)
