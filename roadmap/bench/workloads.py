"""The measured workloads: our networks, timm's, the training loop with its loader, and peak FLOP/s."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from timm import create_model
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional

from roadmap.bench.interleave import SHORTEST, batch_errors, seconds_each
from roadmap.bench.results import BARE, LOOP, OURS, TIMM_DEFAULTS
from roadmap.config import RecipeSpec, RunConfig
from roadmap.data.augmentation import Batch
from roadmap.data.loader import Loader
from roadmap.data.staging import stage
from roadmap.errors import ConfigError
from roadmap.export import timm_model
from roadmap.networks import build_network, checkpoint_activations
from roadmap.training.compiled import (
    CompilerFailed,
    GradientCheck,
    calls_of,
    check_gradients,
    check_logits,
    compile_network,
)
from roadmap.training.device import PRECISIONS, autocast, has_tf32, tf32
from roadmap.training.engine import Engine
from roadmap.training.metrics import Mean
from roadmap.training.optim import build_optimizer

Run = Callable[[], object]
PREFETCHED = 2  # batches that each of PyTorch's workers prefetches
FEWEST = 10  # iterations of a window


def has_timm(config: RunConfig) -> bool:
    """Whether timm has this network of ours; a reference's is timm's own."""
    try:
        return bool(timm_model(config.ours))
    except ConfigError:
        return False


def fixed_batch(
    config: RunConfig, device: torch.device, *, channels_last: bool = True
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) of noise and labels (N,), on the device."""
    size, count = config.data.image_size, config.recipe.global_batch
    images = torch.randn(count, config.model.in_chans, size, size, device=device)
    labels = torch.randint(config.model.num_classes, (count,), device=device)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images, labels


def build(subject: str, mode: str, config: RunConfig, device: torch.device) -> Run:
    """One iteration of a subject in a mode, on a fixed batch of the configuration's."""
    if subject == OURS:
        return ours_trained(config, device) if mode == "train" else ours_inferring(config, device)
    theirs = theirs_trained if mode == "train" else theirs_inferring
    if subject != TIMM_DEFAULTS:
        return theirs(config, device, False)
    with tf32(has_tf32(device)):
        run = theirs(config, device, True)

    def as_by_default() -> object:
        with tf32(has_tf32(device)):
            return run()

    return as_by_default


def ours_trained(config: RunConfig, device: torch.device) -> Run:
    """A step of the engine that trains runs."""
    engine = Engine(config, device, iterations_per_epoch=1000)
    engine.check_compiled()
    batches = [Batch(*fixed_batch(config, device))]
    return lambda: engine.train_step(batches)


def ours_inferring(config: RunConfig, device: torch.device) -> Run:
    """Evaluation of a batch by our network."""
    return inferring(_prepared(build_network(config), config, device), config, device)


def inferring(
    model: nn.Module, config: RunConfig, device: torch.device, *, channels_last: bool = True
) -> Run:
    """Evaluation of a batch by a network, in the recipe's precision."""
    images, _ = fixed_batch(config, device, channels_last=channels_last)
    forward: Any = model.eval()
    if (mode := config.system.compile) != "off":
        forward = compile_network(model, mode)
        precision = PRECISIONS[config.recipe.precision]
        confirm(check_logits(model, forward, images, precision, calls=calls_of(mode)))

    @torch.inference_mode()
    def run() -> Tensor:
        with autocast(config, device):
            logits: Tensor = forward(images)
        return logits

    return run


def confirm(check: GradientCheck) -> None:
    """Raises CompilerFailed if a compiled network computes other values than the eager one."""
    if check.wrong:
        raise CompilerFailed(f"{check} (PyTorch {torch.__version__})")


def theirs_inferring(config: RunConfig, device: torch.device, defaults: bool) -> Run:
    """Evaluation of a batch by timm's network; its `defaults` are float32 and contiguous images."""
    plain = in_float32(config, device) if defaults else config
    return inferring(timm_network(plain, device, defaults), plain, device, channels_last=not defaults)


def theirs_trained(config: RunConfig, device: torch.device, defaults: bool) -> Run:
    """A step of timm's network: forward, loss, backward, optimizer and EMA as in the engine.

    With its `defaults`, everything is in float32 and contiguous, and the optimizer is not fused. All layers
    have the same learning rate.
    """
    plain = in_float32(config, device) if defaults else config
    recipe = plain.recipe.model_copy(update={"layer_decay": 1.0})
    model = timm_network(plain, device, defaults).train()
    optimizer = unfused(recipe, model) if defaults else build_optimizer(recipe, model)
    ema = ModelEmaV3(model, decay=recipe.ema) if recipe.ema is not None else None
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    images, labels = fixed_batch(plain, device, channels_last=not defaults)
    forward: Any = model
    if (mode := plain.system.compile) != "off":
        forward, precision = compile_network(model, mode), PRECISIONS[recipe.precision]
        confirm(check_gradients(model, model, forward, images, labels, precision, calls=calls_of(mode)))

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(plain, device):
            loss = functional.cross_entropy(forward(images), labels, label_smoothing=recipe.label_smoothing)
        torch.autograd.backward(scaler.scale(loss))
        if recipe.clip_grad is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        if ema is not None:
            ema.update(model)

    return run


def timm_network(config: RunConfig, device: torch.device, defaults: bool) -> nn.Module:
    """timm's network with the same shape and stochastic depth rate."""
    name, kwargs = timm_model(config.ours)
    model: nn.Module = create_model(name, **kwargs, drop_path_rate=config.model.drop_path)
    return model.to(device) if defaults else _prepared(model, config, device)


def _prepared(model: nn.Module, config: RunConfig, device: torch.device) -> nn.Module:
    prepared: Any = model.to(device).to(memory_format=torch.channels_last)
    if config.system.grad_checkpointing:
        checkpoint_activations(prepared, config)
    found: nn.Module = prepared
    return found


def unfused(recipe: RecipeSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer, built by timm without further flags."""
    name = {"sgd": "momentum", "adamw": "adamw"}[recipe.optimizer]
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt=name,
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        filter_bias_and_bn=not recipe.decay_norm_and_bias,
    )
    return optimizer


def default_precision(device: torch.device) -> str:
    """That of timm's scripts without further options."""
    return "tf32" if has_tf32(device) else "fp32"


def in_float32(config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration without mixed precision."""
    recipe = config.recipe.model_copy(update={"precision": default_precision(device)})
    return config.model_copy(update={"recipe": recipe})


def free(device: torch.device) -> None:
    """Frees the memory of networks that are no longer referenced."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def loop_and_bare(
    config: RunConfig, device: torch.device, shortest: float = SHORTEST
) -> Iterator[dict[str, Callable[[], float]]]:
    """Measurements, in seconds per iteration, of the training loop and of the same steps on fixed batches.

    Both use one engine, with erasing and mixup. Each window has untimed iterations first, in which the loop
    consumes prefetched batches, or the workers fill their queues.
    """
    loader = Loader(stage(config), "train", device)
    try:
        engine = Engine(config, device, iterations_per_epoch=len(loader))
        engine.check_compiled()
        batches, mean = _endless(loader), Mean(device)
        fixed = list(islice(batches, engine.plan.accumulation))

        def bare() -> None:
            mean.add(engine.train_step(fixed))

        def loop() -> None:
            mean.add(engine.train_step(islice(batches, engine.plan.accumulation)))

        untimed = math.ceil(PREFETCHED * loader.workers / engine.plan.accumulation) + 1
        with batch_errors():
            bare()
        loop()
        iterations = max(FEWEST, math.ceil(shortest / _window(bare, device, 1, 1)))
        yield {
            BARE: lambda: _window(bare, device, untimed, iterations),
            LOOP: lambda: _window(loop, device, untimed, iterations),
        }
    finally:
        loader.close()


def _endless(loader: Loader) -> Iterator[Batch]:
    """The micro-batches of successive epochs."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _window(run: Callable[[], None], device: torch.device, untimed: int, iterations: int) -> float:
    for _ in range(untimed):
        run()
    return seconds_each(run, device, iterations)


class PeakProbe(NamedTuple):
    """An operation of `flop` floating point operations; a multiply-add counts as two."""

    run: Callable[[], object]
    flop: float


def matmul(device: torch.device, dtype: torch.dtype) -> PeakProbe:
    """A product of two matrices, 2048 x 2048, or 8192 x 8192 on a GPU: less does not fill a fast one."""
    size = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return PeakProbe(lambda: one @ other, 2.0 * size**3)


def convolution(device: torch.device, dtype: torch.dtype) -> PeakProbe:
    """A dense 3x3 convolution of 256 channels at 28x28, channels_last; 256 images on a GPU, 16 elsewhere."""
    images, channels, size = 256 if device.type == "cuda" else 16, 256, 28
    x = torch.randn(images, channels, size, size, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )

    @torch.inference_mode()
    def run() -> object:
        return functional.conv2d(x, weight, padding=1)

    return PeakProbe(run, 2.0 * images * size**2 * channels**2 * 9)
