"""The records of runs in one small file, from which a report is made again."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from roadmap.errors import config_error, relative
from roadmap.records import RunDir, Status
from roadmap.strict_yaml import read_yaml, write_yaml

NAME = "records.tar.xz"
# of `system`: where something was on the machine that trained, which decides no result and concerns no reader
PATHS = ("data_dir", "stage_dir", "init_from")


def pack_records(runs: Sequence[Status]) -> bytes:
    """An archive of the finished ones of `runs`, to be unpacked into a folder of runs.

    It holds each run's configuration, metrics, and result; no checkpoints, and no paths of the machine. The
    same runs give the same bytes. ConfigError for a configuration that is damaged.
    """
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as archive:
        for run in sorted((run.run for run in runs if run.result is not None), key=lambda run: run.name):
            for path, text in _records(run):
                entry = tarfile.TarInfo(f"{run.name}/{path.name}")  # of no owner and no time
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text))
    return content.getvalue()


def _records(run: RunDir) -> list[tuple[Path, bytes]]:
    config = read_yaml(run.config).plain()
    if not isinstance(config, dict) or not isinstance(config.get("system"), dict):
        raise config_error(relative(run.config), "is damaged: it has no section 'system'")
    config["system"] |= dict.fromkeys(PATHS)
    written = [(run.config, write_yaml(config).encode())]
    return written + [(path, path.read_bytes()) for path in (run.metrics, run.result) if path.exists()]
