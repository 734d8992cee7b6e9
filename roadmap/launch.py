"""Which of the processes of a run this one is, as torchrun, srun or submitit tell it in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from roadmap.strict_yaml import ConfigError, Problem

FIRST_PORT, PORTS = 20_000, 12_000  # below those that systems hand out by themselves
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """Process `rank` of `size`, the `local_rank`-th on its machine; all meet at `address`:`port`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def launched() -> Launch:
    """This process's place; a process that nobody launched with others is alone. ConfigError if it is told half of it.

    Under srun and submitit all meet on the job's first host, at a port that follows from the job's id.
    """
    env = os.environ
    if "RANK" in env or "WORLD_SIZE" in env:
        return _torchrun()
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in env:
        return _slurm()
    if env.get("SUBMITIT_EXECUTOR") == "local" and int(env.get("SUBMITIT_LOCAL_NTASKS", 1)) > 1:
        rank, local, size = (int(env[f"SUBMITIT_LOCAL_{name}"]) for name in ("GLOBALID", "LOCALID", "NTASKS"))
        return Launch(rank, size, local, port=_port(env["SUBMITIT_LOCAL_JOB_ID"]))
    return Launch()


def _torchrun() -> Launch:
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        there = [name for name in TORCHRUN if name not in missing]
        raise ConfigError([Problem(" and ".join(there), f"set, but not {', '.join(missing)}; launch several processes with torchrun")])
    rank, size, local = (int(os.environ[name]) for name in TORCHRUN[:3])
    return Launch(rank, size, local, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])) if size > 1 else Launch()


def _slurm() -> Launch:
    from submitit.slurm.slurm import SlurmJobEnvironment

    hosts = SlurmJobEnvironment().hostnames
    rank, size, local = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID"))
    return Launch(rank, size, local, hosts[0], _port(os.environ["SLURM_JOB_ID"] + os.environ.get("SLURM_STEP_ID", "")))


def _port(job: str) -> int:
    return FIRST_PORT + int("".join(filter(str.isdigit, job)) or 0) % PORTS
