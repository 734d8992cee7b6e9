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
from torch import Tensor
from torch.utils.data import Dataset

from roadmap.batches import BatchPlan
from roadmap.config import RunConfig
from roadmap.data.corrupt import CorruptImages
from roadmap.data.datasets import make_source
from roadmap.data.loader import Loader
from roadmap.data.locate import STREAMS, class_names, data_dir, is_remote, kind_of
from roadmap.data.staging import stage
from roadmap.errors import ConfigError, config_error, relative
from roadmap.files import temporary_path, write_atomic, write_errors
from roadmap.networks import build_network
from roadmap.records import RunDir, check_config, run_dir_of
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.device import select_device, set_up
from roadmap.training.distributed import Distributed
from roadmap.training.metrics import EvalMetrics, evaluate
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
ALONE = BatchPlan(world=1, micro=1, accumulation=1, group=1)  # one process; evaluation ignores the rest
TITLES: dict[Kind, str] = {"raw": "weights", "ema": "EMA"}
PREFIXES: dict[Kind, str] = {"raw": "", "ema": "ema_"}


@dataclass(frozen=True)
class ClassLabels:
    """The `names` of the data's classes by label, None if unknown, and the network's `outputs` for them, None
    for all as they are.
    """

    names: list[str] | None = None
    outputs: list[int] | None = None


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a network, and for each class the number of its images, of those ranked first, and of
    those among the first five.
    """

    metrics: EvalMetrics
    classes: list[tuple[int, int, int]]
    labels: ClassLabels


@dataclass(frozen=True)
class CheckpointToEvaluate:
    """The tensors of a checkpoint, raw or EMA, in any dialect; `where` it is, and `about` it for the report.

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


def find_file(source: str, classes: list[str] | None = None) -> CheckpointToEvaluate:
    """A checkpoint from anywhere, as `roadmap.weights` reads it."""
    weights = read_weights(source, classes)
    return CheckpointToEvaluate(name_of(source), name_of(source), weights.states, weights.classes)


def find_run(config: RunConfig, run: RunDir) -> CheckpointToEvaluate:
    """The run's newest intact checkpoint; ConfigError if there is none or it is another configuration's."""
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
    return CheckpointToEvaluate(
        relative(run.path), about, states, state.get("data", {}).get("classes"), of_run=True
    )


def match_classes(
    found: CheckpointToEvaluate, view: RunConfig, data: Dataset[Any] | None = None
) -> tuple[RunConfig, ClassLabels]:
    """The configuration that reads the data as it is, and its classes with the outputs of the network found
    that stand for them.

    They are matched by name where both sides have names; the data may have some of the network's classes
    only. ConfigError if it has others, or where it has some only and nothing names them.
    """
    names, outputs, split = found.classes, view.model.num_classes, view.data.val_split
    if names is not None and len(names) != outputs:
        raise config_error(
            found.named_by or found.where, f"names {len(names)} classes, the model has {outputs} outputs"
        )
    if kind_of(view.data) == "folder" and data is None and not is_remote(view):
        view = _reading_val_alone(view, names is not None)
    here, complete = _names_of_data(view, data)
    if here is None or names is None:
        if here is not None and len(here) != outputs and complete:
            raise config_error(
                f"dataset '{view.data.dataset}'",
                f"has {len(here)} classes in {split}, the model {outputs}; {CLASS_MAP_HINT}",
            )
        if here is not None and not found.of_run and is_ambiguous(here):
            logger.warning(UNKNOWN_ORDER, found.where, some(here))
        return view, ClassLabels(here if here and len(here) == outputs else names)
    if here == names or (not complete and here == names[: len(here)]):
        return view, ClassLabels(names)
    matched = outputs_of(here, names, found.named_by or found.where)
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
    return view.model_copy(update={"model": model}), ClassLabels(here, matched)


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
    """The names of the data's classes, by label, None if unknown; and whether these are certainly
    all of its labels.

    Shards only know the labels of the images that they have.
    """
    if data is None and kind_of(view.data) in STREAMS:
        return None, False
    if data is None and kind_of(view.data) == "folder" and not is_remote(view):
        return class_names(view), True  # without listing the images
    source = make_source(stage(view), "val", data)
    return source.class_names, source.num_classes is not None


def evaluate_found(
    found: CheckpointToEvaluate, view: RunConfig, kind: Kind | None = None, data: Dataset[Any] | None = None
) -> dict[Kind, Evaluation]:
    """Each of the weights found, or those of one kind, on the images as `view` has them, in one process.

    `data` stands in for the validation images of a configuration whose dataset is `custom/NAME`. ConfigError
    if network, weights and data do not fit each other. Of a network with more classes than the data, as with
    ImageNet-A, the other outputs do not count.
    """
    states = found.of(kind)
    networks = [build_network(view) for _ in states]
    for network, state in zip(networks, states.values(), strict=True):
        copy_weights(network, state, found.where)  # to fail before the data is read
    view, labels = match_classes(found, view, data)
    device = select_device(view, training=False)
    set_up(view, device)
    once = view.system.model_copy(update={"cache": "none"})  # all images are read once
    loader = Loader(stage(view.model_copy(update={"system": once})), "val", device, plan=ALONE, source=data)
    for network in networks:
        network.to(device).to(memory_format=torch.channels_last)
    counts = torch.zeros(len(networks), view.model.num_classes, 3, device=device, dtype=torch.int64)
    metrics = evaluate(
        networks,
        loader.epoch(),
        view,
        device,
        Distributed(),
        outputs=labels.outputs,
        per_class=counts.unbind(),
    )
    classes = [[(images, first, five) for images, first, five in rows] for rows in counts.tolist()]
    return {
        each: Evaluation(found_metrics, found_classes, labels)
        for each, found_metrics, found_classes in zip(states, metrics, classes, strict=True)
    }


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
    """Prints the metrics of the run's last checkpoint, or of the weights in `source` without any run;
    returns the exit code.

    `view` is the configuration with the resolution and crop of the evaluation, `per_class` the file for the
    metrics of each class. `class_map` are the names of the network's classes in the order of its outputs,
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


def report(found: CheckpointToEvaluate, view: RunConfig, evaluations: Mapping[Kind, Evaluation]) -> list[str]:
    """What was evaluated, on what, and a line of metrics for each of the weights."""
    recipe, first = view.recipe, next(iter(evaluations.values()))
    classes, unreadable = len(first.classes), first.metrics.unreadable
    some = f", {classes} of {view.model.num_classes} classes" if classes < view.model.num_classes else ""
    left_out = f", {unreadable:,} unreadable left out" if unreadable else ""
    lines = [
        f"{found.about}: {first.metrics.images:,} images of {view.data.image_size} px, crop"
        f" {recipe.eval_crop_pct:g} {recipe.eval_crop_mode}{some}{left_out}"
    ]
    for kind, evaluation in evaluations.items():
        metrics = evaluation.metrics
        lines.append(
            f"{TITLES[kind]}: top-1 {metrics.top1:.2f} %, top-5 {metrics.top5:.2f} %, loss {metrics.loss:.4f}"
        )
    return lines


def table(evaluations: Mapping[Kind, Evaluation]) -> str:
    """One CSV line per class, in the order of the network's outputs; accuracies are percent, and empty for a
    class without images.
    """
    rows = {kind: evaluation.classes for kind, evaluation in evaluations.items()}
    columns = [f"{PREFIXES[kind]}{metric}" for kind in rows for metric in ("top1", "top5")]
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
    """ConfigError where `path` cannot be written, before the evaluation."""
    with write_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        probe = temporary_path(path)
        probe.touch()
        probe.unlink()
