"""The published recipes beside what our code does with the steps as they are, without a profile: `python -m
tests.test_recipe`.

What can be observed is observed on the objects that training uses: the optimizer, the schedule, the
transforms, the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from roadmap.batches import plan_batches
from roadmap.config import RunConfig
from roadmap.deltas import Roadmap
from roadmap.steps import load_roadmap, parse_overrides, resolve

if TYPE_CHECKING:
    from roadmap.training.engine import Engine

IMAGES = 1_281_167  # of ImageNet-1K's training set
PHOTO = (500, 375)  # a usual size of one


@dataclass(frozen=True)
class Check:
    """A figure by the paper's name for it, a colon and what of it is looked at; the paper's value; and how
    ours is measured.
    """

    name: str
    paper: Any
    measure: Callable[[], Any]


@cache
def roadmap_of(name: str) -> Roadmap:
    return load_roadmap(name=name)


@cache
def config_of(step: str, roadmap: str = "convnext_t", *overrides: str) -> RunConfig:
    return resolve(roadmap_of(roadmap), step, overrides=parse_overrides(list(overrides)))


def per_epoch(config: RunConfig) -> int:
    return IMAGES // config.recipe.global_batch


@cache
def engine_of(step: str, roadmap: str = "convnext_t") -> Engine:
    """What trains the step; the family's networks, up to 350 M parameters, are made narrow, which changes no
    recipe.
    """
    import torch

    from roadmap.training.engine import Engine

    config = config_of(step, roadmap, *(["model.width_mult=0.125"] if roadmap == "family" else []))
    return Engine(config, torch.device("cpu"), per_epoch(config))


# What the optimizer does


def optimizer(step: str) -> str:
    return type(engine_of(step).optimizer).__name__


def option(step: str, name: str, roadmap: str = "convnext_t") -> Any:
    """A value that all of the optimizer's groups share."""
    (value,) = {group[name] for group in engine_of(step, roadmap).optimizer.param_groups}
    return value


def weight_decay(step: str, roadmap: str = "convnext_t") -> float:
    (value,) = {group["weight_decay"] for group in engine_of(step, roadmap).optimizer.param_groups} - {0.0}
    return float(value)


def kinds(step: str, decayed: bool) -> tuple[str, ...]:
    """The kinds of parameters that are decayed, or that are not, such as `Conv2d.weight`; the optimizer must
    hold every one.
    """
    engine = engine_of(step)
    decays = {
        id(parameter): group["weight_decay"] > 0
        for group in engine.optimizer.param_groups
        for parameter in group["params"]
    }
    found = {
        # of our own are convolutions, too
        f"{'Conv2d' if isinstance(module, nn.Conv2d) else type(module).__name__}.{name}"
        for module in engine.model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if decays[id(parameter)] == decayed
    }
    return tuple(sorted(found))


def one(values: Iterable[Any]) -> Any:
    (value,) = values
    return value


# What the learning rate does


def lr(iteration: int, step: str, roadmap: str = "convnext_t") -> float:
    """The learning rate of an iteration, set as the engine sets it."""
    engine = engine_of(step, roadmap)
    engine.schedule.step_update(iteration)
    return engine.lr()


def cosine(
    iteration: int,
    epochs: int = 300,
    warm_up: int = 20,
    peak: float = 4e-3,
    least: float = 1e-6,
    epoch: int = 312,
) -> float:
    """Linear from 0, then half a cosine down to `least`."""
    start, end = warm_up * epoch, epochs * epoch
    if iteration < start:
        return peak * iteration / start
    return least + (peak - least) * (1 + math.cos(math.pi * (iteration - start) / (end - start))) / 2


def shape(step: str, formula: Callable[[int], float], name: str, last: int) -> str:
    """`name` if the learning rate follows its formula all the way."""
    agrees = all(
        math.isclose(lr(iteration, step), formula(iteration), rel_tol=1e-9, abs_tol=1e-15)
        for iteration in range(0, last, 97)
    )
    return name if agrees else f"not {name}"


def changes_per(step: str) -> str:
    """How often the learning rate changes, in the warm-up and after it."""
    epoch = per_epoch(config_of(step))
    numbers = {len({lr(start * epoch + number, step) for number in range(epoch)}) for start in (10, 100)}
    return {epoch: "iteration", 1: "epoch"}.get(one(numbers), "something else")


def peak_epoch(step: str) -> int:
    """The epoch with whose first iteration the learning rate is highest."""
    config = config_of(step)
    return max(range(config.recipe.epochs), key=lambda epoch: lr(epoch * per_epoch(config), step))


def drops(step: str) -> tuple[int, ...]:
    """The iterations, as epochs, at which the learning rate falls."""
    config = config_of(step)
    epoch, last = per_epoch(config), config.recipe.epochs
    rates = [(lr(number * epoch - 1, step), lr(number * epoch, step)) for number in range(1, last)]
    return tuple(number for number, (before, after) in enumerate(rates, 1) if before != after)


# What is done to images and labels


def transforms(step: str, training: bool, roadmap: str = "convnext_t") -> dict[str, Any]:
    from roadmap.data.loader import build_transform

    steps: Any = build_transform(config_of(step, roadmap), training)
    return {type(transform).__name__: transform for transform in steps.transforms}


def transformed(step: str, training: bool, roadmap: str = "convnext_t") -> tuple[int, ...]:
    """Channels, height and width of a photo as the network sees it."""
    from PIL import Image

    from roadmap.data.loader import build_transform

    return tuple(build_transform(config_of(step, roadmap), training)(Image.new("RGB", PHOTO)).shape)


def crop(step: str, attribute: str) -> Any:
    return getattr(transforms(step, True)["RandomResizedCropAndInterpolation"], attribute)


def evaluation(step: str, roadmap: str = "convnext_t") -> tuple[Any, Any]:
    found = transforms(step, False, roadmap)
    return found["Resize"].size, found["CenterCrop"].size


def randaugment(step: str) -> Any:
    """The string that would give what timm made of ours, the number of operations an image, and of those to
    choose from.
    """
    found = transforms(step, True).get("RandAugment")
    if found is None:
        return None
    magnitude, spread = (
        one({getattr(op, name) for op in found.ops}) for name in ("magnitude", "magnitude_std")
    )
    increasing = sum(op.name.endswith("Increasing") for op in found.ops) == 6
    return f"rand-m{magnitude}-mstd{spread}-inc{int(increasing)}", found.num_layers, len(found.ops)


def mixing(step: str, attribute: str, roadmap: str = "convnext_t") -> Any:
    return getattr(engine_of(step, roadmap).mix, attribute, None)


def erasing(step: str, roadmap: str = "convnext_t") -> Any:
    """Probability, mode and areas of an image."""
    from tests.helpers.images import augmentation_of

    engine = engine_of(step, roadmap)
    erase = augmentation_of(engine.config).erasing
    return erase and (erase.probability, engine.device_transform.erase_mode, erase.max_count)


# What the network and the runs are


def drop_path(step: str, roadmap: str = "convnext_t") -> str:
    """The rates of the network's blocks in a few words."""
    import torch

    from blocks.model import build_model
    from blocks.residual import Residual

    with torch.device("meta"):
        network = build_model(config_of(step, roadmap).ours)
    rates = [
        getattr(module.drop_path, "drop_prob", 0.0)
        for module in network.modules()
        if isinstance(module, Residual)
    ]
    last = len(rates) - 1
    linear = all(
        math.isclose(rate, rates[-1] * number / last, abs_tol=1e-12) for number, rate in enumerate(rates)
    )
    return f"{rates[0]:g} to {rates[-1]:g}, {'linear' if linear else 'not linear'} over {len(rates)} blocks"


def batch(step: str, world: int) -> str:
    plan = plan_batches(config_of(step), world)
    return (
        f"{plan.micro} x {plan.accumulation} x {plan.world} = {plan.micro * plan.accumulation * plan.world}"
    )


def iterations(step: str, roadmap: str = "convnext_t") -> int:
    """Of an epoch over as many images as ImageNet has, as the loader of the training counts them."""
    import torch

    from roadmap.data.loader import Loader

    made_up = (
        "data.dataset=synthetic",
        "data.image_size=32",
        "system.workers=0",
        f"data.images=[{IMAGES}, 50000]",
    )
    return len(Loader(config_of(step, roadmap, *made_up), "train", torch.device("cpu")))


def seeds() -> Any:
    from slurm.submit import parser

    return parser().get_default("seeds")


def averaged() -> list[str]:
    """Steps of the roadmaps with a moving average."""
    steps = [(name, step) for name in ("convnext_t", "convnext_b") for step in roadmap_of(name).steps]
    return [f"{name}/{step}" for name, step in steps if config_of(step, name).recipe.ema is not None]


def average(step: str, roadmap: str) -> Any:
    """The decay of the moving average, after the first updates."""
    ema = engine_of(step, roadmap).ema
    return None if ema is None else ema.get_decay(1000)


def setting(name: str, step: str, roadmap: str = "convnext_t") -> Any:
    """A value that is observed nowhere else."""
    return getattr(config_of(step, roadmap).recipe, name)


# The figures

RECIPE = "enhanced_recipe"
MIDDLE, END = 6240 + (93_600 - 6240) // 2, 93_600  # iterations: between the warm-up and the end, and the end
SPARED = {
    "enhanced_recipe": ("BatchNorm2d.bias", "BatchNorm2d.weight", "Linear.bias"),
    "layer_norm": ("Conv2d.bias", "LayerNorm2d.bias", "LayerNorm2d.weight", "Linear.bias"),
    "separate_downsampling": (
        "Conv2d.bias",
        "LayerNorm2d.bias",
        "LayerNorm2d.weight",
        "LayerScale2d.gamma",
        "Linear.bias",
    ),
}
BLOCKS = {
    "enhanced_recipe": 16,
    "stage_ratio": 18,
    "kernel_11": 18,
    "layer_norm": 18,
    "separate_downsampling": 18,
}

ENHANCED = [
    Check("epochs", 300, partial(setting, "epochs", RECIPE)),
    Check("image", (3, 224, 224), partial(transformed, RECIPE, True)),
    Check("image: in evaluation", (3, 224, 224), partial(transformed, RECIPE, False)),
    Check("global_batch", 4096, partial(setting, "global_batch", RECIPE)),
    Check("global_batch: on 32 GPUs", "128 x 1 x 32 = 4096", partial(batch, RECIPE, 32)),
    Check("global_batch: on 8 GPUs", "128 x 4 x 8 = 4096", partial(batch, RECIPE, 8)),
    Check("global_batch: on 1 GPU", "128 x 32 x 1 = 4096", partial(batch, RECIPE, 1)),
    Check("steps_per_epoch", 312, partial(iterations, RECIPE)),
    Check("optimizer", "AdamW", partial(optimizer, RECIPE)),
    Check("betas", (0.9, 0.999), partial(option, RECIPE, "betas")),
    Check("eps", 1e-8, partial(option, RECIPE, "eps")),
    *(
        Check(f"lr: in iteration {number}", cosine(number), partial(lr, number, RECIPE))
        for number in (0, 1, 3120, 6239, 6240, 6241, MIDDLE, END - 1)
    ),
    Check("lr: at its highest", 4e-3, partial(lr, 6240, RECIPE)),
    Check("min_lr", 1e-6, partial(lr, END, RECIPE)),
    Check("schedule", "cosine", partial(shape, RECIPE, cosine, "cosine", END)),
    Check("per", "iteration", partial(changes_per, RECIPE)),
    Check("warmup_epochs", 20, partial(peak_epoch, RECIPE)),
    Check("warmup: a half of it", 2e-3, partial(lr, 3120, RECIPE)),
    Check("weight_decay", 0.05, partial(weight_decay, RECIPE)),
    *(Check(f"no_decay: {step}", spared, partial(kinds, step, False)) for step, spared in SPARED.items()),
    *(
        Check(f"weight_decay: {step}", ("Conv2d.weight", "Linear.weight"), partial(kinds, step, True))
        for step in SPARED
    ),
    Check(
        "randaugment: with operations an image, and in all",
        ("rand-m9-mstd0.5-inc1", 2, 15),
        partial(randaugment, RECIPE),
    ),
    Check("mixup", 0.8, partial(mixing, RECIPE, "mixup_alpha")),
    Check("cutmix", 1.0, partial(mixing, RECIPE, "cutmix_alpha")),
    Check("mixup_prob", 1.0, partial(mixing, RECIPE, "mix_prob")),
    Check("mixup_switch_prob", 0.5, partial(mixing, RECIPE, "switch_prob")),
    Check("mixup: drawn for", "batch", partial(mixing, RECIPE, "mode")),
    Check("label_smoothing", 0.1, partial(mixing, RECIPE, "label_smoothing")),
    Check(
        "random_erasing: with erase_mode, and areas an image", (0.25, "pixel", 1), partial(erasing, RECIPE)
    ),
    Check("erase_mode", "pixel", partial(setting, "erase_mode", RECIPE)),
    Check("crop_scale", (0.08, 1.0), partial(crop, RECIPE, "scale")),
    Check("hflip", 0.5, lambda: transforms(RECIPE, True)["RandomHorizontalFlip"].p),
    Check("train_interpolation", "bicubic", lambda: crop(RECIPE, "interpolation").value),
    Check("eval_crop_pct: 224 of 256 pixels", (256, (224, 224)), partial(evaluation, RECIPE)),
    Check("eval_interpolation", "bicubic", lambda: transforms(RECIPE, False)["Resize"].interpolation.value),
    *(
        Check(f"drop_path: {step}", f"0 to 0.1, linear over {blocks} blocks", partial(drop_path, step))
        for step, blocks in BLOCKS.items()
    ),
    Check(
        "drop_path: ConvNeXt-B's regime",
        "0 to 0.1, linear over 36 blocks",
        partial(drop_path, "layer_norm", "convnext_b"),
    ),
    Check("clip_grad", None, partial(setting, "clip_grad", RECIPE)),
    Check("ema: steps of tables 10 and 11 with one", [], averaged),
    Check("seeds", 3, seeds),
]

FIRST = "resnet50"
RATES = {0: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 89: 0.001}

ORIGINAL = [
    Check("epochs", 90, partial(setting, "epochs", FIRST)),
    Check("global_batch", 256, partial(setting, "global_batch", FIRST)),
    Check("global_batch: on 8 GPUs", "32 x 1 x 8 = 256", partial(batch, FIRST, 8)),
    Check("global_batch: on 1 GPU", "32 x 8 x 1 = 256", partial(batch, FIRST, 1)),
    Check("global_batch: iterations an epoch", 5004, partial(iterations, FIRST)),
    Check("optimizer", "SGD", partial(optimizer, FIRST)),
    Check("momentum", 0.9, partial(option, FIRST, "momentum")),
    Check("momentum: Nesterov's", False, partial(option, FIRST, "nesterov")),
    Check("lr", 0.1, partial(lr, 0, FIRST)),
    *(
        Check(f"lr: at the start of epoch {epoch}", rate, partial(lr, 5004 * epoch, FIRST))
        for epoch, rate in RATES.items()
    ),
    *(
        Check(f"lr: at the end of epoch {epoch}", rate, partial(lr, 5004 * epoch + 5003, FIRST))
        for epoch, rate in RATES.items()
    ),
    Check(
        "schedule",
        "step",
        partial(shape, FIRST, lambda number: 0.1 * 0.1 ** (number // (30 * 5004)), "step", 90 * 5004),
    ),
    Check("step_epochs: the learning rate drops at", (30, 60), partial(drops, FIRST)),
    Check("gamma", 0.1, lambda: lr(5004 * 30, FIRST) / lr(0, FIRST)),
    Check("weight_decay", 1e-4, partial(weight_decay, FIRST)),
    Check("weight_decay: spared of it", (), partial(kinds, FIRST, False)),
    Check("crop", (3, 224, 224), partial(transformed, FIRST, True)),
    Check("crop: scale", (0.08, 1.0), partial(crop, FIRST, "scale")),
    Check("flip", 0.5, lambda: transforms(FIRST, True)["RandomHorizontalFlip"].p),
    Check(
        "flip: and no other augmentation",
        (None, None, None),
        lambda: (randaugment(FIRST), erasing(FIRST), engine_of(FIRST).mix),
    ),
    Check("flip: no label smoothing", 0.0, partial(setting, "label_smoothing", FIRST)),
    Check("flip: no drop path", "0 to 0, linear over 16 blocks", partial(drop_path, FIRST)),
    Check("train_interpolation", "bilinear", lambda: crop(FIRST, "interpolation").value),
    Check("eval_crop_pct: 224 of 256 pixels", (256, (224, 224)), partial(evaluation, FIRST)),
    Check(
        "eval_crop_pct: interpolation",
        "bilinear",
        lambda: transforms(FIRST, False)["Resize"].interpolation.value,
    ),
]

# Of the original repository's TRAINING.md, and of its layers' learning rates in fine-tuning.
TUNED = {
    "convnext_b_384": "0 to 0.8, linear over 36 blocks",
    "convnext_l_384": "0 to 0.95, linear over 36 blocks",
}
LAYERS = {
    "stem": 13,
    "stages.0": 12,
    "stages.1": 11,
    "stages.2.downsample": 10,
    **{f"stages.2.blocks.{number} to {number + 2}": 10 - number // 3 for number in range(0, 27, 3)},
    "stages.3": 1,
    "head_norm": 0,
    "head": 0,
}
DROP_PATHS = {
    "convnext_t": "0 to 0.1, linear over 18 blocks",
    "convnext_s": "0 to 0.4, linear over 36 blocks",
    "convnext_b": "0 to 0.5, linear over 36 blocks",
    "convnext_l": "0 to 0.5, linear over 36 blocks",
    "isotropic_s": "0 to 0.1, linear over 18 blocks",
    "isotropic_b": "0 to 0.2, linear over 18 blocks",
    "isotropic_l": "0 to 0.5, linear over 36 blocks",
}


def layer_scales(step: str) -> dict[str, float]:
    """What the learning rates of the network's layers are multiplied by, as LAYERS tells them apart; those of
    one must agree.
    """
    engine = engine_of(step, "family")
    scale = {
        id(parameter): group["lr_scale"]
        for group in engine.optimizer.param_groups
        for parameter in group["params"]
    }
    found: dict[str, set[float]] = {}
    for name, parameter in engine.model.named_parameters():
        block = re.match(r"stages\.2\.blocks\.(\d+)", name)
        first = int(block[1]) // 3 * 3 if block else 0
        layer = (
            f"stages.2.blocks.{first} to {first + 2}"
            if block
            else one(key for key in LAYERS if f"{name}.".startswith(f"{key}."))
        )
        found.setdefault(layer, set()).add(scale[id(parameter)])
    return {layer: one(values) for layer, values in found.items()}


def tuned(step: str) -> list[Check]:
    """The fine-tuning of a member of the family at 384 pixels."""
    name, value = f"{step}: {{}}".format, partial(setting, step=step, roadmap="family")
    return [
        Check(name("drop path"), TUNED[step], partial(drop_path, step, "family")),
        Check(name("input size"), (3, 384, 384), partial(transformed, step, True, "family")),
        Check(
            name("evaluation, resized and cropped to"),
            ((384, 384), (384, 384)),
            partial(evaluation, step, "family"),
        ),
        Check(name("epochs"), 30, partial(value, "epochs")),
        Check(name("batch"), 512, partial(value, "global_batch")),
        Check(name("images a GPU"), 32, lambda: plan_batches(config_of(step, "family"), 16).micro),
        Check(name("optimizer"), "AdamW", lambda: type(engine_of(step, "family").optimizer).__name__),
        Check(name("lr, without a warm-up"), 5e-5, partial(lr, 0, step, "family")),
        Check(name("lr at the end"), 1e-6, partial(lr, 30 * 2502, step, "family")),
        Check(name("weight decay"), 1e-8, partial(weight_decay, step, "family")),
        Check(
            name("layer decay"),
            {part: 0.7**power for part, power in LAYERS.items()},
            partial(layer_scales, step),
        ),
        Check(name("head init scale"), 0.001, partial(value, "head_init_scale")),
        Check(name("mixup and cutmix"), None, lambda: engine_of(step, "family").mix),
        Check(name("label smoothing"), 0.1, partial(value, "label_smoothing")),
        Check(name("random erasing"), (0.25, "pixel", 1), partial(erasing, step, "family")),
        Check(name("EMA"), None, partial(average, step, "family")),
    ]


FAMILY = [
    *(
        Check(f"{step}: drop path", rates, partial(drop_path, step, "family"))
        for step, rates in DROP_PATHS.items()
    ),
    *(Check(f"{step}: EMA", 0.9999, partial(average, step, "family")) for step in DROP_PATHS),
    *(
        Check(f"{step}: warm-up epochs", 50, partial(setting, "warmup_epochs", step, "family"))
        for step in DROP_PATHS
        if "iso" in step
    ),
    *(check for step in TUNED for check in tuned(step)),
]

TABLES = {
    "Enhanced recipe: every row but the first of tables 10 and 11": ENHANCED,
    "Original recipe: the first row, torchvision's reference": ORIGINAL,
    "Family: the original repository's TRAINING.md": FAMILY,
}
# The keys under which the paper's figures are filed; `crop` and `flip` are the original recipe's
# augmentation.
FIGURES = {
    "enhanced": (
        "epochs image global_batch optimizer betas eps lr min_lr schedule per warmup_epochs warmup"
        " weight_decay no_decay randaugment mixup cutmix mixup_prob mixup_switch_prob random_erasing"
        " erase_mode label_smoothing crop_scale hflip train_interpolation eval_crop_pct eval_interpolation"
        " drop_path clip_grad seeds steps_per_epoch ema"
    ),
    "original": (
        "epochs global_batch optimizer momentum lr schedule step_epochs gamma weight_decay crop flip"
        " train_interpolation eval_crop_pct"
    ),
}


def same(paper: Any, ours: Any) -> bool:
    """Whether two values are equal, numbers but for rounding."""
    if isinstance(paper, float) and isinstance(ours, int | float):
        return math.isclose(paper, ours, rel_tol=1e-9, abs_tol=1e-15)
    if isinstance(paper, tuple) and isinstance(ours, tuple):
        return len(paper) == len(ours) and all(map(same, paper, ours))
    if isinstance(paper, dict) and isinstance(ours, dict):
        return paper.keys() == ours.keys() and all(same(value, ours[key]) for key, value in paper.items())
    return bool(paper == ours)


CASES = [
    pytest.param(check, id=f"{table.partition(':')[0]}, {check.name}")
    for table, checks in TABLES.items()
    for check in checks
]


@pytest.mark.parametrize("check", CASES)
def test_what_our_code_does_is_what_was_published(check: Check) -> None:
    assert same(check.paper, ours := check.measure()), (
        f"{check.name}: {check.paper} was published, ours is {ours}"
    )


@pytest.mark.parametrize(("recipe", "checks"), [("enhanced", ENHANCED), ("original", ORIGINAL)])
def test_every_value_of_a_recipe_is_checked(recipe: str, checks: list[Check]) -> None:
    assert {check.name.partition(":")[0] for check in checks} == set(FIGURES[recipe].split())


def test_numbers_are_the_same_but_for_rounding() -> None:
    assert same(0.3, 0.1 + 0.2)
    assert same({"stem": (0.3, "a")}, {"stem": (0.1 + 0.2, "a")})
    for paper, ours in (
        (4e-3, 4.0001e-3),
        ((0.9, 0.999), (0.9, 0.99)),
        ((1, 2), (1, 2, 3)),
        ({"a": 1.0}, {"b": 1.0}),
        (0.1, None),
    ):
        assert not same(paper, ours)


@pytest.mark.parametrize("roadmap", ["convnext_t", "convnext_b"])
def test_all_steps_but_the_first_share_one_recipe(roadmap: str) -> None:
    steps = list(roadmap_of(roadmap).steps)
    recipes = {step: config_of(step, roadmap).recipe for step in steps}
    assert {step for step, recipe in recipes.items() if recipe != config_of(RECIPE).recipe} == {steps[0]}
    assert recipes[steps[0]] == config_of(FIRST).recipe


def test_all_members_of_the_family_are_averaged_but_those_that_are_fine_tuned() -> None:
    steps = roadmap_of("family").steps
    assert {step: config_of(step, "family").recipe.ema for step in steps} == {
        step: None if step.endswith("_384") else 0.9999 for step in steps
    }


@pytest.mark.parametrize(
    ("iteration", "rate"), [(0, 0.0), (1, 4e-3 / 6240), (3120, 2e-3), (END - 1, cosine(END - 1))]
)
def test_an_iteration_of_the_training_has_its_own_learning_rate(iteration: int, rate: float) -> None:
    import torch

    from roadmap.data.augmentation import Batch
    from roadmap.training.engine import Engine

    # a batch of 128 that is meant to be one of 4096
    config = config_of(
        RECIPE, "convnext_t", "recipe.global_batch=128", "recipe.lr_batch=128", "model.width_mult=0.0625"
    )
    engine = Engine(config, torch.device("cpu"), 312)
    engine.iteration = iteration
    before = engine.model.get_classifier().get_parameter("weight").detach().clone()
    engine.train_step([Batch(torch.randn(128, 3, 32, 32), torch.arange(128))])
    assert engine.lr() == pytest.approx(rate, rel=1e-9)
    change = (engine.model.get_classifier().get_parameter("weight").detach() - before).abs().max().item()
    assert change == pytest.approx(rate, rel=0.1)  # what Adam's first step changes a weight by


def text(value: Any) -> str:
    """A value as a cell of a table shows it."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {text(item)}" for key, item in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(text(item) for item in value) or "none"
    return f"{value:.10g}" if isinstance(value, float) else "none" if value is None else str(value)


def main() -> None:
    """Prints all checks as tables in Markdown."""
    for title, checks in TABLES.items():
        print(f"## {title}\n\n| value | paper | ours (measured) | same? |\n| --- | --- | --- | --- |")
        for check in checks:
            ours = check.measure()
            print(
                f"| {check.name} | {text(check.paper)} | {text(ours)} |"
                f" {'yes' if same(check.paper, ours) else '**no**'} |"
            )
        print()


if __name__ == "__main__":
    main()
