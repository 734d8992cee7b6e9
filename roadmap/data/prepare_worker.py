"""A worker of `prepare`: it makes images smaller and packs them into shards, renamed when
they are complete.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import threading
import warnings
from ctypes import c_bool, c_uint64
from pathlib import Path

from PIL import Image

from roadmap.data.images import JPEG, Unreadable, in_8_bits, in_mode, open_image, reading
from roadmap.data.prepare_plan import Finished, Shard, ShardOptions
from roadmap.disk import reason
from roadmap.errors import config_error, relative
from roadmap.files import sync_folder, temporary_path

FORK = multiprocessing.get_context("fork")  # before any thread is started
# Pillow reads the content; other readers rely on the name
SUFFIXES = {"PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
GRAY = ("1", "L", "LA")
# libjpeg may halve an image down to this factor above its size; 48 dB from resizing all of it, in a third of
# the time
GAP = 1.4


class Interrupted(Exception):
    """Another process has stopped all."""


class Shared:
    """What the processes share: whether to stop, how many images are done, and how many of those
    `allowed` were left out.
    """

    def __init__(self, left_out: int, allowed: int) -> None:
        self.stop, self.done = FORK.RawValue(c_bool, False), FORK.Value(c_uint64, 0)
        self.left_out, self.allowed = FORK.Value(c_uint64, left_out), allowed
        self.news = FORK.SimpleQueue()

    def advance(self) -> None:
        """Counts an image; Interrupted if all are to stop."""
        with self.done.get_lock():
            self.done.value += 1
        if self.stop.value:
            raise Interrupted

    def leave_out(self, error: Unreadable) -> None:
        """Names an image that cannot be read; ConfigError if it is one too many."""
        with self.left_out.get_lock():
            self.left_out.value += 1
            count = self.left_out.value
        if count > self.allowed:
            more = f"{count} such images are more than" if self.allowed else "leave it out with"
            raise config_error("", f"{error}; {more} --corrupt-images {max(1, self.allowed)}")
        self.news.put(f"{error}; it is left out")


_shared: Shared  # of each worker: the executor cannot pass it with a shard


def begin(shared: Shared) -> None:
    """Starts a worker."""
    global _shared
    _shared = shared
    warnings.simplefilter("ignore")  # Pillow's on metadata, which is not used
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def write_shard(shard: Shard, options: ShardOptions) -> tuple[str, Finished]:
    """Writes a shard to a temporary file and renames it when it is complete; returns its name and content."""
    left_out: list[str] = []
    temporary = temporary_path(shard.path)
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for sample in shard.samples:
                    try:
                        content, suffix = shrink(shard.folder / sample.file, options)
                        _add(tar, f"{sample.name}.{suffix}", content)
                        _add(tar, f"{sample.name}.cls", str(sample.label).encode())
                    except Unreadable as error:
                        _shared.leave_out(error)
                        left_out.append(sample.file)
                    _shared.advance()
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        temporary.replace(shard.path)
        sync_folder(shard.path.parent)
    except OSError as error:
        what = (
            f"cannot be written: {reason(error, shard.path)}; the finished shards are kept, and the same"
            " command resumes from there"
        )
        raise config_error(relative(shard.path), what) from error
    finally:
        temporary.unlink(missing_ok=True)
    return shard.path.name, Finished(len(shard.samples) - len(left_out), size, left_out)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a member that depends on neither user nor time."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def shrink(path: Path, options: ShardOptions) -> tuple[bytes, str]:
    """An image's content, with its shorter edge at most `options.size`, and its suffix; Unreadable
    if it is not one.

    A JPEG of one or three channels that is small enough is kept as it is. Others are encoded from the pixels
    that a run on the folder would see: no orientation or color profile is applied.
    """
    with reading(str(path)):
        content = path.read_bytes()
        with open_image(io.BytesIO(content)) as image:
            scale = 1.0 if options.size is None else min(1.0, options.size / min(image.size))
            is_plain = image.format in JPEG and image.mode in ("L", "RGB")
            if options.size is None or (scale == 1.0 and is_plain):
                image.draft(None, (1, 1))  # an eighth of its size shows whether it is truncated, too
                in_mode(image, "RGB")
                return content, SUFFIXES.get(image.format or "", "jpg")
            width, height = (max(1, round(edge * scale)) for edge in image.size)
            drafted = image.draft(None, (int(GAP * width), int(GAP * height))) if scale < 1.0 else None
            levels = in_8_bits(image)
            small = levels.convert("L" if levels.mode in GRAY else "RGB")
            if scale < 1.0:
                small = small.resize((width, height), Image.Resampling.LANCZOS, drafted and drafted[1], GAP)
            file = io.BytesIO()
            small.save(file, "JPEG", quality=options.quality)
            return file.getvalue(), "jpg"
