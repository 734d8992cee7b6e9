"""A testbed starts where another has crashed, stands beside others, stops without a trace, and is driven from
a shell.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from roadmap import ROOT
from slurm.testbed.bed import Testbed
from slurm.testbed.config import Plan, Settings, Unusable
from slurm.testbed.packages import hindrance
from slurm.testbed.processes import all_pids, has_open, is_alive
from tests.slurm.jobs import lines_of, submit, wait_for_state

PLAIN = Settings(accounting=False)
COMMAND = [sys.executable, "-m", "slurm.testbed"]


def test_an_array_longer_than_the_clusters_limit_is_refused(plain: Testbed, tmp_path: Path) -> None:
    plain.stop()
    with Testbed(plain.plan.folder, Settings(accounting=False, max_array_size=4, nodes=1)) as bed:
        assert "Invalid job array" in bed.run("sbatch", "--array=0-4", "--wrap=true", check=False).stderr
        submit(bed, "true", "--array=0-3")


def test_two_beside_each_other_share_nothing(testbed: Testbed, plain: Testbed) -> None:
    ports = [set(bed.plan.ports.values()) for bed in (testbed, plain)]
    assert not ports[0] & ports[1]
    assert not set(testbed.processes()) & set(plain.processes())
    submit(plain, "sleep 1000", "--job-name=mine")
    assert "mine" in plain.run("squeue", "-h").stdout
    assert "mine" not in testbed.run("squeue", "-h").stdout
    plain.stop()
    assert None not in testbed.alive().values()


@pytest.mark.parametrize(
    "victims", [[], ["slurmctld"], ["munged", "slurmd-n1"], ["slurmctld", "munged", "slurmd-n1", "slurmd-n2"]]
)
def test_stop_leaves_no_process_and_little_else(plain: Testbed, victims: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    submit(plain, f"sleep 1000 & setsid sleep 1000 & echo $! >> {out}; srun sleep 1000", "--nodes=2")
    plain.wait_for(lambda: lines_of(out), "the job to begin")
    for name in victims:
        pid = plain.alive()[name]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    orphan = int(lines_of(out)[0])
    writing = [pid for pid in all_pids() if is_alive(pid) and has_open(pid, plain.plan.folder)]
    before = plain.processes()
    assert orphan in before
    assert {pid for pid in writing if is_alive(pid)} <= set(before), "the steps' daemons, too, are known"
    plain.stop()
    assert [pid for pid in {*before, *writing} if is_alive(pid)] == []
    assert plain.processes() == []
    left = {path.name for path in plain.plan.folder.iterdir()}
    assert left == {"log", "testbed.json", "slurm.conf", "slurmdbd.conf", "gres.conf", "cgroup.conf"}
    for port in plain.plan.ports.values():
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0
    plain.stop()


def test_a_start_clears_away_what_a_crash_has_left(plain: Testbed) -> None:
    job = submit(plain, "sleep 1000")
    wait_for_state(plain, job, "RUNNING")
    before = plain.processes()
    with pytest.raises(Unusable, match="runs here already"):
        Testbed(plain.plan.folder).start()
    plain.kill_slurmctld()
    with Testbed(plain.plan.folder, PLAIN) as again:
        assert [pid for pid in before if is_alive(pid)] == []
        assert again.state_of_job(job) != "RUNNING"
        assert None not in again.alive().values()


def test_a_folder_that_is_no_testbed_is_left_alone(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for attempt in (Testbed(tmp_path, PLAIN).start, Testbed(tmp_path).stop):
        with pytest.raises(Unusable, match="neither empty nor a testbed's"):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def command(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | more
    return subprocess.run(
        [*COMMAND, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_line_from_start_to_stop(testbed: Testbed, tmp_path: Path) -> None:
    folder = ["--folder", str(tmp_path / "bed")]
    assert command("status", *folder).returncode == 1
    started = command("start", *folder, "--without-accounting", "--nodes", "3", "--cpus", "2")
    assert (started.returncode, "3 nodes after" in started.stdout) == (0, True), started.stderr
    try:
        assert "slurmd-n3" in command("status", *folder).stdout
        shell = (
            f"{command('env', *folder, SLURM_JOB_ID='7').stdout}\necho job $SLURM_JOB_ID; srun --nodes=3"
            " --cpus-per-task=2 hostname"
        )
        ran = subprocess.run(
            ["bash", "-c", shell],
            env=os.environ | {"SLURM_JOB_ID": "7"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.splitlines() == ["job", *[socket.gethostname()] * 3]
        assert command("start", *folder).returncode == 2
    finally:
        stopped = command("stop", *folder)
    assert stopped.returncode == 0, stopped.stderr
    assert command("stop", *folder).returncode == 0
    assert command("status", *folder).returncode == 1


@pytest.mark.parametrize(("words", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("srun --nodes=2 true", 0)])
def test_run_passes_on_the_exit_code(words: str, code: int, testbed: Testbed, tmp_path: Path) -> None:
    folder = ["--folder", str(tmp_path / "bed")]
    ran = command("run", *folder, "--without-accounting", "--", "bash", "-c", words)
    assert (ran.returncode, ran.stderr) == (code, "")
    assert Testbed(tmp_path / "bed").processes() == []


def test_a_run_that_is_terminated_stops_its_testbed(testbed: Testbed, tmp_path: Path) -> None:
    script = f"touch {tmp_path}/began; exec sleep 1000"
    words = ["run", "--folder", str(tmp_path / "bed"), "--without-accounting", "--", "bash", "-c", script]
    process = subprocess.Popen([*COMMAND, *words], cwd=ROOT)
    testbed.wait_for((tmp_path / "began").exists, "the command to begin")
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert Testbed(tmp_path / "bed").processes() == []


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("slurm.testbed.packages.search_path", lambda: str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert "not installed: munged, slurmctld" in str(hindrance())
    assert "slurmdbd" not in str(hindrance(accounting=False))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "needs root" in str(hindrance())


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    with pytest.raises(Unusable, match="too long for a socket"):
        Plan.make(folder, PLAIN).write("disabled")
