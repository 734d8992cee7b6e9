"""RandAugment of batches gives what timm's gives of Pillow's images, and draws as timm draws."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

from roadmap.config import RunConfig
from roadmap.data.augmentation import KIND_OF, MATRICES, Draw, Operations, batched
from roadmap.data.loader import build_transform
from roadmap.errors import ConfigError
from roadmap.rng import RANDAUGMENT, seed_of
from roadmap.training.device_transforms import SAMPLING, RandAugment
from tests.helpers.images import CPU, augmentation_of, config_of

WIDTH, HEIGHT = 61, 44
INCREASING = "rand-m9-mstd0.5-inc1"
TIMM = {function.__name__: function for function in auto_augment.NAME_TO_OP.values()}
BARE = ("auto_contrast", "equalize", "invert")  # take no argument
FACTORS = (0.1, 0.55, 1.0, 1.37, 1.9)
PIXELS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(BARE, (0,)),
    **dict.fromkeys(("contrast", "color", "brightness", "sharpness"), FACTORS),
    "posterize": (0, 1, 3, 4),
    "solarize": (0, 26, 128, 256),
    "solarize_add": (0, 57, 110),
}
MOVES: dict[str, tuple[float, ...]] = {
    "rotate": (-30, -4.5, 0, 17, 30),
    **dict.fromkeys(("shear_x", "shear_y"), (-0.3, -0.043, 0, 0.21)),
    **dict.fromkeys(("translate_x_rel", "translate_y_rel"), (-0.45, -0.1, 0, 0.33)),
}


def recipe(given: str = INCREASING, interpolation: str = "bilinear", channels: int = 3) -> RunConfig:
    gray: dict[str, Any] = (
        {"model__in_chans": 1, "data__mean": [0.45], "data__std": [0.25]} if channels == 1 else {}
    )
    return config_of(
        None,
        recipe__pipeline="tensor",
        recipe__randaugment=given,
        recipe__train_interpolation=interpolation,
        **gray,
    )


def picture(seed: int, detail: int = 24) -> Image.Image:
    """Blurred noise of as many blobs across, with contrast."""
    noise = np.random.default_rng(seed).integers(0, 256, (detail, detail, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def pictures(channels: int = 3, detail: int = 24) -> list[Image.Image]:
    """With some on which histograms have nothing to go by."""
    flat = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ((0, 0, 0), (7, 130, 255))]
    faint = Image.fromarray((np.asarray(picture(9)) // 64 + 100).astype(np.uint8))
    found = [picture(0, detail), picture(1, detail), *flat, faint]
    return [image.convert("L") for image in found] if channels == 1 else found


def batch(images: list[Image.Image]) -> Tensor:
    stacked = np.stack([np.asarray(image).reshape(HEIGHT, WIDTH, -1) for image in images])
    return torch.tensor(stacked).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)


def differences(
    config: RunConfig, name: str, argument: float, images: list[Image.Image]
) -> NDArray[np.float32]:
    """How far, in gray levels, an operation on a batch is from timm's on each image."""
    augment = RandAugment(config, CPU)
    how = {
        "fillcolor": tuple(int(value) for value in augment.fill.flatten()),
        "resample": _resampling(augment),
    }
    theirs = [TIMM[name](image, *(() if name in BARE else (argument,)), **how) for image in images]
    ours = augment(batch(images), batched([[Draw(name, argument)]] * len(images), HEIGHT, WIDTH))
    assert torch.equal(ours, ours.round())
    return (ours - batch(theirs)).numpy()


def _resampling(augment: RandAugment) -> Any:
    return next(kind for kind, name in SAMPLING.items() if name == augment.sampling)


def test_every_operation_is_tested() -> None:
    assert MOVES.keys() == MATRICES.keys()
    assert PIXELS.keys() | MOVES.keys() == KIND_OF.keys() - {"affine", "table"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, values in PIXELS.items() for argument in values]
)
def test_gray_levels_are_those_of_timm(name: str, argument: float, channels: int) -> None:
    found = differences(recipe(channels=channels), name, argument, pictures(channels))
    assert set(np.unique(found)) <= ({0, 1} if name == "auto_contrast" else {0})
    assert (found > 0).mean() < 0.01


def test_auto_contrast_reaches_white_where_pillow_falls_one_level_short() -> None:
    levels = np.tile(np.arange(26, dtype=np.uint8), (HEIGHT, 3))[:, :WIDTH]
    found = differences(recipe(channels=1), "auto_contrast", 0, [Image.fromarray(levels)])
    assert np.unique(levels[found[0, 0] == 1]).tolist() == [25]
    assert set(np.unique(found)) == {0, 1}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, values in MOVES.items() for argument in values]
)
def test_movements_are_those_of_timm(name: str, argument: float, channels: int) -> None:
    bilinear = np.abs(differences(recipe(channels=channels), name, argument, pictures(channels)))
    assert bilinear.max() <= 1
    assert (bilinear > 0).mean() < 0.1
    nearest = differences(
        recipe(interpolation="nearest", channels=channels), name, argument, pictures(channels)
    )
    assert (nearest != 0).mean() < 0.005


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, values in MOVES.items() for argument in values]
)
def test_bicubic_movements_are_near_those_of_timm_on_smooth_images(name: str, argument: float) -> None:
    found = differences(recipe(interpolation="bicubic"), name, argument, pictures(detail=4))
    assert np.abs(found).max() <= 2
    assert abs(found.mean()) < 0.1
    sharp = differences(recipe(interpolation="bicubic"), name, argument, pictures())
    assert abs(sharp.mean()) < 0.1
    assert np.abs(sharp).mean() < 1.5


def drawn(config: RunConfig, epoch: int, samples: Iterable[int]) -> Operations:
    """What is drawn for samples of an epoch."""
    found = [augmentation_of(config).draw(epoch, sample) for sample in samples]
    return batched([one.operations for one in found if one is not None], HEIGHT, WIDTH)


def timms(config: RunConfig, image: Image.Image, epoch: int, sample: int) -> Image.Image:
    """timm's own RandAugment with the random numbers of a sample."""
    stages: Any = build_transform(config, True)
    number = seed_of(RANDAUGMENT, config.seed, epoch, sample)
    random.seed(number)
    np.random.seed(number % 2**32)
    augmented: Image.Image = stages.transforms[2](image)
    return augmented


@pytest.mark.parametrize("given", [INCREASING, "rand-m7-n3-p0.8", "rand-m15-mstd101-mmax20-n2-inc1"])
def test_a_batch_goes_through_what_timm_would_do_to_each_image(given: str) -> None:
    config = recipe(given)
    images = [picture(seed, detail=4) for seed in range(40)]
    ours = RandAugment(config, CPU)(batch(images), drawn(config, 3, range(40)))
    theirs = batch([timms(config, image, 3, sample) for sample, image in enumerate(images)])
    assert (theirs != batch(images)).flatten(1).any(1).sum() > 20
    # A gray level more or less may be four after an equalization, or another step of a posterization.
    apart = (ours - theirs).abs()
    assert (apart > 4).float().mean() < 0.005
    assert (apart > 0).float().mean() < 0.05


def test_operations_and_levels_have_the_frequencies_of_timm() -> None:
    images = 6000
    augmentation = augmentation_of(recipe("rand-m8-mstd1-inc1"))
    found = [augmentation.draw(1, sample) for sample in range(images)]
    drawn = [one.operations for one in found if one is not None]
    lengths = Counter(map(len, drawn))
    for length, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert lengths[length] / images == pytest.approx(share, abs=0.025)
    names = Counter(draw.name for draws in drawn for draw in draws)
    assert len(names) == 15
    assert all(count / images == pytest.approx(1 / 15, abs=0.016) for count in names.values())
    turns = np.array([draw.argument for draws in drawn for draw in draws if draw.name == "rotate"])
    assert (turns > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert np.abs(turns).max() == pytest.approx(30)  # a level is cut off at 10
    assert np.median(np.abs(turns)) == pytest.approx(24, abs=0.7)
    assert np.quantile(np.abs(turns), 0.16) == pytest.approx(21, abs=1)


def test_what_happens_to_an_image_depends_on_seed_epoch_and_sample_alone() -> None:
    config = recipe()
    augment = RandAugment(config, CPU)
    whole = augment(batch([picture(seed) for seed in range(24)]), drawn(config, 7, range(24)))
    for samples in ([3], [4, 11, 2], list(range(12, 24)), list(reversed(range(24)))):
        random.random()
        pixels = batch([picture(seed) for seed in samples])
        assert torch.equal(augment(pixels, drawn(config, 7, samples)), whole[samples])
    for other, epoch in ((config, 8), (config.model_copy(update={"seed": 6}), 7)):
        pixels = batch([picture(seed) for seed in range(24)])
        assert not torch.equal(augment(pixels, drawn(other, epoch, range(24))), whole)


def test_an_unavailable_operation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_augment, "_RAND_INCREASING_TRANSFORMS", ["Rotate", "GaussianBlur"])
    with pytest.raises(
        ConfigError,
        match=r"has gaussian_blur, which is unavailable on a device; --set recipe\.pipeline=pillow",
    ):
        RandAugment(recipe(), CPU)
