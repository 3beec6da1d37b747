"""The command line: every job is a subcommand, every parameter of its function an option."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

import biometro
from biometro import options
from biometro.errors import EchoedError, UserError
from biometro.training.signals import EXIT_STOPPED, remember, remembering

JOBS = (
    "prepare", "plan", "pretrain", "finetune", "align", "predict", "evaluate", "embed", "index", "screen", "score",
    "generate", "export", "check-mup", "tune", "study",
)  # fmt: skip


def _function(job: str) -> Any:
    """What does a job, imported when it is asked for: torch alone takes seconds, and `prepare` has no use for it."""
    return getattr(biometro, job.replace("-", "_"))


class _Terminated(BaseException):
    """SIGTERM or SIGUSR1 arrived outside the training loop, which has its own way to stop."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; gives the exit status: 0 done, 1 a mistake that the message explains, 2 a wrong option,
    75 stopped early by a signal or a time limit (the same command goes on), 130 interrupted. Under torchrun, which
    would start the ranks again, a stop gives 0 (`pretrain` tells how to know)."""
    parallel = os.environ.get("WORLD_SIZE", "1") != "1"
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    in_main = threading.current_thread() is threading.main_thread()
    handler = remember if remembering() else _terminate
    before = {n: signal.signal(n, handler) for n in (signal.SIGTERM, signal.SIGUSR1)} if in_main else {}
    try:
        job, given = parse(arguments)
        result = _function(job)(**given)
    except options.OptionError as error:
        print(f"biometro: {error}", file=sys.stderr, flush=True)
        return 2
    except UserError as error:
        if not isinstance(error, EchoedError):
            print(f"biometro: {error}", file=sys.stderr, flush=True)
        if parallel:  # threads of this rank may wait for ranks that are gone
            os._exit(1)
        return 1
    except KeyboardInterrupt:
        print("biometro: interrupted", file=sys.stderr)
        return 130
    except _Terminated as stop:
        print(f"biometro: stopped by {stop}; start the same command again", file=sys.stderr)
        return EXIT_STOPPED
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    stopped = getattr(result, "stopped", None) is not None  # of jobs that go on where they were
    return EXIT_STOPPED if stopped and not remembering() else 0


def parse(arguments: Sequence[str] | None = None) -> tuple[str, dict[str, Any]]:
    """The job and its options. Raises UserError where these are wrong (see `options.parse`)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    named = given[:1] if given[:1] and given[0] in JOBS else JOBS
    about = "Language models of biochemical sequences: from raw files to models and answers."
    return options.parse({job: _function(job) for job in named}, given, about)
