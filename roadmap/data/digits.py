"""scikit-learn's handwritten digits, optionally under noise: a real task that needs no download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from roadmap.config import DataSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "val"]
CLASSES, TRAIN_IMAGES = 10, 1198  # before copies
SPLIT_SEED, NOISE_SEED = 0, {"train": 1, "val": 2}
FRESH_COPIES = 30  # with more, the regression's accuracy does not grow
BLACK, GRAY_RANGE = 85, 85  # pixel values of the darkest gray, and between it and the lightest


def load_digits(data: DataSpec, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 8, 8) and labels (N,): a fixed, stratified third of the 1,797 digits is `val`,
    the rest `train`.

    Each image appears `data.copies` times, each copy with its own Gaussian noise of `data.noise` gray
    ranges, the same in every run; with `data.fresh_noise`, training images are without noise here. Gray 0 to
    1 is stored as BLACK to BLACK + GRAY_RANGE, so that noise is clipped only beyond one gray range.
    """
    import numpy as np
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    images, labels = datasets.load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=1 / 3, random_state=SPLIT_SEED, stratify=labels)
    gray, labels = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    pixels = BLACK + GRAY_RANGE * np.repeat(gray / 16.0, data.copies, axis=0).reshape(-1, 8, 8)
    fresh = split == "train" and data.fresh_noise
    noisy = add_noise(pixels, 0.0 if fresh else data.noise, np.random.default_rng(NOISE_SEED[split]))
    return noisy, np.repeat(labels, data.copies).astype(np.int64)


def add_noise(pixels: NDArray[Any], noise: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """The pixel values with Gaussian noise of `noise` gray ranges, rounded and clipped."""
    import numpy as np

    noisy = pixels + GRAY_RANGE * noise * generator.standard_normal(pixels.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def logistic_regression(data: DataSpec) -> float:
    """Top-1 in % of a logistic regression on the 64 pixels: the task's baseline without a network.

    Where networks see fresh noise in each epoch, it sees FRESH_COPIES of each image.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    seen = (
        data.model_copy(update={"copies": FRESH_COPIES, "fresh_noise": False}) if data.fresh_noise else data
    )
    (train, train_labels), (val, val_labels) = load_digits(seen, "train"), load_digits(data, "val")
    model: Any = LogisticRegression(max_iter=1000)
    with threadpool_limits(1):  # more are slower on so few pixels
        model.fit(_gray(train), train_labels)
        return 100 * float(model.score(_gray(val), val_labels))


def _gray(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return (pixels.reshape(len(pixels), -1).astype("float64") - BLACK) / GRAY_RANGE
