"""A run's last checkpoint, or weights from anywhere, on the validation images at any resolution and crop."""

from __future__ import annotations

import csv
import errno
import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from blocks.model import build_model
from roadmap.batches import BatchPlan
from roadmap.data.check import STREAMS, kind_of
from roadmap.data.corrupt import CorruptImages
from roadmap.data.datasets import make_source
from roadmap.data.loader import Loader
from roadmap.data.staging import stage
from roadmap.files import aside, write_atomic, written
from roadmap.recipe import RunConfig
from roadmap.records import RunDir, check_config, run_dir_of
from roadmap.sources import name_of, refusal
from roadmap.strict_yaml import relative
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.device import select_device, set_up
from roadmap.training.engine import autocast
from roadmap.training.scores import Scores, exact, tally
from roadmap.weights import Kind, copy_weights, read_state_dicts, select

ALONE = BatchPlan(world=1, micro=1, accumulation=1, group=1)  # of which an evaluation only wants to know that there are no others
TITLES: dict[Kind, str] = {"raw": "weights", "ema": "moving average"}
PREFIXES: dict[Kind, str] = {"raw": "", "ema": "ema_"}


@dataclass(frozen=True)
class Evaluation:
    """What a network makes of the images; for each class how many there are, how many it ranks first, and among the first five.

    `unreadable` images are left out of everything else.
    """

    scores: Scores
    unreadable: int
    classes: list[tuple[int, int, int]]


@dataclass(frozen=True)
class Found:
    """The tensors of a checkpoint, raw or averaged, in any dialect; `where` it is, and what there is to say about it."""

    where: str
    about: str
    states: Mapping[Kind, Mapping[str, Tensor]]

    def of(self, kind: Kind | None) -> Mapping[Kind, Mapping[str, Tensor]]:
        """Those of one kind, of all for None; ConfigError if there are none."""
        return self.states if kind is None else {kind: select(self.states, kind, self.where)}


def find_file(source: str) -> Found:
    """A checkpoint from anywhere, as `roadmap.weights` reads it."""
    return Found(name_of(source), name_of(source), read_state_dicts(source))


def find_run(config: RunConfig, run: RunDir) -> Found:
    """The run's newest whole checkpoint; ConfigError if there is none, or if it is another configuration's."""
    if run.config.exists():
        check_config(run, config)
    if (state := Checkpoints(run.checkpoints).newest()) is None:
        raise refusal(relative(run.path), "has no checkpoint to evaluate; train it first")
    engine = state["engine"]
    states: dict[Kind, Mapping[str, Tensor]] = {"raw": engine["model"]} | ({"ema": engine["ema"]} if engine["ema"] else {})
    about = f"iteration {engine['iteration']}, after epoch {state['epoch']} of {config.recipe.epochs}"
    return Found(relative(run.path), about, states)


@torch.inference_mode()
def evaluate(network: nn.Module, loader: Loader, config: RunConfig, device: torch.device) -> Evaluation:
    """The scores of a network on `device`, as training has them, and its counts for each class."""
    total = 0
    sums = torch.zeros(4, device=device, dtype=exact(device))
    counts = torch.zeros(config.model.num_classes, 3, device=device, dtype=torch.int64)
    network.eval()
    for images, labels in loader.epoch():
        with autocast(config, device):
            logits = network(images).float()
        sums += tally(logits, labels)
        counts.index_add_(0, labels.clamp(min=0), _marks(logits, labels))
        total += len(labels)
    scores = Scores.of(sums)
    if not scores.images:
        raise refusal(f"dataset '{config.data.dataset}'", "has no validation image that can be read")
    return Evaluation(scores, total - scores.images, [(row[0], row[1], row[2]) for row in counts.tolist()])


def _marks(logits: Tensor, labels: Tensor) -> Tensor:
    """For each image whether it counts, its label ranks first, and among the first five, (N, 3); a label of -1 ranks nowhere."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None])
    return torch.stack([labels.ge(0), ranked[:, 0], ranked.any(1)], dim=1).long()


def evaluate_found(found: Found, view: RunConfig, kind: Kind | None = None, data: Dataset[Any] | None = None) -> dict[Kind, Evaluation]:
    """Each of the weights found, or those of one kind, on the images as `view` has them, in one process.

    `data` stands in for the validation images of a configuration whose dataset is `custom/NAME`. ConfigError if network,
    weights and data are not made for each other.
    """
    states, network = found.of(kind), build_model(view.model)
    copy_weights(network, next(iter(states.values())), found.where)  # or the refusal would have to wait for the data
    view = view.model_copy(update={"system": view.system.model_copy(update={"sync_bn": False})})
    device = select_device(view)
    set_up(view, device)
    loader = Loader(view, "val", device, plan=ALONE, source=data)
    network.to(device).to(memory_format=torch.channels_last)
    evaluations: dict[Kind, Evaluation] = {}
    for each, state in states.items():
        copy_weights(network, state, found.where)
        evaluations[each] = evaluate(network, loader, view, device)
    return evaluations


def evaluate_run(
    config: RunConfig,
    runs: Path,
    *,
    view: RunConfig | None = None,
    source: str | None = None,
    kind: Kind | None = None,
    per_class: Path | None = None,
) -> int:
    """Prints the scores of the run's last checkpoint, or of the weights in `source` without any run; returns the exit code.

    `view` is the configuration with the resolution and crop to see the images in, `per_class` where the classes' figures go.
    """
    view = view or config
    names: list[str] = []
    if per_class is not None:
        _check_writable(per_class)
        names = _names(view)  # or data that has none would show when all is evaluated
    found = find_file(source) if source is not None else find_run(config, run_dir_of(runs, config))
    try:
        evaluations = evaluate_found(found, view, kind)
    except CorruptImages as error:
        print(error, file=sys.stderr)
        return 1
    for line in report(found, view, evaluations):
        print(line)
    if per_class is not None:
        with written(per_class):
            write_atomic(per_class, table(names, evaluations))
        print(f"{relative(per_class)} holds the {view.model.num_classes} classes")
    return 0


def report(found: Found, view: RunConfig, evaluations: Mapping[Kind, Evaluation]) -> list[str]:
    """What was evaluated, on what, and a line of figures for each of the weights."""
    recipe, any_of_them = view.recipe, next(iter(evaluations.values()))
    images = f"{any_of_them.scores.images:,} images of {view.data.image_size} px, crop {recipe.eval_crop_pct:g} {recipe.eval_crop_mode}"
    left_out = f", {any_of_them.unreadable:,} unreadable left out" if any_of_them.unreadable else ""
    lines = [f"{found.about}: {images}{left_out}"]
    for kind, evaluation in evaluations.items():
        scores = evaluation.scores
        lines.append(f"{TITLES[kind]}: top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, loss {scores.loss:.4f}")
    return lines


def table(names: list[str], evaluations: Mapping[Kind, Evaluation]) -> str:
    """A CSV line per class, of these names; accuracies are percent, and empty for a class without images."""
    rows = {kind: evaluation.classes for kind, evaluation in evaluations.items()}
    columns = [f"{PREFIXES[kind]}{figure}" for kind in rows for figure in ("top1", "top5")]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["class", "name", "images", *columns])
    images = [row[0] for row in next(iter(rows.values()))]
    for index, (name, count) in enumerate(zip(names, images, strict=True)):
        hits = [hit for classes in rows.values() for hit in classes[index][1:]]
        lines.writerow([index, name, count, *(f"{100 * hit / count:.4f}" if count else "" for hit in hits)])
    return text.getvalue()


def _names(config: RunConfig) -> list[str]:
    """The classes' names, or their numbers where the data has no names for all of them, as shards without images of some."""
    names = None if kind_of(config.data) in STREAMS else make_source(stage(config), "val").class_names
    return names if names and len(names) == config.model.num_classes else [str(index) for index in range(config.model.num_classes)]


def _check_writable(path: Path) -> None:
    """ConfigError where `path` cannot be written, before anybody has waited for what is to stand there."""
    with written(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        probe = aside(path)
        probe.touch()
        probe.unlink()
