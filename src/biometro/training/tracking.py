"""Where a run's figures go: metrics.jsonl always, TensorBoard and Weights & Biases where wanted, and the screen."""

from __future__ import annotations

import importlib.util
import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from biometro.errors import UserError
from biometro.files import write_file

Row = dict[str, Any]
TrackerName = Literal["tensorboard", "wandb"]
_PLAIN_EVERY = 15.0  # seconds between lines where there is no terminal to draw on


GLANCE = ("mlm_accuracy", "rtd_gain", "rtd_ap", "accuracy", "macro_f1", "auroc", "spearman", "rmse", "mrr")
"""Figures, beside losses, that are worth a glance on the screen."""


class Tracker(Protocol):
    def log(self, rows: Sequence[Row]) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line. Opened for a run that goes on at `step`, it drops the rows of steps to be done again."""

    def __init__(self, path: Path, step: int):
        self.path = path
        write_file(path, "".join(_line(row) for row in read_metrics(path) if row["step"] <= step))

    def log(self, rows: Sequence[Row]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write("".join(map(_line, rows)))
        except OSError as error:
            raise UserError(f"{self.path}: could not be written ({error.strerror})") from error

    def close(self) -> None:
        """Nothing is open between calls."""


def _line(row: Row) -> str:
    return json.dumps({name: _plain(value) for name, value in row.items()}) + "\n"


def _plain(value: Any) -> Any:
    """NaN and infinity have no JSON; they are written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a line cut short by a crash is left out, a missing file is empty."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_row(row):
            rows.append(row)
    return rows


def _is_row(row: Row) -> bool:
    """Whether a row is what `log` writes: a step, a split, and figures (None where one was not finite)."""
    figures = (value for name, value in row.items() if name != "split")
    return (
        isinstance(row.get("step"), int)
        and isinstance(row.get("split"), str)
        and all(value is None or (isinstance(value, int | float) and abs(value) < 1e300) for value in figures)
    )


class TensorBoard:
    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in figures(row).items():
                self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Live curves on wandb.ai, or in the run folder where WANDB_MODE=offline. A run that goes on keeps its id."""

    def __init__(self, run: Path, recipe: Mapping[str, Any], project: str = "biometro"):
        import wandb

        id_file = run / "wandb-id"
        if not id_file.exists():
            write_file(id_file, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=project, name=run.name, id=id_file.read_text(encoding="utf-8"), resume="allow",
                config=dict(recipe), dir=str(run),
            )  # fmt: skip
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases does not start ({error}); WANDB_MODE=offline needs no account"
            ) from error

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values = {f"{row['split']}/{name}": value for name, value in figures(row).items()}
            self._run.log(values, step=row["step"])

    def close(self) -> None:
        self._run.finish()


def figures(row: Row) -> dict[str, float]:
    """The numbers of a row without the step itself."""
    return {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}


class Screen:
    """A progress bar on a terminal, a line now and then elsewhere. Writes to standard error."""

    def __init__(self, steps: int, start: int, quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        self._live = self.console.is_terminal and not quiet
        self._last = -math.inf
        self._started, self._start, self._steps = time.monotonic(), start, steps
        self._bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=12), TextColumn("eta"), TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=self.console, disable=not self._live, expand=True,
        )  # fmt: skip
        self._task = self._bar.add_task("steps", total=steps, completed=start, figures="")
        self._bar.start()

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            text = summary(row)
            if row["split"] == "valid":
                self.say(f"step {row['step']:,}: held out: {text}")
            elif self._live:
                self._bar.update(self._task, completed=row["step"], figures=text)
            elif time.monotonic() - self._last > _PLAIN_EVERY or row["step"] == self._steps:
                self._last = time.monotonic()
                rate = (row["step"] - self._start) / max(time.monotonic() - self._started, 1e-9)
                left = (self._steps - row["step"]) / max(rate, 1e-9)
                self.say(f"step {row['step']:,} of {self._steps:,} (eta {left:,.0f} s): {text}")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def summary(row: Row) -> str:
    """The figures of a row worth a glance, in one line."""
    parts = [f"{row['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in row else []
    parts += [f"{name} {value:.3f}" for name, value in row.items() if name.endswith("loss")]
    parts += [f"{name} {row[name]:.3f}" for name in row if name in GLANCE or name.endswith("_over_chance")]
    return ", ".join(parts)


def open_trackers(
    run: Path, names: Sequence[TrackerName] | None, recipe: Mapping[str, Any], step: int
) -> list[Tracker]:
    """JSON lines always; the named ones, or by default TensorBoard where it is installed.

    Raises UserError, with the extra to install, where a named one is missing.
    """
    trackers: list[Tracker] = [JsonLines(run / "metrics.jsonl", step)]
    installed = {name: importlib.util.find_spec(name) is not None for name in ("tensorboard", "wandb")}
    if names is None:
        names = ["tensorboard"] if installed["tensorboard"] else []
    for name in names:
        if not installed[name]:
            raise UserError(f"training.track asks for {name}, which is not installed: pip install 'biometro[track]'")
        if name == "tensorboard":
            trackers.append(TensorBoard(run / "tensorboard", step))
        else:
            trackers.append(WeightsAndBiases(run, recipe))
    return trackers
