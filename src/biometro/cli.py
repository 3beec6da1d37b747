"""The command line: every job is a subcommand, every parameter of its function an option."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, auto_parser, get_loader, set_loader, set_parsing_settings

import biometro
from biometro.errors import EchoedError, UserError
from biometro.training.signals import EXIT_STOPPED, remember, remembering
from biometro.untrusted import check_yaml

JOBS = (
    "prepare", "plan", "pretrain", "finetune", "align", "predict", "evaluate", "embed", "index", "screen", "score",
    "generate", "export", "check-mup", "tune", "study",
)  # fmt: skip

# A recipe is data: it may not name Python objects, whose import would run code, nor unfold beyond measure. Our own
# dataclasses are let through, which jsonargparse looks up by name where an option holds a list of them, or none.
_PLAIN = (
    "biometro.jobs.align.DataSet", "biometro.training.alignment.TowerConfig", "biometro.jobs.study_options.StudyCorpus",
)  # fmt: skip
set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*_PLAIN])
_load_yaml = get_loader("yaml")


def _load_bounded(text: str) -> Any:
    check_yaml(text)
    return _load_yaml(text)


set_loader("yaml", _load_bounded, exceptions=(yaml.YAMLError,))


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
        job, options = parse(arguments)
        result = _function(job)(**options)
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


class _Parser(ArgumentParser):
    """Says what is wrong with an option in one line, where argparse would print all options first."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"biometro: {' '.join(message.split())} (--help lists the options)", file=sys.stderr)
        raise SystemExit(2)


def parse(arguments: Sequence[str] | None = None) -> tuple[str, dict[str, Any]]:
    """The job and its options. Raises UserError where they make no sense, SystemExit(2) where one is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    named = given[0] if given and given[0] in JOBS else None
    parser = auto_parser(
        {job: _function(job) for job in (JOBS if named is None else (named,))},
        as_positional=False,
        parser_class=_Parser,
        prog="biometro",
        description="Language models of biochemical sequences: from raw files to models and answers.",
    )
    if named is not None and len(given) > 1 and not given[1].startswith("-"):
        given.insert(1, "--config")  # `biometro plan recipe.yaml`
    given = _gathered(_switched(given))
    try:
        parsed = parser.parse_args(given)
        options = parser.instantiate(parsed)[parsed.subcommand].as_dict()
    except ImportError as error:
        parser.error(f"a recipe holds values and imports nothing ({str(error).partition(',')[0]})")
    except (TypeError, ValueError, AttributeError) as error:  # what a malformed YAML file makes of the parser
        raise UserError(f"the options cannot be read ({' '.join(str(error).split())})") from error
    options.pop("config", None)
    nowhere = options.get("out", "not asked for") in (None, "") and "run" not in options  # a run folder is a place
    if nowhere and not options.get("list"):
        raise UserError("say where to write: --out")
    return parsed.subcommand, options


def _switched(given: list[str]) -> list[str]:
    """`--list` alone as `--list=true`, of every option that is true or false."""
    if not given or given[0] not in JOBS:
        return given
    switches = {
        f"--{name}" for name, parameter in inspect.signature(_function(given[0])).parameters.items()
        if str(parameter.annotation) in ("bool", "<class 'bool'>")
    }  # fmt: skip
    following = [*given[1:], "--"]
    return [
        f"{word}=true" if word in switches and after.startswith("--") else word
        for word, after in zip(given, following, strict=True)
    ]


def _gathered(given: list[str]) -> list[str]:
    """`--model A --model B` as `--model=[A, B]`, where a job takes several: else the last would win without a word."""
    if not given or given[0] not in JOBS:
        return given
    several = {
        f"--{name}" for name, parameter in inspect.signature(_function(given[0])).parameters.items()
        if "list[str]" in str(parameter.annotation)
    }  # fmt: skip
    values: dict[str, list[str]] = {}
    kept: list[str] = []
    rest = iter(given)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in several:
            kept.append(name)  # its place
            values.setdefault(name, []).append(value if equals else next(rest, ""))
        else:
            kept.append(word)
    repeated = {name: found for name, found in values.items() if len(found) > 1}
    if not repeated:
        return given
    told: list[str] = []
    for word in kept:
        if word in repeated:
            listed = [item for text in repeated.pop(word) for item in _listed(text)]
            values[word] = []
            told.append(f"{word}={json.dumps(listed)}")
        elif word not in values:
            told.append(word)
        elif values[word]:
            told.append(f"{word}={values[word].pop(0)}")
    return told


def _listed(text: str) -> list[str]:
    """One value, or those of a list in brackets."""
    found = _load_bounded(text) if text.startswith("[") else text
    return [str(item) for item in found] if isinstance(found, list) else [text]
