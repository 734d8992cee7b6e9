"""The records of runs in one small file, from which a report is made again."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from roadmap.files import write_atomic, write_errors
from roadmap.records import RunDir, Status
from roadmap.strict_yaml import read_yaml, write_yaml

NAME = "records.tar.xz"
# of `system`: where something was on the machine that trained, which decides no result and concerns no reader
PATHS = ("data_dir", "stage_dir", "init_from")


def write_records(runs: Sequence[Status], folder: Path) -> Path:
    """Writes an archive of the finished ones of `runs`, to be unpacked into a folder of runs.

    It holds each run's configuration, metrics, and result; no checkpoints, and no paths of the machine. The
    same runs give the same bytes. ConfigError where the folder cannot be written to.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as archive:
        for run in sorted((run.run for run in runs if run.result is not None), key=lambda run: run.name):
            for path, text in _records(run):
                entry = tarfile.TarInfo(f"{run.name}/{path.name}")  # of no owner and no time
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text))
    with write_errors(folder):
        write_atomic(folder / NAME, content.getvalue())
    return folder / NAME


def _records(run: RunDir) -> list[tuple[Path, bytes]]:
    config = read_yaml(run.config).plain()
    config["system"] |= dict.fromkeys(PATHS)
    written = [(run.config, write_yaml(config).encode())]
    return written + [(path, path.read_bytes()) for path in (run.metrics, run.result) if path.exists()]
