"""Synthetic photographs, as large as ImageNet's usual ones and about as heavy to decode."""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, SHORTER, QUALITY = (500, 375), 256, 90  # pixels
CLASSES = 2
# blobs across, as powers of two, and how much fainter the small ones are
OCTAVES, STEEPNESS = range(2, 10), 0.27
TRAIN, VAL = "train-0.tar", "val-0.tar"


def photograph(seed: int) -> Image.Image:
    """A picture of slow changes of color under texture."""
    random = np.random.default_rng(seed)
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width] / width
    waves = [
        np.sin(2 * np.pi * (random.normal() * x + random.normal() * y) + random.uniform(0, 6))
        for _ in range(3)
    ]
    pixels = 128 + 60 * np.stack(waves, axis=2)
    for octave in OCTAVES:
        blobs = Image.fromarray(random.normal(size=(2**octave, 2**octave)).astype(np.float32))
        texture = np.asarray(blobs.resize(SIZE, Image.Resampling.BICUBIC))
        pixels += 100 / 2 ** (STEEPNESS * octave) * texture[:, :, None] * random.normal(1, 0.3, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpegs(seed: int) -> tuple[bytes, bytes]:
    """A photograph, and the same with a shorter edge of SHORTER, as `prepare --size 256` writes it."""
    image, scale = photograph(seed), SHORTER / min(SIZE)
    small = image.resize((round(SIZE[0] * scale), round(SIZE[1] * scale)), Image.Resampling.BICUBIC)
    files = io.BytesIO(), io.BytesIO()
    for picture, file in zip((image, small), files, strict=True):
        picture.save(file, "JPEG", quality=QUALITY)
    return files[0].getvalue(), files[1].getvalue()


def write_photographs(root: Path, images: int, copies: int, processes: int) -> None:
    """An image folder, root/folder, and shards of the smaller images, root/shards, of `images` photographs
    of which each occurs `copies` times.
    """
    # a fork would inherit the threads' locks of this process
    with ProcessPoolExecutor(processes, get_context("forkserver")) as pool:
        made = list(pool.map(partial(jpegs), range(images), chunksize=8))
    shards = root / "shards"
    shards.mkdir(parents=True)
    for split in ("train", "val"):
        for number, (large, _) in enumerate(made):
            folder = root / "folder" / split / f"c{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{number}-0.jpg"
            path.write_bytes(large)
            for copy in range(1, copies if split == "train" else 1):
                os.link(path, folder / f"{number}-{copy}.jpg")
    for name, times in ((TRAIN, copies), (VAL, 1)):
        with tarfile.open(shards / name, "w") as tar:
            for copy in range(times):
                for number, (_, small) in enumerate(made):
                    label = str(number % CLASSES).encode()
                    for suffix, content in (("jpg", small), ("cls", label)):
                        member = tarfile.TarInfo(f"{number:04d}{copy:02d}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
