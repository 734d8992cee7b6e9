"""One owner a run: exclusive, visible, and taken over only from the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roadmap.lease import EXPIRY_S, Lease, LeaseHeld, LeaseLost, attempts, owner, read_attempt

HOLD = """
import sys, time, pathlib
from roadmap.lease import Lease
with Lease(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""
RACE = """
import sys, time, pathlib
from roadmap.lease import Lease, LeaseHeld
while time.time() < float(sys.argv[2]):
    pass
try:
    with Lease(pathlib.Path(sys.argv[1])):
        print('won', flush=True)
        sys.stdin.read()
except LeaseHeld:
    print('lost')
"""


def hold(run: Path) -> subprocess.Popen[str]:
    """Another process that owns the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def elsewhere(run: Path, heartbeat_age_s: float) -> None:
    """An attempt on a host that cannot be asked, with its last sign of life so long ago."""
    with Lease(run) as lease:
        pass
    record = {
        "number": 1,
        "host": "far",
        "pid": 1,
        "place": "far pid:[1]",
        "process_start": "1",
        "started": "then",
    }
    lease.path.write_text(json.dumps(record), encoding="utf-8")
    then = time.time() - heartbeat_age_s
    os.utime(lease.path, (then, then))


def test_a_living_process_keeps_its_run(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(LeaseHeld, match=str(process.pid)), Lease(tmp_path):
            pass
        assert owner(tmp_path) is not None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_loses_its_run_at_once(number: signal.Signals, tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.send_signal(number)
    process.wait()
    assert owner(tmp_path) is None
    with Lease(tmp_path) as lease:
        assert lease.record["number"] == 2


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.kill()
    deadline = time.monotonic() + 30
    while owner(tmp_path) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert owner(tmp_path) is None
    assert process.returncode is None, "nobody has asked how it ended"
    process.wait()


def test_of_many_only_one_wins(tmp_path: Path) -> None:
    start = str(time.time() + 3)
    command = [sys.executable, "-c", RACE, str(tmp_path), start]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    deadline = time.monotonic() + 60
    while sum(racer.poll() is None for racer in racers) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)  # the winner holds on until nobody else is left
    said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(said) == ["lost"] * 5 + ["won"]
    assert len(attempts(tmp_path)) == 1


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (EXPIRY_S / 2, True), (2 * EXPIRY_S, False)])
def test_an_owner_elsewhere_lives_as_long_as_its_heartbeat(age: float, alive: bool, tmp_path: Path) -> None:
    elsewhere(tmp_path, age)
    assert (owner(tmp_path) is not None) == alive


def test_an_owner_that_slept_finds_its_successor(tmp_path: Path) -> None:
    with Lease(tmp_path) as sleeper:
        then = time.time() - 2 * EXPIRY_S
        sleeper.path.write_text(json.dumps(sleeper.record | {"place": "far"}), encoding="utf-8")
        os.utime(sleeper.path, (then, then))
        sleeper.ensure()
        with Lease(tmp_path) as successor:
            successor.ensure()
            with pytest.raises(LeaseLost, match=r"0002\.json"):
                sleeper.ensure()


def test_a_damaged_attempt_expires_like_one_elsewhere(tmp_path: Path) -> None:
    elsewhere(tmp_path, 0)
    file = attempts(tmp_path)[-1]
    file.write_text("", encoding="utf-8")
    assert owner(tmp_path) is not None
    then = time.time() - 2 * EXPIRY_S
    os.utime(file, (then, then))
    assert owner(tmp_path) is None


def test_an_attempt_keeps_its_outcome_and_reason(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease(tmp_path):
        _ = 1 / 0
    record = read_attempt(attempts(tmp_path)[-1])
    assert (record["outcome"], record["reason"]) == ("failed", "ZeroDivisionError: division by zero")
    assert record["ended"]
