"""A testbed: starts and stops all daemons, kills single ones, and runs commands."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from slurm.testbed import daemons
from slurm.testbed.config import Plan, Settings, Unusable
from slurm.testbed.packages import cgroup_plugin, hindrance, search_path
from slurm.testbed.processes import kill_all, members

# by `stop`, to find out later what happened
KEPT = {"log", "testbed.json", "slurm.conf", "slurmdbd.conf", "gres.conf", "cgroup.conf"}
# Prefixes of variables that would select another cluster, or make a command act as within a job.
FOREIGN = ("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
SAVED_AFTER_S = 6  # slightly more than Slurm's SAVE_MAX_WAIT
USABLE = {"idle", "mixed", "allocated"}


class Testbed:
    """A Slurm in `folder`, started and stopped by `with`.

    Without settings, it is the last one started in that folder, perhaps by another process.
    """

    __test__: ClassVar = False  # pytest would collect it by its name

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        folder = folder.absolute()
        found = Plan.read(folder) if settings is None else None
        self.plan = found or Plan.make(folder, settings or Settings())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes: n1, n2, ..."""
        return self.plan.nodes

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, changed so that Slurm's commands use this testbed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return kept | {"SLURM_CONF": str(self.plan.conf), "PATH": search_path()}

    def start(self) -> None:
        """Removes what a crash has left, starts all daemons, and returns when jobs run on all nodes and are
        in the accounting.
        """
        if reason := hindrance(self.plan.settings.accounting):
            raise Unusable(reason)
        self.plan.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._alone():
            before = Plan.read(self.plan.folder)
            if before and daemons.alive(before).keys() == daemons.commands(before).keys():
                raise Unusable(f"{self.plan.folder}: a testbed runs here already")
            kill_all(self.plan.conf)
            self._clear()
            self.plan = Plan.make(self.plan.folder, self.plan.settings)
            self.plan.write(cgroup_plugin())
            try:
                self._start_all()
            except BaseException:
                kill_all(self.plan.conf)
                raise

    def stop(self) -> None:
        """Kills all daemons and jobs, if any, and deletes their state; logs and configuration stay."""
        if self.plan.folder.exists():
            with self._alone():
                kill_all(self.plan.conf)
                self._clear(KEPT)

    def run(
        self, *words: str, check: bool = True, timeout_s: float = 60, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the testbed and captures its output; Unusable if it fails and `check` is true."""
        done = subprocess.run(
            words,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise Unusable(
                f"`{' '.join(words)}` failed with exit code {done.returncode}: {done.stderr}{done.stdout}"
            )
        return done

    def alive(self) -> dict[str, int | None]:
        """Each daemon's pid, or None for one that does not run."""
        found = daemons.alive(self.plan)
        return {name: found.get(name) for name in daemons.commands(self.plan)}

    def processes(self) -> list[int]:
        """The pids of all daemons and jobs."""
        return list(members(self.plan.conf))

    def kill_slurmctld(self, saved: bool = True) -> None:
        """Kills the controller with SIGKILL; running jobs continue.

        Unless it has `saved`, its latest state is lost, as on any cluster: it would reuse ids of jobs, and
        start others twice.
        """
        if saved:
            # a save in progress may lack the latest state
            asked, file = time.time() + 0.1, self.plan.folder / "state" / "job_state"
            self.wait_for(
                lambda: (
                    time.time() > asked + SAVED_AFTER_S or (file.exists() and file.stat().st_mtime > asked)
                ),
                "a save",
            )
        daemons.kill(self.plan, "slurmctld")

    def start_slurmctld(self) -> None:
        """Starts the controller again; waits until it answers and knows the nodes whose daemons run."""
        daemons.start(self.plan, "slurmctld")
        self.wait_for(
            lambda: "is UP" in self.run("scontrol", "ping", check=False).stdout, "slurmctld to answer"
        )
        alive = [node for node in self.nodes if self.alive()[f"slurmd-{node}"]]
        self.wait_for(
            lambda: not {self.state_of(node).rstrip("*") for node in alive} & {"", "unknown"},
            "slurmctld to hear of its nodes",
        )

    def kill_slurmd(self, node: str) -> None:
        """Kills a node's daemon with SIGKILL; running jobs continue."""
        daemons.kill(self.plan, f"slurmd-{node}")

    def start_slurmd(self, node: str) -> None:
        """Starts a node's daemon again, and waits until the node can be used."""
        daemons.start(self.plan, f"slurmd-{node}")
        self.wait_for(lambda: self.state_of(node) in USABLE, f"{node} to be ready")

    def stop_accounting(self) -> None:
        """Kills slurmdbd with SIGKILL: sacct fails until `start_accounting`, and nothing is lost."""
        daemons.kill(self.plan, "slurmdbd")

    def start_accounting(self) -> None:
        """Starts slurmdbd again, and waits until it answers."""
        daemons.start(self.plan, "slurmdbd")
        self.wait_for(
            lambda: self.run("sacctmgr", "-n", "list", "user", check=False).returncode == 0,
            "slurmdbd to answer",
        )

    def state_of(self, node: str) -> str:
        """A node's state, such as idle; empty if the controller does not answer."""
        return self.run("sinfo", "-h", "-N", "-n", node, "-p", "main", "-o", "%T", check=False).stdout.strip()

    def state_of_job(self, job: str) -> str:
        """A job's state, such as PENDING; empty if the controller forgot the job or does not answer."""
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False).stdout.strip()

    def wait_for(self, predicate: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        """Returns when `predicate` is true; Unusable with the ends of the logs after `timeout_s`."""
        try:
            daemons.wait_for(predicate, what, timeout_s)
        except Unusable as reason:
            raise Unusable(f"{reason}\n{self.tails()}") from None

    def tails(self, lines: int = 8) -> str:
        """The last lines of each log."""
        logs = {
            path.name: path.read_text(encoding="utf-8", errors="replace")
            for path in sorted(self.plan.logs.glob("*.log"))
        }
        return "\n".join(
            f"{name}: {line}" for name, text in logs.items() for line in text.splitlines()[-lines:]
        )

    def _start_all(self) -> None:
        daemons.start(self.plan, "munged")
        if self.plan.settings.accounting:
            daemons.make_database(self.plan)
            daemons.start(self.plan, "mariadbd")
            self.wait_for(lambda: daemons.database_answers(self.plan), "mariadbd to answer")
            self.start_accounting()  # before slurmctld, which needs it
        self.start_slurmctld()
        for node in self.nodes:
            daemons.start(self.plan, f"slurmd-{node}")
        self._wait_until_idle()
        self.run("srun", f"--nodes={len(self.nodes)}", "--job-name=testbed", "true")
        self._wait_until_idle()
        if self.plan.settings.accounting:
            self.wait_for(
                lambda: "COMPLETED" in self.run("sacct", "-n", "-X", "-o", "state").stdout,
                "sacct to show a job",
            )

    def _wait_until_idle(self) -> None:
        self.wait_for(
            lambda: {self.state_of(node) for node in self.nodes} == {"idle"}, "all nodes to be idle"
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other processes from starting or stopping a testbed in this folder."""
        lock = os.open(self.plan.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _clear(self, kept: Collection[str] = ()) -> None:
        """Deletes the contents of the folder; Unusable if they are not a testbed's."""
        entries = list(self.plan.folder.iterdir())
        if entries and Plan.read(self.plan.folder) is None:
            raise Unusable(f"{self.plan.folder} is neither empty nor a testbed's")
        for path in entries:
            if path.name in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
