"""The command line: every job is a subcommand, every parameter of its function an option."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from jsonargparse import auto_cli

from biometro.errors import UserError
from biometro.jobs.embed import embed
from biometro.jobs.export import export
from biometro.jobs.prepare import prepare
from biometro.jobs.pretrain import pretrain
from biometro.training.trainer import EXIT_STOPPED, Outcome

JOBS: dict[str, Any] = {"prepare": prepare, "pretrain": pretrain, "embed": embed, "export": export}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; gives the exit status: 0 done, 1 a mistake that the message explains, 2 a wrong option,
    75 stopped early by a signal or a time limit (the same command goes on), 130 interrupted."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    try:
        result = auto_cli(
            JOBS,
            args=None if arguments is None else list(arguments),
            as_positional=False,
            prog="biometro",
            description="Language models of biochemical sequences: from raw files to models and answers.",
        )
    except UserError as error:
        print(f"biometro: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("biometro: interrupted", file=sys.stderr)
        return 130
    if isinstance(result, Outcome) and result.stopped is not None:
        return EXIT_STOPPED
    return 0
