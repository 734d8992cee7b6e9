"""The files of a testbed, and the configuration of its daemons."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

LONGEST_SOCKET = 107  # bytes in the path of a Unix socket
# below those that the kernel uses for outgoing connections
LISTENING_PORTS = range(12_000, 30_000)


class Unusable(Exception):
    """Why a testbed cannot be started, or does not work."""


@dataclass(frozen=True)
class Settings:
    """The settings of a cluster of equal nodes, which may exceed the machine's resources."""

    nodes: int = 2
    cpus: int = 8
    memory_mb: int = 64_000
    gpus: int = 8
    accounting: bool = True
    max_array_size: int = 1001
    grace_s: int = 10
    slurmd_timeout_s: int = 30


@dataclass(frozen=True)
class Plan:
    """A testbed's folder, its settings, and the ports of its daemons."""

    folder: Path
    settings: Settings
    ports: dict[str, int]

    @classmethod
    def make(cls, folder: Path, settings: Settings) -> Plan:
        """A plan with ports that are free now."""
        names = ["slurmctld", "slurmdbd", *nodes_of(settings)]
        return cls(folder, settings, dict(zip(names, free_ports(len(names)), strict=True)))

    @classmethod
    def read(cls, folder: Path) -> Plan | None:
        """The plan of the last start in `folder`, or None."""
        try:
            record = json.loads((folder / "testbed.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(folder, Settings(**record["settings"]), record["ports"])

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes: n1, n2, ..."""
        return nodes_of(self.settings)

    @property
    def conf(self) -> Path:
        """The value of SLURM_CONF."""
        return self.folder / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge.socket"

    @property
    def database_socket(self) -> Path:
        return self.folder / "mariadb.socket"

    @property
    def logs(self) -> Path:
        """The folder of the daemons' logs, which `stop` leaves in place."""
        return self.folder / "log"

    def write(self, cgroup_plugin: str) -> None:
        """Writes all files into the folder, which must be empty."""
        if len(os.fsencode(self.database_socket)) > LONGEST_SOCKET:
            raise Unusable(f"{self.folder}: the path is too long for a socket; choose another with --folder")
        for name in (
            "log",
            "pid",
            "state",
            "spool",
            "database",
            "gpu",
            *(f"spool/{node}" for node in self.nodes),
        ):
            (self.folder / name).mkdir(mode=0o700)
        private(self.folder / "munge.key", secrets.token_bytes(128))
        private(self.folder / "slurmdbd.conf", slurmdbd_conf(self).encode())
        self.conf.write_text(slurm_conf(self), encoding="utf-8")
        for number in range(self.settings.gpus):  # a GPU must be a device; any will do
            (self.folder / "gpu" / f"gpu{number}").symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text(gres_conf(self), encoding="utf-8")
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={cgroup_plugin}\n", encoding="utf-8")
        record = {"settings": asdict(self.settings), "ports": self.ports}
        (self.folder / "testbed.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def nodes_of(settings: Settings) -> list[str]:
    """The names of the nodes: n1, n2, ..."""
    return [f"n{number}" for number in range(1, settings.nodes + 1)]


def gpu_types(settings: Settings) -> dict[str, range]:
    """The numbers of a node's GPUs by type, half of each."""
    half = (settings.gpus + 1) // 2
    types = {"a100": range(half), "h100": range(half, settings.gpus)}
    return {kind: numbers for kind, numbers in types.items() if numbers}


def free_ports(number: int) -> list[int]:
    """Free ports, drawn at random so that testbeds started at the same time do not choose the same."""
    with ExitStack() as held:

        def bindable() -> Iterator[int]:
            for port in random.sample(LISTENING_PORTS, len(LISTENING_PORTS)):
                listener = held.enter_context(socket.socket())
                try:
                    listener.bind(("", port))
                except OSError:
                    continue
                yield port

        return [port for port, _ in zip(bindable(), range(number), strict=False)]


def private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, as slurmdbd and munged require."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _scheduling(settings: Settings) -> str:
    """The part of slurm.conf about scheduling."""
    return f"""SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={settings.memory_mb // settings.cpus}
GresTypes=gpu
# Use the resources given here, not the machine's.
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
MaxArraySize={settings.max_array_size}
MinJobAge=300
KillWait=5
SlurmdTimeout={settings.slurmd_timeout_s}

# Jobs of the other partitions preempt those of `low`, which get the signal that they requested, \
and are requeued after the grace time.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
"""


def slurm_conf(plan: Plan) -> str:
    """The configuration of slurmctld, slurmd and all commands."""
    folder, settings, host = plan.folder, plan.settings, socket.gethostname().partition(".")[0]
    storage = f"""
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={plan.ports["slurmdbd"]}
AccountingStoragePass={plan.munge_socket}
AccountingStorageTRES=gres/gpu"""
    gres = (
        f"Gres={','.join(f'gpu:{kind}:{len(numbers)}' for kind, numbers in gpu_types(settings).items())} "
        if settings.gpus
        else ""
    )
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={plan.ports[name]} CPUs={settings.cpus}"
        f" RealMemory={settings.memory_mb} {gres}State=UNKNOWN"
        for name in plan.nodes
    )
    return f"""ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={plan.ports["slurmctld"]}
SlurmUser=root
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/pid/slurmctld.pid
SlurmdPidFile={folder}/pid/slurmd-%n.pid
# Steps log here; the daemons themselves log to their standard error.
SlurmdLogFile={folder}/log/steps-%n.log
SlurmdSyslogDebug=quiet
AuthType=auth/munge
# A requeued job waits until its credential has expired: by default for two minutes.
AuthInfo=socket={plan.munge_socket},cred_expire=10
# No cgroups: a container cannot change any.
ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/linux
{storage.strip() if settings.accounting else "# no accounting"}

{_scheduling(settings)}{nodes}
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=UNLIMITED PriorityTier=10 PreemptMode=OFF
PartitionName=main Default=YES
PartitionName=short MaxTime=2
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.grace_s}
"""


def gres_conf(plan: Plan) -> str:
    """The GPUs of a node; jobs get their numbers in CUDA_VISIBLE_DEVICES even if the machine has none."""
    return "".join(
        f"Name=gpu Type={kind} File={plan.folder}/gpu/gpu[{numbers[0]}-{numbers[-1]}]\n"
        for kind, numbers in gpu_types(plan.settings).items()
    )


def slurmdbd_conf(plan: Plan) -> str:
    """The configuration of slurmdbd, which creates its database; MYSQL_UNIX_PORT gives it the socket."""
    host = socket.gethostname().partition(".")[0]
    return f"""DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={plan.ports["slurmdbd"]}
SlurmUser=root
PidFile={plan.folder}/pid/slurmdbd.pid
AuthType=auth/munge
AuthInfo=socket={plan.munge_socket}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""
