"""The Debian packages that a testbed needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm.testbed.config import Unusable

# of MariaDB only the parts without a service, a user and a database, since the testbed starts the server
PACKAGES = ["slurm-wlm", "slurmdbd", "munge", "mariadb-server-core", "mariadb-client-core", "libeatmydata1"]
NEEDED = ["munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo", "squeue", "scancel"]
NEEDED_FOR_ACCOUNTING = [
    "mariadbd",
    "mariadb-install-db",
    "my_print_defaults",
    "slurmdbd",
    "sacct",
    "sacctmgr",
]
POLICY = Path("/usr/sbin/policy-rc.d")


def search_path() -> str:
    """PATH with the folders of daemons, which a user's PATH often lacks."""
    words = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*words, "/usr/sbin", "/sbin", "/usr/bin"]))


def executable(name: str) -> str:
    """The path of a program."""
    path = shutil.which(name, path=search_path())
    if path is None:
        raise Unusable(f"{name} is not installed; `python -m slurm.testbed install` does it")
    return path


def cgroup_plugin() -> str:
    """The setting that keeps this version of Slurm from using cgroups, which a container may lack."""
    version = subprocess.run(
        [executable("slurmctld"), "-V"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    year, month = version.split(".")[:2]
    return "disabled" if (int(year), int(month)) >= (23, 11) else "cgroup/v1"


def hindrance(accounting: bool = True) -> str | None:
    """Why a testbed cannot be started here, or None."""
    if os.geteuid() != 0:
        return "a testbed needs root"
    names = NEEDED + NEEDED_FOR_ACCOUNTING * accounting
    missing = [name for name in names if shutil.which(name, path=search_path()) is None]
    return (
        f"not installed: {', '.join(missing)}; `python -m slurm.testbed install` does it on Debian"
        if missing
        else None
    )


def install() -> None:
    """Installs what is missing with apt-get; starts no service."""
    if os.geteuid() != 0:
        raise Unusable("only root can install packages")
    if hindrance() is None:
        return
    if shutil.which("apt-get") is None:
        raise Unusable(f"there is no apt-get here; install what Debian calls {', '.join(PACKAGES)}")
    with no_services():
        for words in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *PACKAGES]):
            command = ["apt-get", *words]
            done = subprocess.run(
                command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, check=False
            )
            if done.returncode:
                raise Unusable(f"`{' '.join(command)}` failed with exit code {done.returncode}")
    if reason := hindrance():
        raise Unusable(f"the packages are there, but not all that is needed: {reason}")


@contextmanager
def no_services() -> Iterator[None]:
    """Keeps packages installed inside from starting services, unless the machine has its own policy."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
