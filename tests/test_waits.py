"""No wait is endless, and none is deaf: batches that never come, data that is far, processes that nobody
started.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from roadmap import ROOT
from roadmap.data import loader as loading
from roadmap.data.loader import Loader, NoBatch, check_workers
from roadmap.errors import ConfigError
from roadmap.files import locked
from roadmap.records import RunDir, prepare
from roadmap.signals import Stopped, StopSignals
from roadmap.train import train
from roadmap.training import trainer as attempt
from roadmap.training.launch import launched, without_launcher
from tests.helpers import commands
from tests.helpers.images import CPU, Pictures, custom, picture
from tests.helpers.processes import SERVER, finish, free_port

PICTURES = [(picture(number), number % 3) for number in range(12)]
IMAGENET = ["--profile", "imagenet", "--set", "data.dataset=synthetic", "--set", "system.device=cpu"]


class Stuck(Pictures):
    """A Dataset whose storage does not answer any more after some images."""

    def __init__(self, answers: int) -> None:
        super().__init__(PICTURES)
        self.answers = answers

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        self.answers -= 1
        if self.answers < 0:
            time.sleep(3600)
        return super().__getitem__(number)


def run_in_root(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """A command run to its end, from the project's folder."""
    return commands.run(command, cwd=ROOT, env=os.environ | variables, timeout=120)


# Batches


def test_a_batch_that_never_comes_ends_the_run_with_what_to_try(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, seconds in {"POLL_S": 0.1, "WARN_S": 0.3, "TIMEOUT_S": 1.0}.items():
        monkeypatch.setattr(loading, name, seconds)
    loader = Loader(custom(system__workers=2), "train", CPU, source=Stuck(1))
    try:
        with pytest.raises(
            NoBatch,
            match=(
                r"no batch has come for \d s from 2 data-loading workers; /dev/shm has .* free;"
                r" .*system.workers=0"
            ),
        ):
            list(loader.epoch())
    finally:
        loader.close()
    assert caplog.text.count("no batch has come for 0 s from 2 data-loading workers") == 1


def test_a_late_batch_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roadmap.data.loader.POLL_S", 0.05)
    waited: list[float] = []

    class Late(Pictures):
        def __getitem__(self, number: int) -> tuple[Any, Any]:
            time.sleep(0.2)
            return super().__getitem__(number)

    loader = Loader(custom(system__workers=1), "train", CPU, source=Late(PICTURES), waiting=waited.append)
    try:
        assert [len(labels) for _, labels, *_ in (*loader.epoch(0), *loader.epoch(1))] == [4] * 6
    finally:
        loader.close()
    assert waited
    assert max(waited) < loading.TIMEOUT_S


def train_stuck(run: str, train_images: int, val_images: int) -> None:
    """Trains on images of which some never come."""
    attempt.STOP_WAIT_S, attempt.NOTICE_WAIT_S, loading.POLL_S = 0.1, 0.1, 0.1
    data: Any = Stuck(train_images), Stuck(val_images)
    with StopSignals() as stop, pytest.raises(Stopped):
        train(custom(system__workers=1, system__log_every=1), Path(run), data=data, stop=stop)


@pytest.mark.parametrize(
    ("number", "train_images", "val_images", "saved"),
    [
        (signal.SIGTERM, 1, 1, 0),
        (signal.SIGUSR2, 9, 1, 2),
        (signal.SIGINT, 13, 1, 3),
    ],  # the first of each is read beforehand
    ids=["first batch", "third batch", "validation"],
)
def test_a_run_that_waits_for_a_batch_can_be_stopped_and_saves(
    number: signal.Signals, train_images: int, val_images: int, saved: int, tmp_path: Path
) -> None:
    run = prepare(tmp_path, custom(system__workers=1, system__log_every=1))
    process = SERVER.Process(target=train_stuck, args=(str(run.path), train_images, val_images))
    process.start()
    deadline = time.monotonic() + 60
    while not run.metrics.exists() or run.metrics.read_bytes().count(b"\n") < saved:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    assert finish([process], timeout=90) == [0]
    assert last_attempt(run)["outcome"] == "stopped"
    assert last_attempt(run).get("saved", 0) == saved


def last_attempt(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        sorted((run.path / "attempts").glob("*.json"))[-1].read_text(encoding="utf-8")
    )
    return found


@pytest.mark.parametrize(
    ("workers", "batch", "needed", "fits"),
    [(8, 20 * 2**20, 360, 0), (2, 12 * 2**20, 72, 1), (2, 10 * 2**20, None, None), (0, 2**30, None, None)],
)
def test_batches_that_do_not_fit_into_shared_memory_are_refused(
    workers: int, batch: int, needed: int | None, fits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(total=64 * 2**20, used=0, free=64 * 2**20)
    )
    if needed is None:
        check_workers(workers, batch)
        return
    with pytest.raises(
        ConfigError,
        match=(
            f"/dev/shm has 64 MiB free, and {workers} data-loading workers need {needed} MiB .*workers={fits}"
            " .*--shm-size"
        ),
    ):
        check_workers(workers, batch)


def can_mount() -> bool:
    return (
        subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
        if shutil.which("unshare")
        else False
    )


@pytest.mark.skipif(not can_mount(), reason="a file system of one's own needs root")
def test_a_container_with_little_shared_memory_gets_one_message(tmp_path: Path) -> None:
    step = [
        "run_step.py",
        "separate_downsampling",
        *IMAGENET,
        "--set",
        "system.workers=2",
        "--runs",
        str(tmp_path),
    ]
    inside = f'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "{sys.executable}" "$@"'
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", inside, "bash", *step],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "/dev/shm has 1 MiB free, and 2 data-loading workers need" in done.stderr
    assert "--set system.workers=0 fits" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_temporary_folder_with_too_long_a_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("t" * 150)
    folder.mkdir()
    step = [
        sys.executable,
        "run_step.py",
        "resnet50",
        *IMAGENET,
        "--set",
        "system.workers=2",
        "--runs",
        str(tmp_path),
    ]
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(step, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert f"TMPDIR {folder} is where data-loading workers make their sockets, and they cannot" in done.stderr
    assert "set TMPDIR=/tmp, or --set system.workers=0" in done.stderr


# Signals before the first iteration


class Drip(BaseHTTPRequestHandler):
    """Answers with a byte now and then, or with none at all."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**6))
        self.end_headers()
        try:
            while self.server.every:  # type: ignore[attr-defined]
                self.wfile.write(b"x")
                time.sleep(self.server.every)  # type: ignore[attr-defined]
            time.sleep(3600)
        except OSError:
            pass  # nobody listens any more

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that sends a byte every so many seconds, or none for 0."""
    served = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    served.daemon_threads, served.every = True, request.param  # type: ignore[attr-defined]
    threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize(
    ("server", "number"),
    [(0.05, signal.SIGTERM), (0.0, signal.SIGINT)],
    indirect=["server"],
    ids=["slow", "silent"],
)
def test_a_signal_while_data_is_fetched_ends_the_run_at_once(
    server: str, number: signal.Signals, tmp_path: Path
) -> None:
    sets = ["data.dataset=shards", f"system.data_dir={server}", f"system.stage_dir={tmp_path / 'disk'}"]
    sets += ["data.train_split=train-{00..03}.tar", "data.val_split=val-{00..01}.tar"]
    command = [
        sys.executable,
        str(ROOT / "run_step.py"),
        "separate_downsampling",
        "--runs",
        str(tmp_path / "runs"),
    ]
    process = commands.Command([*command, *(word for one in sets for word in ("--set", one))])
    while not list(tmp_path.rglob(".*.tmp")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    # a thread of a pool would be waited for, for a minute or for ever
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; the same command resumes the run" in said
    assert "Traceback" not in said
    run = RunDir(next(path.parent for path in tmp_path.rglob("config.yaml")))
    assert last_attempt(run)["outcome"] == "stopped"


def caught_by(stop: StopSignals) -> signal.Signals | None:
    return stop.signal


def test_signals_are_kept_for_the_loop_except_where_nothing_would_be_lost() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Stopped, match="SIGTERM"), stop.at_once():
            pytest.fail("a signal that was caught before was not heeded")
        stop.signal = None
        with pytest.raises(Stopped, match="SIGINT"), stop.at_once():
            os.kill(os.getpid(), signal.SIGINT)
        stop.signal = None
        with stop.at_once():  # a job that is to end in a minute makes use of it
            os.kill(os.getpid(), signal.SIGUSR2)
        assert caught_by(stop) == signal.SIGUSR2
        with stop.at_once():
            pass
        stop.signal = None
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("swallowed", [True, False])
def test_a_stop_that_other_code_catches_is_still_a_stop(swallowed: bool) -> None:
    """As packages do that try an import and go without it, or report an error of their own."""
    with StopSignals() as stop, pytest.raises(Stopped, match="SIGTERM"), stop.at_once():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            if not swallowed:
                raise ImportError("cannot load module more than once per process") from None


def test_a_signal_while_a_lock_is_waited_for_ends_the_run_at_once(tmp_path: Path) -> None:
    """Such as of another process that copies the data to this node."""
    path = tmp_path / "lock"
    with StopSignals() as stop, path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Stopped), stop.at_once(), locked(path):
            pytest.fail("two have the lock")


# Processes that were never started


SLURM_STEP = {
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "localhost",
}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            SLURM_STEP,
            (
                r"process 0 waits for 3 other processes at localhost:\d+, for SLURM_STEP_NUM_TASKS is 4;"
                r" .*srun python.*env -u SLURM_PROCID"
            ),
        ),
        (
            TORCHRUN,
            (
                r"process 1 waits for 1 other process at 127.0.0.1:29500, for WORLD_SIZE is 2; torchrun .*env"
                r" -u RANK -u WORLD_SIZE"
            ),
        ),
    ],
)
def test_a_waiting_process_reports_for_which_others_and_why(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_launcher():
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert re.search(said, launched().waits)
        monkeypatch.undo()


def test_the_wait_for_processes_that_never_started_is_explained(tmp_path: Path) -> None:
    script = """
from roadmap.training import distributed
from roadmap.signals import StopSignals
distributed.WARN_S = 0.2
with distributed.joined(StopSignals()): pass
"""
    command = [sys.executable, "-c", script]
    variables = TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | variables, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "waits for" in line:
            break
    process.terminate()
    process.communicate(timeout=30)
    assert line.startswith("process 0 waits for 1 other process at 127.0.0.1:")
    assert process.returncode == -signal.SIGTERM


def test_local_workers_are_no_tasks_of_the_shells_slurm_step(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "slurm/submit.py",
        "--cluster",
        "local",
        "--profile",
        "digits",
        "--steps",
        "gelu",
        "--seeds",
        "1",
    ]
    command += [
        "--runs",
        str(tmp_path),
        "--set",
        "recipe.epochs=1",
        "--set",
        "model.depths=[1,1]",
        "--set",
        "recipe.warmup_epochs=0",
    ]
    done = run_in_root(command, **SLURM_STEP)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 done" in done.stdout


def test_the_shells_variables_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        SLURM_STEP | TORCHRUN | {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "RANKING": "mine"}
    ).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with without_launcher():
        assert before.keys() - os.environ.keys() >= SLURM_STEP.keys() | TORCHRUN.keys() | {
            "TORCHELASTIC_RUN_ID",
            "GROUP_RANK",
        }
        assert os.environ["RANKING"] == "mine"
        assert launched().size == 1
    assert dict(os.environ) == before
