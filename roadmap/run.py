"""One run at a terminal: its plan with an estimate, or its training with a progress bar."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from blocks import Complexity, ModelSpec, complexity
from roadmap.batches import plan_batches
from roadmap.config import RunConfig
from roadmap.data.preflight import check_data
from roadmap.data.workers import expected_rate
from roadmap.disk import disk_error
from roadmap.errors import ConfigError, config_error, relative
from roadmap.estimate import finished_results, training_images, training_seconds
from roadmap.lease import LeaseHeld, LeaseLost
from roadmap.records import Result, RunDir, prepare, run_dir_of
from roadmap.signals import Stopped, StopSignals
from roadmap.terminal import count
from roadmap.training.callbacks import Callback, Callbacks, LiveProgress, check_trackers, make_trackers
from roadmap.training.initial_weights import check_init
from roadmap.training.launch import launched

EXIT_BUSY = 75  # EX_TEMPFAIL: nothing is wrong, but another process works on the run


def print_plan(config: RunConfig, runs: Path) -> int:
    """Prints the network, its cost, and an estimate of its training; writes nothing."""
    recipe, (cost, macs) = config.recipe, _costs(config)
    identity = f"{config.step} of {config.roadmap}, profile {config.profile or 'none'}, seed {config.seed}"
    optimizer = f"{recipe.optimizer} at lr {recipe.peak_lr:g}, {recipe.precision}"
    rows = [
        ("step", f"{identity}, configuration {config.hash}"),
        *_network(config),
        ("parameters", f"{cost.params / 1e6:.3f} M"),
        ("forward", f"{cost.gmacs:.4f} GMACs an image of {config.data.image_size} px"),
        ("budget", f"{count(recipe.epochs, 'epoch')}, batch {recipe.global_batch}, {optimizer}"),
        ("processes", f"{'; '.join(_batch_plans(config))} (gradient accumulation x micro-batch of each)"),
        *_estimates(config, runs, macs),
        *([("loading", rate)] if (rate := expected_rate(config)) else []),
        ("run", relative(run_dir_of(runs, config).path)),
    ]
    for name, text in rows:
        print(f"{name:<11} {text}")
    return 0


def _costs(config: RunConfig) -> tuple[Complexity, int]:
    """The network's cost, and the multiply-adds of training for one image; those of timm's are counted."""
    if isinstance(config.model, ModelSpec):
        cost = complexity(config.model, config.data.image_size)
        return cost, config.training_macs(cost)
    from roadmap.networks import costs_of

    return costs_of(config)


def _network(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The network in words."""
    model = config.model
    yield "block" if isinstance(model, ModelSpec) else "network", config.architecture
    if isinstance(model, ModelSpec):
        widths = [model.stage_width(stage) for stage in range(len(model.depths))]
        yield "stages", f"depths {list(model.depths)}, widths {widths}"


def _batch_plans(config: RunConfig) -> Iterator[str]:
    """How common numbers of processes share the batch."""
    for world in (1, 8, 32):
        try:
            plan = plan_batches(config, world)
        except ConfigError:
            continue
        yield f"{world}: {plan.accumulation} x {count(plan.micro, 'image')}"


def _data_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Why training on the data would not start on this machine."""
    try:
        check_data(config, here=False)  # which writes nothing
    except ConfigError as error:
        for problem in error.problems:
            yield "data", f"{problem}: training will not start here"


def _estimates(config: RunConfig, runs: Path, macs: int) -> Iterator[tuple[str, str]]:
    """The cost of training at `macs` an image, and its time at the speed of the finished runs of this
    configuration.
    """
    images, epochs = training_images(config), config.recipe.epochs
    if images is None:
        image = f"{macs / 1e9:.4f} GMACs a training image (forward and backward)"
        yield "cost", f"{image}; set system.data_dir for the total"
        if config.system.data_dir is not None:
            yield from _data_problems(config)
        return
    if images < (batch := config.recipe.global_batch):
        yield "data", f"{images:,} training images, less than a batch of {batch:,}: training will not start"
    total = macs * images * epochs / 1e12
    yield (
        "cost",
        f"{total:,.3g} TMACs (forward and backward) for {count(epochs, 'epoch')} of {images:,} images",
    )
    by_hardware: dict[str, list[Result]] = {}
    for result in finished_results(config, runs):
        by_hardware.setdefault(result.hardware, []).append(result)
    texts = []
    for hardware, results in by_hardware.items():
        if (seconds := training_seconds(images * epochs, results)) is not None:
            speed = images * epochs / seconds
            texts.append(f"{seconds:,.0f} s at {speed:,.0f} images/s (n = {len(results)}, {hardware})")
    yield "time", "; ".join(texts) or "unknown: no run of this configuration has finished yet"


def train_run(config: RunConfig, runs: Path, profile_steps: int | None = None) -> int:
    """Trains a run in its directory under `runs`, together with the processes launched with this one; returns
    the exit code.

    Rank 0 shows a progress bar, and profiles `profile_steps` iterations if given.
    """
    launch = launched()
    console = _console(quiet=launch.rank > 0)
    check_data(config)
    check_init(config)
    check_trackers(config)
    plan_batches(config, launch.size)
    if profile_steps is not None and profile_steps < 1:
        raise config_error("--profile-steps", f"must be at least 1, not {profile_steps}")
    with StopSignals() as stop:
        try:
            with stop.at_once(), console.status("importing PyTorch and timm"):
                from roadmap.train import train
                from roadmap.training.device import select_device
                from roadmap.training.distributed import joined
            cuda = select_device(config).type == "cuda"
            with joined(stop) as world:
                run = world.from_rank0(lambda: prepare(runs, config))
                _print_start(console, config, run)
                made = _callbacks(config, run, console, profile_steps, cuda) if world.first else Callback()
                with made as watch:
                    result = train(config, run.path, stop=stop, callback=watch, world=world)
        except Stopped as stopped:
            console.print(f"stopped by {stopped}; the same command resumes the run", highlight=False)
            return 128 + (stop.signal or signal.SIGTERM)
        except (LeaseHeld, LeaseLost) as error:
            console.print(str(error), highlight=False)
            return EXIT_BUSY
        except (OSError, RuntimeError) as error:
            if (message := _explained(error)) is None:
                raise
            print(message, file=sys.stderr)
            return 1
    _print_result(console, result)
    console.print(relative(run.result), highlight=False, soft_wrap=True)
    return 0


def _print_start(console: Console, config: RunConfig, run: RunDir) -> None:
    """Prints the block, and first that the run is finished and on which data, which is not in its hash."""
    if run.result.exists():
        before, now = RunConfig.read(run.config).system.data_dir, config.system.data_dir
        elsewhere = (
            f", with the data in {before}, not in {now}; --runs DIR trains it in another folder"
            if before and now and before != now
            else ""
        )
        console.print(f"the run is finished already{elsewhere}", highlight=False, soft_wrap=True)
    console.print(f"{config.step} seed {config.seed}: {config.architecture}", highlight=False)


def _explained(error: Exception) -> str | None:
    """The message for an error that a user can act on; None for any other."""
    from roadmap.data.corrupt import CorruptImages
    from roadmap.training.device import OutOfMemory

    if isinstance(error, CorruptImages):
        return str(error)
    if isinstance(error, OSError | OutOfMemory):
        return (
            f"{disk_error(error) or error}; the same command resumes from the last intact checkpoint, if"
            " there is one"
        )
    return None


def _callbacks(
    config: RunConfig, run: RunDir, console: Console, profile_steps: int | None, cuda: bool
) -> Callback:
    callbacks = [LiveProgress(console, config.step), make_trackers(config, run.path)]
    if profile_steps is not None:
        from roadmap.training.profiler import Profiler

        callbacks.append(Profiler(run.path, profile_steps, cuda=cuda))
    return Callbacks(callbacks)


def _print_result(console: Console, result: Result) -> None:
    if result.top1 is None:
        console.print(f"diverged in epoch {result.epochs + 1}: the loss is not finite", highlight=False)
        return
    ema = "" if result.ema_top1 is None else f", EMA top-1 {result.ema_top1:.2f} %"
    console.print(
        f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %{ema}, {result.images_per_s:.0f} images/s",
        highlight=False,
    )
    if result.corrupt_images:
        console.print(f"{result.corrupt_images} images could not be read and were skipped", highlight=False)


def _console(quiet: bool = False) -> Console:
    """Standard error, where warnings are printed above the progress bar."""
    # text may hold a user's names, which are not markup
    console = Console(file=sys.stderr, quiet=quiet, markup=False, emoji=False)
    handler = RichHandler(
        console=Console(file=sys.stderr) if quiet else console, show_path=False, show_time=False
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    return console
