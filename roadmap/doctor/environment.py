"""What training needs of a machine, found without PyTorch: Python, packages, memory, disks, Slurm, data."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from itertools import islice
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.data.images import PillowDecoder, Unreadable, image_mode
from roadmap.data.listing import find_images
from roadmap.data.locate import class_names, data_dir, kind_of
from roadmap.data.preflight import check_data
from roadmap.disk import FILE_SYSTEM_ERRORS, free_space
from roadmap.doctor.findings import Finding, Status
from roadmap.errors import ConfigError, Problem, relative
from roadmap.files import locked
from roadmap.provenance import PACKAGES, cpu, usable_cores

DISTRIBUTION = "convnext-roadmap"
OPTIONAL = {  # what only some runs need, by the group of pyproject.toml that installs it
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "webdataset": "streams",
}
MEMORY_GIB, FREE_GIB = 8.0, 20.0
OPEN_FILES = 1024
CLOCK_S = 5.0
SHARED_MEMORY = Path("/dev/shm")
IMAGES = 64  # that are decoded
GIB = 2**30


def check_environment(runs: Path) -> Iterator[Finding]:
    """All findings about the machine."""
    yield from check_python()
    yield from check_packages()
    yield from check_memory()
    yield from check_temporary_files()
    yield from check_disk(runs)


def requirements() -> tuple[SpecifierSet, list[Requirement]]:
    """The supported Python, and the packages that the project needs; from pyproject.toml in a checkout."""
    file = ROOT / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return SpecifierSet(project["requires-python"]), [
            Requirement(text) for text in project["dependencies"]
        ]
    found: Any = metadata(DISTRIBUTION)
    needed = [Requirement(text) for text in found.get_all("Requires-Dist") or []]
    return SpecifierSet(found["Requires-Python"]), [one for one in needed if "extra" not in str(one.marker)]


def check_python() -> Iterator[Finding]:
    """Python's version, and the processor."""
    supported, here = requirements()[0], platform.python_version()
    right = supported.contains(here, prereleases=True)
    yield Finding(
        "python",
        "Python",
        here,
        bound=str(supported),
        status="ok" if right else "error",
        fix="" if right else f"install a Python {supported}, and make a new environment with it",
    )
    yield Finding("processor", cpu().rpartition(",")[0], usable_cores(), unit="cores")


def check_packages() -> Iterator[Finding]:
    """Whether each package is installed in a supported version."""
    fine = []
    for requirement in requirements()[1]:
        fix = f"pip install '{requirement}'"
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            yield Finding("packages", requirement.name, "not installed", status="error", fix=fix)
            continue
        # 2.11.0+cu130 is a build of 2.11.0
        if requirement.specifier.contains(here.partition("+")[0], prereleases=True):
            fine.append(f"{requirement.name} {here}")
        else:
            bound = str(requirement.specifier)
            yield Finding("packages", requirement.name, here, bound=bound, status="error", fix=fix)
    if fine:
        named = ", ".join(text for text in fine if text.split()[0] in PACKAGES)
        yield Finding("packages", named, f"{len(fine)} packages in supported versions", status="ok")
    for module, group in OPTIONAL.items():
        if find_spec(module) is None:
            fix = f"pip install '{DISTRIBUTION}[{group}]' where runs need it"
            yield Finding("packages", module, "not installed (optional)", fix=fix)


def check_memory() -> Iterator[Finding]:
    """The machine's memory, or what its container allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no control group, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    right = total >= MEMORY_GIB * GIB
    yield Finding(
        "memory",
        "memory",
        round(total / GIB, 1),
        unit="GiB",
        bound=f"at least {MEMORY_GIB:g}",
        status="ok" if right else "warning",
        fix="" if right else "take few data-loading workers",
    )


def check_temporary_files() -> Iterator[Finding]:
    """Whether data-loading workers can make their sockets, and the number of open files."""
    folder = tempfile.gettempdir()
    try:
        Listener(family="AF_UNIX").close()
        yield Finding("TMPDIR", folder, "data-loading workers can make their sockets", status="ok")
    except OSError as error:
        what = f"data-loading workers cannot make their sockets: {error.strerror or error}"
        yield Finding("TMPDIR", folder, what, status="error", fix="export TMPDIR=/tmp")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    right = soft >= OPEN_FILES
    yield Finding(
        "open files",
        "ulimit -n",
        soft,
        bound=f"at least {OPEN_FILES}",
        status="ok" if right else "warning",
        fix="" if right else f"ulimit -n {hard} in the shell, or in the cluster entry's setup",
    )


def check_disk(runs: Path) -> Iterator[Finding]:
    """The file system of the runs: its free space, locks, hard links and clock."""
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    name = relative(runs)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as probe:
            free = free_space(folder) / GIB
            roomy: Status = "ok" if free >= FREE_GIB else "warning"
            fix = (
                ""
                if roomy == "ok"
                else "make room, or choose another --runs: submit --plan estimates what runs need"
            )
            yield Finding("disk", name, round(free, 1), "free", "GiB", f"at least {FREE_GIB:g}", roomy, fix)
            yield from _check_file_system(name, Path(probe))
    except OSError as error:
        full = error.errno in FILE_SYSTEM_ERRORS
        fix = "make room" if full else "choose a folder of yours with --runs"
        yield Finding("disk", name, f"cannot be written: {error.strerror}", status="error", fix=fix)


def _check_file_system(name: str, probe: Path) -> Iterator[Finding]:
    began = time.time()
    file = probe / "file"
    file.touch()
    skew = round(file.stat().st_mtime - began, 1) + 0.0  # never -0
    right = abs(skew) < CLOCK_S
    yield Finding(
        "clock",
        name,
        skew,
        "ahead of this machine",
        "s",
        f"within {CLOCK_S:g}",
        "ok" if right else "error",
        "" if right else "have the administrator set the clocks (chrony, ntpd)",
    )
    try:
        with locked(file):
            pass
        yield Finding("file locks", name, "work", status="ok")
    except OSError as error:
        # only `collect` and `bench` lock files
        fix = "do not let two collect commands write to one folder at the same time"
        yield Finding("file locks", name, f"fail: {error.strerror}", status="warning", fix=fix)
    try:
        os.link(file, probe / "link")
        yield Finding("hard links", name, "work", status="ok")
    except OSError as error:
        fix = "choose a --runs on another file system: two processes could take the same run"
        yield Finding("hard links", name, f"fail: {error.strerror}", status="error", fix=fix)


def check_dataset(config: RunConfig) -> Iterator[Finding]:
    """Whether the data is there and fits the model, and whether some of a folder's images can be decoded."""
    problems: list[Problem] = []
    try:
        check_data(config)
        if kind_of(config.data) != "folder":
            subject = config.system.data_dir or f"dataset '{config.data.dataset}'"
            yield Finding("data", subject, "found; its images are read when training starts", status="ok")
            return
    except ConfigError as error:
        problems = error.problems
    for problem in problems:  # which suggest what to do
        yield Finding("data", str(problem.where), problem.message, status="error")
    if kind_of(config.data) != "folder":
        return
    with suppress(ConfigError):  # which has been reported
        names = class_names(config)
        for split in (config.data.train_split, config.data.val_split):
            yield from _check_images(config, data_dir(config) / split, names)


def _check_images(config: RunConfig, folder: Path, names: list[str]) -> Iterator[Finding]:
    """Counts a split's images, and decodes the first of each class, and the first of all."""
    counts, some = dict.fromkeys(range(len(names)), 0), list[str]()
    for path, label in find_images(folder, names):
        if not counts[label]:
            some.insert(0, path)
        elif len(some) < IMAGES:
            some.append(path)
        counts[label] += 1
    decoder, unreadable = PillowDecoder(image_mode(config)), 0
    checked = list(islice(some, IMAGES))
    for path in checked:
        try:
            decoder.decode((folder / path).open("rb"), str(folder / path))
        except (Unreadable, OSError) as error:
            unreadable += 1
            yield Finding(
                "data",
                relative(folder / path),
                str(error).removeprefix(f"{folder / path} "),
                status="error",
                fix="replace it, or allow some with --set system.corrupt_images=N",
            )
    if not unreadable:
        total, fewest = sum(counts.values()), min(counts.values())
        what = f"{total:,} images of {len(names)} classes, at least {fewest} of each; {len(checked)} decoded"
        yield Finding("data", relative(folder), what, status="ok")


def check_shared_memory(needed: int, workers: int) -> Finding:
    """Whether /dev/shm holds the batches of the data-loading workers, `needed` bytes."""
    folder = SHARED_MEMORY
    if not folder.is_dir() or not workers:
        return Finding("shared memory", str(folder), "not needed")
    free = shutil.disk_usage(folder).free
    right = needed <= free
    return Finding(
        "shared memory",
        str(folder),
        round(free / 2**20),
        "free",
        "MiB",
        f"at least {needed / 2**20:.0f} for {workers} data-loading workers",
        "ok" if right else "error",
        "" if right else "take fewer with --set system.workers=N; a container gets more with --shm-size",
    )
