"""An iteration: taken in turns or at once, clipped, in any precision, compiled, and without waiting for the
device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blocks.residual import Stage
from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.data.augmentation import Batch
from roadmap.errors import ConfigError
from roadmap.steps import load_roadmap, resolve
from roadmap.training.device import select_device, set_up
from roadmap.training.engine import Engine
from tests.helpers import commands
from tests.helpers.images import augmentation_of

CPU = torch.device("cpu")
TINY = {
    "model.depths": [1, 1],
    "model.width_mult": 0.125,
    "recipe.global_batch": 16,
    "recipe.local_batch": 16,
    "system.device": "cpu",
}
EVERYTHING = {
    "model.drop_path": 0.2,
    "recipe.mixup": 0.8,
    "recipe.cutmix": 1.0,
    "recipe.label_smoothing": 0.1,
    "recipe.random_erasing": 0.5,
    "recipe.ema": 0.9,
    "recipe.clip_grad": 1.0,
}

SGD: dict[str, Any] = {
    "recipe__optimizer": "sgd",
    "recipe__schedule": "step",
    "recipe__warmup_epochs": 0.0,
    "recipe__lr": 1.0,
}


def config_of(step: str = "separate_downsampling", **overrides: Any) -> RunConfig:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return resolve(load_roadmap(), step, profile="digits", overrides=TINY | given)


def batch(config: RunConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    size, channels = config.data.image_size, config.model.in_chans
    images = torch.randn(config.recipe.global_batch, channels, size, size, generator=generator)
    return images, torch.randint(
        0, config.model.num_classes, (config.recipe.global_batch,), generator=generator
    )


def micro_batches(engine: Engine, images: Tensor, labels: Tensor) -> Iterator[Batch]:
    """The micro-batches of an iteration, as a loader would give them."""
    augmentation = augmentation_of(engine.config)
    for turn in range(engine.plan.accumulation):
        order = engine.plan.positions(0, turn)
        drawn = [augmentation.draw(0, position) for position in order]
        yield Batch(
            images[order].contiguous(memory_format=torch.channels_last),
            labels[order],
            *augmentation.params([one for one in drawn if one is not None]),
        )


def steps(config: RunConfig, count: int = 1) -> tuple[Engine, list[float]]:
    """An engine after some iterations on one batch, and their losses."""
    engine = Engine(config, CPU, 10)
    engine.start()
    engine.iteration = 5  # past the warm-up's first, where the learning rate is 0
    return engine, [float(engine.train_step(micro_batches(engine, *batch(config)))) for _ in range(count)]


def moved(engine: Engine) -> Tensor:
    """How far all parameters are from where they began, as one vector."""
    fresh = Engine(engine.config, CPU, 10)
    fresh.start()
    pairs = zip(engine.model.parameters(), fresh.model.parameters(), strict=True)
    return torch.cat([(one - other).detach().flatten() for one, other in pairs])


@pytest.mark.parametrize("micro", [2, 4, 8])
def test_accumulation_is_the_large_batch(micro: int) -> None:
    """With SGD, whose step is proportional to the gradient; mixup and erasing included."""
    mixed: dict[str, Any] = {
        "recipe__mixup": 0.8,
        "recipe__cutmix": 1.0,
        "recipe__random_erasing": 0.5,
        "recipe__clip_grad": 0.5,
    }
    whole, losses = steps(config_of(**SGD, **mixed))
    turns, parts = steps(config_of(system__micro_batch=micro, **SGD, **mixed))
    assert turns.plan.accumulation == 16 // micro
    assert parts == pytest.approx(losses, rel=1e-5)
    assert moved(whole).norm() > 1e-2
    torch.testing.assert_close(moved(turns), moved(whole), rtol=1e-4, atol=1e-5)


def test_each_group_is_mixed_by_itself() -> None:
    """A batch of two groups has two draws of mixup; as one group it has one."""
    two = moved(steps(config_of(recipe__local_batch=8, **SGD, recipe__mixup=0.8))[0])
    turns = moved(
        steps(config_of(recipe__local_batch=8, system__micro_batch=16, **SGD, recipe__mixup=0.8))[0]
    )
    one = moved(steps(config_of(**SGD, recipe__mixup=0.8))[0])
    torch.testing.assert_close(turns, two, rtol=1e-4, atol=1e-5)
    assert (one - two).norm() > 1e-2 * two.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gradients_are_clipped_in_every_precision(precision: str) -> None:
    """The first step of SGD is lr x gradient, so its length is lr x the clipped norm."""
    config = config_of(
        "resnet50", recipe__precision=precision, recipe__clip_grad=1e-2, recipe__weight_decay=0.0
    )
    engine, losses = steps(config)
    assert float(moved(engine).norm()) == pytest.approx(engine.lr() * 1e-2, rel=2e-2)
    assert losses[0] == pytest.approx(steps(config_of("resnet50"))[1][0], rel=2e-2)


def test_half_precision_scales_its_loss_and_keeps_the_scale() -> None:
    engine, losses = steps(config_of(recipe__precision="fp16"), 3)
    assert losses[0] == pytest.approx(steps(config_of())[1][0], rel=1e-2)
    assert engine.state()["scaler"]["scale"] > 1
    engine.scaler.update(512.0)
    other = Engine(engine.config, CPU, 10)
    other.restore(engine.state())
    assert other.scaler.get_scale() == 512.0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_overflows_in_half_precision_leaves_no_trace(optimizer: str) -> None:
    """Its gradients are not finite, so the scale is halved, and what follows begins from nothing."""
    config = config_of(recipe__precision="fp16", recipe__optimizer=optimizer)
    engine = Engine(config, CPU, 10)
    engine.start()
    engine.iteration, engine.scaler = 5, torch.amp.GradScaler("cpu", init_scale=2.0**40)
    engine.train_step(micro_batches(engine, *batch(config)))
    assert engine.scaler.get_scale() == 2.0**39
    assert moved(engine).norm() == 0
    kept = [
        value for state in engine.optimizer.state.values() for value in state.values() if value is not None
    ]
    assert all(torch.count_nonzero(value) == 0 for value in kept)


def test_checkpointed_gradients_are_the_same() -> None:
    plain, losses = steps(
        config_of("gelu", **{key.replace(".", "__"): value for key, value in EVERYTHING.items()}), 2
    )
    spared, again = steps(
        config_of(
            "gelu",
            system__grad_checkpointing=True,
            **{key.replace(".", "__"): value for key, value in EVERYTHING.items()},
        ),
        2,
    )
    assert all(stage.grad_checkpointing for stage in spared.model.stages if isinstance(stage, Stage))
    assert again == losses
    torch.testing.assert_close(moved(spared), moved(plain), rtol=0, atol=0)


def test_a_compiled_network_makes_the_same_iteration() -> None:
    plain, losses = steps(config_of(), 2)
    compiled, again = steps(config_of(system__compile=True), 2)
    assert type(compiled.forward).__name__ == "OptimizedModule"
    report = compiled.check_compiled()
    assert report is not None
    assert report["wrong"] == 0  # PyTorch 2.9 to 2.11 lost all gradients before the head
    assert again == pytest.approx(losses, rel=1e-4)
    assert compiled.state()["model"].keys() == plain.state()["model"].keys()


class Syncs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a value is read from the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("step", ["gelu", "separate_downsampling"])
def test_an_iteration_reads_nothing_from_the_device(step: str) -> None:
    engine = Engine(
        config_of(step, **{key.replace(".", "__"): value for key, value in EVERYTHING.items()}), CPU, 10
    )
    images, labels = batch(engine.config)
    engine.train_step(micro_batches(engine, images, labels))  # the first fills the optimizer's state
    with Syncs() as syncs:
        loss = engine.train_step(micro_batches(engine, images, labels))
        assert syncs.names == []
        float(loss)
    assert len(syncs.names) == 1


def test_deterministic_algorithms_are_switched_on_and_off() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for wanted in (True, False):
            set_up(config_of(system__deterministic=wanted), CPU)
            assert torch.are_deterministic_algorithms_enabled() is wanted
            assert torch.backends.cudnn.benchmark is not wanted
    finally:
        torch.use_deterministic_algorithms(before)


def test_bn_over_several_devices_needs_cuda() -> None:
    with pytest.raises(ConfigError, match=r"system\.sync_bn needs CUDA"):
        select_device(config_of("gelu", system__sync_bn=True))


OOM = """
import resource, sys
from pathlib import Path
import torch
from roadmap.data.loader import Loader
from roadmap.training.device import OutOfMemory
from roadmap.records import prepare
from roadmap.config import RunConfig
from roadmap.train import train
config = RunConfig.read(Path(sys.argv[1]))
next(Loader(config, "train", torch.device("cpu")).epoch())  # what is imported later than torch
run = prepare(Path(sys.argv[2]), config)
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
try:
    train(config, run.path)
except OutOfMemory as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("step", "overrides", "advice"),
    [
        (
            "separate_downsampling",
            {},
            "try --set system.grad_checkpointing=true, or --set system.micro_batch=512, 512 images at a time",
        ),
        (
            "gelu",
            {},
            "try --set system.grad_checkpointing=true, or --set recipe.local_batch=512, 512 images at a time",
        ),
        (
            "gelu",
            {"system__grad_checkpointing": True},
            "try --set recipe.local_batch=512, 512 images at a time",
        ),
    ],
)
def test_too_little_memory_is_reported_with_what_to_try(
    step: str, overrides: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    config = config_of(
        step, model__width_mult=1.0, recipe__global_batch=1024, recipe__local_batch=1024, **overrides
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-c", OOM, str(tmp_path / "config.yaml"), str(tmp_path / "runs")]
    done = commands.run(command, cwd=ROOT)
    said = f"out of memory with 1024 images at a time; {advice}\n"
    assert done.stdout == said, done.stderr
