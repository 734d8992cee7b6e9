"""What is measured: our networks as training and evaluation run them, and timm's beside them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm import create_model
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional

from blocks.model import build_model
from roadmap.bench.results import OURS, TIMM_DEFAULTS
from roadmap.config import Recipe, RunConfig
from roadmap.export import timm_model
from roadmap.strict_yaml import ConfigError, Problem
from roadmap.training.compiled import (
    CompilerFailed,
    GradientCheck,
    check_gradients,
    check_logits,
    compile_network,
)
from roadmap.training.device import PRECISIONS, autocast
from roadmap.training.engine import Engine
from roadmap.training.optim import build_optimizer

Run = Callable[[], object]
SHORTEST = 0.3  # seconds of a measurement, so that no clock or queue shows in it
WARM_UP = 3


def has_timm(config: RunConfig) -> bool:
    """Whether timm has this network."""
    try:
        return bool(timm_model(config.model))
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
    defaults = subject == TIMM_DEFAULTS
    return (
        theirs_trained(config, device, defaults)
        if mode == "train"
        else theirs_inferring(config, device, defaults)
    )


def ours_trained(config: RunConfig, device: torch.device) -> Run:
    """A step of the engine that trains runs."""
    engine = Engine(config, device, iterations_per_epoch=1000)
    engine.check_compiled()
    batches = [fixed_batch(config, device)]
    return lambda: engine.train_step(batches)


def ours_inferring(config: RunConfig, device: torch.device) -> Run:
    """A batch through our network in evaluation."""
    return inferring(_prepared(build_model(config.model), config, device), config, device)


def inferring(
    model: nn.Module, config: RunConfig, device: torch.device, *, channels_last: bool = True
) -> Run:
    """A batch through a network in evaluation, in the recipe's precision."""
    images, _ = fixed_batch(config, device, channels_last=channels_last)
    forward: Any = model.eval()
    if config.system.compile:
        forward = compile_network(model)
        confirm(check_logits(model, forward, images, PRECISIONS[config.recipe.precision]))

    @torch.inference_mode()
    def run() -> Tensor:
        with autocast(config, device):
            logits: Tensor = forward(images)
        return logits

    return run


def confirm(check: GradientCheck) -> None:
    """CompilerFailed unless a compiled network computes what the eager one does: another network is no
    subject.
    """
    if check.wrong:
        raise CompilerFailed(f"{check} (PyTorch {torch.__version__})")


def theirs_inferring(config: RunConfig, device: torch.device, defaults: bool) -> Run:
    """The same for timm's network; its `defaults` are float32 and contiguous images."""
    plain = in_fp32(config) if defaults else config
    run = inferring(theirs(plain, device, defaults), plain, device, channels_last=not defaults)
    return in_tf32(run) if defaults and device.type == "cuda" else run


def theirs_trained(config: RunConfig, device: torch.device, defaults: bool) -> Run:
    """A step of timm's network: forward, loss, backward, optimizer and moving average as in the engine.

    With its `defaults`, everything is in float32 and contiguous, and the optimizer is not fused. Layers share
    one learning rate.
    """
    plain = in_fp32(config) if defaults else config
    recipe = plain.recipe.model_copy(update={"layer_decay": 1.0})
    model = theirs(plain, device, defaults).train()
    optimizer = unfused(recipe, model) if defaults else build_optimizer(recipe, model)
    ema = ModelEmaV3(model, decay=recipe.ema) if recipe.ema is not None else None
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    images, labels = fixed_batch(plain, device, channels_last=not defaults)
    forward: Any = model
    if plain.system.compile:
        forward = compile_network(model)
        confirm(check_gradients(model, model, forward, images, labels, PRECISIONS[recipe.precision]))

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

    return in_tf32(run) if defaults and device.type == "cuda" else run


def theirs(config: RunConfig, device: torch.device, defaults: bool) -> nn.Module:
    """timm's network of the same shape and rate of stochastic depth."""
    name, kwargs = timm_model(config.model)
    model: nn.Module = create_model(name, **kwargs, drop_path_rate=config.model.drop_path)
    return model.to(device) if defaults else _prepared(model, config, device)


def _prepared(model: nn.Module, config: RunConfig, device: torch.device) -> nn.Module:
    prepared: Any = model.to(device).to(memory_format=torch.channels_last)
    prepared.set_grad_checkpointing(config.system.grad_checkpointing)
    found: nn.Module = prepared
    return found


def unfused(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer as timm makes it without further flags."""
    name = {"sgd": "momentum", "adamw": "adamw"}[recipe.optimizer]
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt=name,
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        filter_bias_and_bn=not recipe.decay_norm_and_bias,
    )
    return optimizer


def in_fp32(config: RunConfig) -> RunConfig:
    """The configuration without mixed precision."""
    return config.model_copy(update={"recipe": config.recipe.model_copy(update={"precision": "fp32"})})


def in_tf32(run: Run) -> Run:
    """As timm trains and validates on a GPU: with TF32 in matrix products, too."""

    def inside() -> object:
        kept = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return run()
        finally:
            torch.set_float32_matmul_precision(kept)

    return inside


def timed(run: Run, device: torch.device, shortest: float = SHORTEST) -> Callable[[], float]:
    """A measurement, in seconds an iteration, of as many iterations as take `shortest` seconds; first `run`
    is warmed up here.
    """
    with no_refusal():
        seconds_each(run, device, WARM_UP if device.type == "cuda" else 1)
    iterations = max(1, math.ceil(shortest / seconds_each(run, device, 1)))
    return lambda: seconds_each(run, device, iterations)


def seconds_each(run: Run, device: torch.device, iterations: int) -> float:
    """What an iteration takes on average, all that it has queued on the device included."""
    wait(device)
    start = time.perf_counter()
    for _ in range(iterations):
        run()
    wait(device)
    return (time.perf_counter() - start) / iterations


@contextmanager
def no_refusal() -> Iterator[None]:
    """ConfigError where a network refuses its first batch."""
    try:
        yield
    except ValueError as error:
        raise ConfigError([Problem("--batch", f"the network refuses it: {error}")]) from error


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free(device: torch.device) -> None:
    """Gives back the memory of networks that nobody needs any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
