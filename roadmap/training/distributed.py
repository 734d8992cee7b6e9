"""The processes that train a run together: broadcasts, reductions, and agreement to stop or fail."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from roadmap.errors import config_error
from roadmap.signals import StopSignals, interruptible
from roadmap.training.device import gpu_of
from roadmap.training.launch import Launch, launched

T = TypeVar("T")
logger = logging.getLogger(__name__)
WARN_S = 15.0
TIMEOUT = timedelta(minutes=30)  # rank 0 may be saving to a slow file system, or staging data
ITERATION_TIMEOUT = timedelta(minutes=15)  # longer than a process waits for a batch before it fails itself
TENSOR_TIMEOUT = timedelta(minutes=20)  # later: NCCL's message names no cause


class Distributed:
    """All processes of a run, seen from one of them; without `launch`, a single process.

    Objects are exchanged in `group`. `gpu_problem` is why the processes cannot train on GPUs together.
    """

    def __init__(
        self, launch: Launch | None = None, group: Any = None, gpu_problem: str | None = None
    ) -> None:
        self.launch = launch or Launch()
        self.group = group
        self.gpu_problem = gpu_problem
        self.rank = self.launch.rank
        self.size = self.launch.size
        self.first = self.rank == 0

    def from_rank0(self, make: Callable[[], T]) -> T:
        """What `make` returns in rank 0, in all processes; an exception is raised in all, too."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except Exception as error:
                box[1] = error
        failure = box[1]
        dist.broadcast_object_list(box, group=self.group)
        if failure is not None or box[1] is not None:
            raise failure or box[1]
        result: T = box[0]
        return result

    def sum(self, value: Tensor) -> Tensor:
        """Adds up a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, in place."""
        return self.sum(value).div_(self.size) if self.size > 1 else value

    def check_gpus(self, device: str) -> None:
        """ConfigError, in all processes alike, if they are to train on GPUs and not each has its own."""
        if self.gpu_problem is not None and device in ("auto", "cuda"):
            fix = (
                "start a process per GPU, by torchrun's --nproc-per-node or Slurm's --gpus-per-task=1,"
                " or --set system.device=cpu"
            )
            raise config_error("system.device", f"{self.gpu_problem}; {fix}")

    def data_parallel(self, model: nn.Module, device: torch.device) -> DistributedDataParallel | None:
        """`model` with gradients that are averaged over the processes, None for a process alone.

        Running statistics stay each process's own: training does not use them, and evaluation syncs them.
        """
        if self.size == 1:
            return None
        devices = [device] if device.type == "cuda" else None
        ddp = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        ddp.broadcast_buffers = False  # the argument of this name warns in PyTorch 2.15, which has another
        return ddp

    def sync_buffers(self, model: nn.Module) -> None:
        """Gives every process rank 0's running statistics, because each has seen other images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order, in each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def raise_any(self, error: Exception | None) -> None:
        """Raises in all processes the first error that one of them has, if any."""
        for found in self.gather(error):
            if found is not None:
                raise found


class StopConsensus:
    """Flags that any process may raise and that all see at the same iteration, without waiting for the
    device or each other.

    All see in a call what was raised in the one before, which has long been exchanged; a process alone sees
    it at once. `lag` is the number of calls in between.
    """

    def __init__(self, world: Distributed) -> None:
        self.world = world
        self.pending: tuple[Any, Tensor] | None = None
        self.lag = 1 if world.size > 1 else 0
        # on the CPU, apart from the gradients' group
        self.group: Any = (
            dist.new_group(backend="gloo", timeout=ITERATION_TIMEOUT) if world.size > 1 else None
        )

    def poll(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process had raised it; RuntimeError if one does not take part."""
        if self.group is None:
            return list(flags)
        before, raised = self.pending, torch.tensor(flags, dtype=torch.int32)
        self.pending = (dist.all_reduce(raised, dist.ReduceOp.MAX, self.group, async_op=True), raised)
        if before is None:
            return [False for _ in flags]
        try:
            before[0].wait()
        except RuntimeError as error:
            if not re.search("time(d |)out", str(error), re.IGNORECASE):  # a process that died
                raise
            minutes = ITERATION_TIMEOUT.total_seconds() / 60
            raise RuntimeError(
                f"process {self.world.rank} of {self.world.size} has waited {minutes:.3g} minutes for another"
                " one to finish an iteration; check the others' logs, nvidia-smi on their nodes, and NCCL's"
                " log with NCCL_DEBUG=INFO"
            ) from error
        return [bool(flag) for flag in before[1].tolist()]


@contextmanager
def warned_of(launch: Launch) -> Iterator[None]:
    """Warns about the processes that are waited for, if the block takes longer than they need to start."""
    warning = threading.Timer(WARN_S, logger.warning, [launch.waits])
    warning.daemon = True
    warning.start()
    try:
        yield
    finally:
        warning.cancel()


def uuid_of(gpu: torch.device | None) -> str:
    """A GPU's identity, which is the same wherever it is visible; empty for none."""
    return "" if gpu is None else str(torch.cuda.get_device_properties(gpu).uuid)


def exchange_uuids(store: Any, rank: int, size: int, uuid: str) -> list[str]:
    """Those of all processes, in their order; waits for all."""
    store.set(f"gpu of {rank}", uuid)
    return [store.get(f"gpu of {other}").decode() for other in range(size)]


def gpu_problem(uuids: Sequence[str]) -> str | None:
    """Why processes with these GPUs cannot train on them; None if they can, or if there is no GPU at all."""
    if not any(uuids):
        return None
    if "" in uuids:
        return f"process {uuids.index('')} has no GPU to itself, and others have one"
    first: dict[str, int] = {}
    for rank, uuid in enumerate(uuids):
        if (other := first.setdefault(uuid, rank)) != rank:
            return f"processes {other} and {rank} have the same GPU, {uuid}"
    return None


@contextmanager
def joined(stop: StopSignals) -> Iterator[Distributed]:
    """The processes that this one was launched with, connected for as long as the block lasts.

    While it waits for the others, signals end it at once, and so does one that `stop` has caught before.
    """
    launch = launched()
    if launch.size == 1:
        yield Distributed()
        return
    number = gpu_of(launch.local_rank) if torch.cuda.is_available() else None
    gpu = None if number is None else torch.device("cuda", number)
    os.environ |= {"MASTER_ADDR": launch.address, "MASTER_PORT": str(launch.port)}
    with interruptible(), warned_of(launch):
        stop.obey()
        try:
            store, rank, size = next(rendezvous("env://", launch.rank, launch.size, timeout=TIMEOUT))
            # NCCL would fail where two processes share a GPU, also if they are to train on the CPU
            problem = gpu_problem(exchange_uuids(store, rank, size, uuid_of(gpu)))
            if problem is not None:
                gpu = None
            if gpu is not None:
                torch.cuda.set_device(gpu)
            dist.init_process_group(
                "gloo" if gpu is None else "cpu:gloo,cuda:nccl",
                store=store,
                rank=rank,
                world_size=size,
                timeout=TENSOR_TIMEOUT,
                device_id=gpu,
            )
            group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        except RuntimeError as error:  # a port that is taken, or processes that did not come
            raise config_error(
                "the processes do not meet:", f"{launch.waits} ({str(error).splitlines()[0]})"
            ) from error
    yield Distributed(launch, group, problem)
    dist.destroy_process_group()  # after an error it would wait for processes that have none
