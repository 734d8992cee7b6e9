"""Runs the checks, each in a process of its own with a time limit; the results are written after each."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roadmap.doctor.findings import Finding, from_record, write_csv
from roadmap.doctor.options import CORRECTNESS, SPEED
from roadmap.files import read_json_lines, write_atomic
from roadmap.provenance import usable_cores

POLL_S = 0.1
CPU_PATIENCE = 6.0  # times the limits of a GPU
LOG_BYTES = 250_000  # of a check
FAILED = "failed"
SHOW_STACK = signal.SIGUSR1
STACK_S, GRACE_S, END_S = 0.5, 1.0, 5.0
# imported once, for all processes
MODULES = [f"roadmap.doctor.{name}" for name in ("correctness", "training_runs", "speed")]


@dataclass(frozen=True)
class Running:
    """A check in its process, since `began`, which is ended at `end`, by the monotonic clock: where
    it `is_last`, for all checks.
    """

    name: str
    process: Any
    began: float
    end: float
    is_last: bool

    @property
    def has_ended(self) -> bool:
        """Whether it is done, or has taken too long."""
        return not self.process.is_alive() or time.monotonic() > self.end

    def findings(self, logs: Path) -> list[Finding]:
        """What it has found, and why it did not end by itself."""
        found = [from_record(record) for record in read_json_lines(logs / f"{self.name}.jsonl")]
        problem = None
        if self.process.is_alive():
            seconds = f"ended after {time.monotonic() - self.began:.0f} s"
            if self.is_last:  # by --seconds, which is no fault of the machine
                found.append(
                    Finding(self.name, "not finished", f"{seconds}: --seconds are over", status="warning")
                )
            else:
                problem = "not finished", seconds
            kill(self.process)
        elif self.process.exitcode != 0:
            problem = FAILED, f"its process ended with exit code {self.process.exitcode}"
        if problem is not None:
            found.append(Finding(self.name, *problem, status="error", fix="see log.txt"))
        return found


class Runner:
    """Runs checks by name on a device, and calls `found` with the findings of each when it has ended.

    `out` gets checks.csv, with those in `before` first, and log.txt, with what the checks printed.
    """

    def __init__(
        self,
        device: str,
        out: Path,
        seconds: float,
        before: Sequence[Finding],
        found: Callable[[str, list[Finding], float], None],
    ) -> None:
        self.device = device
        self.out = out
        self.before = list(before)
        self.found = found
        self.end = time.monotonic() + seconds
        self.findings: dict[str, list[Finding]] = {}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(MODULES)

    def run(self, names: Sequence[str]) -> list[Finding]:
        """All findings: the checks of correctness several at a time on a GPU, those of speed alone."""
        with tempfile.TemporaryDirectory() as folder:
            logs = Path(folder)
            correctness = [name for name in names if name in CORRECTNESS]
            at_once = max(1, min(len(correctness), usable_cores() // 2)) if self.device == "cuda" else 1
            self._run_some(correctness, at_once, logs)
            self._run_some([name for name in names if name in SPEED], 1, logs)
        return self.all_findings

    @property
    def all_findings(self) -> list[Finding]:
        """Those before the checks, and those of all checks that have ended."""
        return [*self.before, *(finding for found in self.findings.values() for finding in found)]

    def _run_some(self, names: Sequence[str], at_once: int, logs: Path) -> None:
        waiting, running = list(names), list[Running]()
        threads = max(1, usable_cores() // at_once)
        try:
            while waiting or running:
                if time.monotonic() >= self.end:
                    for name in waiting:
                        what = "--seconds were over before"
                        self._ended(name, [Finding(name, "not run", what, status="warning")], 0.0, logs)
                    waiting.clear()
                while waiting and len(running) < at_once:
                    running.append(self._start(waiting.pop(0), logs, threads))
                for check in [one for one in running if one.has_ended]:
                    running.remove(check)
                    seconds = time.monotonic() - check.began
                    self._ended(check.name, check.findings(logs), seconds, logs)
                time.sleep(POLL_S)
        finally:
            for check in running:
                kill(check.process)

    def _start(self, name: str, logs: Path, threads: int) -> Running:
        process = self.context.Process(target=work, args=(name, self.device, self.out, logs, threads))
        process.start()
        limit = (CORRECTNESS | SPEED)[name][1] * (1 if self.device == "cuda" else CPU_PATIENCE)
        began = time.monotonic()
        return Running(name, process, began, min(began + limit, self.end), self.end < began + limit)

    def _ended(self, name: str, findings: list[Finding], seconds: float, logs: Path) -> None:
        self.findings[name] = findings
        write_csv(self.out / "checks.csv", self.all_findings)
        texts = [
            f"=== {path.stem}\n{path.read_text(encoding='utf-8', errors='replace')[-LOG_BYTES:]}"
            for path in sorted(logs.glob("*.log"))
        ]
        write_atomic(self.out / "log.txt", "\n".join(texts))
        self.found(name, findings, seconds)


def kill(process: Any) -> None:
    """Ends a check's process, and those that it has started; its log shows where it was."""
    for number, seconds in ((SHOW_STACK, STACK_S), (signal.SIGTERM, END_S)):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        process.join(seconds)
    with suppress(ProcessLookupError, PermissionError):  # it may not have made its group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _end_with_parent() -> None:
    """Ends this process and those that it has started when the command is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _end_all()


def _end_all(*_: object) -> None:
    from roadmap.doctor.training_runs import RUNNING

    for run in list(RUNNING):
        with suppress(ProcessLookupError):
            os.killpg(run, signal.SIGTERM)  # which torchrun passes on
            time.sleep(GRACE_S)
            os.killpg(run, signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)


def work(name: str, device: str, out: Path, logs: Path, threads: int) -> None:
    """A check, in its process: findings go to a file line by line, what it prints to its log.

    PyTorch computes with `threads` on the CPU: threads of several checks that wait actively for each other
    would take minutes.
    """
    os.setsid()
    log = os.open(logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(SHOW_STACK, all_threads=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _end_all)
    # imported by the fork server, without a use of the device
    import torch

    from roadmap.doctor import correctness, speed, training_runs

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that it starts
    with (logs / f"{name}.jsonl").open("a", encoding="utf-8") as file:

        def report(finding: Finding) -> None:
            print(json.dumps(asdict(finding)), file=file, flush=True)

        try:
            where = torch.device(device, 0) if device == "cuda" else torch.device(device)
            checks = correctness.CHECKS | training_runs.CHECKS | speed.CHECKS
            checks[name](correctness.Machine(where, report, out))
        except Exception as error:
            traceback.print_exc()
            message = (str(error).strip() or "no message").splitlines()[0][:300]
            what = f"{type(error).__name__}: {message}"
            report(Finding(name, FAILED, what, status="error", fix="see log.txt"))
    sys.stdout.flush()
    sys.stderr.flush()
