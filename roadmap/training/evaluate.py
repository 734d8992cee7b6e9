"""A run's last checkpoint, or weights from anywhere, on the validation images at any resolution and crop."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from blocks.model import build_model
from roadmap.batches import BatchPlan
from roadmap.config import RunConfig
from roadmap.data.corrupt import CorruptImages
from roadmap.data.datasets import make_source
from roadmap.data.loader import Loader
from roadmap.data.preflight import STREAMS, class_names, data_dir, is_remote, kind_of
from roadmap.data.staging import stage
from roadmap.errors import ConfigError, config_error, relative
from roadmap.files import temporary_path, write_atomic, write_errors
from roadmap.records import RunDir, check_config, run_dir_of
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.device import select_device, set_up
from roadmap.training.engine import autocast
from roadmap.training.metrics import EvalMetrics, accumulator_dtype, batch_metrics
from roadmap.weight_files import (
    CLASS_MAP,
    CLASS_MAP_HINT,
    OTHER_ORDER,
    UNKNOWN_ORDER,
    is_ambiguous,
    name_of,
    outputs_of,
    some,
)
from roadmap.weights import Kind, copy_weights, read_weights, select

logger = logging.getLogger(__name__)
# of which an evaluation only wants to know that there are no others
ALONE = BatchPlan(world=1, micro=1, accumulation=1, group=1)
TITLES: dict[Kind, str] = {"raw": "weights", "ema": "moving average"}
PREFIXES: dict[Kind, str] = {"raw": "", "ema": "ema_"}


@dataclass(frozen=True)
class Labels:
    """The `names` of the data's classes by label, None if unknown, and the network's `outputs` for them, None
    for all as they stand.
    """

    names: list[str] | None = None
    outputs: list[int] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a network makes of the images; for each class how many there are, how many it ranks first, and
    among the first five.

    `unreadable` images are left out of everything else. `labels` has the classes' names and outputs, as far
    as they are known.
    """

    scores: EvalMetrics
    unreadable: int
    classes: list[tuple[int, int, int]]
    labels: Labels


@dataclass(frozen=True)
class Found:
    """The tensors of a checkpoint, raw or averaged, in any dialect; `where` it is, and what there is to say
    about it.

    `classes` are the names of the network's in the order of its outputs, None if unknown, and `named_by` is
    what names them, if `where` does not; `of_run`, whether it is the run's own.
    """

    where: str
    about: str
    states: Mapping[Kind, Mapping[str, Tensor]]
    classes: list[str] | None = None
    of_run: bool = False
    named_by: str | None = None

    def of(self, kind: Kind | None) -> Mapping[Kind, Mapping[str, Tensor]]:
        """Those of one kind, of all for None; ConfigError if there are none."""
        return self.states if kind is None else {kind: select(self.states, kind, self.where)}


def find_file(source: str, classes: list[str] | None = None) -> Found:
    """A checkpoint from anywhere, as `roadmap.weights` reads it."""
    weights = read_weights(source, classes)
    return Found(name_of(source), name_of(source), weights.states, weights.classes)


def find_run(config: RunConfig, run: RunDir) -> Found:
    """The run's newest whole checkpoint; ConfigError if there is none or it is another configuration's."""
    if run.config.exists():
        check_config(run, config)
    if (state := Checkpoints(run.checkpoints).newest()) is None:
        raise config_error(
            relative(run.path),
            "has no checkpoint to evaluate; train it first, or name weights with --init-from",
        )
    engine = state["engine"]
    states: dict[Kind, Mapping[str, Tensor]] = {"raw": engine["model"]} | (
        {"ema": engine["ema"]} if engine["ema"] else {}
    )
    about = f"iteration {engine['iteration']}, after epoch {state['epoch']} of {config.recipe.epochs}"
    return Found(relative(run.path), about, states, state.get("data", {}).get("classes"), of_run=True)


def match_classes(
    found: Found, view: RunConfig, data: Dataset[Any] | None = None
) -> tuple[RunConfig, Labels]:
    """The configuration that reads the data as it is, and its classes with the outputs of the network found
    that stand for them.

    They are matched by name where both sides have names; the data may have some of the network's classes
    only. ConfigError if it has others, or where without names nobody knows which of the outputs it has.
    """
    names, outputs, split = found.classes, view.model.num_classes, view.data.val_split
    if names is not None and len(names) != outputs:
        raise config_error(
            found.named_by or found.where, f"names {len(names)} classes, the model has {outputs} outputs"
        )
    if kind_of(view.data) == "folder" and data is None and not is_remote(view):
        view = _reading_val_alone(view, names is not None)
    here, whole = _names_of_data(view, data)
    if here is None or names is None:
        if here is not None and len(here) != outputs and whole:
            raise config_error(
                f"dataset '{view.data.dataset}'",
                f"has {len(here)} classes in {split}, the model {outputs}; {CLASS_MAP_HINT}",
            )
        if here is not None and not found.of_run and is_ambiguous(here):
            logger.warning(UNKNOWN_ORDER, found.where, some(here))
        return view, Labels(here if here and len(here) == outputs else names)
    if here == names or (not whole and here == names[: len(here)]):
        return view, Labels(names)
    places = outputs_of(here, names, found.named_by or found.where)
    if len(here) < outputs:
        logger.warning(
            "%s has %d of the %d classes of %s: other outputs are ignored",
            split,
            len(here),
            outputs,
            found.where,
        )
    else:
        logger.warning(OTHER_ORDER, found.where, some(names), some(here))
    model = view.model.model_copy(update={"num_classes": len(here)})
    return view.model_copy(update={"model": model}), Labels(here, places)


def _reading_val_alone(view: RunConfig, named: bool) -> RunConfig:
    """`view` without its training split if missing, or of other classes while the network's are `named`."""
    try:
        class_names(view)
        return view
    except ConfigError as error:
        data, problem = view.data, error
    alone = view.model_copy(update={"data": data.model_copy(update={"train_split": data.val_split})})
    class_names(alone)
    if not named and (data_dir(view) / data.train_split).is_dir():
        raise config_error("", f"{problem}; {CLASS_MAP_HINT}") from problem
    return alone


def _names_of_data(view: RunConfig, data: Dataset[Any] | None) -> tuple[list[str] | None, bool]:
    """What the classes of the data are called, by label, None if it does not say; and whether these are
    surely all of its labels.

    Shards only know the labels of the images that they have.
    """
    if data is None and kind_of(view.data) in STREAMS:
        return None, False
    if data is None and kind_of(view.data) == "folder" and not is_remote(view):
        return class_names(view), True  # without a look at each image
    source = make_source(stage(view), "val", data)
    return source.class_names, source.num_classes is not None


@torch.inference_mode()
def evaluate(
    network: nn.Module, loader: Loader, config: RunConfig, device: torch.device, classes: Labels
) -> Evaluation:
    """The scores of a network on `device`, as training has them, and its counts for each class.

    Where the data has some of the network's classes, the other outputs do not count, as with ImageNet-A.
    """
    total = 0
    outputs: Any = slice(None) if classes.outputs is None else torch.tensor(classes.outputs, device=device)
    sums = torch.zeros(4, device=device, dtype=accumulator_dtype(device))
    counts = torch.zeros(
        len(classes.outputs or range(config.model.num_classes)), 3, device=device, dtype=torch.int64
    )
    network.eval()
    for images, labels in loader.epoch():
        with autocast(config, device):
            logits = network(images).float()[:, outputs]
        sums += batch_metrics(logits, labels)
        counts.index_add_(0, labels.clamp(min=0), _marks(logits, labels))
        total += len(labels)
    scores = EvalMetrics.of(sums)
    if not scores.images:
        raise config_error(f"dataset '{config.data.dataset}'", "has no validation image that can be read")
    return Evaluation(
        scores, total - scores.images, [(row[0], row[1], row[2]) for row in counts.tolist()], classes
    )


def _marks(logits: Tensor, labels: Tensor) -> Tensor:
    """For each image whether it counts, its label ranks first, and among the first five, (N, 3); a label of
    -1 ranks nowhere.
    """
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices.eq(labels[:, None])
    return torch.stack([labels.ge(0), ranked[:, 0], ranked.any(1)], dim=1).long()


def evaluate_found(
    found: Found, view: RunConfig, kind: Kind | None = None, data: Dataset[Any] | None = None
) -> dict[Kind, Evaluation]:
    """Each of the weights found, or those of one kind, on the images as `view` has them, in one process.

    `data` stands in for the validation images of a configuration whose dataset is `custom/NAME`. ConfigError
    if network, weights and data are not made for each other.
    """
    states, network = found.of(kind), build_model(view.model)
    # or the refusal would have to wait for the data
    copy_weights(network, next(iter(states.values())), found.where)
    view, labels = match_classes(found, view, data)
    view = view.model_copy(update={"system": view.system.model_copy(update={"sync_bn": False})})
    device = select_device(view)
    set_up(view, device)
    loader = Loader(view, "val", device, plan=ALONE, source=data)
    network.to(device).to(memory_format=torch.channels_last)
    evaluations: dict[Kind, Evaluation] = {}
    for each, state in states.items():
        copy_weights(network, state, found.where)
        evaluations[each] = evaluate(network, loader, view, device, labels)
    return evaluations


def evaluate_run(
    config: RunConfig,
    runs: Path,
    *,
    view: RunConfig | None = None,
    source: str | None = None,
    kind: Kind | None = None,
    per_class: Path | None = None,
    class_map: list[str] | None = None,
) -> int:
    """Prints the scores of the run's last checkpoint, or of the weights in `source` without any run; returns
    the exit code.

    `view` is the configuration with the resolution and crop to see the images in, `per_class` where the
    classes' figures go. `class_map` are the names of the network's classes in the order of its outputs,
    instead of those that the weights come with.
    """
    view = view or config
    if per_class is not None:
        _check_writable(per_class)
    found = find_file(source, class_map) if source is not None else find_run(config, run_dir_of(runs, config))
    if class_map is not None:
        found = replace(found, classes=class_map, named_by=CLASS_MAP)
    try:
        evaluations = evaluate_found(found, view, kind)
    except CorruptImages as error:
        print(error, file=sys.stderr)
        return 1
    for line in report(found, view, evaluations):
        print(line)
    if per_class is not None:
        with write_errors(per_class):
            write_atomic(per_class, table(evaluations))
        print(f"{relative(per_class)} holds the {len(next(iter(evaluations.values())).classes)} classes")
    return 0


def report(found: Found, view: RunConfig, evaluations: Mapping[Kind, Evaluation]) -> list[str]:
    """What was evaluated, on what, and a line of figures for each of the weights."""
    recipe, any_of_them = view.recipe, next(iter(evaluations.values()))
    images = (
        f"{any_of_them.scores.images:,} images of {view.data.image_size} px, crop {recipe.eval_crop_pct:g}"
        f" {recipe.eval_crop_mode}"
    )
    left_out = f", {any_of_them.unreadable:,} unreadable left out" if any_of_them.unreadable else ""
    some = (
        f", {len(any_of_them.classes)} of {view.model.num_classes} classes"
        if len(any_of_them.classes) < view.model.num_classes
        else ""
    )
    lines = [f"{found.about}: {images}{some}{left_out}"]
    for kind, evaluation in evaluations.items():
        scores = evaluation.scores
        lines.append(
            f"{TITLES[kind]}: top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, loss {scores.loss:.4f}"
        )
    return lines


def table(evaluations: Mapping[Kind, Evaluation]) -> str:
    """A CSV line a class, in the order of the network's outputs; accuracies are percent, and empty for a
    class without images.
    """
    rows = {kind: evaluation.classes for kind, evaluation in evaluations.items()}
    columns = [f"{PREFIXES[kind]}{figure}" for kind in rows for figure in ("top1", "top5")]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["class", "name", "images", *columns])
    first = next(iter(evaluations.values()))
    labels, counts = range(len(first.classes)), [row[0] for row in first.classes]
    outputs = first.labels.outputs or list(labels)
    names = first.labels.names or [str(output) for output in outputs]
    for label in sorted(labels, key=outputs.__getitem__):
        hits = [hit for classes in rows.values() for hit in classes[label][1:]]
        count = counts[label]
        lines.writerow(
            [
                outputs[label],
                names[label],
                count,
                *(f"{100 * hit / count:.4f}" if count else "" for hit in hits),
            ]
        )
    return text.getvalue()


def _check_writable(path: Path) -> None:
    """ConfigError where `path` cannot be written, before anybody has waited for what is to stand there."""
    with write_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        probe = temporary_path(path)
        probe.touch()
        probe.unlink()
