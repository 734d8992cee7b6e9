"""This process's rank among those of a run, from the environment of torchrun, srun or submitit."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from roadmap.errors import config_error

FIRST_PORT, PORTS = 20_000, 12_000  # below those that systems assign
OUTER = re.compile(
    r"(TORCHELASTIC|SLURM|SUBMITIT|PMI|PMIX|OMPI)_\w+|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
)
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """Process `rank` of `size`, the `local_rank`-th on its machine; all meet at `address`:`port`.

    `because` names the variable that counts them, and `instead` the command that starts all of them,
    or this one alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    because: str = ""
    instead: str = ""

    @property
    def waits(self) -> str:
        """A message on the processes that this one waits for, why, and what to do if there are none."""
        others = "1 other process" if self.size == 2 else f"{self.size - 1} other processes"
        return (
            f"process {self.rank} waits for {others} at {self.address}:{self.port}, for {self.because} is"
            f" {self.size}; {self.instead}"
        )


def launched() -> Launch:
    """This process's rank; a process that was not launched with others is alone. ConfigError if the
    environment is incomplete.

    Under srun and submitit all meet on the job's first host, at a port that follows from the job's id.
    """
    env = os.environ
    if "RANK" in env or "WORLD_SIZE" in env:
        return _torchrun()
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env and _number("SLURM_STEP_NUM_TASKS") > 1:
        return _slurm()
    if env.get("SUBMITIT_EXECUTOR") == "local" and _number("SUBMITIT_LOCAL_NTASKS") > 1:
        rank, local, size = (_number(f"SUBMITIT_LOCAL_{name}") for name in ("GLOBALID", "LOCALID", "NTASKS"))
        return Launch(
            rank,
            size,
            local,
            "127.0.0.1",
            _port(env["SUBMITIT_LOCAL_JOB_ID"]),
            "SUBMITIT_LOCAL_NTASKS",
            "submitit starts all",
        )
    return Launch()


@contextmanager
def without_launcher() -> Iterator[None]:
    """Processes that are started inside do not inherit this one's launcher, such as in the shell of an
    interactive Slurm step.
    """
    before = {name: os.environ.pop(name) for name in list(os.environ) if OUTER.fullmatch(name)}
    try:
        yield
    finally:
        os.environ |= before


def _torchrun() -> Launch:
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        there = [name for name in TORCHRUN if name not in missing]
        raise config_error(
            " and ".join(there), f"set, but not {', '.join(missing)}; launch several processes with torchrun"
        )
    rank, size, local, port = (_number(name) for name in (*TORCHRUN[:3], "MASTER_PORT"))
    if not 0 <= rank < size:
        raise config_error(
            f"RANK {rank}", f"is not one of the {size} processes that WORLD_SIZE counts from 0"
        )
    instead = "torchrun starts all of them, and `env -u RANK -u WORLD_SIZE python …` this one alone"
    return (
        Launch(rank, size, local, os.environ["MASTER_ADDR"], port, "WORLD_SIZE", instead)
        if size > 1
        else Launch()
    )


def _slurm() -> Launch:
    from submitit.slurm.slurm import SlurmJobEnvironment

    rank, size, local, job = (
        _number(f"SLURM_{name}") for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID", "JOB_ID")
    )
    hosts = SlurmJobEnvironment().hostnames
    port = _port(f"{job}{os.environ.get('SLURM_STEP_ID', '')}")
    instead = (
        "`srun python …` starts all of them, and in the shell of an interactive step `env -u SLURM_PROCID"
        " python …` this one alone"
    )
    return Launch(rank, size, local, _address(hosts[0]), port, "SLURM_STEP_NUM_TASKS", instead)


def _address(node: str) -> str:
    """Where a node of Slurm is reached: at its name, unless Slurm alone knows that."""
    with suppress(OSError):
        socket.getaddrinfo(node, None)
        return node
    # scontrol may be out of reach, such as in a container
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["scontrol", "show", "node", node]
        answer = subprocess.run(
            asked, capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=False
        ).stdout
        if address := re.search(r"NodeAddr=(\S+)", answer):
            return address[1]
    return node


def _number(name: str) -> int:
    """A variable's value; ConfigError if it is not there or no number."""
    try:
        return int(os.environ[name])
    except (KeyError, ValueError) as error:
        message = f"is {os.environ.get(name, 'not set')!r}, which is no number; who launched this process?"
        raise config_error(name, message) from error


def _port(job: str) -> int:
    return FIRST_PORT + int("".join(filter(str.isdigit, job)) or 0) % PORTS
