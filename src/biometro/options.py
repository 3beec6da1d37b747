"""Options of a job, which is a function: read from words of a command line and from YAML, and checked by its types.

words, recipe ─▶ jsonargparse ─▶ configs, which check themselves ─▶ options by name
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, auto_parser, get_loader, set_loader, set_parsing_settings

from biometro.errors import UserError
from biometro.untrusted import check_yaml

Job = Callable[..., Any]

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


class OptionError(UserError):
    """An option that a job does not have, or a value that is none of its."""


class _Parser(ArgumentParser):
    """Raises what is wrong with an option, where argparse would print all options and end the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise OptionError(f"{message} (--help lists the options)")


def parse(jobs: Mapping[str, Job], arguments: Sequence[str], description: str = "") -> tuple[str, dict[str, Any]]:
    """The job and its options.

    Args:
        jobs: by the name that is the first of the arguments.
        arguments: as on a command line; `plan recipe.yaml` is `plan --config recipe.yaml`.
        description: of all jobs, for --help.

    Raises OptionError where one is wrong, UserError where they make no sense together.
    """
    given = list(arguments)
    job = jobs.get(given[0]) if given else None
    if job is not None:
        if len(given) > 1 and not given[1].startswith("-"):
            given.insert(1, "--config")
        given[1:] = _gathered(job, _switched(job, given[1:]))
    parser = auto_parser(
        dict(jobs), as_positional=False, parser_class=_Parser, prog="biometro", description=description
    )
    try:
        parsed = parser.parse_args(given)
        options = parser.instantiate(parsed)[parsed.subcommand].as_dict()
    except ImportError as error:
        parser.error(f"a recipe holds values and imports nothing ({str(error).partition(',')[0]})")
    except (TypeError, ValueError, AttributeError) as error:  # what a malformed YAML file makes of the parser
        raise UserError(f"the options cannot be read ({error})") from error
    options.pop("config", None)
    nowhere = options.get("out", "not asked for") in (None, "") and "run" not in options  # a run folder is a place
    if nowhere and not options.get("list"):
        raise UserError("say where to write: --out")
    return parsed.subcommand, options


def check(job: str, function: Job, arguments: Sequence[str], where: str) -> None:
    """Raises UserError, with `where`, for arguments that the job would refuse before it begins."""
    try:
        parse({job: function}, [job, *arguments])
    except UserError as error:
        raise UserError(f"{where}: {job} refuses it: {error}") from error


def _switched(job: Job, given: list[str]) -> list[str]:
    """`--list` alone as `--list=true`, of every option that is true or false."""
    switches = {
        f"--{name}" for name, parameter in inspect.signature(job).parameters.items()
        if str(parameter.annotation) in ("bool", "<class 'bool'>")
    }  # fmt: skip
    following = [*given[1:], "--"]
    return [
        f"{word}=true" if word in switches and after.startswith("--") else word
        for word, after in zip(given, following, strict=True)
    ]


def _gathered(job: Job, given: list[str]) -> list[str]:
    """`--model A --model B` as `--model=[A, B]`, where a job takes several: else the last would win without a word."""
    several = {
        f"--{name}" for name, parameter in inspect.signature(job).parameters.items()
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
