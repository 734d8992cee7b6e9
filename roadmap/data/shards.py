"""Shards of WebDataset, tar files of images and labels, read in any order by an index from one scan."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadmap.config import DataSpec, RunConfig
from roadmap.data.images import Decoder, Picture
from roadmap.data.labels import BadSample, field_in, label_in, label_of
from roadmap.data.listing import is_hidden, listing_digest, printable
from roadmap.data.locate import data_dir, find_shards
from roadmap.errors import ConfigError, Problem
from roadmap.files import locked, write_atomic

logger = logging.getLogger(__name__)

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
LABEL_MEMBER, TABLE_MEMBER = "cls", "json"
APART = "; others of that name lie elsewhere in the file, as another sample: write it with tar --sort=name"
OPEN_FILES = 64  # per worker of a loader; a process may have about a thousand
BLOCK = 512  # a tar file's unit; a block of zeros ends the file
# a sample's name ends at the first dot, as in WebDataset
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
SCAN = 2  # version of how members are read; a change outdates every index
Stamp = tuple[str, int, int]  # a shard's name, size and time of change


class Changed(RuntimeError):
    """A shard has changed since it was indexed."""


@dataclass(frozen=True)
class Index:
    """Where each image is: the number of its shard, offset and size there, its label, and its name."""

    shards: list[Stamp]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int64]
    name: NDArray[np.bytes_]

    def to_bytes(self) -> bytes:
        """The content of an index file."""
        file = io.BytesIO()
        columns: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS}
        np.savez(file, shards=np.array(json.dumps(self.shards)), **columns)
        return file.getvalue()

    @classmethod
    def read(cls, path: Path) -> Index | None:
        """The index in a file, None if there is no intact one."""
        try:
            with np.load(path, allow_pickle=False) as columns:
                shards = [
                    (str(name), int(size), int(time))
                    for name, size, time in json.loads(str(columns["shards"]))
                ]
                return cls(shards, *(columns[name] for name in COLUMNS))
        except Exception as error:  # whatever is wrong with it, the shards are still there
            if path.exists():
                logger.warning("%s is no index (%s); the shards are scanned again", path, error)
            return None


COLUMNS = ("shard", "offset", "size", "label", "name")


class Shards:
    """The images of a split's shards; an epoch is shuffled over all of them."""

    num_classes: int | None = None

    def __init__(self, config: RunConfig, pattern: str, decoder: Decoder) -> None:
        self.root, self.decoder = data_dir(config), decoder
        self.index = load_index(self.root, find_shards(config, pattern), config.data)
        self.labels: NDArray[np.int64] | None = self.index.label
        self._open: OrderedDict[int, int] = OrderedDict()  # the files in use, the latest last
        self._process = os.getpid()

    @property
    def digest(self) -> str:
        return listing_digest(self.index.name, self.index.size, self.index.label)

    def __len__(self) -> int:
        return len(self.index.label)

    def __getitem__(self, number: int) -> tuple[Picture, int]:
        index, shard = self.index, int(self.index.shard[number])
        content = os.pread(self._file(shard), int(index.size[number]), int(index.offset[number]))
        return self.decoder.decode(io.BytesIO(content), self.name(number)), int(index.label[number])

    @cached_property
    def class_names(self) -> list[str] | None:
        """The folders in the samples' names, if each class has its own."""
        return class_names_of(self.index)

    def name(self, number: int) -> str:
        member, shard = os.fsdecode(self.index.name[number]), self.index.shards[self.index.shard[number]][0]
        # members may share a name
        return f"{printable(member)} at byte {self.index.offset[number]} of {self.root / shard}"

    def _file(self, shard: int) -> int:
        if self._process != os.getpid():  # a forked worker closes what it has inherited
            self.close()
            self._process = os.getpid()
        if shard not in self._open:
            if len(self._open) == OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = self._open_shard(shard)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_shard(self, shard: int) -> int:
        stamp = self.index.shards[shard]
        path = self.root / stamp[0]
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise Changed(f"{path} is gone since it was indexed") from error
        found = os.fstat(file)
        if (found.st_size, found.st_mtime_ns) != stamp[1:]:
            os.close(file)
            raise Changed(f"{path} has changed since it was indexed; start again to have it scanned")
        return file

    def close(self) -> None:
        """Closes all files; reading opens them again."""
        for file in self._open.values():
            os.close(file)
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


def class_names_of(index: Index) -> list[str] | None:
    """The classes' names by label: the folder that holds all samples of a label and no others, None
    unless each has one.
    """
    labels, first = np.unique(index.label, return_index=True)
    folders = [bytes(index.name[number]).rpartition(b"/")[0] for number in first]
    names = [printable(os.fsdecode(folder.rpartition(b"/")[2])) for folder in folders]
    if not np.array_equal(labels, np.arange(len(labels))) or not all(names) or len(set(names)) < len(names):
        return None
    starts = np.array([folder + b"/" for folder in folders], dtype=np.bytes_)
    return names if np.strings.startswith(index.name, starts[index.label]).all() else None


def load_index(root: Path, names: list[str], data: DataSpec) -> Index:
    """The index of the shards, from its file beside them unless they have changed; ConfigError if a
    shard is truncated.

    A new index is written there, unless the folder cannot be written.
    """
    path = _index_file(root, names, data)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_suffix(".lock")))  # one process of a node scans
        except OSError as error:
            logger.info("the index of %s is not kept: %s", root, error)
        if (index := known_index(root, names, data)) is not None:
            return index
        index = _scan(root, [_stamp(root, name) for name in names], data)
        try:
            write_atomic(path, index.to_bytes())
        except OSError as error:
            logger.info("the index of %s is not kept: %s", root, error)
        return index


def known_index(root: Path, names: list[str], data: DataSpec) -> Index | None:
    """The index of the shards from its file beside them, None if it is missing or the shards have changed."""
    index = Index.read(_index_file(root, names, data))
    return index if index is not None and index.shards == [_stamp(root, name) for name in names] else None


def _index_file(root: Path, names: list[str], data: DataSpec) -> Path:
    keys = json.dumps([SCAN, names, data.image_key, data.label_key])
    return root / f".index-{sha256(keys.encode()).hexdigest()[:12]}.npz"


def _stamp(root: Path, name: str) -> Stamp:
    found = (root / name).stat()
    return name, found.st_size, found.st_mtime_ns


def _scan(root: Path, stamps: list[Stamp], data: DataSpec) -> Index:
    rows: list[tuple[int, int, int, int, bytes]] = []
    problems: list[Problem] = []
    for number, (name, _, _) in enumerate(stamps):
        try:
            rows += [(number, *row) for row in scan_shard(root / name, data)]
        except BadSample as error:
            problems += error.problems
        except (tarfile.TarError, ValueError, OSError) as error:
            problems.append(Problem(str(root / name), f"is not an intact shard: {error}"))
    if problems:
        raise ConfigError(problems)
    numbers = np.array([row[:4] for row in rows], dtype=np.int64).reshape(-1, 4)
    shard, offset, size, label = numbers.T.copy()
    return Index(stamps, shard, offset, size, label, np.array([row[4] for row in rows], dtype=np.bytes_))


def scan_shard(path: Path, data: DataSpec) -> Iterator[tuple[int, int, int, bytes]]:
    """Offset, size, label and name of each image of a shard; ValueError or TarError if it is truncated,
    BadSample if a sample is incomplete.
    """
    images = data.image_key.split(";") if data.image_key else IMAGE_MEMBERS
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        samples = list(_group(tar, path))
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError("its end is missing")
        for name, members in samples:
            image = next((members[key] for key in images if key in members), None)
            label = members.get(data.label_key or LABEL_MEMBER, members.get(TABLE_MEMBER))
            if image is None or label is None:
                wanted = (
                    " or ".join(images)
                    if image is None
                    else f"{data.label_key or LABEL_MEMBER} or {TABLE_MEMBER}"
                )
                what = (
                    f"no {'image' if image is None else 'label'}: no member {wanted}, but"
                    f" {', '.join(sorted(members))}"
                )
                apart = "" if sum(name == other for other, _ in samples) == 1 else APART
                raise BadSample(f"sample '{printable(name)}' in {path} has {what}{apart}")
            file.seek(label.offset_data)
            content, where = file.read(label.size), f"{printable(label.name)} in {path}"
            if label is members.get(TABLE_MEMBER):
                field = data.label_key if data.label_key not in (None, TABLE_MEMBER) else "label"
                number = label_of(field_in(content, field, where), where)
            else:
                number = label_in(content, where)
            yield image.offset_data, image.size, number, os.fsencode(image.name)


def _group(tar: Iterable[tarfile.TarInfo], path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Samples as in WebDataset: adjacent members that share a name, by their suffixes; BadSample for a
    duplicate member.
    """
    files = (
        (member, NAME.fullmatch(member.name))
        for member in tar
        if member.isfile() and not is_hidden(member.name)
    )
    named = ((match[1], match[2].lower(), member) for member, match in files if match)
    for name, group in groupby(named, key=itemgetter(0)):
        members: dict[str, tarfile.TarInfo] = {}
        for _, suffix, member in group:
            if suffix in members:
                hint = "adjacent samples need different names"
                raise BadSample(
                    f"sample '{printable(name)}' in {path} has two members {printable(suffix)}; {hint}"
                )
            members[suffix] = member
        yield name, members
