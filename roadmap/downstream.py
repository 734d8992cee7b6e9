"""Fine-tuning for dense prediction: a network that has one of our backbones in it, the backbone's trained
weights, and layer-wise learning rates. The programs in `examples/` show how to use it.

A network's backbone stays one module, with our names, where timm creates it with the keywords of
`FineTuning.backbone_arguments`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from blocks.model import Network
from blocks.spec import Count, Spec
from roadmap.config import Fraction, NonNegative, Positive, Probability
from roadmap.deltas import parse_overrides
from roadmap.errors import ConfigError, Problem, config_error, format_validation_error, one_of_these, relative
from roadmap.files import write_errors
from roadmap.rng import INIT, STEP, permutation, reseed
from roadmap.timm_models import changed_spec, registered
from roadmap.training.checkpoint import Checkpoints
from roadmap.training.device import oom_hint
from roadmap.training.optim import layer_groups, scaled_groups
from roadmap.weight_files import name_of
from roadmap.weights import copy_weights, read_state_dict

STRIDES = (4, 8, 16, 32)
LOG_EVERY = 50  # iterations
Key = tuple[int, int]  # of a sample: the epoch, which its augmentation depends on, and its number in the data


LayerDecay = Annotated[
    Fraction,
    Field(
        description="factor of the learning rate from each group of the backbone's layers to the one below;"
        " without --init-from it is 1"
    ),
]
LayerDecayBy = Annotated[
    Literal["layer", "stage"],
    Field(description="whether a group is a stage, or up to three blocks of one: stage, layer"),
]
Epochs = Annotated[Count, Field(description="times that training sees each image")]


class FineTuning(Spec):
    """How a network is fine-tuned; each field is an option of the command line, with its description."""

    backbone: str = Field(
        "roadmap_separate_downsampling",
        description="timm's name of a step, such as roadmap_family_convnext_s",
    )
    network: dict[str, Any] = Field(
        {},
        description="another value of the backbone, as timm.create_model takes it: width_mult=0.5,"
        " depths=[2,2,6,2]",
    )
    init_from: str | None = Field(
        None, description="trained weights: a run's folder, an exported file, or a released checkpoint"
    )
    ema: bool = Field(False, description="start from the EMA of these weights")
    image_size: Count = Field(512, description="pixels of an image's shorter side")
    epochs: Epochs = 100
    batch_size: Count = Field(16, description="images per iteration")
    lr: Positive = Field(1e-4, description="peak learning rate of the heads")
    layer_decay: LayerDecay = 0.9
    layer_decay_by: LayerDecayBy = "stage"
    weight_decay: NonNegative = Field(0.05, description="weight decay, of all but biases and norms")
    warmup: float = Field(
        0.01, ge=0, lt=1, description="part of the iterations that warms up; then the rate decays linearly"
    )
    drop_path: Probability = Field(0.4, description="stochastic depth of the backbone's last block")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of the operations that autocast covers: auto is bf16 on CUDA, else fp32"
    )
    seed: int = Field(0, ge=0, description="seed of initialization, order and augmentation")

    def check_backbone(self) -> None:
        """ConfigError if `backbone` is no step, or its network has no feature maps at strides 4 to 32."""
        if self.backbone not in registered:
            raise config_error(
                "--backbone", f"unknown step '{self.backbone}'{one_of_these(self.backbone, registered)}"
            )
        model = changed_spec(self.backbone, registered[self.backbone].ours, self.network)
        if tuple(model.stem.stride << stage for stage in range(len(model.depths))) != STRIDES:
            strides = ", ".join(map(str, STRIDES))
            raise config_error("--backbone", f"{self.backbone} has no feature maps at strides {strides} here")

    @property
    def backbone_arguments(self) -> dict[str, Any]:
        """Keywords for timm.create_model; where it is called directly, features_only=True is one more."""
        return {"feature_cls": "getter", "drop_path_rate": self.drop_path, **self.network}

    @property
    def normalization(self) -> dict[str, tuple[float, ...]]:
        """The mean and standard deviation per channel with which the backbone's step is trained."""
        data = registered[self.backbone].data
        return {"mean": data.mean, "std": data.std}


Settings = TypeVar("Settings", bound=FineTuning)


def add_options(parser: argparse.ArgumentParser, settings: type[FineTuning]) -> None:
    """An option for each field of `settings`, and --out, --device, and --workers."""
    for name, field in settings.model_fields.items():
        option, shown = option_of(name), f"{field.description} (default: %(default)s)"
        if name == "network":
            parser.add_argument(
                option,
                dest=name,
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help=field.description,
            )
        elif field.annotation is bool:
            parser.add_argument(option, action="store_true", help=field.description)
        else:
            parser.add_argument(option, default=field.default, metavar="VALUE", help=shown)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of checkpoints and metrics"
    )
    add_device_options(parser)


def option_of(name: str) -> str:
    """The option of a field."""
    return "--set" if name == "network" else f"--{name.replace('_', '-')}"


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """--device and --workers."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ...; auto is CUDA where there is one"
    )
    parser.add_argument("--workers", type=int, default=4, help="processes that load images (default: 4)")


def read_settings(arguments: argparse.Namespace, settings: type[Settings]) -> Settings:
    """The settings on a command line; ConfigError names each option with a bad value."""
    values = {name: getattr(arguments, name) for name in settings.model_fields}
    values["network"] = parse_overrides(values["network"])
    try:
        read = settings.model_validate(values, strict=False)
    except ValidationError as error:
        raise ConfigError(
            [
                Problem(f"{option_of(str(item['loc'][0]))}:", format_validation_error(item))
                for item in error.errors()
            ]
        ) from error
    read.check_backbone()
    return read


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
        if not self.per_epoch:
            raise config_error("--batch-size", f"is {settings.batch_size}, and there are {length} images")

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
    ConfigError for one of other settings, and where the loss is no longer finite.
    """
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


def read_trained(out: Path, settings: type[Settings]) -> tuple[Settings, list[str], dict[str, Tensor]]:
    """The settings, the classes and the network's weights of the newest checkpoint in `out`.

    ConfigError if there is none, or it is of another program.
    """
    checkpoint = Checkpoints(out / "checkpoint").newest()
    if checkpoint is None:
        raise config_error(relative(out), "has no checkpoint; train it first")
    try:
        read = settings.model_validate(checkpoint["settings"], strict=False)
    except (KeyError, ValidationError) as error:
        raise config_error(relative(out), "has a checkpoint of another program") from error
    return read, checkpoint["classes"], checkpoint["network"]
