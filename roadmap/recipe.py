"""The resolved configuration of one run: model, recipe, data and system, validated and hashed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator

from blocks.cost import complexity
from blocks.spec import Count, ModelSpec, Spec
from roadmap.strict_yaml import ConfigError, Problem, read_yaml, relative, show

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Interpolation = Literal["bilinear", "bicubic", "nearest"]


class Recipe(Spec):
    """How a network is trained: budget, optimisation, and what is done to images and labels.

    `lr` is the paper's at its `global_batch`; the optimiser gets `lr * lr_scale`. Times are epochs.
    `crop_scale: null` trains on the evaluation's resize and centre crop.
    """

    epochs: Count
    global_batch: Count
    precision: Literal["fp32", "bf16"]
    optimizer: Literal["sgd", "adamw"]
    lr: Positive
    lr_scale: Positive
    momentum: Beta
    betas: tuple[Beta, Beta]
    eps: Positive
    weight_decay: NonNegative
    decay_norm_and_bias: bool
    clip_grad: Positive | None
    schedule: Literal["cosine", "step"]
    warmup_epochs: NonNegative
    min_lr: NonNegative
    step_epochs: Positive
    gamma: Fraction
    label_smoothing: Beta
    mixup: NonNegative
    cutmix: NonNegative
    mixup_prob: Probability
    mixup_switch_prob: Probability
    ema: Beta | None
    crop_scale: tuple[Fraction, Fraction] | None
    hflip: Probability
    randaugment: Annotated[str, StringConstraints(pattern=r"^rand(-(m|n|p|w|mstd|mmax|inc)\d+(\.\d+)?)+$")] | None
    random_erasing: Probability
    erase_mode: Literal["const", "rand", "pixel"]
    train_interpolation: Interpolation
    eval_interpolation: Interpolation
    eval_crop_pct: Fraction

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, which needs an even batch and soft labels."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def augments(self) -> bool:
        """Whether an image is transformed at random before it reaches a batch."""
        return self.crop_scale is not None or self.hflip > 0 or self.randaugment is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mixes and self.global_batch % 2:
            raise ValueError(f"mixup and cutmix pair the images of a batch, so global_batch must be even, not {self.global_batch}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs")
        if self.crop_scale is None and self.augments:
            raise ValueError("crop_scale null trains on the evaluation's crop as it is; hflip must be 0 and randaugment null with it")
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale runs from small to large, not from {self.crop_scale[0]:g} to {self.crop_scale[1]:g}")
        return self


class DataSpec(Spec):
    """What is learned from: `folder` has train/ and val/ with one folder a class; `digits` comes with scikit-learn.

    `copies` and `noise` belong to `digits`: copies of each image, and the standard deviation of the Gaussian noise added
    to each copy, in units of the grey range.
    """

    dataset: Literal["folder", "digits"]
    image_size: Annotated[int, Field(ge=8)]
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    copies: Count
    noise: NonNegative


class SystemSpec(Spec):
    """Where and how a run executes; none of it is hashed, for it is no part of the experiment (a result names its hardware).

    `device: auto` is CUDA where there is one; `threads` are PyTorch's on CPU, null for its default; `workers` load data;
    a checkpoint is written after each epoch and whenever `checkpoint_minutes` have passed since the last.
    """

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count | None
    workers: Annotated[int, Field(ge=0)]
    data_dir: str | None
    eval_batch: Count
    log_every: Count
    checkpoint_minutes: Positive


class RunConfig(Spec):
    """All that one run needs to know."""

    roadmap: str
    step: str
    profile: str | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    model: ModelSpec
    recipe: Recipe
    data: DataSpec
    system: SystemSpec

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("mean", "std"):
            given = len(getattr(self.data, name))
            if given != self.model.in_chans:
                raise ValueError(f"data.{name} holds {given} values for model.in_chans = {self.model.in_chans}")
        try:
            complexity(self.model, self.data.image_size)
        except ValueError as error:
            raise ValueError(f"data.image_size: {error}") from error
        return self

    @property
    def hash(self) -> str:
        """Eight hex digits over all that can change a result, the seed apart: runs that share them may be averaged."""
        sections = self.model_dump(mode="json", include={"model", "recipe", "data"})
        return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """The text of `config.yaml`."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """The configuration in a `config.yaml`; ConfigError if it is not one."""
        document = read_yaml(path).plain()
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            problems = [Problem(relative(path), f"{'.'.join(map(str, e['loc']))}: {reason(e)}") for e in error.errors()]
            raise ConfigError(problems) from error


def reason(error: Any) -> str:
    """A pydantic error in the words of this project."""
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] == "missing":
        key = error["loc"][-1]
        return f"'{key}' is missing" if isinstance(key, str) else f"value {key + 1} is missing"
    if error["type"] == "extra_forbidden":
        return "unknown key"
    given = error["input"]
    value = repr(given) if isinstance(given, str) else show(given)
    return f"{message[0].lower()}{message[1:].replace('tuple', 'list')}, not {value}"
