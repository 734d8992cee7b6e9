"""`python -m roadmap prepare`: shards hold what the folder holds, whoever writes them, and whatever becomes
of the process on the way.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from roadmap import ROOT
from roadmap.__main__ import parser, run
from roadmap.cli.options import main_of
from roadmap.config import RunConfig
from roadmap.data.datasets import Source, make_source
from roadmap.data.preflight import check_data
from roadmap.data.prepare_plan import Sample, ShardOptions, images_of_a_shard
from roadmap.data.staging import stage
from roadmap.deltas import parse_overrides
from tests.helpers import commands
from tests.helpers.images import CLASSES, TINY, config_of, jpeg, write_folder, write_tar

WAIT_S = 120.0
SHAPE = ("--size", "150", "--shard-images", "9")


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "roadmap", "prepare", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


class Outcome(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def prepare(*words: str | Path, code: int = 0, before: Callable[[], None] = lambda: None) -> Outcome:
    """The command in a copy of this process, which has imported all it needs; it is to end with `code`."""
    out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
    process = os.fork()
    if process == 0:
        status = 1
        with suppress(BaseException):
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            before()
            status = ended(words)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    said = []
    for file in (out, err):
        file.seek(0)
        said.append(file.read())
        file.close()
    assert status == code, said[1]
    assert "Traceback" not in said[1]
    return Outcome(*said)


def ended(words: tuple[str | Path, ...]) -> int:
    """The exit code of the command, run here."""
    sys.argv = ["roadmap", "prepare", *map(str, words)]
    try:
        return main_of(parser(), run)
    except SystemExit as exit:  # argparse's
        return int(exit.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def start(*words: str | Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(*words), env=environment(), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    return [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    ]


def are_gone(processes: list[int]) -> bool:
    """Whether none is left but as what its parent has yet to take note of."""
    stats = [Path(f"/proc/{pid}/stat") for pid in processes]
    return all(
        not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
        for stat in stats
    )


def options_of(said: str) -> dict[str, Any]:
    """The values in the line of options that the command ends with."""
    words = shlex.split(said.splitlines()[-1])
    assert set(words[::2]) == {"--set"}
    return parse_overrides(words[1::2])


def shards_of(said: str, **more: Any) -> RunConfig:
    given = {
        name.replace(".", "__"): value
        for name, value in options_of(said).items()
        if name != "system.data_dir"
    }
    return config_of(options_of(said)["system.data_dir"], **given | more)


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".*.tmp"))


def members(folder: Path, split: str = "val") -> dict[str, bytes]:
    """The files in a split's shards, of which nobody can tell who made them or when."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert member.name not in found
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                found[member.name] = file.read()
    return found


def pictures(source: Source) -> list[tuple[int, bytes]]:
    """Labels and pixels, in the data set's order."""
    return [
        (label, np.asarray(image).tobytes())
        for image, label in (source[number] for number in range(len(source)))
    ]


def smooth(width: int, height: int, mode: str = "RGB", turn: int = 0) -> Image.Image:
    """A picture whose colors change slowly, and that is another one if it is turned."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = np.stack([x, y, (x + y + turn / 7) / 3], axis=2)
    return Image.fromarray((40 + 160 * channels).astype(np.uint8)).convert(mode)


def put(path: Path, image: Image.Image, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)


def noise(root: Path, train: int, val: int = 2, edges: tuple[int, int] = (240, 170)) -> Path:
    """Folders of as many pictures a class that take a while."""
    generator = np.random.default_rng(0)
    for split, each in (("train", train), ("val", val)):
        for name in CLASSES:
            for number in range(each):
                pixels = generator.integers(0, 256, (edges[1], edges[0], 3), dtype=np.uint8)
                put(root / split / name / f"{name}_{number}.JPEG", Image.fromarray(pixels))
    return root


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise(tmp_path_factory.mktemp("crowd"), 80)


@pytest.fixture(scope="module")
def undisturbed(crowd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of the crowd."""
    out = tmp_path_factory.mktemp("undisturbed")
    prepare(crowd, out, *SHAPE)
    return tars(out)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What people have in their folders; `val` has the same in another order of names."""
    root = tmp_path_factory.mktemp("zoo")
    turned = Image.Exif()
    turned[0x0112] = 6
    for split in ("train", "val"):
        ant, bee, cat = (root / split / name for name in CLASSES)
        for number in (10, 9, 1, 2):
            put(ant / f"img{number}.JPEG", smooth(90, 60, turn=number), quality=95)
        put(ant / "transparent.png", smooth(80, 70, "RGBA"))
        put(ant / "print.jpg", smooth(40, 50, "CMYK"), quality=95)
        put(bee / "gray.jpg", smooth(60, 50, "L"), quality=95)
        put(bee / "one.jpeg", smooth(1, 1))
        put(bee / "long.jpg", smooth(1500, 3))
        put(bee / "turned.jpg", smooth(120, 60), exif=turned, quality=95)
        put(bee / "palette.png", smooth(64, 48).quantize(64))
        put(bee / "two.dots.in.it.jpg", smooth(30, 20, turn=3))
        put(bee / "two.dots.in.it.png", smooth(30, 20, turn=5))
        put(cat / "sub" / "below.jpg", smooth(40, 40))  # which is nobody's
        put(cat / "Above.JPG", smooth(40, 40, turn=4))
        put(cat / "grün 2.jpg", smooth(50, 40, turn=1))
        put(cat / "web.webp", smooth(64, 70, turn=2), lossless=True)
        put(cat / "raw.bmp", smooth(64, 70, turn=5))
        put(cat / "scan.tiff", smooth(64, 70, turn=6))
        put(cat / "deep.png", Image.fromarray(np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50))
        (cat / "notes.txt").write_text("no image", encoding="utf-8")
    return root


def test_shards_of_untouched_files_are_the_folder(zoo: Path, tmp_path: Path) -> None:
    said = prepare(zoo, tmp_path / "out", "--size", "none", "--shard-images", "4", "--workers", "2").stdout
    folder, shards = config_of(zoo), shards_of(said)
    check_data(shards)
    assert pictures(make_source(shards, "val")) == pictures(make_source(folder, "val"))
    assert sorted(pictures(make_source(shards, "train"))) == sorted(pictures(make_source(folder, "train")))
    kept = {content for name, content in members(tmp_path / "out").items() if not name.endswith(".cls")}
    assert kept == {path.read_bytes() for path in zoo.glob("val/*/*.*") if path.suffix != ".txt"}


def test_names_that_a_shard_cannot_hold_are_read_back_one_to_one(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=1, val=1)
    for number, name in enumerate(
        (
            "0.png",
            "0_.jpg",
            "0.0.jpg",
            "0_0.jpg",
            "0.JPG",
            "a\nb.jpg",
            "caf\udce9.jpg",
            "caf\udcea.jpg",
            "._0.jpg",
        )
    ):
        (root / "val" / "ant" / name).write_bytes(jpeg(10 + number))
    said = prepare(root, tmp_path / "out", "--size", "none").stdout
    folder, shards = make_source(config_of(root), "val"), make_source(shards_of(said), "val")
    assert len(folder) == 3 + 8
    assert pictures(shards) == pictures(folder)
    assert len({shards.name(number) for number in range(len(shards))}) == len(shards)
    assert shards.class_names == list(CLASSES)


def test_training_images_are_shuffled_once_and_others_keep_their_order(zoo: Path, tmp_path: Path) -> None:
    orders = {}
    for seed in ("0", "1"):
        said = prepare(zoo, tmp_path / seed, "--size", "0", "--seed", seed).stdout
        orders[seed] = [pictures(make_source(shards_of(said), split)) for split in ("train", "val")]
    assert orders["0"][1] == orders["1"][1]
    labels = [[label for label, _ in train] for train, _ in orders.values()]
    assert labels[0] != labels[1]
    assert all(order != sorted(order) for order in labels)


def test_images_are_resized_and_otherwise_as_in_the_folder(zoo: Path, tmp_path: Path) -> None:
    size = 24
    said = prepare(zoo, tmp_path / "out", "--size", str(size), "--splits", "val").stdout
    assert "data.train_split" not in said
    folder, shards = make_source(config_of(zoo), "val"), make_source(shards_of(said), "val")
    assert len(shards) == len(folder)
    for number in range(len(folder)):
        (before, label), (after, same_label) = folder[number], shards[number]
        assert label == same_label
        scale = min(1.0, size / min(before.size))
        assert after.size == tuple(max(1, round(edge * scale)) for edge in before.size), folder.name(number)
        assert min(after.size) <= size
        wanted = before.resize(after.size, Image.Resampling.BOX)
        difference = np.abs(np.asarray(wanted, dtype=float) - np.asarray(after, dtype=float))
        assert difference.mean() < 4, folder.name(number)


def test_small_jpegs_keep_their_bytes_and_others_become_jpegs(zoo: Path, tmp_path: Path) -> None:
    prepare(zoo, tmp_path / "out", "--size", "60", "--splits", "val", "--quality", "91")
    found = members(tmp_path / "out")
    kept = {path.name for path in (zoo / "val").glob("*/*.*") if path.read_bytes() in found.values()}
    assert kept >= {
        "img1.JPEG",
        "gray.jpg",
        "one.jpeg",
        "long.jpg",
        "turned.jpg",
        "two.dots.in.it.jpg",
        "Above.JPG",
        "grün 2.jpg",
    }
    assert not kept & {
        "print.jpg",
        "transparent.png",
        "palette.png",
        "deep.png",
        "two.dots.in.it.png",
        "web.webp",
        "raw.bmp",
        "scan.tiff",
    }
    for name, content in found.items():
        if not name.endswith(".cls"):
            image = Image.open(io.BytesIO(content))
            assert (name.rpartition(".")[2], image.format, image.mode in ("L", "RGB")) == (
                "jpg",
                "JPEG",
                True,
            )
    assert {name for name in found if name.startswith("bee/two")} == {
        f"bee/two_dots_in_it{mark}.{suffix}" for mark in ("", "_") for suffix in ("jpg", "cls")
    }


def test_shards_are_the_same_bytes_with_any_number_of_workers(zoo: Path, tmp_path: Path) -> None:
    found = []
    for workers in ("1", "3"):
        prepare(zoo, tmp_path / workers, "--size", "40", "--shard-images", "3", "--workers", workers)
        found.append(tars(tmp_path / workers))
    assert len(found[0]) == 14
    assert found[0] == found[1]
    manifests = [
        {path.name: path.read_bytes() for path in (tmp_path / workers).glob("*.json")}
        for workers in ("1", "3")
    ]
    assert manifests[0] == manifests[1]
    assert set(manifests[0]) == {"classes.json", "prepared-train.json", "prepared-val.json"}


def test_classes_keep_their_names_on_a_nodes_disk_too(zoo: Path, tmp_path: Path) -> None:
    said = prepare(zoo, tmp_path / "out", "--size", "none").stdout
    assert json.loads((tmp_path / "out" / "classes.json").read_text(encoding="utf-8")) == list(CLASSES)
    some = {"data__classes": ["cat", "bee"], "model__num_classes": 2}
    for config in (shards_of(said), stage(shards_of(said, system__stage_dir=str(tmp_path / "disk")))):
        assert [make_source(config, split).class_names for split in ("train", "val")] == [list(CLASSES)] * 2
    chosen, folder = make_source(shards_of(said, **some), "val"), make_source(config_of(zoo, **some), "val")
    assert chosen.class_names == folder.class_names == ["bee", "cat"]
    assert pictures(chosen) == pictures(folder)


@pytest.mark.parametrize(
    ("samples", "names"),
    [
        ([("b/1", 0), ("x/a/2", 1), ("b/3", 0)], ["b", "a"]),
        ([("a/1", 0), ("b/2", 1), ("b/3", 0)], None),
        ([("a/1", 0), ("a/2", 1)], None),
        ([("x/a/1", 0), ("y/a/2", 1)], None),
        ([("a/1", 0), ("b/2", 2)], None),
        ([("1", 0), ("2", 1)], None),
    ],
    ids=[
        "a folder a class",
        "two folders in a class",
        "one folder",
        "one name",
        "a class without images",
        "no folders",
    ],
)
def test_a_class_is_called_what_its_folder_is_called(
    samples: list[tuple[str, int]], names: list[str] | None, tmp_path: Path
) -> None:
    jpeg = io.BytesIO()
    smooth(4, 4).save(jpeg, "JPEG")
    files = [{f"{name}.jpg": jpeg.getvalue(), f"{name}.cls": str(label).encode()} for name, label in samples]
    write_tar(tmp_path / "a.tar", {name: content for part in files for name, content in part.items()})
    config = config_of(tmp_path, data__dataset="shards", data__train_split="a.tar", data__val_split="a.tar")
    assert make_source(config, "train").class_names == names


def test_a_run_trains_with_the_options_that_are_printed(tmp_path: Path) -> None:
    said = prepare(write_folder(tmp_path / "data"), tmp_path / "out").stdout
    assert "model.num_classes=3" in said
    words = shlex.split(said.splitlines()[-1])
    values = [
        f"{key}={value if value is not None else 'null'}"
        for key, value in TINY.items()
        if key != "model.num_classes"
    ]
    line = [
        sys.executable,
        str(ROOT / "run_step.py"),
        "separate_downsampling",
        "--profile",
        "imagenet",
        *words,
        "--set",
        "recipe.precision=fp32",
    ]
    for value in values:
        line += ["--set", value]
    planned = commands.run([*line, "--plan"], cwd=tmp_path, timeout=WAIT_S)
    assert "for 1 epoch of 15 images" in planned.stdout, planned.stderr
    index = {path: path.stat().st_ino for path in (tmp_path / "out").glob(".index-*.npz")}
    done = commands.run(line, cwd=tmp_path, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stderr
    assert {path: path.stat().st_ino for path in (tmp_path / "out").glob(".index-*.npz")} == index
    assert len(index) == 2


def test_no_torch_is_needed(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    script = (
        f"import runpy, sys; sys.argv = ['roadmap', 'prepare', {str(tmp_path / 'data')!r},"
        f" {str(tmp_path / 'out')!r}]\n"
    )
    script += (
        "sys.exit = lambda code: print(code, {'torch', 'timm'} &"
        " set(sys.modules))\nrunpy.run_module('roadmap', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 set()"


def test_help_names_every_option() -> None:
    said = subprocess.run(
        command("--help"), env=environment(), capture_output=True, text=True, check=True
    ).stdout
    wanted = (
        "SOURCE",
        "DESTINATION",
        "size",
        "quality",
        "splits",
        "shard-images",
        "workers",
        "seed",
        "corrupt-images",
    )
    assert [word for word in wanted if word not in said] == []


@pytest.mark.parametrize(
    ("bytes_each", "size", "images"),
    [(110_000, 512, 1900), (10**6, 512, 1900), (10**6, None, 200), (1000, 512, 10_000), (0, None, 10_000)],
)
def test_a_shard_is_some_200_megabytes(
    bytes_each: int, size: int | None, images: int, tmp_path: Path
) -> None:
    for number in range(3):
        with (tmp_path / f"{number}.jpg").open("wb") as file:
            file.truncate(bytes_each)
    samples = [Sample(f"{number}.jpg", str(number), 0) for number in range(4)]  # one of which is not there
    assert images_of_a_shard(tmp_path, samples, size) == images


# Killed, stopped, side by side, without space


def half_done(source: Path, out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A command that has written some shards and not others, and its workers."""
    process = start(source, out, "--workers", "2", *SHAPE)
    until(lambda: len(list(out.glob("train-*.tar"))) >= 2 or process.poll() is not None)
    workers = children(process.pid)
    assert len(workers) == 2
    return process, workers


def finished(out: Path) -> dict[str, int]:
    """The shards that the manifest knows, with their inodes."""
    shards = json.loads((out / "prepared-train.json").read_text(encoding="utf-8"))["shards"]
    return {name: (out / name).stat().st_ino for name in shards}


def test_a_third_split_is_named_beside_the_two_that_are_trained_on(zoo: Path, tmp_path: Path) -> None:
    source = shutil.copytree(zoo, tmp_path / "data")
    shutil.copytree(source / "val", source / "test")
    said = prepare(source, tmp_path / "out", "--splits", "train", "val", "test").stdout
    *lines, options = said.splitlines()
    assert options.count("data.val_split=") == options.count("data.train_split=") == 1
    assert "data.val_split=val-" in options
    assert "test: is read with --set 'data.val_split=test-{000000..000000}.tar'" in lines


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_resumes_where_it_was(
    number: signal.Signals, crowd: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    process, workers = half_done(crowd, tmp_path)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, complained = process.communicate(timeout=WAIT_S)
    until(lambda: are_gone(workers))
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert complained.splitlines()[-1] == "stopped; the same command resumes from here"
        assert "Traceback" not in complained
        assert leftovers(tmp_path) == []
    half = tars(tmp_path)
    assert 2 <= len(half) < len(undisturbed) == 28
    assert half.items() <= undisturbed.items()
    kept = finished(tmp_path)
    prepare(crowd, tmp_path, *SHAPE)
    assert tars(tmp_path) == undisturbed
    assert leftovers(tmp_path) == []
    before = finished(tmp_path)
    assert kept.items() <= before.items()
    # nothing is left to do, whatever number of images would be the default
    said = prepare(crowd, tmp_path, "--size", "150")
    assert "train: 240 images in 27 shards" in said.stdout
    assert finished(tmp_path) == before


def test_a_worker_that_is_killed_is_named(crowd: Path, tmp_path: Path) -> None:
    process, workers = half_done(crowd, tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    _, complained = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert complained.splitlines()[-1].startswith("--workers one died of 2, perhaps out of memory; try fewer")
    assert are_gone(workers)


def test_a_second_command_waits_for_the_first(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    with (out / ".prepare.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(source, out)
        assert process.stderr is not None
        assert process.stderr.readline() == f"waiting for another process that writes to {out}\n"
        time.sleep(1.0)
        assert process.poll() is None
        assert list(out.iterdir()) == [out / ".prepare.lock"]
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert "train: 15 images in 1 shard," in said


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    source, out = noise(tmp_path / "data", 3, 1), tmp_path / "out"
    small = max(path.stat().st_size for path in source.rglob("*.JPEG")) * 2

    def cramp() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))

    done = prepare(source, out, "--splits", "train", code=2, before=cramp)
    (line,) = done.stderr.splitlines()
    kept = "the finished shards are kept, and the same command resumes from there"
    assert line == f"{out}/train-000000.tar cannot be written: File too large; {kept}"
    assert (done.stdout, tars(out), leftovers(out)) == ("", {}, [])
    assert "train: 9 images" in prepare(source, out, "--splits", "train").stdout


def test_a_terminal_sees_a_bar(tmp_path: Path) -> None:
    terminal, slave = pty.openpty()
    line = command(noise(tmp_path / "data", 4), tmp_path / "out")
    process = subprocess.Popen(
        line, env=environment() | {"TERM": "xterm", "COLUMNS": "120"}, stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    said = b""
    with suppress(OSError):  # a terminal that nobody writes to any more
        while part := os.read(terminal, 1 << 16):
            said += part
    os.close(terminal)
    assert process.wait(WAIT_S) == 0, said
    assert b"preparing" in said
    assert re.search(rb"2 of 2 shards, \d+ images/s", said)


# What is refused


USUAL = ("--size", "20", "--shard-images", "5")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, and what it was turned into."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(write_folder(root / "data"), root / "out", *USUAL)
    return root


def make_other(change: str, source: Path, out: Path) -> None:
    """Changes what was prepared."""
    if change == "image":
        put(source / "val" / "bee" / "more.jpg", smooth(30, 30))
    if change == "class":
        for split in ("train", "val"):
            (source / split / "cat").rename(source / split / "cow")
    if change == "manifest":
        (out / "prepared-train.json").write_text("{", encoding="utf-8")
    if change == "strangers":
        (out / "prepared-train.json").unlink()


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (
            "",
            ["--size", "16"],
            [
                r"prepared-train\.json has train with --size 20, not 16; continue with --size 20, or choose"
                r" another"
            ],
        ),
        ("", ["--size", "none"], ["--size 20, not none", "--quality 90, not none"]),
        ("", ["--quality", "80"], ["train with --quality 90, not 80"]),
        ("", ["--seed", "1"], [r"train with --seed 0, not 1; continue with --seed 0"]),
        ("", ["--shard-images", "6"], ["--shard-images 5, not 6"]),
        (
            "image",
            [],
            [
                r"prepared-val\.json has val of other images than .*/val holds now, or choose another"
                r" destination"
            ],
        ),
        ("class", ["--splits", "val"], ["val of other images"]),
        ("manifest", [], [r"prepared-train\.json cannot be read: .*; choose another destination"]),
        (
            "strangers",
            [],
            [r"holds train-000000\.tar that this command did not write; choose another destination"],
        ),
    ],
)
def test_another_plan_for_shards_that_are_there_is_refused(
    change: str, words: list[str], said: list[str], prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    source, out = tmp_path / "data", tmp_path / "out"
    make_other(change, source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = prepare(source, out, *USUAL, *words, code=2)
    lines = done.stderr.splitlines()
    assert len(lines) == len(said)
    assert all(re.search(pattern, line) for pattern, line in zip(said, lines, strict=True)), done.stderr
    assert done.stdout == ""
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_files_that_are_skipped_are_named_once(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "data"), tmp_path / "out"
    for name in ("1.gif", "2.GIF", "3.heic", "README", ".hidden"):
        (source / "train" / "bee" / name).write_bytes(b"of no format that is read")
    (source / "train" / "bee" / "below.gif").mkdir()
    said = prepare(source, out).stderr.splitlines()
    assert [line for line in said if "skipped" in line] == [
        "train: 4 files skipped, for only .png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff are read: .gif,"
        " .heic, no suffix"
    ]


def test_options_of_a_command_that_wrote_no_shard_do_not_bind_the_next(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "data"), tmp_path / "out"
    for split in ("train", "val"):
        for name in CLASSES:
            (source / split / name / "0.jpg").write_bytes(b"no picture")
    words = ("--workers", "1", "--shard-images", "100")
    assert (
        "leave it out with --corrupt-images 1" in prepare(source, out, *words, "--size", "20", code=2).stderr
    )
    assert (leftovers(out), tars(out)) == ([], {})
    for split in ("train", "val"):
        (source / split / "cat").rename(source / split / "cow")
        for name in ("ant", "bee", "cow"):
            (source / split / name / "0.jpg").unlink()
    said = prepare(source, out, "--size", "16", "--workers", "1", "--seed", "3").stdout
    assert "train: 12 images in 1 shard" in said
    assert make_source(shards_of(said), "val").class_names == ["ant", "bee", "cow"]
    assert "--size 16, not 20" in prepare(source, out, *words, "--size", "20", code=2).stderr


def test_a_foreign_manifest_is_not_overwritten(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "prepared-train.json").write_text("mine", encoding="utf-8")
    assert "cannot be read" in prepare(source, out, code=2).stderr
    assert (out / "prepared-train.json").read_text(encoding="utf-8") == "mine"


def test_another_data_sets_validation_is_not_put_beside(tmp_path: Path) -> None:
    prepare(write_folder(tmp_path / "data"), tmp_path / "out", "--splits", "train")
    other = tmp_path / "other" / "val" / "dog" / "1.jpg"
    put(other, smooth(30, 30))
    done = prepare(tmp_path / "other", tmp_path / "out", "--splits", "val", code=2)
    assert "classes.json names other classes" in done.stderr
    assert not (tmp_path / "out" / "prepared-val.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--splits", "train", "test"], r"data has no folder test, but train, val; --splits train val"),
        (
            ["--splits", "train", "train"],
            "--splits names 'train', which is not a folder of .*, or there twice",
        ),
        (["--splits", "../data/train"], "--splits names '../data/train'"),
        (["--size", "-1"], "--size must be at least 1, not -1"),
        (["--size", "big"], "'big' is neither a number of pixels nor none"),
        (["--quality", "0"], "--quality must be 1 to 100, not 0"),
        (["--shard-images", "0"], "--shard-images must be at least 1, not 0"),
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["--corrupt-images", "-1"], "--corrupt-images must be at least 0, not -1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    words: list[str], said: str, tmp_path: Path
) -> None:
    source, out = write_folder(tmp_path / "data"), tmp_path / "out"
    done = prepare(source, out, *words, code=2)
    assert re.search(said, done.stderr)
    assert not out.exists()


def test_a_folder_that_a_run_would_refuse_is_refused(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "data"), tmp_path / "out"
    inside = source / "train" / "shards"
    assert "where it would be a class" in prepare(source, inside, code=2).stderr
    (source / "val" / "dog").mkdir()
    assert "must have the same classes: only val/ has dog" in prepare(source, out, code=2).stderr
    (source / "train" / "dog").mkdir()
    assert re.search(r"train has no images \(\.png, .*\.tiff\) in dog", prepare(source, out, code=2).stderr)
    assert not out.exists()
    assert not inside.exists()


# Images that cannot be read


def test_damaged_images_are_named_once_and_left_out_if_that_is_allowed(tmp_path: Path) -> None:
    source, out = noise(tmp_path / "data", 5), tmp_path / "out"
    bad = source / "train" / "bee" / "bee_3.JPEG", source / "val" / "ant" / "ant_0.JPEG"
    bad[0].write_bytes(bad[0].read_bytes()[:-2000])
    bad[1].write_bytes(b"<html>404</html>")
    words = ("--shard-images", "4", "--workers", "1", "--size", "none")
    first = prepare(source, out, *words, code=2).stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"{bad[0]} is not an image that can be read: .*truncated.*; leave it out with --corrupt-images 1",
        first,
    )
    second = prepare(source, out, *words, "--corrupt-images", "1", code=2).stderr.splitlines()
    assert (
        second[-1]
        == f"{bad[1]} is not an image that can be read: it has no image format that is known; 2 such images"
        " are more than --corrupt-images 1"
    )
    done = prepare(source, out, *words, "--corrupt-images", "2")
    named = [line for line in second[:-1] + done.stderr.splitlines() if line.endswith("; it is left out")]
    assert [line.partition(" ")[0] for line in named] == [str(path) for path in bad]
    assert "train: 14 images in 4 shards" in done.stdout
    assert re.search(
        r"^val: 1 image left out that could not be read; .*prepared-val\.json names them$",
        done.stdout,
        re.MULTILINE,
    )
    shards = make_source(shards_of(done.stdout), "train")
    assert len(shards) == len(pictures(shards)) == 14
    refused = prepare(source, out, *words, "--corrupt-images", "1", code=2).stderr
    assert refused.startswith(
        "--corrupt-images must be at least 2: 2 images could not be read and are left out already,"
        " bee/bee_3.JPEG"
    )


def test_what_is_copied_unchanged_is_read_to_its_end(tmp_path: Path) -> None:
    """An image is damaged here exactly if a run on the folder could not read it."""
    source = tmp_path / "data"
    content = io.BytesIO()
    smooth(97, 61).save(content, "JPEG", progressive=True)
    whole, generator = content.getvalue(), np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(whole)
        if number % 2:
            damaged = damaged[: generator.integers(1, len(whole) + 1)]
        else:
            damaged[generator.integers(0, len(whole))] ^= 1 << int(generator.integers(0, 8))
        for split in ("train", "val"):
            path = source / split / "ant" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damaged)
    folder, unreadable = make_source(config_of(source), "val"), []
    for number in range(len(folder)):
        try:
            folder[number]
        except OSError:
            unreadable.append(f"ant/{Path(folder.name(number)).name}")
    assert 10 < len(unreadable) < 50
    assert ShardOptions(None, 90, None, 0).check() == []
    for size in ("none", "512"):
        prepare(source, tmp_path / size, "--size", size, "--splits", "val", "--corrupt-images", "60")
        shards = json.loads((tmp_path / size / "prepared-val.json").read_text(encoding="utf-8"))["shards"]
        assert shards["val-000000.tar"]["left_out"] == unreadable
