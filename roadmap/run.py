"""One run at a terminal: what it would cost, its training with a live bar, its evaluation."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from blocks import complexity, describe
from roadmap.batches import plan_batches
from roadmap.config import RunConfig
from roadmap.data.digits import TRAIN_IMAGES
from roadmap.data.locate import class_folders, count_images, find_shards, is_remote, kind_of
from roadmap.data.preflight import check_data
from roadmap.disk import disk_error
from roadmap.lease import LeaseHeld, LeaseLost
from roadmap.records import RunDir, find_runs, prepare, read_result, run_dir_of
from roadmap.result import DamagedResult, NewerResult, Result
from roadmap.signals import Stopped, StopSignals
from roadmap.strict_yaml import ConfigError, Problem, relative
from roadmap.training.callbacks import Callback, Callbacks, LiveProgress, check_trackers, make_trackers
from roadmap.training.initial_weights import check_init
from roadmap.training.launch import launched

EXIT_BUSY = 75  # EX_TEMPFAIL: nothing is wrong, somebody else is at it


def print_plan(config: RunConfig, runs: Path) -> int:
    """The network, its cost, and what training it takes; nothing is trained or written."""
    model, recipe = config.model, config.recipe
    cost = complexity(model, config.data.image_size)
    widths = [model.stage_width(stage) for stage in range(len(model.depths))]
    images = training_images(config)
    rows = [
        (
            "step",
            (
                f"{config.step} of {config.roadmap}, profile {config.profile or 'none'}, seed {config.seed},"
                f" configuration {config.hash}"
            ),
        ),
        ("block", describe(model.block)),
        ("stages", f"depths {list(model.depths)}, widths {widths}"),
        ("parameters", f"{cost.params / 1e6:.3f} M"),
        ("forward", f"{cost.gmacs:.4f} GMACs an image of {config.data.image_size} px"),
        (
            "budget",
            (
                f"{recipe.epochs} epochs, batch {recipe.global_batch}, {recipe.optimizer} at lr"
                f" {recipe.peak_lr:g}, {recipe.precision}"
            ),
        ),
        ("processes", "; ".join(_shares(config))),
    ]
    if images is None:
        rows.append(
            (
                "cost",
                (
                    f"{3 * cost.gmacs:.4f} GMACs a training image (forward and backward); set system.data_dir"
                    " for the total"
                ),
            )
        )
    else:
        total = 3 * cost.macs * images * recipe.epochs
        rows.append(
            (
                "cost",
                f"{total / 1e12:,.3g} TMACs (forward and backward) for {recipe.epochs} x {images:,} images",
            )
        )
        rows.append(("time", _forecast(config, runs, images * recipe.epochs)))
    rows.append(("run", relative(run_dir_of(runs, config).path)))
    for name, text in rows:
        print(f"{name:<11} {text}")
    return 0


def _shares(config: RunConfig) -> Iterator[str]:
    """How one process and the machines that people have would share the batch."""
    for world in (1, 8, 32):
        try:
            plan = plan_batches(config, world)
        except ConfigError:
            continue
        yield f"{world}: {plan.accumulation} x {plan.micro} images each"


def training_images(config: RunConfig) -> int | None:
    """How many images an epoch has; None where the data is not at hand or would have to be read to know."""
    data, kind = config.data, kind_of(config.data)
    if kind == "synthetic":
        return data.images[0]
    if kind == "digits":
        return TRAIN_IMAGES * data.copies if data.classes is None else None
    if config.system.data_dir is None or is_remote(config) or kind not in ("folder", "shards"):
        return None
    root = Path(config.system.data_dir)
    try:
        if kind == "folder":
            folder = root / data.train_split
            return sum(count_images(folder / name) for name in data.classes or class_folders(folder)) or None
        names = find_shards(config, data.train_split)
    except ConfigError:
        return None
    from roadmap.data.shards import class_names_of, known_index  # which need NumPy

    index = known_index(root, names, data)
    if index is None:
        return None
    if data.classes is None:
        return len(index.label)
    called = class_names_of(index) or [str(label) for label in range(int(index.label.max()) + 1)]
    return sum(called[label] in data.classes for label in index.label.tolist())


def finished_results(config: RunConfig, runs: Path) -> Iterator[Result]:
    """The results below `runs` of this configuration, whatever the seed, each read once; files that cannot be
    read are left out.
    """
    mine = run_dir_of(runs, config)
    folder = mine.path.parent
    for run in find_runs(folder) if folder.is_dir() else []:
        if run.hash != mine.hash:
            continue
        with suppress(DamagedResult, NewerResult):
            if (result := read_result(run)) is not None:
                yield result


def _forecast(config: RunConfig, runs: Path, images: int) -> str:
    """Training time at the speed of the finished runs of this configuration."""
    speeds: dict[str, list[float]] = {}
    for result in finished_results(config, runs):
        speeds.setdefault(result.hardware, []).append(result.images_per_s)
    if not speeds:
        return "unknown: no run of this configuration has finished yet"
    return "; ".join(
        f"{images / (sum(known) / len(known)):,.0f} s at {sum(known) / len(known):,.0f} images/s (n ="
        f" {len(known)}, {hardware})"
        for hardware, known in speeds.items()
    )


def train_run(config: RunConfig, runs: Path, profile_steps: int | None = None) -> int:
    """Trains a run in its directory under `runs`, together with the processes launched beside this one;
    returns the exit code.

    The first process shows a live bar, and profiles `profile_steps` iterations if asked to.
    """
    launch = launched()
    console = _console(quiet=launch.rank > 0)
    check_data(config)
    check_init(config)
    check_trackers(config)
    plan_batches(config, launch.size)
    if profile_steps is not None and profile_steps < 1:
        raise ConfigError([Problem("--profile-steps", f"must be at least 1, not {profile_steps}")])
    with StopSignals() as stop:
        try:
            run, result = _trained(config, runs, stop, console, profile_steps)
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
    _report(console, result)
    console.print(relative(run.result), highlight=False, soft_wrap=True)
    return 0


def _trained(
    config: RunConfig, runs: Path, stop: StopSignals, console: Console, profile_steps: int | None
) -> tuple[RunDir, Result]:
    """The run with its result."""
    with stop.at_once(), console.status("importing PyTorch and timm"):
        from roadmap.train import train
        from roadmap.training.device import select_device
        from roadmap.training.distributed import joined
    select_device(config)
    with joined(stop) as world:
        run = world.from_rank0(lambda: prepare(runs, config))
        if run.result.exists():
            console.print(_finished(run, config), highlight=False, soft_wrap=True)
        console.print(f"{config.step} seed {config.seed}: {describe(config.model.block)}", highlight=False)
        with _watch(config, run, console, profile_steps) if world.first else Callback() as watch:
            return run, train(config, run.path, stop=stop, callback=watch, world=world)


def _finished(run: RunDir, config: RunConfig) -> str:
    """That a run is done, and on what, for where its data lies is no part of its configuration."""
    before, now = RunConfig.read(run.config).system.data_dir, config.system.data_dir
    elsewhere = (
        f", with the data in {before}, not in {now}; --runs DIR trains beside it"
        if before and now and before != now
        else ""
    )
    return f"the run is finished already{elsewhere}"


def _explained(error: Exception) -> str | None:
    """What a user can do about what ended a run; None for what only a developer can."""
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


def _watch(config: RunConfig, run: RunDir, console: Console, profile_steps: int | None) -> Callback:
    """Everybody who looks at the run."""
    watches = [LiveProgress(console, config.step), make_trackers(config, run.path)]
    if profile_steps is not None:
        from roadmap.training.profiler import Profiler

        watches.append(Profiler(run.path, profile_steps))
    return Callbacks(watches)


def _report(console: Console, result: Result) -> None:
    if result.top1 is None:
        console.print(f"diverged in epoch {result.epochs + 1}: the loss is not finite", highlight=False)
        return
    average = "" if result.ema_top1 is None else f", moving average {result.ema_top1:.2f} %"
    console.print(
        f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %{average}, {result.images_per_s:.0f} images/s",
        highlight=False,
    )
    if result.corrupt_images:
        console.print(f"{result.corrupt_images} images could not be read and were left out", highlight=False)


def _console(quiet: bool = False) -> Console:
    """Where people read; warnings go there, too, above the bar."""
    # text holds names of the user's
    console = Console(file=sys.stderr, quiet=quiet, markup=False, emoji=False)
    handler = RichHandler(
        console=Console(file=sys.stderr) if quiet else console, show_path=False, show_time=False
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    return console
