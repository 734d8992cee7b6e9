"""The resolved configuration of one run: model, recipe, data and system, validated and hashed."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from blocks.cost import complexity
from blocks.spec import Count, ModelSpec, Spec
from roadmap.strict_yaml import ConfigError, Problem, read_yaml, relative, show, write_yaml

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
# Leaves that the first runs did not have, with what they did: they stay what they are.
ADDED = (("recipe", "pipeline", "pillow"), ("recipe", "init_weights", "raw"))
# the fields before it, and after
AROUND_SEED = ({"roadmap", "step", "profile"}, {"model", "recipe", "data", "system"})


class Recipe(Spec):
    """How a network is trained: budget, optimization, and what is done to images and labels.

    Times are epochs.

    An iteration takes `global_batch` images, however many devices share them. `lr` is quoted for a batch of
    `lr_batch` and grows with the batch; `lr_scale` multiplies it further. The images of a `local_batch`, the
    paper's on one GPU, are normalized together by BN, share one draw of mixup or cutmix, and are mixed among
    themselves; it is at most the global batch. `layer_decay` multiplies the learning rate of each group of
    layers once more per group before the head; a group is a stage, or up to three blocks. `init_digest` names
    the weights that training starts from, null for fresh ones; `init_weights` chooses, where they come with
    their EMA, between the weights as they were trained, `raw`, and their `ema`. `head_init_scale` multiplies
    a fresh classifier. `crop_scale: null` trains on the evaluation's resize and crop. `pipeline: tensor` has
    torchvision decode and resize the training's images as uint8 tensors, and RandAugment run on the device;
    the crops and flips are those of `pillow`, the pixels differ by rounding. Evaluation is Pillow's and
    timm's in both.
    """

    epochs: Count
    global_batch: Count
    local_batch: Count
    precision: Literal["fp32", "bf16", "fp16"]
    optimizer: Literal["sgd", "adamw"]
    lr: Positive
    lr_batch: Count
    lr_scale: Positive
    layer_decay: Fraction
    layer_decay_by: Literal["layer", "stage"]
    init_digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")] | None
    init_weights: Literal["raw", "ema"]
    head_init_scale: NonNegative
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
    pipeline: Literal["pillow", "tensor"]
    crop_scale: tuple[Fraction, Fraction] | None
    hflip: Probability
    randaugment: (
        Annotated[str, StringConstraints(pattern=r"^rand(-(m|n|p|w|mstd|mmax|inc)\d+(\.\d+)?)+$")] | None
    )
    random_erasing: Probability
    erase_mode: Literal["const", "rand", "pixel"]
    train_interpolation: Interpolation
    eval_interpolation: Interpolation
    eval_crop_pct: Fraction
    eval_crop_mode: Literal["center", "squash"]

    @property
    def group(self) -> int:
        """How many images are normalized and mixed together."""
        return min(self.local_batch, self.global_batch)

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of the warm-up: linear in the batch."""
        return self.lr * self.lr_scale * self.global_batch / self.lr_batch

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
        if self.global_batch % self.group:
            raise ValueError(
                f"global_batch {self.global_batch} is no multiple of local_batch {self.local_batch}"
            )
        if self.mixes and self.group % 2:
            raise ValueError(
                "mixup and cutmix pair the images of a batch, so global_batch and local_batch must be even,"
                f" not {self.group}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs")
        if self.crop_scale is None and self.augments:
            raise ValueError(
                "crop_scale null trains on the evaluation's crop as it is; hflip must be 0 and randaugment"
                " null with it"
            )
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(
                f"crop_scale runs from small to large, not from {self.crop_scale[0]:g} to"
                f" {self.crop_scale[1]:g}"
            )
        return self


class DataSpec(Spec):
    """What is learned from.

    `dataset` is `folder` (a folder a class in each split), `shards` (tar files of WebDataset), `digits`
    (scikit-learn's), `synthetic` (made up), a dataset string of timm's such as `torch/cifar10` or
    `hfds/cifar10`, or `custom/NAME` for Dataset objects handed to `roadmap.train.train`. `train_split` and
    `val_split` name its splits, `shards` by a pattern of file names such as `train-{0000..0127}.tar`.
    `classes` keeps those alone, by name, and numbers them as they are sorted. `image_key` and `label_key`
    name the columns of a table, or the members of a shard, null for the usual ones. `images` are how many
    `synthetic` makes for training and validation. `copies` belongs to `digits`: copies of each image;
    `noise`, to both, is the standard deviation of the Gaussian noise added, in units of the gray range.
    """

    dataset: Annotated[
        str,
        StringConstraints(
            pattern=r"^(folder|shards|digits|synthetic|(custom|torch|hfds|hfids|wds|tfds)/.+)$"
        ),
    ]
    train_split: str
    val_split: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None
    image_key: str | None
    label_key: str | None
    images: tuple[Count, Count]
    image_size: Annotated[int, Field(ge=8)]
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    copies: Count
    noise: NonNegative


class SystemSpec(Spec):
    """Where and how a run executes; none of it is hashed, for it is no part of the experiment (a result names
    its hardware).

    `device: auto` is CUDA where there is one; `threads` are PyTorch's on CPU, null for its default; `workers`
    load data. A device takes `micro_batch` images at a time, null for a local batch; the rest of its share is
    accumulated. `sync_bn` spreads a local batch over all devices. `data_dir` is copied to `stage_dir` once a
    node before it is read; `download` lets a dataset of torchvision fetch itself. Up to `corrupt_images` that
    cannot be read are left out, each named. `compile` has PyTorch compile the network for training, after its
    gradients were compared with the eager network's on this machine; `try` trains the eager network where
    they differ, and where nothing can be compiled. `init_from` is the file or address of the weights to start
    from. A checkpoint is written after each epoch and whenever `checkpoint_minutes` have passed since the
    last.
    """

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count | None
    workers: Annotated[int, Field(ge=0)]
    micro_batch: Count | None
    sync_bn: bool
    compile: bool | Literal["try"]
    deterministic: bool
    grad_checkpointing: bool
    data_dir: str | None
    stage_dir: str | None
    download: bool
    corrupt_images: Annotated[int, Field(ge=0)]
    init_from: str | None
    trackers: tuple[Literal["tensorboard", "wandb"], ...]
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
                raise ValueError(
                    f"data.{name} holds {given} values for model.in_chans = {self.model.in_chans}"
                )
        try:
            complexity(self.model, self.data.image_size)
        except ValueError as error:
            raise ValueError(f"data.image_size: {error}") from error
        return self

    @property
    def hash(self) -> str:
        """Eight hex digits over all that can change a result, the seed apart: runs that share them may be
        averaged.
        """
        sections = self.model_dump(mode="json", include={"model", "recipe", "data"})
        for section, key, before in ADDED:
            if sections[section][key] == before:
                del sections[section][key]
        return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """The text of `config.yaml`."""
        before, after = (json.dumps(self.model_dump(mode="json", include=fields)) for fields in AROUND_SEED)
        return f"{_yaml_of(before)}seed: {self.seed}\n{_yaml_of(after)}"

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """The configuration in a `config.yaml`; ConfigError if it is not one."""
        document = read_yaml(path).plain()
        for section, key, before in ADDED:
            if isinstance(document, dict) and isinstance(document.get(section), dict):
                document[section].setdefault(key, before)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            problems = [
                Problem(relative(path), f"{'.'.join(map(str, e['loc']))}: {format_validation_error(e)}")
                for e in error.errors()
            ]
            raise ConfigError(problems) from error


@lru_cache(maxsize=1024)
def _yaml_of(sections: str) -> str:
    """JSON as YAML, once for all seeds of a step: PyYAML takes milliseconds."""
    return write_yaml(json.loads(sections))


def format_validation_error(error: Any) -> str:
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
    if error["type"] in ("too_short", "too_long"):
        message = message.partition(" after validation")[0]  # or it would say the number, too
    message = message.partition(" or instance of ")[0]  # a class of ours, which nobody writes in a file
    value = repr(given) if isinstance(given, str) else show(given)
    if error["type"] == "string_type" and isinstance(given, int | float):
        value += f"; write it in quotes, '{value}'"
    return f"{(message[0].lower() + message[1:]).replace('tuple', 'list')}, not {value}"
