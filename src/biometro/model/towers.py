"""Towers: a model of pairs, as a folder of model folders.

    config.json        format, kind (towers), which towers there are, what the pair head answers
    model.safetensors  the pair head
    protein/, ligand/  a bundle each, with an encoder and a projection; or shared/, one for both sides of a pair
    recipe.yaml, README.md

Each tower is a model folder like any other, so that all jobs read it. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from biometro.errors import UserError
from biometro.files import new_folder, sha256_of
from biometro.model.bundle import FORMAT, TOWERS, Bundle
from biometro.model.load import fingerprint, load
from biometro.model.pairing import PairHead, PairHeadConfig, Projection
from biometro.model.weights import assign, check_shapes, distinct_state, read_safetensors, safetensors_shapes
from biometro.model.weights import write_safetensors as write_weights
from biometro.untrusted import inside, read_json

SHARED = "shared"
NAMES: tuple[tuple[str, ...], ...] = (("protein", "ligand"), (SHARED,))
"""The towers that a folder may have: one for each side of a pair, or one for both."""


@dataclass(frozen=True)
class PairAnswers:
    """What the cosine of a pair is read as.

    unit: of affinities (pKd, ...), empty where none was learnt. deviation: root mean squared error of affinities on
    validation pairs, in that unit. probability: slope and offset of a logistic function of the cosine (Platt 1999),
    fitted on validation pairs, from which a pair binds with some probability; None where no pair had a label.
    binds: what a label of 1 said, in words.
    """

    unit: str = ""
    deviation: float | None = None
    probability: tuple[float, float] | None = None
    binds: str = ""


@dataclass
class Towers:
    """A model of pairs. `towers` by name (`NAMES`); both sides of a pair go through `shared` where that is the one."""

    towers: dict[str, Bundle]
    head: PairHead
    answers: PairAnswers = PairAnswers()
    recipe: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[Bundle, Bundle]:
        """The bundles of the two sides of a pair."""
        first, *rest = self.towers.values()
        return first, rest[0] if rest else first

    @torch.inference_mode()
    def affinity(self, a_NP: np.ndarray, b_NP: np.ndarray) -> np.ndarray | None:
        """(N,) float64 affinities of pairs of projected vectors, in `answers.unit`; None where none was learnt."""
        if not self.answers.unit:
            return None
        found = self.head.affinity(torch.from_numpy(a_NP).float(), torch.from_numpy(b_NP).float())
        return found.double().numpy()

    def probability(self, cosine: np.ndarray) -> np.ndarray | None:
        """Of the shape of the cosines, float64: that a pair binds; None where no label was learnt."""
        if self.answers.probability is None:
            return None
        slope, offset = self.answers.probability
        return np.asarray(1 / (1 + np.exp(-(slope * np.asarray(cosine, np.float64) + offset))))

    def save(self, folder: str | Path) -> None:
        """Write the folder in one stroke; one that stands there is replaced. Raises UserError if it cannot be."""
        with new_folder(Path(folder)) as work:
            for name, bundle in self.towers.items():
                bundle.save(work / name)
            tensors, _ = distinct_state({"head": self.head})
            write_weights(work / "model.safetensors", tensors)
            config = {
                "format": FORMAT, "kind": TOWERS, "towers": [*self.towers],
                "head": dataclasses.asdict(self.head.config), "answers": dataclasses.asdict(self.answers),
                "facts": self.facts, "weights_sha256": sha256_of(work / "model.safetensors"),
            }  # fmt: skip
            (work / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
            (work / "recipe.yaml").write_text(yaml.safe_dump(self.recipe, sort_keys=False), encoding="utf-8")
            (work / "README.md").write_text(self.card(), encoding="utf-8")

    def card(self) -> str:
        """The model card in Markdown."""
        rows = "\n".join(f"| {key} | {value} |" for key, value in self.facts.items())
        towers = ", ".join(f"{name} ({b.alphabet.name}, {b.encoder.config.summary})" for name, b in self.towers.items())
        return (
            f"---\nlibrary_name: biometro\ntags: [biology, pairs]\n---\n# Towers: {towers}\n\n"
            f"A space of {self.head.config.width} dimensions in which pairs that bind are near.\n\n"
            "```sh\nbiometro index --model . --data library.smi --out library\n"
            "biometro screen --model . --index library --data target.fasta --out hits.csv\n```\n\n"
            f"| | |\n|---|---|\n{rows}\n\nHow it was made stands in `recipe.yaml`.\n"
        )


def is_towers(model: str | Path) -> bool:
    """Whether a path is a folder of towers."""
    try:
        config = read_json(inside(Path(model), "config.json"))
    except (UserError, OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("kind") == TOWERS


def load_towers(model: str | Path) -> Towers:
    """A model of pairs from its folder; on CPU, in eval mode. Raises UserError where it is none, or is damaged."""
    path = Path(model)
    if not is_towers(path):
        hint = f" (did you mean {path / 'model'}?)" if is_towers(path / "model") else ""
        raise UserError(f"{path} is no folder of towers, which `biometro align` makes{hint}")
    try:
        config = read_json(inside(path, "config.json"))
        if config["format"] != FORMAT:
            raise UserError(f"{path}: model format {config['format']!r}; this version reads {FORMAT}")
        if tuple(config["towers"]) not in NAMES:
            raise ValueError(f"its towers are {config['towers']!r}")
        weights = inside(path, "model.safetensors")
        with torch.device("meta"):
            head = PairHead(PairHeadConfig(**config["head"]))
        check_shapes({"head": head}, safetensors_shapes(weights), weights)
        if config["weights_sha256"] != sha256_of(weights):
            raise UserError(f"{weights}: damaged (its digest is not that of config.json)")
        assign({"head": head}, read_safetensors(weights), weights)
        answers = _answers(config["answers"])
        facts = {str(key): str(value) for key, value in config["facts"].items()}
        towers = {name: load(path / name) for name in config["towers"]}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: this folder of towers cannot be read ({type(error).__name__}: {error})") from error
    for name, bundle in towers.items():
        projection = bundle.modules.get("projection")
        if not isinstance(projection, Projection) or projection.config.outputs != head.config.width:
            raise UserError(
                f"{path / name}: this tower has no projection into the {head.config.width} dimensions of the pair head"
            )
    return Towers(towers, head.eval(), answers, facts=facts)


def fingerprint_of(model: str | Path) -> str:
    """Hex digest of a model of pairs, or of any other, as it lies on the disk."""
    path = Path(model)
    if not is_towers(path):
        return fingerprint(path)
    config = read_json(inside(path, "config.json"))
    parts = [sha256_of(inside(path, "config.json")), *(fingerprint(path / str(name)) for name in config["towers"])]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _answers(found: Any) -> PairAnswers:
    """Raises TypeError, ValueError for what is no answer."""
    made = PairAnswers(**found)
    if made.probability is not None:
        slope, offset = (float(number) for number in made.probability)
        made = dataclasses.replace(made, probability=(slope, offset))
    if not isinstance(made.unit, str) or not isinstance(made.binds, str):
        raise ValueError("its answers are no text")
    return made
