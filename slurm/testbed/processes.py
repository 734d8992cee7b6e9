"""The processes of a testbed: started in new sessions, found again by any process, and all killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from slurm.testbed.config import Unusable

DAEMON = "SLURM_TESTBED_DAEMON"  # in the environment of all daemons, and of the steps that they start


def spawn(command: list[str], environment: Mapping[str, str], log: Path) -> int:
    """Starts a daemon that outlives this process; its output is appended to `log`. Returns its pid."""
    outputs = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(command[0], command, environment, file_actions=outputs, setsid=True)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    with suppress(ChildProcessError):  # not a child of this process
        os.waitpid(pid, os.WNOHANG)
    return stat(pid)[:1] not in ([], ["Z"])


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if there is no such process."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except (FileNotFoundError, ProcessLookupError):
        return []


def members(conf: Path) -> dict[int, str]:
    """The pids of the testbed with this slurm.conf, each with the daemon that it is or descends from, if any.

    They are its daemons, jobs and their descendants, but not commands such as srun, nor this process and its
    ancestors.
    """
    parents = {pid: int(fields[1]) for pid in all_pids() if (fields := stat(pid)) and fields[0] != "Z"}
    marked = {pid: name for pid in parents if (name := mark(pid, conf)) is not None}
    own, pid = set[int](), os.getpid()
    while pid:
        own.add(pid)
        pid = parents.get(pid, 0)
    found = dict[int, str]()
    for pid in parents:
        ancestor = pid
        while ancestor and ancestor not in marked:
            ancestor = parents.get(ancestor, 0)
        if ancestor and pid not in own:
            found[pid] = marked[ancestor]
    return found


def all_pids() -> list[int]:
    """The pids of all processes of the machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def mark(pid: int, conf: Path) -> str | None:
    """The daemon's name for a daemon or its child, an empty text for a job's process, and None otherwise."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        values = dict(line.split(b"=", 1) for line in lines if b"=" in line)
        if values.get(b"SLURM_CONF") == os.fsencode(conf):
            name = values.get(DAEMON.encode())
            return name.decode() if name is not None else "" if b"SLURM_JOB_ID" in values else None
        # The steps' daemons overwrite their environment with a title; an open log identifies the testbed.
        return "step" if not values and is_slurms(pid) and has_open(pid, conf.parent) else None
    except OSError:  # it has ended, or is the kernel's
        return None


def is_slurms(pid: int) -> bool:
    """Whether the program is one of Slurm's daemons, whatever its title."""
    return Path(f"/proc/{pid}/exe").readlink().name.startswith("slurm")


def has_open(pid: int, folder: Path) -> bool:
    """Whether the process has a file open that is, or was, in `folder`; False if that is unknown."""
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if path.readlink().is_relative_to(folder):
                    return True
    return False


def kill_all(conf: Path, timeout_s: float = 20) -> None:
    """Kills the testbed's processes until two searches in a row find none: one search misses processes that
    are just executing another program.
    """
    until, quiet = time.monotonic() + timeout_s, 0
    while quiet < 2:
        left = [pid for pid in members(conf) if is_alive(pid)]
        if left and time.monotonic() > until:
            raise Unusable(f"these processes cannot be killed: {', '.join(map(str, left))}")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        time.sleep(0.02)
