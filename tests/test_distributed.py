"""Several processes make the same iterations as one, stop together, and count every validation image once."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import submitit
import torch
from PIL import Image
from torch.utils.data import Dataset

from roadmap import ROOT
from roadmap.batches import BatchPlan, plan_batches
from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.errors import ConfigError, Problem
from roadmap.lease import LeaseLost, attempts, read_attempt
from roadmap.records import Result, RunDir, prepare, read_result, run_dir_of
from roadmap.signals import Stopped, StopSignals
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from roadmap.training import distributed
from roadmap.training.callbacks import Callback
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.device import select_device
from roadmap.training.distributed import Distributed, StopConsensus, gpu_problem, joined
from roadmap.training.engine import Engine
from roadmap.training.launch import Launch, launched
from tests.helpers import commands
from tests.helpers.images import CLASSES, write_folder
from tests.helpers.images import config_of as images_of
from tests.helpers.processes import finish, free_port, start, train_together
from tests.helpers.stopping import StopAt

# All that is random but drop path, whose draws are a micro-batch's own; without BN, whose statistics may be
# taken in turns.
BUSY: dict[str, Any] = {
    "data.copies": 1,
    "model.depths": [1, 1, 2, 1],
    "recipe.epochs": 1,
    "recipe.local_batch": 16,
    "recipe.mixup": 0.8,
    "recipe.cutmix": 1.0,
    "recipe.label_smoothing": 0.1,
    "recipe.random_erasing": 0.5,
    "recipe.randaugment": "rand-m9-mstd0.5-inc1",
    "recipe.crop_scale": [0.5, 1.0],
    "recipe.hflip": 0.5,
    "recipe.ema": 0.9,
    "recipe.clip_grad": 1.0,
    "system.log_every": 1,
    "system.eval_batch": 77,
}
STEP = "separate_downsampling"
CPU = torch.device("cpu")
LAUNCH = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SUBMITIT_EXECUTOR",
)


def config_of(step: str = STEP, **overrides: Any) -> RunConfig:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return resolve(load_roadmap(), step, profile="digits", overrides=BUSY | given)


def records(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def losses(run: RunDir) -> list[float]:
    return [record["train_loss"] for record in records(run) if record["kind"] == "train"]


def trained(config: RunConfig, runs: Path, size: int) -> tuple[RunDir, Result]:
    assert finish(start(size, train_together, config, runs)) == [0] * size
    run = run_dir_of(runs, config)
    result = read_result(run)
    assert result is not None
    return run, result


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Result]:
    """One process that takes the whole batch at once."""
    return trained(config_of(system__micro_batch=64), tmp_path_factory.mktemp("alone"), 1)


def train_alike(world: Distributed, out: Path) -> None:
    """An iteration of a network with BN, whose running means are the rank's number at first."""
    engine = Engine(
        config_of("gelu", recipe__global_batch=32, recipe__local_batch=8, system__micro_batch=8),
        CPU,
        10,
        world,
    )
    means = [buffer for name, buffer in engine.model.named_buffers() if name.endswith("running_mean")]
    for mean in means:
        mean.fill_(world.rank)
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(world.rank))
    batch = Batch(images.contiguous(memory_format=torch.channels_last), torch.arange(8) % 2)
    engine.train_step([batch] * 2)
    gradients = [parameter.grad for parameter in engine.model.parameters() if parameter.grad is not None]
    storages = {gradient.untyped_storage().data_ptr() for gradient in gradients}
    trained = torch.cat(means).tolist()
    engine.evaluate([batch])
    found: dict[str, Any] = {"trained": trained, "evaluated": torch.cat(means).tolist()}
    found |= {"gradients": len(gradients), "storages": len(storages)}
    (out / f"{world.rank}.json").write_text(json.dumps(found))


def test_running_statistics_are_sent_to_evaluate_only_and_gradients_are_reduced_in_place(
    tmp_path: Path,
) -> None:
    assert finish(start(2, train_alike, tmp_path)) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert second["trained"] == pytest.approx([0.81] * len(second["trained"]), abs=0.3)
    assert first["trained"] == pytest.approx([0.0] * len(first["trained"]), abs=0.3)
    assert first["evaluated"] == second["evaluated"] == first["trained"]
    assert first["storages"] == second["storages"] < first["gradients"] / 4


@pytest.mark.parametrize(("size", "micro"), [(1, 16), (1, 4), (2, 16), (2, 8), (4, 16)])
def test_iterations_depend_on_neither_world_size_nor_gradient_accumulation(
    size: int, micro: int, alone: tuple[RunDir, Result], tmp_path: Path
) -> None:
    run, result = trained(config_of(system__micro_batch=micro), tmp_path, size)
    (quiet, expected), ours = alone, losses(run)
    assert (result.processes, result.micro_batch, result.accumulation) == (size, micro, 64 // size // micro)
    assert len(ours) == 18
    # 1e-7 where it was measured
    assert max(abs(one - other) / other for one, other in zip(ours, losses(quiet), strict=True)) < 1e-5
    assert result.top1 == pytest.approx(expected.top1, abs=0.4)  # two of 599 images
    assert result.val_loss == pytest.approx(expected.val_loss, rel=1e-3)


def test_two_processes_under_bn_differ_by_their_running_statistics_only(tmp_path: Path) -> None:
    """Each group of 16 is normalized by itself on either;
    the first process's statistics are evaluated with.
    """
    one, other = (trained(config_of("gelu"), tmp_path / str(size), size)[0] for size in (1, 2))
    assert max(abs(a - b) / b for a, b in zip(losses(one)[:9], losses(other)[:9], strict=True)) < 1e-4


def scores(world: Distributed, config: RunConfig, runs: Path) -> None:
    """Writes each process's count of images and the scores of all."""
    from roadmap.data.loader import Loader
    from roadmap.training.engine import Engine

    device = torch.device("cpu")
    plan = plan_batches(config, world.size)
    loader = Loader(config, "val", device, rank=world.rank, plan=plan)
    seen = sum(len(labels) for _, labels, *_ in loader.epoch())
    found, _ = Engine(config, device, 1, world).evaluate(loader.epoch())
    text = json.dumps({"seen": seen, "scores": [found.loss, found.top1, found.top5, found.images]})
    (runs / f"{world.size}-{world.rank}.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("size", [2, 4])
def test_every_validation_image_is_counted_once(size: int, tmp_path: Path) -> None:
    config = config_of()
    for world in (1, size):
        assert finish(start(world, scores, config, tmp_path)) == [0] * world
    whole = json.loads((tmp_path / "1-0.json").read_text(encoding="utf-8"))
    shares = [
        json.loads((tmp_path / f"{size}-{rank}.json").read_text(encoding="utf-8")) for rank in range(size)
    ]
    assert sum(share["seen"] for share in shares) == whole["seen"] == 599  # which neither 2 nor 4 divide
    for share in shares:
        assert share["scores"] == pytest.approx(whole["scores"], rel=1e-6)


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_one_process_stops_all_at_the_same_iteration(
    target: int, number: signal.Signals, tmp_path: Path
) -> None:
    config = config_of(recipe__epochs=40)
    run = run_dir_of(tmp_path, config)
    processes = start(2, train_together, config, tmp_path)
    while len(records(run) if run.metrics.exists() else []) < 3:
        assert all(process.is_alive() for process in processes)
    os.kill(processes[target].pid or 0, number)
    assert finish(processes, timeout=60) == [0, 0]
    assert not run.result.exists()
    newest = torch.load(max(run.checkpoints.glob("*.pt")), weights_only=True)
    assert newest["engine"]["iteration"] == records(run)[-1]["iteration"] < 40 * 18


def note_saves(world: Distributed, config: RunConfig, runs: Path) -> None:
    """Trains a run and writes down at which iterations it saved."""
    save, saved = Checkpoints.save, list[int]()

    def note(self: Checkpoints, iteration: int, state: dict[str, Any]) -> None:
        saved.append(iteration)
        save(self, iteration, state)

    Checkpoints.save = note  # type: ignore[method-assign]
    train_together(world, config, runs)
    if world.first:
        (runs / "saved.json").write_text(json.dumps(saved), encoding="utf-8")


@pytest.mark.parametrize(("size", "least"), [(1, 1), (2, 2)])
def test_a_checkpoint_that_is_due_is_written_once(size: int, least: int, tmp_path: Path) -> None:
    """One is due at every iteration; of two processes, one asks for it and both save an iteration later."""
    config = config_of(recipe__epochs=2, recipe__local_batch=32, system__checkpoint_minutes=1e-9)
    assert finish(start(size, note_saves, config, tmp_path)) == [0] * size
    saved = sorted(set(json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))))
    assert saved[-1] == 36
    assert {after - before for before, after in itertools.pairwise(saved)} == {least}


def refuse(world: Distributed, folder: Path) -> None:
    """The first process alone fails, and all learn of it; what it makes is everybody's."""

    def fail() -> None:
        raise ConfigError([Problem("steps.yaml:3:4", "is wrong"), Problem("", "in two ways")])

    assert world.from_rank0(lambda: world.rank) == 0
    try:
        world.from_rank0(fail)
    except ConfigError as error:
        (folder / str(world.rank)).write_text(str(error), encoding="utf-8")


def test_all_processes_see_the_error_of_the_first(tmp_path: Path) -> None:
    assert finish(start(3, refuse, tmp_path)) == [0, 0, 0]
    assert {path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {
        "steps.yaml:3:4 is wrong\nin two ways"
    }
    assert len(list(tmp_path.iterdir())) == 3


def vote(world: Distributed, folder: Path) -> None:
    ballot = StopConsensus(world)
    seen = [ballot.poll(turn == 2 and world.rank == 1, turn == 4) for turn in range(6)]
    (folder / str(world.rank)).write_text(json.dumps(seen), encoding="utf-8")


def test_a_raised_flag_is_seen_by_all_in_the_next_call(tmp_path: Path) -> None:
    assert finish(start(2, vote, tmp_path)) == [0, 0]
    one, other = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in "01")
    assert one == other == [[False, False]] * 3 + [[True, False], [False, False], [False, True]]


def test_a_process_alone_sees_its_flag_at_once() -> None:
    assert StopConsensus(Distributed()).poll(True, False) == [True, False]


def lose(world: Distributed, config: RunConfig, runs: Path) -> None:
    """Trains until somebody else takes the run over; every process has to learn of it."""
    run = world.from_rank0(lambda: prepare(runs, config))
    try:
        train(config, run.path, callback=Usurper(run.path) if world.first else None, world=world)
    except LeaseLost:
        (runs / f"lost-{world.rank}").touch()


class Usurper(Callback):
    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.iterations = run_dir, 0

    def on_step(self) -> None:
        self.iterations += 1
        if self.iterations == 3:
            (self.run_dir / "attempts" / "0002.json").write_text("{}", encoding="utf-8")


def test_a_run_that_is_taken_over_is_left_by_all_processes(tmp_path: Path) -> None:
    assert finish(start(2, lose, config_of(), tmp_path), timeout=60) == [0, 0]
    assert {path.name for path in tmp_path.glob("lost-*")} == {"lost-0", "lost-1"}


class Fuse(Dataset[tuple[Any, int]]):
    """Images of which one process can read the first alone."""

    classes = ("a", "b")

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self.rank == 1 and index:
            raise ValueError("the fuse is blown")
        return Image.new("L", (32, 32), index), index % 2


class Torn(Dataset[tuple[Any, int]]):
    """Images of which every eighth cannot be read."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index % 8 == 0:
            raise OSError("torn")
        return Image.new("L", (32, 32), index), index % 2


def endure(world: Distributed, config: RunConfig, runs: Path, stop_after: int | None = None) -> None:
    run = world.from_rank0(lambda: prepare(runs, config))
    stop = StopSignals()
    watch = StopAt(stop, stop_after) if stop_after and world.first else None
    with suppress(Stopped):
        train(config, run.path, data=(Torn(), Torn()), stop=stop, callback=watch, world=world)


@pytest.mark.parametrize("size", [1, 2])
def test_corrupt_images_are_counted_once_over_processes_splits_and_attempts(
    size: int, tmp_path: Path
) -> None:
    values: dict[str, Any] = {
        "data__dataset": "custom/torn",
        "model__num_classes": 2,
        "recipe__global_batch": 32,
        "system__workers": 0,
    }
    config = config_of(**values, recipe__epochs=2, system__corrupt_images=16)
    assert finish(start(size, endure, config, tmp_path, 3)) == [0] * size
    assert finish(start(size, endure, config, tmp_path)) == [0] * size
    result = read_result(run_dir_of(tmp_path, config))
    assert result is not None
    assert (result.corrupt_images, result.attempts) == (16, 2)


def blow(world: Distributed, config: RunConfig, runs: Path) -> None:
    run = world.from_rank0(lambda: prepare(runs, config))
    train(config, run.path, data=(Fuse(world.rank), Fuse(world.rank)), world=world)


def test_the_record_names_what_ended_the_process_that_failed_first(tmp_path: Path) -> None:
    config = config_of(
        data__dataset="custom/fuse", model__num_classes=2, recipe__global_batch=32, system__workers=0
    )
    codes = finish(start(2, blow, config, tmp_path), timeout=90)
    assert all(codes), codes
    run = run_dir_of(tmp_path, config)
    assert "process 1: " in read_attempt(attempts(run.path)[-1])["reason"]


def note_folders(world: Distributed, config: RunConfig, runs: Path) -> None:
    """Trains, and writes down how often this process has listed a class folder."""
    listed, scandir = [], os.scandir

    def record(path: Any = ".") -> Any:
        listed.append(Path(path).name)
        return scandir(path)

    os.scandir = record
    train_together(world, config, runs)
    (runs / f"listed-{world.rank}").write_text(str(sum(name in CLASSES for name in listed)), encoding="utf-8")


def test_one_process_lists_the_images_of_a_folder_for_all(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", train=6)
    config = images_of(data, recipe__global_batch=6, recipe__local_batch=6, model__drop_path=0.0)
    assert finish(start(2, note_folders, config, tmp_path / "two")) == [0, 0]
    assert [(tmp_path / "two" / f"listed-{rank}").read_text("utf-8") for rank in (0, 1)] == [
        str(2 * len(CLASSES)),
        "0",
    ]
    train_together(Distributed(), config, tmp_path / "one")
    results = [read_result(run_dir_of(tmp_path / name, config)) for name in ("one", "two")]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].val_loss == pytest.approx(results[1].val_loss, rel=1e-4)


# Launching


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_without_a_launcher_is_alone(no_launcher: pytest.MonkeyPatch) -> None:
    assert launched() == Launch()


def test_half_of_torchruns_variables_are_refused(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setenv("RANK", "0")
    no_launcher.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match="RANK and WORLD_SIZE set, but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"
    ):
        launched()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "a", "RANK is 'a', which is no number"),
        ("RANK", "2", "RANK 2 is not one of the 2 processes that WORLD_SIZE counts from 0"),
        ("MASTER_PORT", "x", "MASTER_PORT is 'x', which is no number"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    name: str, value: str, message: str, no_launcher: pytest.MonkeyPatch
) -> None:
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for key, text in (given | {name: value}).items():
        no_launcher.setenv(key, text)
    with pytest.raises(ConfigError, match=message):
        launched()


def enter_with_gpus(
    launch: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """Joins the others as on a machine with the GPUs that are the last of the arguments."""
    *arguments_left, uuids = arguments
    os.environ |= launch
    distributed.uuid_of = lambda gpu: uuids[launched().rank]
    with joined(StopSignals()) as world:
        function(world, *arguments_left)


def note_refusal(world: Distributed, out: Path) -> None:
    world.check_gpus("cpu")
    with pytest.raises(ConfigError) as refused:
        world.check_gpus("auto")
    (out / f"{world.rank}").write_text(str(refused.value))


def test_processes_that_share_a_gpu_are_refused_unless_they_train_on_the_cpu(tmp_path: Path) -> None:
    uuids = ["GPU-a", "GPU-b", "GPU-a"]
    assert finish(start(3, note_refusal, tmp_path, uuids, enter=enter_with_gpus)) == [0] * 3
    messages = {(tmp_path / str(rank)).read_text() for rank in range(3)}
    (message,) = messages
    assert message.startswith(
        "system.device processes 0 and 2 have the same GPU, GPU-a; start a process per GPU"
    )


@pytest.mark.parametrize(
    ("uuids", "problem"),
    [
        (["", ""], None),
        (["a", "b", "c", "d"], None),
        (["a", "a"], "processes 0 and 1 have the same GPU, a"),
        (["a", "b", "", ""], "process 2 has no GPU to itself, and others have one"),
    ],
)
def test_each_process_needs_a_gpu_of_its_own(uuids: list[str], problem: str | None) -> None:
    assert gpu_problem(uuids) == problem


@pytest.mark.parametrize(
    ("visible", "local_rank", "gpu"),
    [(4, 0, "cuda:0"), (4, 3, "cuda:3"), (1, 3, "cuda:0"), (2, 2, None), (2, 3, None)],
)
def test_no_process_takes_the_gpu_of_another(
    visible: int, local_rank: int, gpu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    if gpu is None:
        with pytest.raises(
            ConfigError, match=f"process {local_rank} of this machine has no GPU, for it sees 2"
        ):
            select_device(config_of(), local_rank)
    else:
        assert str(select_device(config_of(), local_rank)) == gpu


def hang(world: Distributed, out: Path) -> None:
    """The second process does not finish its third iteration."""
    distributed.ITERATION_TIMEOUT = timedelta(seconds=1)
    consensus = StopConsensus(world)
    consensus.poll(False)
    consensus.poll(False)
    if world.rank == 1:
        time.sleep(2.5)
        return
    consensus.poll(False)
    with pytest.raises(RuntimeError) as waited:
        consensus.poll(False)
    (out / "waited").write_text(str(waited.value))
    os._exit(0)


def test_a_process_whose_others_hang_fails_with_what_to_check(tmp_path: Path) -> None:
    assert finish(start(2, hang, tmp_path))[0] == 0
    message = (tmp_path / "waited").read_text()
    assert re.match(r"process 0 of 2 has waited 0\.0167 minutes for another one .*NCCL_DEBUG=INFO", message)


@contextmanager
def waiting_for_another(runs: Path, begin: Callable[..., Any], *script: str) -> Iterator[Any]:
    """The first process of a run of two, whose other one never comes."""
    places = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    script = script or (str(ROOT / "run_step.py"),)
    command = [sys.executable, *script, STEP, "--profile", "digits", "--runs", str(runs)]
    process: Any = begin(command, env=os.environ | places)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_process_can_be_stopped_as_it_starts_to_wait_for_a_missing_one(tmp_path: Path) -> None:
    with waiting_for_another(tmp_path, subprocess.Popen) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.terminate()
        # before Python listens, or while it imports PyTorch
        assert process.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_process_that_waits_for_a_missing_one_can_be_stopped(tmp_path: Path) -> None:
    script = (
        "import runpy\nfrom roadmap.training import distributed\ndistributed.WARN_S = 0.2\n"
        f"runpy.run_path({str(ROOT / 'run_step.py')!r}, run_name='__main__')"
    )
    with waiting_for_another(tmp_path, commands.Command, "-c", script) as process:
        while "process 0 waits for 1 other process" not in process.printed(1):
            assert process.poll() is None, process.printed(1)
            time.sleep(0.05)
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM


def test_the_processes_of_a_slurm_step_meet_on_its_first_host(no_launcher: pytest.MonkeyPatch) -> None:
    values = {
        "JOB_ID": "4711",
        "STEP_ID": "0",
        "STEP_NUM_TASKS": "16",
        "PROCID": "9",
        "LOCALID": "1",
        "JOB_NODELIST": "gpu[07-08]",
    }
    for name, value in values.items():
        no_launcher.setenv(f"SLURM_{name}", value)
    no_launcher.setattr("socket.getaddrinfo", lambda *_: [])
    found = launched()
    assert (found.rank, found.size, found.local_rank) == (9, 16, 1)
    assert (found.address, found.port) == ("gpu07", 20_000 + 47110 % 12_000)


def test_a_batch_script_with_one_task_is_alone(no_launcher: pytest.MonkeyPatch) -> None:
    no_launcher.setenv("SLURM_PROCID", "0")
    no_launcher.setenv("SLURM_STEP_NUM_TASKS", "1")
    no_launcher.setenv("SLURM_NTASKS", "8")
    assert launched() == Launch()


TINY = [f"{key}={json.dumps(value)}" for key, value in BUSY.items()]


def test_torchrun_trains_a_step(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += [str(ROOT / "run_step.py"), STEP, "--profile", "digits", "--runs", str(tmp_path)]
    command += [word for value in TINY for word in ("--set", value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = read_result(run_dir_of(tmp_path, config_of()))
    assert result is not None
    assert (result.processes, result.accumulation) == (2, 2)
    assert result.hardware.endswith("2 processes")
    lines = [line for line in done.stderr.splitlines() if "top-1" in line]
    assert len(lines) == 2, "one process prints: a line for the epoch, and one for the result"


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    environment = os.environ | {
        "RANK": "0",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    command = [
        sys.executable,
        str(ROOT / "run_step.py"),
        STEP,
        "--profile",
        "digits",
        "--runs",
        str(tmp_path / "runs"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 2
    assert (
        done.stderr
        == "recipe.global_batch 64 on 3 processes: does not divide evenly; choose a number of processes that"
        " divides it\n"
    )
    assert not (tmp_path / "runs").exists()


def test_submitits_tasks_are_one_worker(tmp_path: Path) -> None:
    from slurm.worker import Shift, work

    config = config_of()
    run = run_dir_of(tmp_path / "runs", config)
    run.path.mkdir(parents=True)
    run.config.write_text(config.to_yaml(), encoding="utf-8")
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    executor.update_parameters(tasks_per_node=2, timeout_min=5)
    job = executor.submit(work, [str(run.path)])
    assert job.results() == [Shift(1, stopped=False, tried=(str(run.path.absolute()),))] * 2
    result = read_result(run)
    assert result is not None
    assert (result.processes, result.attempts) == (2, 1)


# Sharing a batch


@pytest.mark.parametrize(
    ("plan", "positions"),
    [
        (BatchPlan(1, 8, 1, 8, paired=True), [[0, 2, 4, 6, 7, 5, 3, 1]]),
        (BatchPlan(1, 8, 1, 4, paired=True), [[0, 2, 3, 1, 4, 6, 7, 5]]),
        (BatchPlan(2, 4, 1, 8, paired=True), [[0, 2, 3, 1], [4, 6, 7, 5]]),
        (BatchPlan(1, 6, 1, 4, paired=True), [[0, 2, 3, 1, 4, 5]]),
        (BatchPlan(2, 2, 2, 4), [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_a_batch_is_shared_in_pairs(plan: BatchPlan, positions: list[list[int]]) -> None:
    assert [
        plan.positions(rank, turn) for rank in range(plan.world) for turn in range(plan.accumulation)
    ] == positions


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16, 32])
def test_the_papers_batch_is_the_same_on_any_number_of_gpus(world: int) -> None:
    plan = plan_batches(resolve(load_roadmap(), "layer_norm"), world)
    assert (plan.micro, plan.micro * plan.accumulation * plan.world) == (128, 4096)
    seen = [
        position
        for rank in range(world)
        for turn in range(plan.accumulation)
        for position in plan.positions(rank, turn)
    ]
    assert sorted(seen) == list(range(4096))


@pytest.mark.parametrize(
    ("world", "overrides", "message"),
    [
        (3, {}, "recipe.global_batch 4096 on 3 processes: does not divide evenly"),
        (
            64,
            {},
            (
                "BN would normalize over 64 images, not over the 128 of recipe.local_batch; --set"
                " recipe.local_batch=64 makes that the recipe, or --set system.sync_bn=true"
            ),
        ),
        (8, {"system.micro_batch": 100}, "leaves each 512 images, no multiple of system.micro_batch 100"),
        (
            8,
            {"system.micro_batch": 256},
            "BN would normalize over 256 images, not over the 128 of recipe.local_batch;"
            " .*or --set system.micro_batch=128",
        ),
        (8, {"system.sync_bn": True, "system.micro_batch": 32}, "BN would normalize over 256"),
        (8, {"system.micro_batch": 1, "model.block.norm.kind": "ln"}, "it must be even"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused_with_a_suggested_fix(
    world: int, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_batches(resolve(load_roadmap(), "gelu", overrides=overrides), world)


def test_bn_over_all_processes_takes_a_local_batch_from_them() -> None:
    plan = plan_batches(resolve(load_roadmap(), "gelu", overrides={"system.sync_bn": True}), 8)
    assert (plan.micro, plan.accumulation) == (16, 32)
    for turn in range(plan.accumulation):
        together = sorted(position for rank in range(8) for position in plan.positions(rank, turn))
        assert together == list(range(128 * turn, 128 * turn + 128)), "a group of the recipe's, as on one GPU"
