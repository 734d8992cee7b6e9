"""Where a result comes from: machine, versions and commit; and a cache of what depends on such values."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from roadmap import ROOT
from roadmap.files import write_atomic

# a snapshot of the source has the commit that it was taken from in this file, which is empty outside of git
SNAPSHOT_COMMIT = "snapshot-commit.txt"
# set by git's hooks and tools, maybe for another repository
ELSEWHERE = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
}
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")
# how many workers of a local submission share this machine
WORKERS_HERE = "CONVNEXT_ROADMAP_WORKERS"
# how many runs share the GPU of this process, which trains one of them
RUNS_PER_GPU = "CONVNEXT_ROADMAP_RUNS_PER_GPU"
CACHE_FOLDER = "convnext-roadmap"


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed versions of packages, by default those that a result may depend on."""
    return {name: version(name) for name in packages}


def commit() -> str | None:
    """The commit of the checkout or snapshot, '+changes' if tracked files differ; None outside git."""
    snapshot = ROOT / SNAPSHOT_COMMIT
    if snapshot.is_file():
        return snapshot.read_text(encoding="utf-8").strip() or None
    try:
        # an installed package may be in another repository
        _git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    line = ["git", "-C", str(ROOT), *words]
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    done = subprocess.run(
        line, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=30
    )
    return done.stdout.strip()


def cpu() -> str:
    """The processor's name and the number of cores that this process may use."""
    names = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {usable_cores()} cores"


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_process() -> int:
    """The cores that this process has for itself beside those of its run, or of a local submission, here."""
    cores = usable_cores()
    if given := _positive("SLURM_CPUS_PER_TASK"):
        cores = min(cores, given)
    for name in ("LOCAL_WORLD_SIZE", "SUBMITIT_LOCAL_NTASKS", WORKERS_HERE):
        cores //= _positive(name) or 1
    return max(1, cores)


def runs_per_gpu() -> int:
    """How many workers, this one included, train runs on its GPU at a time."""
    return _positive(RUNS_PER_GPU) or 1


def _positive(name: str) -> int | None:
    """A variable's value, if it is a positive number."""
    value = os.environ.get(name, "")
    return int(value) or None if value.isdecimal() else None


def provenance(hardware: str) -> dict[str, Any]:
    """The content of provenance.json."""
    return {
        "hardware": hardware,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()} | versions(),
        "commit": commit(),
        "command": shlex.join(sys.argv),
    }


def cached(name: str, decided_by: str, make: Callable[[], str]) -> str:
    """What `make` returns, from the user's cache folder if it was made before with the same `decided_by`.

    A file that is damaged, or was made with anything else, is ignored; nothing is cached where no file can be
    written.
    """
    path = cache_folder() / f"{name}-{sha256(decided_by.encode()).hexdigest()[:16]}"
    with suppress(OSError, ValueError):
        digest, _, text = path.read_bytes().partition(b"\n")
        if digest.decode() == _digest(decided_by, text):
            return text.decode()
    made = make()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{_digest(decided_by, made.encode())}\n".encode() + made.encode())
    return made


def cache_folder() -> Path:
    """The user's folder for what can be made again; XDG's standard ignores a relative path."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path("~/.cache").expanduser()) / CACHE_FOLDER


def _digest(decided_by: str, text: bytes) -> str:
    return sha256(sha256(decided_by.encode()).digest() + text).hexdigest()
