"""What a worker of `prepare` does: images made smaller, packed into a shard that gets its name when it is
whole.
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

from roadmap.data.corrupt import Unreadable, open_image, reading
from roadmap.data.images import in_8_bits, in_mode
from roadmap.data.prepare_plan import Finished, Recipe, Shard
from roadmap.disk import reason
from roadmap.files import sync_folder, temporary_path
from roadmap.strict_yaml import config_error, relative

FORK = multiprocessing.get_context("fork")  # before any thread is started
JPEG = ("JPEG", "MPO")
# Pillow looks at the content; other readers go by the name
SUFFIXES = {"PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
GREY = ("1", "L", "LA")
# how much larger than wanted libjpeg may halve an image; 48 dB from resizing all of it, in a third of the
# time
GAP = 1.4


class Interrupted(Exception):
    """The others have stopped."""


class Shared:
    """What the processes know of each other: whether to stop, how many images are done, how many were left
    out of those `allowed`.
    """

    def __init__(self, left_out: int, allowed: int) -> None:
        self.stop, self.done = FORK.RawValue(c_bool, False), FORK.Value(c_uint64, 0)
        self.left_out, self.allowed = FORK.Value(c_uint64, left_out), allowed
        self.news = FORK.SimpleQueue()

    def advance(self) -> None:
        """An image is done; Interrupted if it was to be the last."""
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


_shared: Shared  # a worker's own: the executor would not hand it over with a shard


def begin(shared: Shared) -> None:
    """What a worker does first."""
    global _shared
    _shared = shared
    warnings.simplefilter("ignore")  # Pillow's on metadata, of which nobody reads any
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def write_shard(shard: Shard, recipe: Recipe) -> tuple[str, Finished]:
    """Writes a shard aside and gives it its name when it is whole; returns the name and what is in it."""
    left_out: list[str] = []
    temporary = temporary_path(shard.path)
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for sample in shard.samples:
                    try:
                        content, suffix = shrink(shard.folder / sample.file, recipe)
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
            " command goes on from there"
        )
        raise config_error(relative(shard.path), what) from error
    finally:
        temporary.unlink(missing_ok=True)
    return shard.path.name, Finished(len(shard.samples) - len(left_out), size, left_out)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a member that is the same whoever writes it and when."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def shrink(path: Path, recipe: Recipe) -> tuple[bytes, str]:
    """An image's content, with its shorter edge at most `recipe.size`, and its suffix; Unreadable if it is
    none.

    A JPEG of one or three channels that is small enough is kept as it is. What is written anew has the pixels
    that a run on the folder would see: no orientation or color profile is applied.
    """
    with reading(str(path)):
        content = path.read_bytes()
        with open_image(io.BytesIO(content)) as image:
            scale = 1.0 if recipe.size is None else min(1.0, recipe.size / min(image.size))
            is_plain = image.format in JPEG and image.mode in ("L", "RGB")
            if recipe.size is None or (scale == 1.0 and is_plain):
                image.draft(None, (1, 1))  # whether all of it is there shows at an eighth of its size, too
                in_mode(image, "RGB")
                return content, SUFFIXES.get(image.format or "", "jpg")
            width, height = (max(1, round(edge * scale)) for edge in image.size)
            drafted = image.draft(None, (int(GAP * width), int(GAP * height))) if scale < 1.0 else None
            levels = in_8_bits(image)
            small = levels.convert("L" if levels.mode in GREY else "RGB")
            if scale < 1.0:
                small = small.resize((width, height), Image.Resampling.LANCZOS, drafted and drafted[1], GAP)
            file = io.BytesIO()
            small.save(file, "JPEG", quality=recipe.quality)
            return file.getvalue(), "jpg"
