"""Real processes that train a run together, forked from a server that has PyTorch imported already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from roadmap.config import RunConfig
from roadmap.records import RunDir, prepare
from roadmap.signals import Stopped, StopSignals
from roadmap.train import train
from roadmap.training.distributed import Distributed, joined
from tests.helpers.stopping import After

SERVER = multiprocessing.get_context("forkserver")
# with what a run, a plan or a report imports only when it comes to it
PRELOADED = """
roadmap.train roadmap.run roadmap.report.write roadmap.training.compiled slurm.submission slurm.worker
blocks.depthwise torch.utils.flop_counter sklearn.datasets matplotlib.pyplot scipy.stats
tests.helpers.processes tests.helpers.commands
"""
SERVER.set_forkserver_preload(PRELOADED.split())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _enter(launch: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= launch
    with joined(StopSignals()) as world:
        function(world, *arguments)


def start(
    size: int, function: Callable[..., None], *arguments: Any, enter: Callable[..., None] = _enter
) -> list[BaseProcess]:
    """`size` processes, each of which calls function(world, *arguments)."""
    port = free_port()
    processes: list[BaseProcess] = []
    for rank in range(size):
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        launch = {name: str(value) for name, value in names.items()}
        processes.append(SERVER.Process(target=enter, args=(launch, function, arguments), daemon=True))
    for process in processes:
        process.start()
    return processes


def finish(processes: list[BaseProcess], timeout: float = 120) -> list[int | None]:
    """Their exit codes; those that hang are killed, and have none."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def train_together(
    world: Distributed, config: RunConfig, runs: Path, signal_at: tuple[int, int] | None = None
) -> None:
    """Trains a run; rank 0 sends itself the signal `signal_at[0]` after `signal_at[1]` iterations."""
    callback = None
    if signal_at and world.first:
        number, iterations = signal_at
        callback = After(iterations, partial(os.kill, os.getpid(), number))
    run: RunDir = world.from_rank0(lambda: prepare(runs, config))
    with StopSignals() as stop:
        try:
            train(config, run.path, stop=stop, callback=callback, world=world)
        except Stopped:
            return
