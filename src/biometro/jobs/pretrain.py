"""`biometro pretrain`: a corpus -> a model folder, by METRO or MLM."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import biometro
from biometro.alphabet import MoleculeAlphabet
from biometro.alphabet.kinds import UNITS
from biometro.data.batch import Batch
from biometro.data.corpus import Corpus
from biometro.data.loader import Loader, PackingConfig
from biometro.errors import UserError
from biometro.evaluation import held_out as drawing
from biometro.evaluation import overlap
from biometro.evaluation.report import write_report
from biometro.files import write_file
from biometro.inference.embed import Embedder
from biometro.model.bundle import Bundle
from biometro.model.encoder import EncoderConfig
from biometro.model.load import fingerprint
from biometro.objectives.metro import MetroConfig
from biometro.objectives.mlm import MLMConfig
from biometro.objectives.objective import Objective
from biometro.objectives.pretraining import Pretraining, for_alphabet, pretraining
from biometro.training import checkpoint, parallel, runs
from biometro.training.checkpoint import read_weights
from biometro.training.parallel import World
from biometro.training.signals import EXIT_STOPPED, StopRequest
from biometro.training.tracking import read_metrics
from biometro.training.trainer import FREE_TO_CHANGE, Outcome, TrainingConfig, train

_MAP_SEQUENCES = 1000  # held-out sequences in the report's map
_SAMPLED = 64  # micro-batches from which the FLOPs of a step are taken
_FREE = {"data", "run", "device", "report", *(f"training.{name}" for name in FREE_TO_CHANGE)}


def pretrain(
    data: str,
    run: str,
    objective: Pretraining = "metro",
    encoder: EncoderConfig = EncoderConfig(),
    metro: MetroConfig = MetroConfig(),
    mlm: MLMConfig = MLMConfig(),
    packing: PackingConfig = PackingConfig(),
    training: TrainingConfig = TrainingConfig(),
    seed: int = 0,
    device: str = "auto",
    report: bool = True,
) -> Outcome:
    """Pretrain a model on a corpus; the same command goes on where it stopped.

    Leaves in the run folder: recipe.yaml (all options as resolved), metrics.jsonl (one row a step), checkpoints/,
    model/ (the model folder) and report.html. Ends with exit status 75 where a signal (SIGTERM, SIGINT, SIGUSR1) or
    the time limit stopped it early. Started by torchrun, all its ranks train one model; torchrun would start again what
    ends with 75, so they end with 0 then, and the file exit-status in the run folder holds the 75.

    Args:
        data: corpus folder, made by `prepare`, or its URL; shards of a URL wait in $BIOMETRO_CACHE (~/.cache/biometro),
            in at most $BIOMETRO_CACHE_BYTES (64 GiB).
        run: run folder; made, or gone on with.
        objective: metro (an auxiliary model replaces residues, the model detects and restores them) or mlm.
        encoder: shape of the model that is kept.
        metro: settings of METRO.
        mlm: settings of masked language modelling.
        packing: how sequences become batches.
        training: the loop.
        seed: of weights, order, crops, corruption.
        device: auto, cpu, cuda, ...
        report: write report.html when the run is complete.

    Returns how it ended. Raises UserError for a folder that is no corpus or does not fit its digests, a run folder
    that cannot be written, or one that was begun with other options.
    """
    with (
        StopRequest(training.max_minutes) as request,
        parallel.join(device, training.parallel.timeout_minutes) as world,
    ):
        corpus = Corpus.open(data)
        world.first(corpus.verify)
        alphabet = corpus.alphabet
        counts = corpus.info["splits"]["train"]["token_counts"]
        if not any(counts[number] for number in alphabet.standard_ids):
            raise UserError(f"{data}: no standard residue or symbol in it, so there is nothing to predict")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed is {seed}; it must lie between 0 and {2**32 - 1}")
        packing = _direction(packing, corpus)
        encoder = for_alphabet(encoder, alphabet)
        loader = Loader(corpus.split("train"), alphabet, packing, seed)

        def build() -> Objective:
            torch.manual_seed(seed)
            return pretraining(objective, encoder, alphabet, metro, mlm)

        goal = build()
        if training.flops is not None:
            training = training.for_flops(_flops_per_step(goal, loader, training.accumulate))
        parts = {"encoder": encoder, "metro": metro, "mlm": mlm, "packing": packing, "training": training}
        recipe: dict[str, Any] = {"data": data, "run": run, "objective": objective}
        recipe |= {name: dataclasses.asdict(part) for name, part in parts.items()}  # type: ignore[call-overload]
        recipe |= {"seed": seed, "device": device, "report": report}
        validation = _validation(corpus, packing, seed, training.valid_batches)
        folder = Path(run)
        with ExitStack() as held:  # after all that may still refuse the options
            auxiliary = metro.auxiliary if objective == "metro" else None
            what, digest = "corpus", corpus.digest
            if auxiliary is not None:
                what, digest = "corpus or auxiliary", f"{digest} {fingerprint(auxiliary)}"
            world.first(lambda: runs.begin(folder, recipe, what, digest, _FREE, held))
            outcome = train(
                goal, loader.batch, training, folder, seed=seed, world=world, validation=validation, recipe=recipe,
                request=request,
            )  # fmt: skip

            def leave() -> Outcome:
                status = folder / "exit-status"
                if outcome.stopped is not None:  # little time is left, and the checkpoint is what counts
                    write_file(status, f"{EXIT_STOPPED}\n")
                whole = goal
                if world.size > 1:  # ranks hold shares; the checkpoint has it all
                    whole = build()
                    read_weights(checkpoint.folders(folder / "checkpoints")[-1], whole)
                facts = _facts(corpus, whole, outcome, objective, training, world)
                if auxiliary is not None:
                    kept = "as it is" if metro.auxiliary_frozen else "trained further"
                    facts["auxiliary"] = f"from {auxiliary}, {kept}; what it had cost is not in the FLOPs above"
                bundle = Bundle(alphabet, whole.bundle_modules(), recipe=recipe, facts=facts, crop=packing.crop)
                return _leave(folder, corpus, bundle, outcome, request, world.device, report)

            outcome = world.first(leave)  # the others wait, or torchrun would take the store away
    return outcome


def _flops_per_step(goal: Objective, loader: Loader, accumulate: int) -> float:
    """Of training, on average over micro-batches of the first epoch, spread evenly."""
    count = min(_SAMPLED, loader.batches_per_epoch)
    numbers = np.linspace(0, loader.batches_per_epoch - 1, count).astype(int).tolist()
    return 3 * accumulate * sum(goal.flops(loader.batch(number)) for number in numbers) / count


def _direction(packing: PackingConfig, corpus: Corpus) -> PackingConfig:
    """The packing, with the share that is read back to front as the corpus has it where the recipe says nothing."""
    options = corpus.info.get("options")
    reverse = packing.reverse if packing.reverse is not None else (options or {}).get("reverse", 0.0)
    if reverse and isinstance(corpus.alphabet, MoleculeAlphabet):
        raise UserError("packing.reverse: a molecule read back to front is another one; leave it at 0")
    return dataclasses.replace(packing, reverse=reverse)


def _validation(corpus: Corpus, packing: PackingConfig, seed: int, most: int) -> list[Batch]:
    """The first held-out micro-batches, read forwards. The loader ends here: it would keep a shard in the cache."""
    held_out = corpus.split("valid")
    if not len(held_out):
        return []
    loader = Loader(held_out, corpus.alphabet, dataclasses.replace(packing, reverse=0.0), seed)
    return [loader.batch(number) for number in range(min(most, loader.batches_per_epoch))]


def _leave(
    folder: Path,
    corpus: Corpus,
    bundle: Bundle,
    outcome: Outcome,
    request: StopRequest,
    device: torch.device,
    report: bool,
) -> Outcome:
    """Write the model folder, draw the report if there is time, and say in `exit-status` whether the run is done."""
    bundle.save(folder / "model")
    made = f"model: {folder / 'model'}"
    if report and outcome.stopped is None and request.reason is not None:  # the next start draws it
        outcome = dataclasses.replace(outcome, stopped=request.reason)
    elif report and outcome.stopped is None:
        _report(folder, corpus, bundle, device)
        made += f", report: {folder / 'report.html'}"
    write_file(folder / "exit-status", f"{0 if outcome.stopped is None else EXIT_STOPPED}\n")
    Console(stderr=True).print(made, highlight=False, soft_wrap=True)
    return outcome


def _facts(
    corpus: Corpus, goal: Objective, outcome: Outcome, objective: str, training: TrainingConfig, world: World
) -> dict[str, str]:
    """What the model card and the report say about a run."""
    progress, info, unit = outcome.progress, corpus.info, UNITS.get(corpus.alphabet.name, "residues")
    sources = ", ".join(Path(s["name"]).name for s in info["sources"][:5])
    if len(info["sources"]) > 5:
        sources += f" and {len(info['sources']) - 5} more"
    facts = {
        "objective": objective,
        "steps": f"{progress.step:,} of {training.steps:,}"
        + (f" (stopped by {outcome.stopped})" if outcome.stopped else ""),
        "training data": f"{info['splits']['train']['sequences']:,} sequences, "
        f"{info['splits']['train']['residues']:,} {unit}, from {sources}",
        overlap.DIGEST: corpus.digest,
        "tokens read": f"{progress.tokens:,}",
        "training FLOPs": f"{progress.flops:.3g} (forward and backward, all modules)",
        "training time": f"{progress.seconds / 60:.1f} min on {world.hardware}",
        "trained parameters": f"{sum(p.numel() for p in goal.parameters() if p.requires_grad):,}",
    }
    if outcome.valid:
        entropy = corpus.unigram_entropy("valid")
        facts["unigram entropy of the held-out set"] = f"{entropy:.4f} nats per {unit[:-1]}"
        for name, value in outcome.valid.items():
            if name not in ("step", "split"):
                facts[f"held out, step {outcome.valid['step']:,}: {name}"] = f"{value:.4f}"
    facts["made with"] = f"biometro {biometro.__version__}, torch {torch.__version__}"
    return facts


def _report(folder: Path, corpus: Corpus, bundle: Bundle, device: torch.device) -> None:
    held_out = corpus.split("valid")
    count = min(len(held_out), _MAP_SEQUENCES)
    sequences = [held_out[i] for i in np.linspace(0, len(held_out) - 1, count).astype(int)] if count else []
    crop = bundle.crop or 1022
    embedded = Embedder(bundle, long="window", max_length=max(crop, 2), device=device).embed(sequences)
    write_report(
        folder / "report.html",
        title=f"{folder.name}: {bundle.facts['objective']} pretraining",
        facts=bundle.facts,
        metrics=read_metrics(folder / "metrics.jsonl"),
        unigram_entropy=corpus.unigram_entropy("valid") if count else None,
        embeddings=np.stack(embedded) if count else None,
        colours=drawing.colours(corpus.alphabet, sequences) if count else None,
        gallery=drawing.gallery(corpus.alphabet, sequences),
    )
