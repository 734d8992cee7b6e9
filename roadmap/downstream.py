"""Fine-tuning for dense prediction: a network that has one of our backbones in it, the backbone's trained
weights, and layer-wise learning rates. The programs in `examples/` show how to use it.

A network's backbone stays one module, with our names, where timm creates it with the keywords of
`FineTuning.backbone_arguments`. The settings and their options are in `roadmap.downstream_options`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader

import roadmap.timm_models  # noqa: F401  # registers the backbones in timm
from blocks.model import Network
from roadmap.downstream_options import FineTuning, Settings
from roadmap.errors import config_error, relative
from roadmap.files import write_errors
from roadmap.rng import INIT, STEP, permutation, reseed
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.device import oom_hint
from roadmap.training.optim import layer_groups, scaled_groups
from roadmap.weight_files import name_of
from roadmap.weights import copy_weights, read_state_dict

LOG_EVERY = 50  # iterations
Key = tuple[int, int]  # of a sample: the epoch, which its augmentation depends on, and its number in the data


def select_device(name: str) -> torch.device:
    """The device of an option; ConfigError if there is no such device on this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise config_error("--device", f"'{name}' is unavailable on this machine: {reason}") from error
    return device


def autocast(settings: FineTuning, device: torch.device) -> torch.autocast:
    """The precision of the settings."""
    enabled = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def backbone_in(network: nn.Module) -> tuple[str, Network]:
    """The backbone in a network, and the prefix of its parameters' names; ValueError if there is none."""
    for name, module in network.named_modules():
        if isinstance(module, Network):
            return f"{name}." if name else "", module
    raise ValueError('has none of our networks in it; create its backbone with feature_cls="getter"')


def load_backbone(network: nn.Module, settings: FineTuning) -> None:
    """Copies the weights of `init_from` into the network's backbone; the classifier there has no use.

    ConfigError if the file cannot be read, or does not hold all of the backbone.
    """
    if settings.init_from is None:
        return
    source = settings.init_from
    _, backbone = backbone_in(network)
    tensors = read_state_dict(source, ema=settings.ema)
    report = copy_weights(backbone, tensors, name_of(source), strict=False)
    if report.missing or report.misshaped:
        raise config_error("", str(report))


def parameter_groups(
    network: nn.Module, *, layer_decay: float, by: Literal["layer", "stage"], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer, with `lr_scale`: 1 for all that is not the backbone, and from its last layers
    to the stem `layer_decay` to the power of 1, 2, ..., as in the recipes of this project.
    """
    prefix, backbone = backbone_in(network)
    numbers = {f"{prefix}{name}": group for name, group in layer_groups(backbone, by).items()}
    heads = max(numbers.values()) + 1
    return scaled_groups(
        network.named_parameters(),
        {name: numbers.get(name, heads) for name, _ in network.named_parameters()},
        layer_decay=layer_decay,
        weight_decay=weight_decay,
    )


def learning_rate(settings: FineTuning, progress: float) -> float:
    """The rate after a part of all iterations: linear from 0 to `lr` in the warm-up, then linear to 0."""
    warmup = settings.warmup
    rising = progress / warmup if warmup else 1.0
    return settings.lr * min(rising, (1 - progress) / (1 - warmup))


class KeyedSamples(Protocol):
    """Augmented samples of a data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: Key, /) -> Any: ...


class ShuffledBatches:
    """The keys of each batch, in a random order for each epoch; an incomplete last batch is dropped."""

    def __init__(self, length: int, settings: FineTuning, first_epoch: int) -> None:
        self.length = length
        self.settings = settings
        self.first_epoch = first_epoch
        self.per_epoch = length // settings.batch_size

    def __len__(self) -> int:
        return self.per_epoch * (self.settings.epochs - self.first_epoch)

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.settings.batch_size
        for epoch in range(self.first_epoch, self.settings.epochs):
            order = permutation(self.length, self.settings.seed, epoch)
            for first in range(0, self.per_epoch * size, size):
                yield [(epoch, number) for number in order[first : first + size]]


def initialize(settings: FineTuning, build: Callable[[], nn.Module]) -> nn.Module:
    """The network that `build` returns, with weights drawn from the seed and the backbone's trained ones."""
    reseed(INIT, settings.seed)
    network = build()
    load_backbone(network, settings)
    return network


def fine_tune(
    network: nn.Module,
    samples: KeyedSamples,
    loss_of: Callable[[Any], Tensor],
    settings: FineTuning,
    classes: list[str],
    out: Path,
    *,
    workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> None:
    """Trains `network`, on its device, to lower `loss_of(batch)`; AdamW.

    A checkpoint in `out` after each epoch is what the same call resumes from, as if it had not been stopped.
    ConfigError, before `out` is made, for fewer samples than a batch and a bad number of workers; later for a
    checkpoint of other settings, and where the loss is no longer finite.
    """
    if len(samples) < settings.batch_size:
        raise config_error("--batch-size", f"is {settings.batch_size}, and there are {len(samples)} images")
    if workers < 0:
        raise config_error("--workers", f"must be at least 0, not {workers}")
    device = next(network.parameters()).device
    layer_decay = settings.layer_decay if settings.init_from else 1.0
    groups = parameter_groups(
        network,
        layer_decay=layer_decay,
        by=settings.layer_decay_by,
        weight_decay=settings.weight_decay,
    )
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    checkpoints = _open(out)
    epoch = _resume(checkpoints, network, optimizer, settings, classes)
    batches = ShuffledBatches(len(samples), settings, epoch)
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]  # its samples have keys
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    losses: list[Tensor] = []
    started, total = time.monotonic(), batches.per_epoch * settings.epochs
    network.train()
    for iteration, batch in zip(count(epoch * batches.per_epoch), loader, strict=False):
        reseed(STEP, settings.seed, iteration)  # of stochastic depth
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, (iteration + 0.5) / total) * group["lr_scale"]
        with oom_hint(f"{settings.batch_size} images", ["a smaller --batch-size or --image-size"]):
            with autocast(settings, device):
                loss = loss_of(batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        losses.append(loss.detach())
        epoch, rest = divmod(iteration + 1, batches.per_epoch)
        if rest == 0 or len(losses) == LOG_EVERY:
            _log(iteration + 1, total, epoch, losses, settings, time.monotonic() - started)
            started = time.monotonic()
            losses.clear()
        if rest == 0:
            states = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoints.save(iteration + 1, {"epoch": epoch, **_identity(settings, classes), **states})


def _open(out: Path) -> Checkpoints:
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    return Checkpoints(out / "checkpoint")


def _identity(settings: FineTuning, classes: list[str]) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    return {"settings": settings.model_dump(mode="json"), "classes": classes}


def _resume(
    checkpoints: Checkpoints,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: FineTuning,
    classes: list[str],
) -> int:
    """Loads the newest checkpoint, if there is one; returns the number of epochs that it has seen."""
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return 0
    here, there = _identity(settings, classes), checkpoint
    flat = [{**each["settings"], "classes": each["classes"]} for each in (here, there)]
    if differ := [key for key in flat[0] if flat[0][key] != flat[1].get(key)]:
        which = ", ".join(f"{key} was {flat[1].get(key)} and is {flat[0][key]}" for key in differ)
        folder = relative(checkpoints.folder.parent)
        raise config_error(folder, f"was trained otherwise: {which}; give another folder to --out")
    network.load_state_dict(checkpoint["network"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    print(f"resumed after epoch {checkpoint['epoch']} of {settings.epochs}", flush=True)
    return int(checkpoint["epoch"])


def _log(
    iteration: int, total: int, epoch: int, losses: list[Tensor], settings: FineTuning, seconds: float
) -> None:
    """Prints the mean of the last losses; ConfigError if it is not finite."""
    mean = float(torch.stack(losses).float().mean())
    speed = len(losses) * settings.batch_size / seconds
    print(
        f"iteration {iteration} of {total}, epoch {epoch}: loss {mean:.4f}, {speed:.1f} images/s", flush=True
    )
    if not mean < float("inf"):
        raise config_error("the loss", "is no longer finite; a lower --lr or a longer --warmup helps")


def load_trained(
    out: Path, settings: type[Settings], build: Callable[[Settings, int], nn.Module], device: str
) -> tuple[Settings, list[str], nn.Module]:
    """The settings, the names of the classes and the network of the newest checkpoint in `out`, to evaluate
    on the device of an option; `build` makes the network of some settings for a number of classes.

    ConfigError if there is none, it is of another program, or the device is unavailable.
    """
    checkpoint = Checkpoints(out / "checkpoint").newest()
    if checkpoint is None:
        raise config_error(relative(out), "has no checkpoint; train it first")
    try:
        read = settings.model_validate(checkpoint["settings"], strict=False)
    except (KeyError, ValidationError) as error:
        raise config_error(relative(out), "has a checkpoint of another program") from error
    place, classes = select_device(device), checkpoint["classes"]
    network = build(read, len(classes))
    network.load_state_dict(checkpoint["network"])
    return read, classes, network.to(place).eval()
