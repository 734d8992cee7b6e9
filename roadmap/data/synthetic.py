"""Datasets that need no files: scikit-learn's digits, and synthetic images of any size."""

from __future__ import annotations

import numpy as np

from roadmap.config import RunConfig
from roadmap.data.digits import BLACK, CLASSES, GRAY_RANGE, Split, add_noise, load_digits
from roadmap.data.images import Picture, make_decoder
from roadmap.data.listing import listing_digest
from roadmap.rng import NOISE, seed_of

PATTERN = 8  # pixels across a class's pattern
NOISE_BANK = 1 << 20
PATTERN_SEED, NOISE_SEED = 3, {"train": 4, "val": 5}


class Digits:
    """The digits of `roadmap.data.digits` as 8x8 gray images; with `data.fresh_noise`, those for training
    have that of the epoch for which `draw_noise` was called last.
    """

    def __init__(self, config: RunConfig, split: Split) -> None:
        self.images, self.labels = load_digits(config.data, split)
        self.fresh = split == "train" and config.data.fresh_noise
        self._clean, self._noise, self._seed = self.images, config.data.noise, config.seed
        self._epoch: int | None = None
        self.num_classes = CLASSES
        self.decoder = make_decoder(config, split)
        self.class_names = [str(digit) for digit in range(CLASSES)]

    @property
    def digest(self) -> str:
        return listing_digest(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Picture, int]:
        return self.decoder.convert(self.images[number]), int(self.labels[number])

    def name(self, number: int) -> str:
        return f"digit {number}"

    def draw_noise(self, epoch: int) -> None:
        """Gives each image its noise of an epoch, which depends on the run's seed, the epoch and the image
        alone.
        """
        if self.fresh and epoch != self._epoch:
            generator = np.random.default_rng(seed_of(NOISE, self._seed, epoch))
            self.images, self._epoch = add_noise(self._clean, self._noise, generator), epoch


class Synthetic:
    """Synthetic images, cheap to make: a coarse pattern per class, under noise that depends on
    split and number.

    Labels cycle through the classes. The noise of an image is a piece of one long line of noise.
    """

    def __init__(self, config: RunConfig, split: Split) -> None:
        size, channels, data = config.data.image_size, config.model.in_chans, config.data
        self.num_classes = config.model.num_classes
        self.shape = (size, size, channels)
        self.decoder = make_decoder(config, split)
        self.class_names = [str(label) for label in range(self.num_classes)]
        self.labels = np.arange(data.images[split == "val"], dtype=np.int64) % self.num_classes
        gray = np.random.default_rng(PATTERN_SEED).random(
            (self.num_classes, PATTERN, PATTERN, channels), dtype=np.float32
        )
        self._patterns = np.rint(BLACK + GRAY_RANGE * gray).astype(np.uint8)
        drawn = np.random.default_rng(NOISE_SEED[split]).standard_normal(
            NOISE_BANK + size * size * channels, dtype=np.float32
        )
        # As bytes that wrap around: no sum with a pattern leaves 0 to 255.
        self._noise = np.rint(GRAY_RANGE * np.clip(data.noise * drawn, -1, 1)).astype(np.int8).view(np.uint8)
        self._blow_up = np.arange(size) * PATTERN // size

    @property
    def digest(self) -> str:
        return listing_digest(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Picture, int]:
        label = int(self.labels[number])
        pixels = self._patterns[label].take(self._blow_up, axis=1).take(self._blow_up, axis=0)
        start = number * 2654435761 % NOISE_BANK  # Knuth's multiplier spreads neighbors over the bank
        pixels += self._noise[start : start + pixels.size].reshape(self.shape)
        return self.decoder.convert(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]), label

    def name(self, number: int) -> str:
        return f"synthetic image {number}"
