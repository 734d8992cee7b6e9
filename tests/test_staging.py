"""Data is copied to a node's disk once a node, whole or not at all, whoever is killed on the way."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from roadmap.config import RunConfig
from roadmap.data import staging
from roadmap.data.preflight import check_data
from roadmap.data.staging import stage
from roadmap.errors import ConfigError
from roadmap.files import locked
from tests.helpers.images import batches, config_of, same, shards_of, write_folder, write_shards

FORK = multiprocessing.get_context("fork")
PROCESSES = 4


def staged(config: RunConfig) -> Path:
    done = stage(config)
    assert done.system.stage_dir is None
    assert done.system.data_dir is not None
    return Path(done.system.data_dir)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def leftovers(folder: Path) -> list[Path]:
    """What is in a stage folder beside whole copies and locks."""
    return [path for path in folder.rglob(".*") if not path.name.endswith("lock")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def test_a_folder_is_copied_completely_and_trains_the_same(data: Path, disk: Path) -> None:
    config = config_of(data, system__stage_dir=str(disk))
    copy = staged(config)
    assert copy.parent == disk
    assert files(copy) == files(data)
    assert leftovers(disk) == []
    assert same(batches(config), batches(config_of(data)))


def test_without_a_stage_folder_nothing_is_copied(data: Path) -> None:
    config = config_of(data)
    assert stage(config) is config


def test_data_without_files_is_not_staged(disk: Path) -> None:
    config = config_of(None, system__stage_dir=str(disk))
    assert stage(config) is config
    assert not disk.exists()


def test_a_copy_that_is_there_is_used_again(data: Path, disk: Path) -> None:
    config = config_of(data, system__stage_dir=str(disk))
    copy = staged(config)
    before = {path: path.stat().st_ino for path in copy.rglob("*")}
    assert staged(config) == copy
    assert {path: path.stat().st_ino for path in copy.rglob("*")} == before


def test_changed_data_is_copied_again(data: Path, disk: Path) -> None:
    config = config_of(data, system__stage_dir=str(disk))
    before = staged(config)
    (data / "val" / "ant" / "0.jpg").write_bytes(b"longer or shorter")
    after = staged(config)
    assert after != before
    assert files(after) == files(data)


def test_a_copy_that_has_lost_files_is_made_again(data: Path, disk: Path) -> None:
    config = config_of(data, system__stage_dir=str(disk))
    (staged(config) / "train" / "bee" / "1.jpg").unlink()
    assert files(staged(config)) == files(data)


def test_only_the_classes_and_shards_that_are_read_are_copied(data: Path, disk: Path, tmp_path: Path) -> None:
    copy = staged(
        config_of(data, system__stage_dir=str(disk), data__classes=["ant", "cat"], model__num_classes=2)
    )
    assert files(copy) == {name: content for name, content in files(data).items() if "bee" not in name}
    shards = write_shards(tmp_path / "shards")
    (shards / "notes.txt").write_text("none of the run's business", encoding="utf-8")
    copy = staged(shards_of(shards, system__stage_dir=str(disk)))
    assert files(copy) == {name: content for name, content in files(shards).items() if name.endswith(".tar")}


def test_the_stage_folder_may_name_environment_variables(
    data: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(disk))
    assert staged(config_of(data, system__stage_dir="$NODE_DISK/here")).parent == disk / "here"
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(ConfigError, match="names an environment variable that is not set"):
        stage(config_of(data, system__stage_dir="$NODE_DISK/here"))


def test_data_is_not_copied_into_itself(data: Path) -> None:
    with pytest.raises(ConfigError, match="would be copied into itself"):
        stage(config_of(data, system__stage_dir=str(data / "train" / "stage")))


def test_all_of_the_folder_of_another_kind_is_copied(data: Path, disk: Path) -> None:
    config = config_of(
        data, data__dataset="torch/cifar10", system__stage_dir=str(disk), system__download=True
    )
    assert files(staged(config)) == files(data)


def test_what_is_yet_to_be_downloaded_is_not_staged(disk: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    config = config_of(far, data__dataset="torch/cifar10", system__stage_dir=str(disk), system__download=True)
    check_data(config)
    done = stage(config)
    far.mkdir()
    assert stage(done) is done
    assert done.system.data_dir == str(far)
    assert not disk.exists()


def test_a_download_by_another_process_is_waited_for(data: Path, disk: Path) -> None:
    config = config_of(
        data, data__dataset="torch/cifar10", system__stage_dir=str(disk), system__download=True
    )
    report = FORK.SimpleQueue()
    process = FORK.Process(target=lambda: report.put(str(staged(config))))
    with locked(data / staging.DOWNLOAD_LOCK):
        process.start()
        time.sleep(0.5)
        (data / "late").write_bytes(b"fetched at last")
    copy = Path(report.get())
    process.join()
    assert (copy / "late").read_bytes() == b"fetched at last"


# Many processes, and what becomes of one that is killed


def counted(report: Any, config: RunConfig) -> None:
    """Stages and reports which files this process copied."""
    copyfile, copied = shutil.copyfile, []

    def slow(source: Path, target: Path) -> None:
        time.sleep(0.005)
        copied.append(str(source))
        copyfile(source, target)

    shutil.copyfile = slow  # type: ignore[assignment]
    report.put((str(staged(config)), copied))


def test_many_processes_make_one_copy(data: Path, disk: Path) -> None:
    config, report = config_of(data, system__stage_dir=str(disk)), FORK.SimpleQueue()
    processes = [FORK.Process(target=counted, args=(report, config)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    answers = [report.get() for _ in processes]
    for process in processes:
        process.join()
    assert {where for where, _ in answers} == {str(staged(config))}
    assert Counter(name for _, copied in answers for name in copied) == Counter(
        str(path) for path in data.rglob("*.jpg")
    )


def impatient(report: Any, config: RunConfig) -> None:
    """Stages without a look at any file."""
    staging._sizes = None  # type: ignore[assignment]
    report.put("here")
    report.put(str(staged(config)))


def test_a_process_that_waited_for_a_copy_takes_it_without_checking_again(data: Path, disk: Path) -> None:
    config, report = config_of(data, system__stage_dir=str(disk)), FORK.Queue()
    copy = staged(config)
    (lock,) = disk.glob(".*.lock")
    process = FORK.Process(target=impatient, args=(report, config))
    with locked(lock):
        process.start()
        assert report.get(timeout=20) == "here"
        time.sleep(0.3)
        lock.write_text(str(copy), encoding="utf-8")
    assert report.get(timeout=20) == str(copy)
    process.join()


def hang(ready: Any, config: RunConfig) -> None:
    """Stages, but stops for good after some files."""
    copyfile, copied = shutil.copyfile, []

    def stuck(source: Path, target: Path) -> None:
        copied.append(source)
        if len(copied) > 5:
            ready.set()
            time.sleep(60)
        copyfile(source, target)

    shutil.copyfile = stuck  # type: ignore[assignment]
    stage(config)


def test_a_copy_that_was_killed_is_made_again(data: Path, disk: Path) -> None:
    config, ready = config_of(data, system__stage_dir=str(disk)), FORK.Event()
    process = FORK.Process(target=hang, args=(ready, config))
    process.start()
    assert ready.wait(20)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert leftovers(disk), "the test is to leave half a copy behind"
    assert files(staged(config)) == files(data)
    assert leftovers(disk) == []


# A full disk


def test_a_disk_with_too_little_space_is_refused_before_the_copy(
    data: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(path.stat().st_size for path in data.rglob("*.jpg"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))
    with pytest.raises(
        ConfigError,
        match=rf"{disk} has 10 bytes left, and {data} needs {needed:,}; choose another system\.stage_dir",
    ):
        stage(config_of(data, system__stage_dir=str(disk)))
    assert list(disk.glob("data*")) == leftovers(disk) == []


def test_a_folder_that_cannot_be_locked_is_named(data: Path) -> None:
    config = config_of(data, system__stage_dir="/proc")  # where not even root can make a file
    with pytest.raises(
        ConfigError,
        match=r"system\.stage_dir /proc cannot take the lock .*: No such file or directory; choose another",
    ):
        stage(config)


def cramped(report: Any, config: RunConfig) -> None:
    """Stages where no file can be longer than 100 bytes, which a copy finds out half way as it does on a full
    disk.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        stage(config)
    except ConfigError as error:
        report.put(str(error))
    else:
        report.put("it had no error")


def test_a_copy_that_fails_half_way_is_removed(data: Path, disk: Path) -> None:
    config, report = config_of(data, system__stage_dir=str(disk)), FORK.SimpleQueue()
    process = FORK.Process(target=cramped, args=(report, config))
    process.start()
    said = report.get()
    process.join()
    needed = sum(path.stat().st_size for path in data.rglob("*.jpg"))
    assert said == f"{disk} cannot take {data} ({needed:,} bytes): File too large"
    assert list(disk.glob("data*")) == leftovers(disk) == []


# Shards at a web address


class Server(ThreadingHTTPServer):
    """Serves a folder, counts what is asked for, and breaks off the first answers for some files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        name = self.path.removeprefix("/")
        self.server.asked[name] += 1
        if self.server.broken[name] > 0:
            self.server.broken[name] -= 1
            content = (Path(self.directory) / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(staging, "PAUSE_S", 0.0)
    server = Server(write_shards(tmp_path / "far"))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def remote(server: Server, disk: Path, **overrides: Any) -> RunConfig:
    return shards_of(
        server.address, **{"system__stage_dir": str(disk), "data__val_split": "val-{00..01}.tar"} | overrides
    )


def test_shards_from_the_web_train_as_those_on_disk(server: Server, disk: Path, tmp_path: Path) -> None:
    config, near = remote(server, disk), shards_of(tmp_path / "far")
    check_data(config)
    assert same(batches(config), batches(near))
    assert same(batches(config, "val"), batches(near, "val"))
    assert server.asked == Counter(
        [f"train-{shard:02d}.tar" for shard in range(4)] + [f"val-{shard:02d}.tar" for shard in range(2)]
    )
    assert leftovers(disk) == [*disk.rglob(".index*.npz")]


def test_many_processes_fetch_a_shard_once(server: Server, disk: Path) -> None:
    config, report = remote(server, disk), FORK.SimpleQueue()
    processes = [FORK.Process(target=counted, args=(report, config)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    assert len({report.get()[0] for _ in processes}) == 1
    for process in processes:
        process.join()
    assert set(server.asked.values()) == {1}


def test_a_broken_connection_is_retried_and_leaves_no_truncated_shard(server: Server, disk: Path) -> None:
    server.broken["train-01.tar"] = 1
    copy = staged(remote(server, disk))
    assert files(copy) == files(Path(server.RequestHandlerClass.keywords["directory"]))  # type: ignore[attr-defined]
    assert server.asked["train-01.tar"] == 2


def test_a_shard_that_cannot_be_fetched_is_named(server: Server, disk: Path) -> None:
    server.broken["train-01.tar"] = 99
    with pytest.raises(
        ConfigError,
        match=r"/train-01\.tar cannot be fetched to .*: the connection broke after [\d,]+ of [\d,]+ bytes",
    ):
        stage(remote(server, disk))
    assert not [*disk.rglob("train-01.tar")]
    assert leftovers(disk) == []
    with pytest.raises(ConfigError, match=r"/train-04\.tar cannot be fetched to .*: 404"):
        stage(remote(server, disk, data__train_split="train-{03..04}.tar"))


def test_what_a_killed_download_left_is_removed(server: Server, disk: Path) -> None:
    config = remote(server, disk)
    copy = staged(config)
    (copy / ".train-00.tar.elsewhere.123.tmp").write_bytes(b"half")
    assert staged(config) == copy
    assert leftovers(disk) == []


def test_shards_from_the_web_need_a_stage_folder_and_names(server: Server, disk: Path) -> None:
    config = remote(server, disk, system__stage_dir=None)
    for look in (check_data, stage):
        with pytest.raises(ConfigError, match=r"system\.stage_dir is not set: where are the shards of http"):
            look(config)
    with pytest.raises(ConfigError, match="name them with braces"):
        stage(remote(server, disk, data__val_split="val-*.tar"))


def test_a_folder_is_not_read_from_the_web(server: Server, disk: Path) -> None:
    with pytest.raises(ConfigError, match="is a URL, from which only shards and wds/ are read"):
        stage(config_of(server.address, system__stage_dir=str(disk)))
