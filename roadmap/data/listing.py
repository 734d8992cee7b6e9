"""Which files belong to a dataset, by one rule for all kinds of data, and a digest of its samples."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roadmap.errors import config_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

# of images in a folder: timm's, and others that Pillow reads
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
NUMBERS = re.compile(r"(\d+)")
# how the names of hidden files begin, and of folders in which archivers keep metadata
HIDDEN = (".", "__MACOSX", "PaxHeader")


def is_hidden(path: str) -> bool:
    """Whether a file or folder, or a folder on its path, is hidden; `.` and `..` on the path are not."""
    return any(part.startswith(HIDDEN) and part not in (".", "..") for part in path.split("/"))


def printable(name: str) -> str:
    r"""A file's name as text that any encoding of Unicode takes; bytes that are not UTF-8 become `\xe9`."""
    return os.fsencode(name).decode(errors="backslashreplace")


@contextmanager
def readable() -> Iterator[None]:
    """One clear message, a ConfigError, for a file or folder that cannot be read inside."""
    try:
        yield
    except OSError as error:
        raise config_error(printable(str(error.filename)), f"cannot be read: {error.strerror}") from error


def images_in(folder: Path, others: Counter[str] | None = None) -> Iterator[str]:
    """The names of the images in a folder, by their suffixes, in no order, without those in folders below.

    Other files are counted in `others`, by suffix; hidden ones are skipped. ConfigError if the
    folder cannot be read.
    """
    with readable(), os.scandir(folder) as entries:
        for entry in entries:  # a million of them
            name = entry.name
            is_image = name.lower().endswith(IMAGE_SUFFIXES)
            if (
                not (is_image or others is not None)
                or name.startswith(HIDDEN)
                or _is_folder(entry) is not False
            ):
                continue
            if is_image:
                yield name
            elif others is not None:
                others[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122


def find_images(
    folder: Path, classes: list[str], others: Counter[str] | None = None
) -> Iterator[tuple[str, int]]:
    """The images in a split's class folders, as `images_in` finds them: paths in `folder`, and labels."""
    for label, name in enumerate(classes):
        yield from ((f"{name}/{file}", label) for file in images_in(folder / name, others))


def in_order(images: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Images with their labels in timm's order, 2 before 10, which is that of their folders first."""
    folders: dict[str, list[tuple[str, int]]] = {}
    for image in images:
        folders.setdefault("".join(image[0].partition("/")[:2]), []).append(image)
    alike: dict[tuple[str | int, ...], list[tuple[str, int]]] = {}  # a1/ and A01/ have the same key
    for folder, members in folders.items():
        alike.setdefault(tuple(_natural_key(folder)), []).extend(members)
    return [image for key in sorted(alike) for image in sorted(alike[key], key=_key_in_folder)]


def _key_in_folder(image: tuple[str, int]) -> tuple[list[str | int], str]:
    return _natural_key(image[0].partition("/")[2]), image[0]


def _natural_key(text: str) -> list[str | int]:
    parts: list[Any] = NUMBERS.split(text.lower())
    parts[1::2] = map(int, parts[1::2])
    return parts


def walk_files(folder: Path) -> Iterator[str]:
    """All files below a folder that are not hidden, by their paths in it, in no order; ConfigError where a
    folder cannot be read.

    Links are followed, so a folder with two links is read twice; a link to a folder above it is skipped.
    """
    with readable():
        above = frozenset(map(_inode, {*folder.absolute().parents, *folder.resolve().parents}))
    return _walk(str(folder), "", above)


def _inode(folder: str | Path) -> tuple[int, int]:
    """What identifies a folder, whatever its path."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _walk(root: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    folder = f"{root}/{prefix}"
    with readable():
        inode = _inode(folder)
        if inode in above:
            return
        with os.scandir(folder) as entries:
            visible = [(entry.name, _is_folder(entry)) for entry in entries if not is_hidden(entry.name)]
    for name, is_folder in visible:
        if is_folder:
            yield from _walk(root, f"{prefix}{name}/", above | {inode})
        elif is_folder is False:
            yield prefix + name


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """None for a link that leads back to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        return None if error.errno == errno.ELOOP else False


def listing_digest(*parts: NDArray[Any] | str | int | None) -> str:
    """16 hex digits of `parts`, which identify a dataset's samples in order; the same in every process."""
    digest = blake2b(digest_size=8)
    for part in parts:
        if part is None or isinstance(part, str | int):
            digest.update(f"{part!r};".encode())
        else:
            digest.update(f"{part.dtype.str}{part.shape};".encode())  # one array is not two halves of it
            digest.update(part.tobytes())
    return digest.hexdigest()
