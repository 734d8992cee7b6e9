"""The daemons of a testbed by name: started, found again, and killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from slurm.testbed.config import Plan, Unusable
from slurm.testbed.packages import executable, search_path
from slurm.testbed.processes import DAEMON, is_alive, members, spawn

# for a database that exists for minutes
MARIADB = ["--no-defaults", "--user=root", "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=32M"]
BOOTSTRAP = [*MARIADB, "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]


def commands(plan: Plan) -> dict[str, list[str]]:
    """The command line of each daemon, by its name and in the order in which they are started."""
    folder = plan.folder
    munged = (
        f"--key-file={folder}/munge.key --socket={plan.munge_socket} --pid-file={folder}/pid/munged.pid"
        f" --seed-file={folder}/munge.seed"
    )
    # --force: the folder may be closed to other users, which munged considers an error
    found = {"munged": ["munged", "--foreground", "--force", "--num-threads=10", *munged.split()]}
    if plan.settings.accounting:
        files = (
            f"--datadir={folder}/database --socket={plan.database_socket}"
            f" --pid-file={folder}/pid/mariadbd.pid"
        )
        found["mariadbd"] = ["mariadbd", *MARIADB, *files.split(), "--skip-networking"]
        found["slurmdbd"] = ["slurmdbd", "-D"]
    return (
        found
        | {"slurmctld": ["slurmctld", "-D"]}
        | {f"slurmd-{node}": ["slurmd", "-D", "-N", node] for node in plan.nodes}
    )


def environment(plan: Plan, name: str) -> dict[str, str]:
    """The environment of a daemon, without anything from the environment of this process."""
    known = {
        "PATH": search_path(),
        "LC_ALL": "C",
        "SLURM_CONF": str(plan.conf),
        "MYSQL_UNIX_PORT": str(plan.database_socket),
    }
    # MariaDB deletes temporary tables when it starts, and would delete another testbed's
    temporary = plan.folder / "temporary"
    temporary.mkdir(exist_ok=True)
    known["TMPDIR"] = str(temporary)
    # nothing here needs to survive a crash, and waiting for the disk would be most of the start
    return known | {DAEMON: name, "LD_PRELOAD": "libeatmydata.so"}


def start(plan: Plan, name: str) -> None:
    """Starts a daemon that does not run, without waiting for it."""
    if name in alive(plan):
        raise Unusable(f"{name} runs already")
    program, *options = commands(plan)[name]
    pid = spawn([executable(program), *options], environment(plan, name), plan.logs / f"{name}.log")
    (plan.folder / "pid" / name).write_text(f"{pid}\n", encoding="utf-8")


def kill(plan: Plan, name: str) -> None:
    """Kills a daemon with SIGKILL, but not its children; returns when it has ended."""
    pid = alive(plan).get(name)
    if pid is None:
        raise Unusable(f"{name} does not run")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid), f"{name} to die", 20)


def alive(plan: Plan) -> dict[str, int]:
    """The pids of the daemons that run."""
    found, marked = dict[str, int](), members(plan.conf)
    for name in commands(plan):
        with suppress(FileNotFoundError):
            pid = int((plan.folder / "pid" / name).read_text(encoding="utf-8"))
            if marked.get(pid) == name:  # otherwise it has died, and the pid may have been reused
                found[name] = pid
    return found


def make_database(plan: Plan) -> None:
    """Creates MariaDB's system tables; slurmdbd creates its own."""
    command = [executable("mariadb-install-db"), *BOOTSTRAP, f"--datadir={plan.folder}/database"]
    done = subprocess.run(command, env=environment(plan, ""), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unusable(f"mariadb-install-db failed: {done.stdout}{done.stderr}")


def database_answers(plan: Plan) -> bool:
    """Whether MariaDB accepts connections."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(plan.database_socket)) == 0


def wait_for(predicate: Callable[[], object], what: str, timeout_s: float) -> None:
    """Returns when `predicate` is true; Unusable after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > until:
            raise Unusable(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)
