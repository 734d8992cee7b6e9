"""Gray images of more than 8 bits: the same picture by every way to the network, or a reason why there is
none.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from roadmap.__main__ import parser, run
from roadmap.cli.options import main_of
from roadmap.data.datasets import make_source
from roadmap.data.images import PillowDecoder
from roadmap.data.loader import Loader
from roadmap.data.tensor_decoder import TensorDecoder
from tests.helpers.images import (
    CLASSES,
    CPU,
    Pictures,
    batches,
    config_of,
    custom,
    numbers_of,
    plain,
    shards_of,
    write_tar,
)

LEVELS = np.array([[0, 255, 256, 32768], [40 * 257, 65280, 65534, 65535]], dtype=np.uint16)
SHOWN = np.array([[0, 0, 1, 128], [40, 255, 255, 255]])


def content(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def gray(number: int, size: int = 32) -> np.ndarray:
    """A picture of 16 bits that `number_of` of tests.helpers.images knows by its red."""
    return np.full((size, size), (20 + 5 * number) * 257, dtype=np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_file_of_16_bits_is_scaled_and_not_clipped(kind: str, mode: str) -> None:
    file = content(LEVELS, kind)
    wanted = np.stack([SHOWN] * len(mode), axis=2)
    pillow = PillowDecoder(mode).decode(io.BytesIO(file), "the file")
    assert np.array_equal(np.asarray(pillow).reshape(wanted.shape), wanted)
    assert np.array_equal(
        TensorDecoder(mode).decode(io.BytesIO(file), "the file").permute(1, 2, 0).numpy(), wanted
    )


def test_a_tiff_of_12_bits_is_scaled_by_its_own_white() -> None:
    levels = (0, 2048, 4095, 16)
    pixels = int("".join(f"{level:012b}" for level in levels), 2).to_bytes(6, "big")
    width, height, bits, offset, size = (256, 4), (257, 1), (258, 12), (273, 8), (279, len(pixels))
    # the others: no compression, gray, one strip
    entries = (width, height, bits, (259, 1), (262, 1), offset, (277, 1), (278, 1), size)
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    file = (
        b"II*\0"
        + struct.pack("<I", 16)
        + pixels.ljust(8, b"\0")
        + struct.pack("<H", len(entries))
        + table
        + bytes(4)
    )
    for decoder in (PillowDecoder("L"), TensorDecoder("L")):
        assert np.asarray(decoder.decode(io.BytesIO(file), "the file")).ravel().tolist() == [0, 128, 255, 1]


def test_bytes_in_either_order_are_the_same_levels() -> None:
    for mode, order in (("I;16", "<u2"), ("I;16B", ">u2")):
        image = Image.frombytes(mode, LEVELS.shape[::-1], LEVELS.astype(order).tobytes())
        assert np.array_equal(np.asarray(PillowDecoder("L").convert(image)), SHOWN)


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_levels_of_unknown_range_are_refused(
    dtype: type, mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    why = (
        rf"is not an image that can be read: its gray levels are of 32 bits \(mode {mode}\), and nothing"
        r" defines which is white"
    )
    pixels: np.ndarray = LEVELS.astype(dtype)
    for decoder in (PillowDecoder("RGB"), TensorDecoder("RGB")):
        with pytest.raises(OSError, match=rf"^the file {why}"):
            decoder.decode(io.BytesIO(content(pixels, "TIFF")), "the file")
    with pytest.raises(OSError, match=r"system\.corrupt_images=1"):
        batches(custom(), "val", source=Pictures([(Image.fromarray(pixels), 0)]))
    for name in CLASSES:
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        (tmp_path / "data" / "val" / name / "1.png").write_bytes(content(pixels, "TIFF"))
    for size in ("none", "512"):
        assert prepare(tmp_path / "data", tmp_path / size, "--size", size) == 2
        assert f"(mode {mode})" in capfd.readouterr().err


def prepare(source: Path, out: Path, *words: str) -> int:
    """The exit code of the command for `val`, in this process and one worker's."""
    options = parser()
    given = options.parse_args(
        ["prepare", str(source), str(out), "--splits", "val", "--workers", "1", *words]
    )
    options.parse_args = lambda: given  # type: ignore[assignment, method-assign]
    return main_of(options, run)


@pytest.mark.parametrize("size", ["none", "16", "512"])
def test_shards_hold_the_picture_that_the_folder_shows(size: str, tmp_path: Path) -> None:
    for number, name in enumerate(CLASSES):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        (tmp_path / "data" / "val" / name / "1.png").write_bytes(content(gray(10 * number)))
    folder = make_source(config_of(tmp_path / "data", data__train_split="val"), "val")
    assert prepare(tmp_path / "data", tmp_path / "out", "--size", size) == 0
    shards = make_source(shards_of(tmp_path / "out", data__val_split="val-*.tar"), "val")
    for number in range(len(CLASSES)):
        wanted, found = (np.asarray(source[number][0], dtype=float).mean() for source in (folder, shards))
        assert abs(wanted - (20 + 50 * number)) < 0.5
        assert abs(wanted - found) < 2


def test_a_stream_shows_the_same_and_counts_what_it_cannot(tmp_path: Path) -> None:
    files = [*(content(gray(number)) for number in range(3)), content(LEVELS.astype(np.float32), "TIFF")]
    samples = [{f"{number}.png": file, f"{number}.cls": b"0"} for number, file in enumerate(files)]
    write_tar(tmp_path / "a.tar", {name: member for sample in samples for name, member in sample.items()})
    config = plain(
        tmp_path,
        data__dataset="wds/pictures",
        data__image_key="png",
        data__train_split="a.tar|4",
        data__val_split="a.tar|4",
        system__corrupt_images=1,
    )
    loader = Loader(config, "val", CPU)
    found = list(loader.epoch())
    assert numbers_of(found, config) == [0, 1, 2]
    assert loader.corrupt.count == 1
