"""The plan of `prepare`: an image folder cut into shards, and a manifest of what they hold and
which are finished.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from roadmap.config import RunConfig
from roadmap.data.listing import IMAGE_SUFFIXES, find_images, in_order
from roadmap.data.locate import DataOptions, check_splits, class_names, data_dir, some
from roadmap.deltas import resolve
from roadmap.errors import ConfigError, Problem, config_error, relative
from roadmap.files import write_errors, write_json
from roadmap.steps import load_roadmap

FORMAT = 1
CLASSES_FILE = "classes.json"
SHARD_BYTES = 200 * 10**6  # large for a parallel file system, small for many workers
BYTES_PER_PIXEL = 0.3  # of a photograph, at quality 90
SHAPE = 4 / 3  # of the usual photograph
SAMPLED = 256  # files whose sizes are read
MOST_IMAGES = 10_000
OPTIONS = {"size": "--size", "quality": "--quality", "shard_images": "--shard-images", "seed": "--seed"}


@dataclass(frozen=True)
class ShardOptions:
    """What decides the content of shards besides the images; `size` is the largest shorter edge in pixels,
    None keeps files as they are.
    """

    size: int | None
    quality: int
    shard_images: int | None
    seed: int

    def check(self) -> list[Problem]:
        """Problems with the values."""
        counts = ((self.size, "--size"), (self.shard_images, "--shard-images"))
        problems = [
            Problem(option, f"must be at least 1, not {value}")
            for value, option in counts
            if value is not None and value < 1
        ]
        if not 1 <= self.quality <= 100:
            problems.append(Problem("--quality", f"must be 1 to 100, not {self.quality}"))
        return problems


@dataclass(frozen=True, slots=True)
class Sample:
    """An image: its file's path in the split's folder, its name in a shard, without suffix, and its label."""

    file: str
    name: str
    label: int


@dataclass(frozen=True)
class Shard:
    """A tar file to be written, of samples from `folder`."""

    path: Path
    folder: Path
    samples: list[Sample]


@dataclass(frozen=True)
class Finished:
    """What a shard holds: images, bytes, and the files that could not be read and were left out."""

    images: int
    bytes: int
    left_out: list[str]


class SplitPlan:
    """A split's shards, in order, and its manifest in `destination`; `plan` is what all shards
    there have in common.

    ConfigError if shards of another plan are there.
    """

    def __init__(self, folder: Path, samples: list[Sample], destination: Path, options: ShardOptions) -> None:
        name = self.name = folder.name
        self.folder = folder
        self.path = destination / f"prepared-{name}.json"
        shuffled = name.startswith("train")
        known, self.finished = read_manifest(self.path)
        shard = re.compile(rf"{re.escape(name)}-\d{{6,}}\.tar")
        there = sorted(path.name for path in destination.iterdir() if shard.fullmatch(path.name))
        if not there:  # without a shard, an earlier plan does not count
            known = {}
        elif not known:
            what = f"holds {there[0]} that this command did not write; choose another destination"
            raise config_error(str(destination), what)
        images = (
            options.shard_images
            or known.get("shard_images")
            or images_of_a_shard(self.folder, samples, options.size)
        )
        self.plan: dict[str, Any] = {
            "format": FORMAT,
            "listing": (
                sha256(
                    "\n".join(f"{sample.label} {sample.file}" for sample in samples).encode(
                        errors="surrogateescape"
                    )
                ).hexdigest()
            ),
            "size": options.size,
            "quality": options.quality if options.size else None,
            "seed": options.seed if shuffled else None,
            "shard_images": images,
        }
        if shuffled:
            samples = sorted(samples, key=lambda sample: _shuffle_key(options.seed, sample.file))
        count = -(-len(samples) // images)
        ends = [len(samples) * number // count for number in range(count + 1)]
        paths = [destination / f"{name}-{number:06d}.tar" for number in range(count)]
        self.shards = [
            Shard(path, self.folder, samples[ends[number] : ends[number + 1]])
            for number, path in enumerate(paths)
        ]
        if known:
            self._check(known)
        self.finished = {
            shard.path.name: self.finished[shard.path.name]
            for shard in self.shards
            if self._is_finished(shard)
        }

    def _check(self, known: dict[str, Any]) -> None:
        """ConfigError if the plan is not the `known` one of the shards that are there."""
        problems = []
        for key in [key for key, value in self.plan.items() if known.get(key) != value]:
            if key in OPTIONS:
                before, now = ("none" if plan.get(key) is None else plan[key] for plan in (known, self.plan))
                what = (
                    f"has {self.name} with {OPTIONS[key]} {before}, not {now}; continue with"
                    f" {OPTIONS[key]} {before}"
                )
            else:
                what = (
                    f"has {self.name} of other images than {self.folder} holds now"
                    if key == "listing"
                    else "is of another version"
                )
            problems.append(Problem(relative(self.path), f"{what}, or choose another destination"))
        if problems:
            raise ConfigError(problems)

    def _is_finished(self, shard: Shard) -> bool:
        record = self.finished.get(shard.path.name)
        return record is not None and shard.path.is_file() and shard.path.stat().st_size == record.bytes

    @property
    def missing(self) -> list[Shard]:
        """The shards that are yet to be written."""
        return [shard for shard in self.shards if shard.path.name not in self.finished]

    @property
    def left_out(self) -> list[str]:
        """The files that could not be read so far."""
        return [file for record in self.finished.values() for file in record.left_out]

    @property
    def pattern(self) -> str:
        """The shards as `data.train_split` or `data.val_split` names them."""
        return f"{self.name}-{{{0:06d}..{len(self.shards) - 1:06d}}}.tar"

    def save(self) -> None:
        """Writes the manifest."""
        shards = {name: asdict(record) for name, record in sorted(self.finished.items())}
        with write_errors(self.path):
            write_json(self.path, {"source": str(self.folder), "plan": self.plan, "shards": shards})


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, Finished]]:
    """A manifest's plan and its finished shards, both empty if there is none; ConfigError if damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return dict(document["plan"]), {
            name: Finished(**record) for name, record in document["shards"].items()
        }
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise config_error(relative(path), f"cannot be read: {error}; choose another destination") from error


def folder_config(source: Path) -> RunConfig:
    """A configuration that reads the folder."""
    roadmap = load_roadmap()
    return resolve(
        roadmap, roadmap.trunk[0], overrides={"system.data_dir": str(source), "data.dataset": "folder"}
    )


def find_classes(config: RunConfig, splits: list[str]) -> list[str]:
    """The class folders of the splits, sorted, as a run on the folder numbers them; ConfigError unless all
    splits have the same.
    """
    check_splits(
        data_dir(config),
        {split: split for split in splits},
        DataOptions(
            "SOURCE",
            lambda root: f"name {root} instead",
            lambda key, name: shlex.join(
                ["--splits", *(name if key == split else split for split in splits)]
            ),
        ),
    )
    pairs = [{"train_split": splits[0], "val_split": split} for split in splits]
    named = [
        class_names(config.model_copy(update={"data": config.data.model_copy(update=pair)})) for pair in pairs
    ]
    return named[0]


def find_samples(folder: Path, classes: list[str], others: Counter[str]) -> list[Sample]:
    """All images in the folders of the classes, in the order in which a run on the folder numbers them.

    Files with other suffixes are counted in `others`, by suffix; hidden ones are skipped.
    """
    found = in_order(find_images(folder, classes, others))
    there = {label for _, label in found}
    if empty := [name for label, name in enumerate(classes) if label not in there]:
        raise config_error(str(folder), f"has no images ({', '.join(IMAGE_SUFFIXES)}) in {some(empty)}")
    taken: set[str] = set()
    samples = []
    for file, label in found:
        name = _name(file)
        while name in taken:  # 1.png beside 1.jpg
            name += "_"
        taken.add(name)
        samples.append(Sample(file, name, label))
    return samples


def _name(file: str) -> str:
    """CLASS/NAME: a sample's name ends at the first dot, and its folder is its class's."""
    folder, _, name = os.path.splitext(file)[0].partition("/")  # noqa: PTH122 - a million of them
    return os.fsencode(f"{folder}/{name.replace('.', '_')}").decode(errors="replace")


def _shuffle_key(seed: int, file: str) -> bytes:
    """A key of the shuffled order that depends on nothing else, not even on a library's version."""
    return blake2b(f"{seed}/{file}".encode(errors="surrogateescape"), digest_size=16).digest()


def images_of_a_shard(folder: Path, samples: list[Sample], size: int | None) -> int:
    """How many images make a shard of about 200 MB, by the sizes of some files."""
    sizes = []
    for sample in samples[:: max(1, len(samples) // SAMPLED)]:
        try:
            sizes.append((folder / sample.file).stat().st_size)
        except OSError:  # it is reported when it is packed
            continue
    usual = sum(sizes) / len(sizes) if sum(sizes) else SHARD_BYTES / MOST_IMAGES
    if size is not None:
        usual = min(usual, size * size * SHAPE * BYTES_PER_PIXEL)
    return min(MOST_IMAGES, max(1, int(float(f"{SHARD_BYTES / usual:.2g}"))))
