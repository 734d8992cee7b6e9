"""A copy of the source and the steps that a plan was submitted with, so that its jobs run those and no later
edit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from roadmap import ROOT, STEPS_YAML
from roadmap.disk import reason
from roadmap.errors import config_error, relative
from roadmap.files import sync_folder, write_atomic, write_errors
from roadmap.provenance import SNAPSHOT_COMMIT, commit
from roadmap.steps import flat_text

KINDS = {".py", ".yaml", ".json", ".j2", ".css", ".js"}
PARTS = ("blocks", "roadmap", "slurm", "steps.yaml")


def sources(root: Path) -> Iterator[Path]:
    """The files that a job needs, sorted, relative to `root`."""
    for part in PARTS:
        found = [root / part] if (root / part).is_file() else sorted((root / part).rglob("*"))
        yield from (path.relative_to(root) for path in found if path.is_file() and path.suffix in KINDS)


def tree_hash(root: Path = ROOT) -> str:
    """Sixteen hex digits over the names and contents of the sources under `root`."""
    digest = hashlib.sha256()
    for path in sources(root):
        digest.update(f"{path.as_posix()}\0".encode() + hashlib.sha256((root / path).read_bytes()).digest())
    return digest.hexdigest()[:16]


def take(folder: Path) -> Path:
    """A snapshot of this project in `folder`, named by its hash, or the one that is there; whole at any
    moment.

    It knows the commit that it was first taken from, which its hash does not cover: the same code is the same
    snapshot.
    """
    target = folder / f"source-{tree_hash()}"
    if target.is_dir():
        return target
    aside = folder / f".{target.name}.{os.uname().nodename}.{os.getpid()}"
    try:
        for path in sources(ROOT):
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, aside / path)
        (aside / SNAPSHOT_COMMIT).write_text(f"{commit() or ''}\n", encoding="utf-8")
        aside.rename(target)
    except OSError as error:
        if not target.is_dir():  # somebody else may have been faster
            raise config_error(relative(target), f"cannot be written: {reason(error, target)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def keep_steps(steps_file: Path, folder: Path, snapshot: Path) -> Path:
    """Where a steps file is found as it is now, with what it extends: in `folder`, or the project's own in
    the snapshot.

    ConfigError if it cannot be read or written.
    """
    if steps_file.resolve() == STEPS_YAML:
        return snapshot / STEPS_YAML.relative_to(ROOT)
    text = flat_text(steps_file)
    kept = folder / f"steps-{hashlib.sha256(text.encode()).hexdigest()[:16]}" / steps_file.name
    with write_errors(kept):
        kept.parent.mkdir(exist_ok=True)
        write_atomic(kept, text)
        sync_folder(folder)
    return kept


def verify(snapshot: Path) -> None:
    """ConfigError unless this process runs the code in `snapshot`, and it is as it was when it was taken."""
    if ROOT.resolve() != snapshot.resolve():
        raise config_error(
            str(ROOT),
            f"is the code that was imported, and not {snapshot}; is PYTHONPATH set by the job's setup?",
        )
    there, wanted = tree_hash(snapshot), snapshot.name.rpartition("-")[2]
    if there != wanted:
        raise config_error(str(snapshot), f"was changed after it was taken ({there}); submit again")
