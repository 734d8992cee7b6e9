"""How a network is fine-tuned for dense prediction, as settings and as options of a command line.

It is apart from `roadmap.downstream`, which trains, because --help needs no PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, ValidationError

from blocks.spec import Count, Spec
from roadmap.config import Fraction, NonNegative, Positive, Probability
from roadmap.deltas import parse_overrides
from roadmap.errors import ConfigError, Problem, config_error, format_validation_error, one_of_these

STRIDES = (4, 8, 16, 32)  # of the feature maps

LayerDecay = Annotated[
    Fraction,
    Field(
        title="FACTOR",
        description="factor of the learning rate from each group of the backbone's layers to the one below;"
        " without --init-from it is 1",
    ),
]
LayerDecayBy = Annotated[
    Literal["layer", "stage"],
    Field(description="whether a group is a stage, or up to three blocks of one"),
]
Epochs = Annotated[Count, Field(title="EPOCHS", description="times that training sees each image")]


class FineTuning(Spec):
    """How a network is fine-tuned.

    Each field is an option of the command line: a field's title is there the word for its value.
    """

    backbone: str = Field(
        "roadmap_separate_downsampling",
        title="STEP",
        description="timm's name of a step, such as roadmap_family_convnext_s",
    )
    network: dict[str, Any] = Field(
        {},
        title="KEY=VALUE",
        description="another value of the backbone, as timm.create_model takes it: width_mult=0.5,"
        " depths=[2,2,6,2]",
    )
    init_from: str | None = Field(
        None,
        title="WEIGHTS",
        description="trained weights: a run's folder, an exported file, or a released checkpoint",
    )
    ema: bool = Field(False, description="start from the EMA of these weights")
    image_size: Count = Field(512, title="PX", description="pixels of an image's shorter side")
    epochs: Epochs = 100
    batch_size: Count = Field(16, title="IMAGES", description="images per iteration")
    lr: Positive = Field(1e-4, title="RATE", description="peak learning rate of the heads")
    layer_decay: LayerDecay = 0.9
    layer_decay_by: LayerDecayBy = "stage"
    weight_decay: NonNegative = Field(
        0.05, title="FACTOR", description="weight decay, of all but biases and norms"
    )
    warmup: float = Field(
        0.01,
        ge=0,
        lt=1,
        title="PART",
        description="part of the iterations that warms up; then the rate decays linearly",
    )
    drop_path: Probability = Field(
        0.4, title="RATE", description="stochastic depth of the backbone's last block"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of the operations that autocast covers: auto is bf16 on CUDA, else fp32"
    )
    seed: int = Field(0, ge=0, title="SEED", description="seed of initialization, order and augmentation")

    def check_backbone(self) -> None:
        """ConfigError if `backbone` is no step, or its network has no feature maps at strides 4 to 32."""
        from roadmap.timm_models import changed_spec, registered

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
        from roadmap.timm_models import registered

        data = registered[self.backbone].data
        return {"mean": data.mean, "std": data.std}


Settings = TypeVar("Settings", bound=FineTuning)


def add_options(parser: argparse.ArgumentParser, settings: type[FineTuning]) -> None:
    """The folder DATA, an option for each field of `settings`, and --out, --device, and --workers."""
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="folder with train/images, train/masks, val/images, val/masks"
    )
    for name, field in settings.model_fields.items():
        option, metavar = option_of(name), field.title or f"{{{','.join(get_args(field.annotation))}}}"
        default = "" if field.default is None else " (default: %(default)s)"
        if name == "network":
            parser.add_argument(
                option,
                dest=name,
                action="append",
                default=[],
                metavar=metavar,
                help=field.description,
            )
        elif field.annotation is bool:
            parser.add_argument(option, action="store_true", help=field.description)
        else:
            parser.add_argument(
                option, default=field.default, metavar=metavar, help=f"{field.description}{default}"
            )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of checkpoints and metrics"
    )
    add_device_option(parser)
    parser.add_argument(
        "--workers",
        type=int,
        default=4,
        metavar="PROCESSES",
        help="processes that load images; 0 loads them in the training process (default: 4)",
    )


def add_prediction_options(parser: argparse.ArgumentParser, written: str) -> None:
    """The folders DIR of a training, IMAGES, and that of the masks, which is named `written`; --device."""
    parser.add_argument("run", type=Path, metavar="DIR", help="the --out of a training")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument(written, type=Path, metavar=written.upper(), help="folder of the masks to write")
    add_device_option(parser)


def option_of(name: str) -> str:
    """The option of a field."""
    return "--set" if name == "network" else f"--{name.replace('_', '-')}"


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1 ...; auto is CUDA where there is one (default: auto)",
    )


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
