"""One run at a terminal: what it would cost, its training with a live bar, its evaluation."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from blocks import complexity, describe
from roadmap.check_data import check_data
from roadmap.digits import TRAIN_IMAGES
from roadmap.lease import LeaseHeld, LeaseLost
from roadmap.progress import LiveProgress
from roadmap.recipe import RunConfig
from roadmap.records import DamagedResult, find_runs, prepare, read_result, run_dir_of
from roadmap.stopping import Stopped, StopSignals
from roadmap.strict_yaml import relative

HELD = 75  # EX_TEMPFAIL: nothing is wrong, somebody else is at it


def print_plan(config: RunConfig, runs: Path) -> int:
    """The network, its cost, and what training it takes; nothing is trained or written."""
    model, recipe = config.model, config.recipe
    cost = complexity(model, config.data.image_size)
    widths = [model.stage_width(stage) for stage in range(len(model.depths))]
    lr = recipe.lr * recipe.lr_scale
    images = training_images(config)
    rows = [
        ("step", f"{config.step} of {config.roadmap}, profile {config.profile or 'none'}, seed {config.seed}, configuration {config.hash}"),
        ("block", describe(model.block)),
        ("stages", f"depths {list(model.depths)}, widths {widths}"),
        ("parameters", f"{cost.params / 1e6:.3f} M"),
        ("forward", f"{cost.gmacs:.4f} GMACs an image of {config.data.image_size} px"),
        ("budget", f"{recipe.epochs} epochs, batch {recipe.global_batch}, {recipe.optimizer} at lr {lr:g}, {recipe.precision}"),
    ]
    if images is None:
        rows.append(("cost", f"{3 * cost.gmacs:.4f} GMACs a training image (forward and backward); set system.data_dir for the total"))
    else:
        total = 3 * cost.macs * images * recipe.epochs
        rows.append(("cost", f"{total / 1e12:,.3g} TMACs (forward and backward) for {recipe.epochs} x {images:,} images"))
        rows.append(("time", _forecast(config, runs, images * recipe.epochs)))
    rows.append(("run", relative(run_dir_of(runs, config).path)))
    for name, text in rows:
        print(f"{name:<11} {text}")
    return 0


def training_images(config: RunConfig) -> int | None:
    """How many images an epoch has, or None where the data is not at hand."""
    if config.data.dataset == "digits":
        return TRAIN_IMAGES * config.data.copies
    folder = Path(config.system.data_dir or "") / "train"
    if config.system.data_dir is None or not folder.is_dir():
        return None
    return sum(len(files) for _, _, files in os.walk(folder, followlinks=True))


def _forecast(config: RunConfig, runs: Path, images: int) -> str:
    """Training time at the speed of the finished runs of this configuration."""
    speeds: dict[str, list[float]] = {}
    folder = run_dir_of(runs, config).path.parent
    for run in find_runs(folder) if folder.is_dir() else []:
        try:
            result = read_result(run)
        except DamagedResult:
            continue
        if result is not None and result.hash == config.hash:
            speeds.setdefault(result.hardware, []).append(result.images_per_s)
    if not speeds:
        return "unknown: no run of this configuration has finished yet"
    return "; ".join(
        f"{images / (sum(known) / len(known)):,.0f} s at {sum(known) / len(known):,.0f} images/s (n = {len(known)}, {hardware})"
        for hardware, known in speeds.items()
    )


def train_run(config: RunConfig, runs: Path) -> int:
    """Trains a run in its directory under `runs` with a live bar; returns the exit code."""
    console = _console()
    check_data(config)
    with console.status("importing PyTorch and timm"):
        from roadmap.train import select_device, train
    select_device(config)
    run = prepare(runs, config)
    console.print(f"{config.step} seed {config.seed}: {describe(config.model.block)}", highlight=False)
    with StopSignals() as stop:
        try:
            with LiveProgress(console, config.step) as progress:
                result = train(config, run.path, stop=stop, watch=progress)
        except Stopped as stopped:
            console.print(f"stopped by {stopped}; the same command goes on from here", highlight=False)
            return 128 + (stop.signal or 0)
        except (LeaseHeld, LeaseLost) as error:
            console.print(str(error), highlight=False)
            return HELD
        except OSError as error:
            console.print(f"{error}; the last whole checkpoint is intact, the same command goes on from there", highlight=False)
            return 1
    if result.top1 is None:
        console.print(f"diverged in epoch {result.epochs + 1}: the loss is not finite", highlight=False)
    else:
        console.print(f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, {result.images_per_s:.0f} images/s", highlight=False)
    console.print(relative(run.result), highlight=False, soft_wrap=True)
    return 0


def evaluate_run(config: RunConfig, runs: Path) -> int:
    """Evaluates the run's last checkpoint; returns the exit code."""
    _console()
    from roadmap.train import evaluate

    epochs, scores, ema = evaluate(config, run_dir_of(runs, config).path)
    average = f"; moving average: top-1 {ema.top1:.2f} %" if ema else ""
    figures = f"top-1 {scores.top1:.2f} %, top-5 {scores.top5:.2f} %, loss {scores.loss:.4f}{average}"
    print(f"after epoch {epochs} of {config.recipe.epochs}: {figures}")
    return 0


def _console() -> Console:
    """Where people read; warnings go there, too, above the bar."""
    console = Console(file=sys.stderr)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    return console
