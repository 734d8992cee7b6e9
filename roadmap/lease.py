"""Ownership of a run: attempts/0001.json, 0002.json, ... are created exclusively; the highest number owns it.

An attempt is alive while its process is (seen from the same host) or while its file is being touched (seen
from another). To take over is to create the next number, so two processes never both succeed, nothing is
deleted, and an owner that was suspended finds a higher number than its own and stops.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from roadmap.disk import explaining
from roadmap.files import create_exclusive, write_json

logger = logging.getLogger(__name__)
HEARTBEAT_S = 15.0
EXPIRY_S = 120.0


class LeaseHeld(RuntimeError):
    """Another process works on the run."""


class LeaseLost(RuntimeError):
    """Another process took over the run, because this one had sent no heartbeat."""


def now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def attempts(run_dir: Path) -> list[Path]:
    """The files of a run's attempts, oldest first."""
    return sorted((run_dir / "attempts").glob("[0-9][0-9][0-9][0-9].json"))


def read_attempt(path: Path) -> dict[str, Any]:
    """The record of an attempt; empty if its file is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def owner(run_dir: Path) -> dict[str, Any] | None:
    """The record of the attempt that is alive now, or None."""
    files = attempts(run_dir)
    if not files:
        return None
    record = read_attempt(files[-1])
    return record if _is_alive(files[-1], record) else None


def _is_alive(path: Path, record: dict[str, Any]) -> bool:
    if record.get("ended"):
        return False
    if is_here(record):
        return record.get("process_start") == _process_start(int(record["pid"]))
    return time.time() - path.stat().st_mtime < EXPIRY_S


def _place() -> str:
    """The scope of process ids: this host since its last boot, and its PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def own_job() -> str | None:
    """The job that this process belongs to, as submitit names its logs; None if it was started by hand.

    A task of an array is named by array and index, since its own job id may be the array's, which Slurm
    would take for all tasks.
    """
    known = os.environ
    if "SLURM_ARRAY_JOB_ID" in known and "SUBMITIT_LOCAL_JOB_ID" not in known:
        return f"{known['SLURM_ARRAY_JOB_ID']}_{known['SLURM_ARRAY_TASK_ID']}"
    return known.get("SUBMITIT_LOCAL_JOB_ID") or known.get("SLURM_JOB_ID")


def own_task() -> int:
    """The number of this process among those of its Slurm job, as submitit names its logs; else 0."""
    number = os.environ.get("SLURM_PROCID", "")
    return int(number) if number.isdecimal() and "SUBMITIT_LOCAL_JOB_ID" not in os.environ else 0


def is_here(record: dict[str, Any]) -> bool:
    """Whether an attempt's process runs, or ran, on this machine."""
    return bool(record.get("place") == _place())


def _process_start(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, or None if there is none.

    It distinguishes a process from a later one with the same id.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]


class Lease:
    """Exclusive ownership of a run directory during a `with` block; LeaseHeld if another process has it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.outcome = "failed"
        self.reason: str | None = None
        self._lost = threading.Event()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        folder = self.run_dir / "attempts"
        with explaining(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files = attempts(self.run_dir)
        if files and _is_alive(files[-1], record := read_attempt(files[-1])):
            raise LeaseHeld(
                f"{self.run_dir} is being worked on by process {record.get('pid')} on {record.get('host')}"
            )
        number = int(files[-1].stem) + 1 if files else 1
        self.path = folder / f"{number:04d}.json"
        self.record: dict[str, Any] = {
            "number": number,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "place": _place(),
            "job": own_job(),
            "task": own_task(),
            "process_start": _process_start(os.getpid()),
            "started": now(),
        }
        if not create_exclusive(self.path, json.dumps(self.record, indent=2) + "\n"):
            raise LeaseHeld(f"{self.run_dir} was taken by another process at this moment")
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is not None and self.outcome != "stopped":
            self.outcome = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            self.reason = f"{type(error).__name__}: {error}"
        try:
            write_json(
                self.path, self.record | {"ended": now(), "outcome": self.outcome, "reason": self.reason}
            )
        except OSError as unwritten:  # must not hide the attempt's own error, or make a finished run fail
            logger.warning("the end of the attempt was not recorded: %s", unwritten)

    def ensure(self) -> None:
        """LeaseLost if another process has taken over."""
        if self._lost.is_set() or self._successor():
            self._lost.set()
            raise LeaseLost(f"{self.run_dir} was taken over by {self._successor()}")

    def saved(self, iteration: int) -> None:
        """Records that the attempt has saved; one that crashes before that is retried only a few times."""
        self.record["saved"] = iteration
        write_json(self.path, self.record)

    def _successor(self) -> str | None:
        newest = attempts(self.run_dir)[-1:]
        return newest[0].name if newest and newest[0].name > self.path.name else None

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                os.utime(self.path)
                if self._successor():
                    self._lost.set()
            except OSError:
                continue  # the file server is briefly unavailable; training calls `ensure` before it writes
