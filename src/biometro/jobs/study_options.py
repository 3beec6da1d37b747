"""What a study is asked: corpora, arms and sizes that make sense, and are those that it began with.

study.yaml ─▶ checked ─▶ as before? ─▶ options of `pretrain` for each run
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from biometro.data.corpus import Corpus
from biometro.errors import UserError
from biometro.evaluation.tasks import find
from biometro.files import write_file
from biometro.jobs.pretrain import pretrain
from biometro.model import mup
from biometro.training import search
from biometro.training.search import Value
from biometro.untrusted import read_yaml

METRICS = "metrics.jsonl"
"""Of a run that has begun to train."""
GROW = ("corpora", "arms", "sizes")  # entries may be added to these
_OWN = ("run", "seed", "report", "config", "training.flops")  # said by the study for each run
_TRIALS = f"rates/*/trials/*/*/{METRICS}"


@dataclass(frozen=True)
class StudyCorpus:
    """What a study trains on and judges by.

    Args:
        recipe: of `pretrain`; its data are the corpus.
        tasks: of `evaluate`: suites, tasks, or files of your own.
        options: further options of `pretrain`, by dotted name.
    """

    recipe: str
    tasks: list[str]
    options: dict[str, Any] = field(default_factory=dict)


def folder_of(name: str) -> str:
    return name.replace(" ", "_")


def check(
    corpora: Mapping[str, StudyCorpus], arms: Mapping[str, Any], sizes: Mapping[str, Any], flops: list[float],
    seeds: int, workers: int, rates: dict[str, Any] | None, tune_flops: float | None, reference: str,
    metrics: Mapping[str, str],
) -> None:  # fmt: skip
    """Raises UserError for options that make no sense."""
    for what, named in (("corpora", corpora), ("arms", arms), ("sizes", sizes), ("flops", flops)):
        if not named:
            raise UserError(f"{what} is empty; a study needs one or more")
    for name in (*corpora, *arms, *sizes):
        if not name or not name.isprintable() or "/" in name or name.startswith("."):
            raise UserError(f"{name!r} is no name of a folder")
    for names in ([*arms], [*sizes], [f"{budget:g}" for budget in flops]):
        if len({folder_of(name) for name in names}) < len(names):
            raise UserError(f"{', '.join(names)}: two of these have one folder's name; name them apart")
    if (rates is None) != (tune_flops is None):
        raise UserError("rates and tune_flops belong together: a search has both, none has neither")
    budgets = [*flops, *([] if tune_flops is None else [tune_flops])]
    if min(seeds, workers) < 1 or not all(0 < budget < math.inf for budget in budgets):
        raise UserError("seeds and workers must be at least 1, and budgets (flops, tune_flops) above 0")
    for name, options in arms.items():
        spent = options.get("spent", 0.0)
        if not isinstance(spent, int | float) or not 0 <= spent < min(budgets):
            raise UserError(f"arms.{name}.spent is {spent!r}; it must be FLOPs below every budget")
    given = [(f"corpora.{name}.options", corpus.options) for name, corpus in corpora.items()]
    given += [
        (f"{what}.{name}", said) for what, every in (("arms", arms), ("sizes", sizes)) for name, said in every.items()
    ]
    for where, said in given:
        own = sorted({*search.flat(said)} & {*_OWN})
        if own:
            raise UserError(f"{where}: {own[0]} is the study's own; take it out")
    for name in (reference, *metrics):
        if name not in arms:
            raise UserError(f"there is no arm {name!r}; there are {', '.join(arms)}")


def read_from(corpus: StudyCorpus) -> tuple[str, float]:
    """A digest of the recipe and of the corpus that it reads, and the unigram entropy of what is held out.

    Raises UserError where these cannot be read.
    """
    try:
        recipe = read_yaml(Path(corpus.recipe))
    except OSError as error:
        raise UserError(f"{corpus.recipe}: cannot be read ({error.strerror or error})") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{corpus.recipe}: is no recipe of pretrain: it holds no options")
    place = {**recipe, **corpus.options}.get("data")
    if not isinstance(place, str):
        raise UserError(f"{corpus.recipe}: names no corpus; say data in it, or in the study's options of this corpus")
    data = Corpus.open(place)
    said = json.dumps([recipe, data.digest], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16], data.unigram_entropy("valid")


def check_runs(
    corpora: Mapping[str, StudyCorpus], arms: Mapping[str, dict[str, Any]], sizes: Mapping[str, dict[str, Any]],
    flops: float, seed: int,
) -> None:  # fmt: skip
    """Look at the options of every run and at the tasks before the first run, which may be hours before the last.

    Raises UserError for options that `pretrain` would refuse, tasks that there are not, and where muP would scale a
    part that does not grow from size to size.
    """
    from biometro import options  # sets what jsonargparse reads for the whole process, which may be somebody's own

    every = [search.flat(size) for size in sizes.values()]
    varied = {key for size in every for key in size if len({str(other.get(key)) for other in every}) > 1}
    for name, corpus in corpora.items():
        find(corpus.tasks)
        for arm, said in arms.items():
            fixed = search.flat(read_yaml(Path(corpus.recipe))) | options_of(name, corpus, said, {}, flops, seed)
            mup.check_growth({key: value for key, value in fixed.items() if key not in varied}, varied)
            for size, grown in sizes.items():
                given = command_of(corpus, options_of(name, corpus, said, grown, flops, seed), seed)
                options.check("pretrain", pretrain, [*given, "--run=x"], f"{arm} on {name}, {size}")


def same(folder: Path, options: Mapping[str, Any]) -> None:
    """Keep the options; raises UserError where the folder holds a study of others. Seeds, budgets and the place of the
    tasks' data may change, and corpora, arms and sizes be added: they add runs. Those without a run, such as one whose
    options were refused, may change too, or be left out."""
    path = folder / "study.yaml"
    now = json.loads(json.dumps(options))
    if path.exists():
        before = read_kept(path)
        searched = any(folder.glob(f"*/{_TRIALS}"))
        check_same(str(folder), before, now, _ran(folder, before), searched, "name another run")
    write_file(path, yaml.safe_dump(now, sort_keys=False))


def keep_rates(folder: Path, chosen: Mapping[tuple[str, str], float]) -> None:
    """Write the rates that were found beside the options."""
    path = folder / "study.yaml"
    by_corpus: dict[str, dict[str, float]] = {}
    for (corpus, arm), rate in chosen.items():
        by_corpus.setdefault(corpus, {})[arm] = rate
    write_file(path, yaml.safe_dump({**read_yaml(path), "chosen": by_corpus}, sort_keys=False))


def read_kept(path: Path) -> dict[str, Any]:
    """Options that a study has kept. Raises UserError where these are damaged, OSError where they cannot be read."""
    kept = read_yaml(path)
    if not isinstance(kept, dict) or not all(isinstance(kept.get(name), dict) for name in GROW):
        raise UserError(f"{path}: is damaged; name another")
    return kept


def check_same(
    where: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    ran: Mapping[str, set[str]],
    searched: bool,
    hint: str,
) -> None:
    """Raises UserError, with a `hint` what to do, where options differ that may not.

    Args:
        where: of those before.
        ran: of each of corpora, arms and sizes, those that may not change.
        searched: whether rates were searched, so that the first size may not.
    """
    now = json.loads(json.dumps(now))
    before = {"read": now["read"], **before}  # of a study from before this was kept
    differ = [name for name in now if name not in (*GROW, "read") and now[name] != before.get(name)]
    first = next(iter(before["sizes"]), None)
    for name in GROW:
        held = ran[name] | ({first} if name == "sizes" and searched else set())
        differ += [f"{name}.{entry}" for entry, said in before[name].items()
                   if entry in held and now[name].get(entry) != said]  # fmt: skip
    for corpus in ran["corpora"] & {*now["corpora"]}:
        if before["read"].get(corpus) != now["read"][corpus]:
            raise UserError(f"{where}: the recipe or the data of {corpus!r} are not those it began with; {hint}")
    if differ:
        raise UserError(f"{where}: holds a study with another {', '.join(differ)}; {hint}")
    if searched and now["rates"] is not None and next(iter(now["sizes"])) != first:
        raise UserError(f"{where}: its rates were searched at the size {first!r}; name it first")


def _ran(folder: Path, kept: Mapping[str, Any]) -> dict[str, set[str]]:
    """Of each of corpora, arms and sizes, which have a run, or a trial of the search, that has begun to train."""
    arms, sizes = ({folder_of(name): name for name in kept[what]} for what in ("arms", "sizes"))
    size, arm = ("|".join(map(re.escape, names)) for names in (sizes, arms))
    run = re.compile(rf"(?P<size>{size})-[\d.e+-]+-(?P<arm>{arm})-\d+")
    found: dict[str, set[str]] = {name: set() for name in GROW}
    for corpus in kept["corpora"]:
        trials = {path.parents[3].name for path in (folder / corpus).glob(_TRIALS)} & {*arms}
        names = [run.fullmatch(path.parent.name) for path in (folder / corpus).glob(f"*/{METRICS}")]
        runs = [one for one in names if one]
        found["corpora"] |= {corpus} if trials or runs else set()
        found["arms"] |= {arms[name] for name in (*trials, *(one["arm"] for one in runs))}
        found["sizes"] |= {sizes[one["size"]] for one in runs}
    return found


def options_of(
    name: str, corpus: StudyCorpus, arm: Mapping[str, Any], size: Mapping[str, Any], flops: float, seed: int
) -> dict[str, Value]:
    """Of `pretrain`, for an arm on a corpus of this name."""

    def filled(value: Any) -> Any:
        return value.replace("{corpus}", name).replace("{seed}", str(seed)) if isinstance(value, str) else value

    left = flops - float(arm.get("spent", 0.0))
    own = {key: filled(value) for key, value in arm.items() if key != "spent"}
    return {"encoder.mup": True, **corpus.options, **size, **own, "training.flops": left}


def command_of(corpus: StudyCorpus, options: Mapping[str, Value], seed: int) -> list[str]:
    """Words of the command line of `pretrain`, without its run folder."""
    given = [f"--config={corpus.recipe}", *(search.as_option(key, value) for key, value in options.items())]
    return [*given, f"--seed={seed}", "--report=false"]
