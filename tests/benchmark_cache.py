"""What `system.cache` brings: `python -m tests.benchmark_cache`.

Batches as the network gets them, augmented on the device, from small images: digits, and images like those of
CIFAR-10 under ConvNeXt's recipe. Nothing is trained. The variants are interleaved; each has the same workers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from roadmap.config import RunConfig
from roadmap.data.loader import Loader
from roadmap.steps import load_roadmap, resolve
from roadmap.training.device import hardware, select_device
from roadmap.training.device_transforms import DeviceTransform
from tests.helpers.images import Pictures

IMAGES, EDGE, CLASSES = 5120, 32, 10
WARM_UP, BATCHES = 80, 20  # the first, an epoch, has all digits transformed once
SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("digits", {}),
    "digits, crops": ("digits", {"recipe.crop_scale": [0.5, 1.0], "recipe.pipeline": "tensor"}),
    "CIFAR-like, crops and flips": ("cifar10", {"recipe.randaugment": None, "recipe.random_erasing": 0.0}),
    "CIFAR-like, all": ("cifar10", {}),
}
CACHES = ("none", "host", "device")


def config_of(name: str, cache: str, workers: int) -> RunConfig:
    """A step's configuration under the tensor pipeline, except plain digits, which are transformed once."""
    profile, given = SUBJECTS[name]
    more: dict[str, Any] = {"system.cache": cache, "system.workers": workers, "recipe.precision": "fp32"}
    if profile == "cifar10":
        more |= {"data.dataset": "custom/pictures", "recipe.pipeline": "tensor"}
    return resolve(load_roadmap(), "separate_downsampling", profile=profile, overrides=more | given)


def pictures() -> Pictures:
    """Noise of the size of CIFAR's images, which torchvision's data set returns as Pillow's, too."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(256, size=(IMAGES, EDGE, EDGE, 3), dtype=np.uint8)
    return Pictures([(Image.fromarray(image), number % CLASSES) for number, image in enumerate(noise)])


def batches(config: RunConfig, device: torch.device, source: Any) -> Iterator[Any]:
    """Augmented batches without end."""
    loader, transform, epoch = (
        Loader(config, "train", device, source=source),
        DeviceTransform(config, device),
        0,
    )
    while True:
        for batch in loader.epoch(epoch):
            yield transform(batch)
        epoch += 1


def seconds(run: Callable[[], Any], count: int, device: torch.device) -> tuple[float, float]:
    """Per batch: all of it, and the training thread's own time."""
    started, own = time.perf_counter(), time.thread_time()
    for _ in range(count):
        run()
    own = time.thread_time() - own
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / count, own / count


def measured(name: str, workers: int, rounds: int, device: torch.device) -> Iterator[str]:
    """A line for each cache: images/s, the training thread's milliseconds for a batch, and the ratio of its
    speed to that without a cache, as median and IQR.
    """
    configs = [config_of(name, cache, workers) for cache in CACHES]
    source = pictures() if "CIFAR" in name else None
    size = configs[0].recipe.local_batch
    runs = [partial(next, batches(config, device, source)) for config in configs]
    for run in runs:
        seconds(run, WARM_UP, device)
    found = np.array([[seconds(run, BATCHES, device) for run in runs] for _ in range(rounds)])
    for cache, (whole, own) in zip(CACHES, found.transpose(1, 2, 0), strict=True):
        low, middle, high = np.quantile(found[:, 0, 0] / whole, [0.25, 0.5, 0.75])
        yield (
            f"{name:<28} {cache:<7} {size / np.median(whole):9,.0f} {1000 * np.median(own):7.2f}   "
            f"{middle:.2f} ({low:.2f} to {high:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--rounds", type=int, default=15, help=f"rounds of {BATCHES} batches that each variant gets"
    )
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = select_device(config_of("digits", "none", 0))
    print(f"{hardware(device)}, {options.workers} data-loading workers, n = {options.rounds}")
    print(f"{'':<28} {'cache':<7} {'images/s':>9} {'own ms':>7}   speed against none (IQR)")
    for name in SUBJECTS:
        for line in measured(name, options.workers, options.rounds, device):
            print(line, flush=True)


if __name__ == "__main__":
    main()
