"""The resolved configuration of one run: model, recipe, data and system, validated and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from blocks.cost import Complexity, complexity, training_macs
from blocks.plan import describe
from blocks.spec import Count, ModelSpec, Rate, Spec
from roadmap.errors import MODEL_TAGS, ConfigError, Problem, keyed_message, relative
from roadmap.strict_yaml import read_yaml, write_yaml

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")]
RandAugment = Annotated[str, StringConstraints(pattern=r"^rand(-(m|n|p|w|mstd|mmax|inc)\d+(\.\d+)?)+$")]
DatasetName = Annotated[
    str,
    StringConstraints(pattern=r"^(folder|shards|digits|synthetic|(custom|torch|hfds|hfids|wds|tfds)/.+)$"),
]
CompileMode = Literal["off", "default", "max-autotune", "reduce-overhead", "try"]
# Keys that the first runs did not have, with their behavior then: such runs keep their hashes.
ADDED: dict[str, Any] = {
    "model.block.gate": False,
    "model.block.grn": False,
    "model.block.squeeze_excite": None,
    "recipe.pipeline": "pillow",
    "recipe.init_weights": "raw",
    "recipe.crop_padding": None,
    "data.fresh_noise": False,
    "system.cache": "none",
}
AROUND_SEED = (
    {"roadmap", "step", "profile"},
    {"model", "recipe", "data", "system"},
)  # fields before and after it


def _one_error(wanted: str) -> WrapValidator:
    """Reports a value that is none of a union's members once, not once for each of them."""

    def check(value: Any, members: ValidatorFunctionWrapHandler) -> Any:
        try:
            return members(value)
        except ValidationError as error:
            given = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
            raise ValueError(f"input should be {wanted}, not {given}") from error

    return WrapValidator(check)


def _compile_mode(value: Any) -> Any:
    """A truth value as the mode that it once was; YAML 1.1 reads `off` as one."""
    return {False: "off", True: "default"}[value] if isinstance(value, bool) else value


def _immutable(value: Any) -> Any:
    """A value of YAML or JSON with tuples for its lists."""
    if isinstance(value, Mapping):
        return {str(key): _immutable(item) for key, item in value.items()}
    return tuple(map(_immutable, value)) if isinstance(value, list | tuple) else value


class RecipeSpec(Spec):
    """How a network is trained: budget, optimization, augmentation, and regularization."""

    epochs: Count = Field(description="Epochs of training, warm-up included.")
    global_batch: Count = Field(description="Images of an iteration, over all devices.")
    local_batch: Count = Field(
        description=(
            "Images that BN normalizes together, and that mixup or cutmix mixes with one draw: the paper's"
            " batch on one GPU. The global batch is a multiple of it, or smaller."
        )
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        description=(
            "`fp32` is IEEE single precision in every operation, and `tf32` lets a GPU multiply and convolve"
            " in TF32. `bf16` and `fp16` are the type of the autocast forward pass, with `fp32` for the rest;"
            " `fp16` scales the loss."
        )
    )
    optimizer: Literal["sgd", "adamw"] = Field(description="`sgd` with momentum, or `adamw`.")
    lr: Positive = Field(
        description=(
            "Peak learning rate for a batch of `lr_batch` images; it grows linearly with the global batch."
        )
    )
    lr_batch: Count = Field(description="Batch size in images that `lr` is quoted for.")
    lr_scale: Positive = Field(description="Additional factor on the learning rate.")
    layer_decay: Fraction = Field(
        description=(
            "Layer-wise decay of the learning rate: the factor from each group of layers to the one before;"
            " 1 is none. Below 1 it is for training that starts from weights."
        )
    )
    layer_decay_by: Literal["layer", "stage"] = Field(
        description=(
            "What a group of `layer_decay` is: `stage`, or `layer`, up to three blocks of a stage in a row."
            " The stem and the head are separate groups."
        )
    )
    init_digest: Digest | None = Field(
        description=(
            "Digest of the weights that training starts from, 16 hex digits; null is a fresh network."
            " `--init-from` sets it."
        )
    )
    init_weights: Literal["raw", "ema"] = Field(
        description=(
            "Which weights to start from if a file has both: `raw`, as they were trained, or their `ema`."
            " `--raw` and `--ema` set it."
        )
    )
    head_init_scale: NonNegative = Field(
        description="Factor on the initial parameters of a fresh classifier."
    )
    momentum: Beta = Field(description="Momentum of `sgd`.")
    betas: tuple[Beta, Beta] = Field(
        description="Decay rates of `adamw`'s running averages: of the gradient, and of its square."
    )
    eps: Positive = Field(description="Constant that `adamw` adds to the denominator of its update.")
    weight_decay: NonNegative = Field(
        description="Weight decay, without norms and biases unless `decay_norm_and_bias` is true."
    )
    decay_norm_and_bias: bool = Field(description="Whether weight decay also applies to norms and biases.")
    clip_grad: Positive | None = Field(
        description="Largest norm of the gradient over all parameters; null does not clip."
    )
    schedule: Literal["cosine", "step"] = Field(
        description=(
            "Learning rate after the warm-up: `cosine` falls to `min_lr`, `step` is multiplied by `gamma`"
            " every `step_epochs`."
        )
    )
    warmup_epochs: NonNegative = Field(
        description="Epochs of linear warm-up from 0, fewer than `epochs`; a fraction is allowed."
    )
    min_lr: NonNegative = Field(description="Learning rate at the end of `cosine`.")
    step_epochs: Positive = Field(
        description="Epochs between two drops of the `step` schedule, counted from the start of training."
    )
    gamma: Fraction = Field(description="Factor on the learning rate at each drop of the `step` schedule.")
    label_smoothing: Beta = Field(
        description="Label smoothing: the fraction of a label that is spread evenly over all classes."
    )
    mixup: NonNegative = Field(description="Alpha of mixup's Beta distribution; 0 is no mixup.")
    cutmix: NonNegative = Field(description="Alpha of cutmix's Beta distribution; 0 is no cutmix.")
    mixup_prob: Probability = Field(
        description="Probability that a local batch is mixed at all, by mixup or cutmix."
    )
    mixup_switch_prob: Probability = Field(
        description="Probability of cutmix in place of mixup, where both are on."
    )
    ema: Beta | None = Field(
        description=("Decay per iteration of the EMA (exponential average) of the weights; null keeps none.")
    )
    pipeline: Literal["pillow", "tensor"] = Field(
        description=(
            "`pillow` is timm's pipeline. With `tensor`, torchvision decodes and resizes training images as"
            " uint8 tensors, and RandAugment runs on the device: the same crops and flips, pixels that differ"
            " by rounding. Evaluation uses Pillow and timm in both."
        )
    )
    crop_scale: tuple[Fraction, Fraction] | None = Field(
        description=(
            "Smallest and largest fraction of the image's area in a random resized crop. With null and no"
            " `crop_padding`, training uses the resize and crop of the evaluation."
        )
    )
    crop_padding: Annotated[int, Field(ge=0)] | None = Field(
        description=(
            "Pixels of black on each side of an image, resized to a shorter edge of `data.image_size`, from"
            " which a square of that size is cropped at random: 4 is usual for CIFAR. null is none."
        )
    )
    hflip: Probability = Field(description="Probability of a horizontal flip.")
    randaugment: RandAugment | None = Field(
        description="timm's RandAugment string, such as `rand-m9-mstd0.5-inc1`; null is none."
    )
    random_erasing: Probability = Field(description="Probability that a part of an image is erased.")
    erase_mode: Literal["const", "rand", "pixel"] = Field(
        description=(
            "What replaces an erased part: `const` is 0, `rand` one random color, `pixel` a random color for"
            " each pixel."
        )
    )
    train_interpolation: Interpolation = Field(
        description="Interpolation of the resize in training, and of RandAugment's geometric operations."
    )
    eval_interpolation: Interpolation = Field(description="Interpolation of the resize in evaluation.")
    eval_crop_pct: Fraction = Field(description="Fraction of the resized image's edges that evaluation uses.")
    eval_crop_mode: Literal["center", "squash"] = Field(
        description="`center` resizes the shorter edge and takes the center; `squash` resizes both edges."
    )

    @property
    def group(self) -> int:
        """The number of images that are normalized and mixed together."""
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
        return self.crops or self.hflip > 0 or self.randaugment is not None

    @property
    def crops(self) -> bool:
        """Whether a part of each image is cropped at random."""
        return self.crop_scale is not None or self.crop_padding is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.global_batch % self.group:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of local_batch {self.local_batch}"
            )
        if self.mixes and self.group % 2:
            raise ValueError(
                "mixup and cutmix pair the images of a batch, so global_batch and local_batch must be even,"
                f" not {self.group}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}")
        if self.crop_scale is not None and self.crop_padding is not None:
            raise ValueError(
                "crop_padding and crop_scale are two kinds of random crops; one must be null, such as by"
                " --set recipe.crop_scale=null"
            )
        if self.augments and not self.crops:
            raise ValueError(
                "crop_scale null without crop_padding trains on the evaluation's crop without augmentation;"
                " hflip must be 0 and randaugment null"
            )
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(
                f"crop_scale is the smallest and the largest area, not {self.crop_scale[0]:g} and"
                f" {self.crop_scale[1]:g}"
            )
        return self


class DataSpec(Spec):
    """The dataset, its splits and classes, and how its images are normalized."""

    dataset: DatasetName = Field(
        description=(
            "`folder` (a folder per class in each split), `shards` (tar files of WebDataset), `digits`"
            " (scikit-learn's), `synthetic`, a dataset string of timm's such as `torch/cifar10` or"
            " `hfds/cifar10`, or `custom/NAME` for Dataset objects passed to `roadmap.train.train`."
        )
    )
    train_split: str = Field(
        description=(
            "Name of the training split; for `shards`, a pattern of file names such as"
            " `train-{0000..0127}.tar`."
        )
    )
    val_split: str = Field(description="Name of the validation split, written as `train_split` is.")
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        description="Names of the classes to keep, numbered in sorted order; null keeps all."
    )
    image_key: str | None = Field(
        description="Column of a table, or member of a shard, that holds the image; null is the usual name."
    )
    label_key: str | None = Field(
        description="Column of a table, or member of a shard, that holds the label; null is the usual name."
    )
    images: tuple[Count, Count] = Field(
        description="Numbers of training and validation images that `synthetic` makes."
    )
    image_size: Annotated[int, Field(ge=8)] = Field(
        description="Height and width of the network's input in pixels."
    )
    mean: tuple[float, ...] = Field(
        description="Mean of each channel, subtracted from pixel values between 0 and 1."
    )
    std: tuple[Positive, ...] = Field(
        description="Standard deviation of each channel, which divides the difference to the mean."
    )
    copies: Count = Field(description="Copies of each image of `digits`.")
    noise: NonNegative = Field(
        description=(
            "Standard deviation of the Gaussian noise added to `digits` and `synthetic`, in units of the"
            " gray range."
        )
    )
    fresh_noise: bool = Field(
        description=(
            "Whether the noise of a training image of `digits` is drawn again in each epoch, by seed, epoch"
            " and image; else each image keeps its own, as those of validation always do."
        )
    )

    @model_validator(mode="after")
    def _check_noise(self) -> Self:
        if self.fresh_noise and self.dataset != "digits":
            raise ValueError(
                f"fresh_noise true is for digits, and dataset '{self.dataset}' has no such noise; set"
                " data.fresh_noise to false"
            )
        return self


class SystemSpec(Spec):
    """Where and how a run executes. It is not part of the hash; a result names its hardware."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        description="`auto` is CUDA where there is one, else the CPU."
    )
    threads: Count | None = Field(description="PyTorch's threads on the CPU; null is PyTorch's default.")
    workers: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=0)], _one_error("'auto' or an integer from 0 on")
    ] = Field(
        description=(
            "Worker processes of each DataLoader; 0 loads in the training process. `auto` is one less than"
            " the cores of a process on a GPU, from 1 to 16, at most 1 on a CPU, and 8 for streamed datasets,"
            " whose order depends on it."
        )
    )
    cache: Literal["none", "host", "device"] = Field(
        description=(
            "Where decoded images stay: `none` reads them again in each epoch, `host` keeps them in each"
            " process's memory. `device` keeps them on its device, which crops and flips them: images of one"
            " size under `recipe.pipeline: tensor`, or any without random transforms. Results are the same."
        )
    )
    micro_batch: Count | None = Field(
        description=(
            "Images in a device's micro-batch; gradient accumulation covers the rest of an iteration. null is"
            " a local batch, or with `sync_bn` the device's part of one."
        )
    )
    sync_bn: bool = Field(
        description="Whether a local batch is spread over all devices, with synchronized BN; it needs CUDA."
    )
    compile: Annotated[
        CompileMode,
        BeforeValidator(_compile_mode, json_schema_input_type=CompileMode | bool),
        _one_error(", ".join(map(repr, get_args(CompileMode))) + ", true or false"),
    ] = Field(
        description=(
            "Mode of `torch.compile` in training; its gradients are first compared with the eager network's."
            " `true` is `default`; `max-autotune` and `reduce-overhead` replay CUDA graphs. `try` is"
            " `default`, or the eager network if the gradients differ or it cannot be compiled."
        )
    )
    deterministic: bool = Field(description="Whether PyTorch uses deterministic algorithms only.")
    grad_checkpointing: bool = Field(
        description=(
            "Whether the backward pass computes the blocks' activations again, which saves memory and costs"
            " time."
        )
    )
    data_dir: str | None = Field(description="Folder or URL of the data; null for a dataset that needs none.")
    stage_dir: str | None = Field(
        description=(
            "Folder on a node's local disk to which `data_dir` is copied once per node before it is read;"
            " environment variables such as `$TMPDIR` are expanded. null reads `data_dir` itself."
        )
    )
    download: bool = Field(description="Whether torchvision may download its datasets.")
    corrupt_images: Annotated[int, Field(ge=0)] = Field(
        description=(
            "Number of unreadable images that are skipped, each with a warning; one more stops the run."
        )
    )
    init_from: str | None = Field(
        description=(
            "File, URL or run directory of the weights to start from; null is a fresh network. `--init-from`"
            " sets it."
        )
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        description="Experiment trackers that the metrics are sent to."
    )
    eval_batch: Count = Field(description="Images that a device evaluates at a time.")
    log_every: Count = Field(description="Iterations between two entries of the training log.")
    checkpoint_minutes: Positive = Field(
        description=(
            "Minutes from one checkpoint to the next within an epoch; each epoch ends with one, too."
        )
    )


class TimmSpec(Spec):
    """A network of timm, in place of one of ours: the `model` of a reference step."""

    timm: str = Field(description="timm's name for the model.")
    args: Annotated[dict[str, Any], AfterValidator(_immutable)] = Field(
        description=(
            "Keywords of timm's `create_model` beyond those that follow from the configuration: `in_chans`,"
            " `num_classes`, `drop_path_rate`, and `img_size` where the model takes it."
        )
    )
    batch_norm: bool = Field(
        description=(
            "Whether the model has BN, whose batches are then those of `recipe.local_batch` as in our"
            " networks. false is checked when the model is built."
        )
    )
    in_chans: Count = Field(description="Channels of an image: 3 for RGB, 1 for gray.")
    num_classes: Count = Field(description="Number of classes, which is the classifier's number of outputs.")
    drop_path: Rate = Field(description="Stochastic depth rate: timm's `drop_path_rate`.")

    @model_validator(mode="after")
    def _check_args(self) -> Self:
        if taken := [key for key in self.args if key in FROM_CONFIG]:
            key = taken[0]
            raise ValueError(f"args: {key} follows from the configuration; set {FROM_CONFIG[key]}")
        return self


# timm's keywords that a configuration decides, with its keys
FROM_CONFIG = {
    "in_chans": "model.in_chans",
    "num_classes": "model.num_classes",
    "drop_path_rate": "model.drop_path",
    "img_size": "data.image_size",
    "pretrained": "system.init_from, by --init-from",
    "checkpoint_path": "system.init_from, by --init-from",
}


def _tag_of_model(value: Any) -> str:
    """Which of MODEL_TAGS a model is."""
    is_timm = "timm" in value if isinstance(value, Mapping) else isinstance(value, TimmSpec)
    return MODEL_TAGS[is_timm]


Model = Annotated[
    Annotated[ModelSpec, Tag(MODEL_TAGS[0])] | Annotated[TimmSpec, Tag(MODEL_TAGS[1])],
    Discriminator(_tag_of_model),
]


class RunConfig(Spec):
    """The configuration of one run."""

    roadmap: str = Field(description="Name of the roadmap.")
    step: str = Field(description="Name of the step, or a combination of steps such as `resnet50+gelu`.")
    profile: str | None = Field(
        description="Name of the profile; null is none, the paper's ImageNet setting."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        description="Seed of all random numbers; runs that differ only in it have the same hash."
    )
    model: Model = Field(description="The network.")
    recipe: RecipeSpec = Field(description="How the network is trained.")
    data: DataSpec = Field(description="What it is trained and evaluated on.")
    system: SystemSpec = Field(description="Where and how the run executes.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("mean", "std"):
            given = len(getattr(self.data, name))
            if given != self.model.in_chans:
                raise ValueError(
                    f"data.{name} holds {given} values for model.in_chans = {self.model.in_chans}"
                )
        padding, size = self.recipe.crop_padding or 0, self.data.image_size
        if padding >= size:
            raise ValueError(
                f"recipe.crop_padding {padding} must be less than data.image_size {size}, or a crop may show"
                " nothing of the image"
            )
        try:
            if isinstance(self.model, ModelSpec):
                complexity(self.model, self.data.image_size)
        except ValueError as error:
            raise ValueError(f"data.image_size: {error}") from error
        return self

    @property
    def ours(self) -> ModelSpec:
        """The network where it is one of ours; ConfigError for a model of timm."""
        if isinstance(self.model, TimmSpec):
            raise ConfigError([Problem(self.step, f"is a reference, timm's {self.model.timm}")])
        return self.model

    def training_macs(self, cost: Complexity) -> int:
        """Multiply-adds of a forward and backward pass for one image, by the cost of the network: in a model
        of timm, three times those of the forward pass.
        """
        if isinstance(self.model, ModelSpec):
            return training_macs(self.model, self.data.image_size)
        return 3 * cost.macs

    @property
    def architecture(self) -> str:
        """The network in one line: the block's sentence, or timm's name with its keywords."""
        if isinstance(self.model, ModelSpec):
            return describe(self.model.block)
        words = [self.model.timm, *(f"{key}={value!r}" for key, value in self.model.args.items())]
        return f"timm: {', '.join(words)}"

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network normalizes over the images of a batch."""
        model = self.model
        return model.batch_norm if isinstance(model, TimmSpec) else model.block.norm.kind == "bn"

    @property
    def hash(self) -> str:
        """Eight hex digits over all that can change a result except the seed; runs with the same hash are
        averaged.
        """
        sections = self.model_dump(mode="json", include={"model", "recipe", "data"})
        for section, key, before in _added_in(sections):
            if section.get(key, ...) == before:
                del section[key]
        return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """The text of `config.yaml`."""
        before, after = (json.dumps(self.model_dump(mode="json", include=fields)) for fields in AROUND_SEED)
        return f"{_yaml_of(before)}seed: {self.seed}\n{_yaml_of(after)}"

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """The configuration in a `config.yaml`; ConfigError if it is not one."""
        document = read_yaml(path).plain()
        for section, key, before in _added_in(document):
            section.setdefault(key, before)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            problems = [Problem(relative(path), keyed_message(item)) for item in error.errors()]
            raise ConfigError(problems) from error


def _added_in(document: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """The sections of a document that have keys of ADDED, each with the key and its value before."""
    for path, before in ADDED.items():
        *parents, key = path.split(".")
        section = document
        for name in parents:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            yield section, key, before


def flatten(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in sections.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return flat


@lru_cache(maxsize=1024)
def _yaml_of(sections: str) -> str:
    """JSON as YAML, once for all seeds of a step: PyYAML takes milliseconds."""
    return write_yaml(json.loads(sections))
