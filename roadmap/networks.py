"""The network of a configuration: one of ours, or a model of timm, whose cost is counted on the module.

`python -m roadmap.networks` builds the models whose configurations it reads, a line of JSON each, and prints
what is wrong with them: the check before a submission, in a process of its own because it needs torch.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from blocks import Complexity, ModelSpec, build_model, complexity
from blocks.layers import did_you_mean
from roadmap.config import RunConfig, TimmSpec
from roadmap.errors import ConfigError, config_error

MOST_TRIES, ENOUGH = 8, 3  # image sizes that are tried to name some that fit, and those named


def build_network(config: RunConfig) -> nn.Module:
    """A freshly initialized network, (N, in_chans, H, W) -> logits (N, num_classes), with timm's methods.

    ConfigError where timm has no such model, or cannot build it for these keywords and this image size.
    """
    if isinstance(config.model, ModelSpec):
        return build_model(config.model)
    try:
        network = _create(config, config.data.image_size)
        _forward(network, config, config.data.image_size)
    except ConfigError:
        raise
    except Exception as error:  # of any kind: models check their input in many ways
        raise _size_error(config, error) from error
    if not config.model.batch_norm and has_batch_norm(network):
        message = f"is false, and timm's {config.model.timm} has BN; leave it out, or write true"
        raise config_error(f"{config.step}: model.batch_norm", message)
    return network


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network has BN of any kind."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def classifier_of(network: Any) -> nn.Module:
    """The last layer of one of our networks or of timm's; models for distillation have two, in a list."""
    found = network.get_classifier()
    return found if isinstance(found, nn.Module) else nn.ModuleList(found)


def checkpoint_activations(network: Any, config: RunConfig) -> None:
    """Makes the backward pass compute activations again; ConfigError where a model of timm cannot."""
    try:
        network.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        message = f"is true, and {config.architecture} does not support it; set it to false"
        raise config_error(f"{config.step}: system.grad_checkpointing", message) from error


def cost_of(config: RunConfig, network: nn.Module | None = None) -> Complexity:
    """Parameters and multiply-adds per image, by arithmetic for our networks.

    Those of timm's are counted in a forward pass, of `network` if it is there already. PyTorch's counter has
    convolutions and all matrix products, also those of fused attention, and no other operations.
    """
    if isinstance(config.model, ModelSpec):
        return complexity(config.model, config.data.image_size)
    network = build_network(config) if network is None else network
    with FlopCounterMode(display=False) as counter:
        _forward(network, config, config.data.image_size)
    params = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(params, counter.get_total_flops() // 2)


def costs_of(config: RunConfig) -> tuple[Complexity, int]:
    """The cost, and the multiply-adds of a forward and backward pass for one image."""
    cost = cost_of(config)
    return cost, config.training_macs(cost)


def timm_arguments(config: RunConfig, image_size: int | None = None) -> dict[str, Any]:
    """The keywords with which `timm.create_model` builds the model of a reference step."""
    spec = _timm_spec(config)
    known = get_pretrained_cfg(spec.timm)
    wanted: dict[str, Any] = {"in_chans": spec.in_chans, "num_classes": spec.num_classes}
    if spec.drop_path:
        wanted["drop_path_rate"] = spec.drop_path
    if known is not None and known.fixed_input_size:
        wanted["img_size"] = image_size or config.data.image_size
    return wanted | spec.args


def _timm_spec(config: RunConfig) -> TimmSpec:
    assert isinstance(config.model, TimmSpec)
    return config.model


def _create(config: RunConfig, image_size: int) -> nn.Module:
    spec = _timm_spec(config)
    if not timm.is_model(spec.timm):
        hint = did_you_mean(spec.timm, timm.list_models()) or "; timm.list_models() lists those it has"
        message = f"is '{spec.timm}', which timm {timm.__version__} does not have{hint}"
        raise config_error(f"{config.step}: model.timm", message)
    try:
        network: nn.Module = timm.create_model(spec.timm, **timm_arguments(config, image_size))
    except TypeError as error:
        key, message = "args", f"do not fit timm's {spec.timm}: {error}"
        if "drop_path_rate" in str(error):
            key, message = "drop_path", f"must be 0: timm's {spec.timm} has no stochastic depth"
        raise config_error(f"{config.step}: model.{key}", message) from error
    return network


def _forward(network: nn.Module, config: RunConfig, image_size: int) -> None:
    """Evaluates one blank image; ValueError if patches do not cover it, or that does not give logits."""
    _check_patches(network, image_size)
    model, training = config.model, network.training
    device = next(network.parameters()).device
    image = torch.zeros(1, model.in_chans, image_size, image_size, device=device)
    network.eval()
    try:
        with torch.no_grad():
            logits = network(image)
    finally:
        network.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, model.num_classes):
        raise ValueError(f"it does not return logits of {model.num_classes} classes")


def _check_patches(network: nn.Module, image_size: int) -> None:
    """ValueError where timm would silently ignore a border that is narrower than a patch."""
    embedding = getattr(network, "patch_embed", None)
    patches = getattr(embedding, "proj", None)
    if not isinstance(patches, nn.Conv2d) or getattr(embedding, "dynamic_img_pad", False):
        return
    side, _ = patches.stride
    if patches.kernel_size == patches.stride and (left := image_size % side):
        raise ValueError(f"patches of {side} px leave out a border of {left} px")


def _size_error(config: RunConfig, error: Exception) -> ConfigError:
    """The error of a model that timm cannot build, or run, at the configuration's image size."""
    spec, size = _timm_spec(config), config.data.image_size
    fitting = sorted(_sizes_that_fit(config))
    failed = traceback.extract_tb(error.__traceback__)[-1].line  # of an assertion without a message
    why = str(error).strip().partition("\n")[0] or f"{type(error).__name__}: {failed}"
    if not fitting:
        message = f"do not fit timm's {spec.timm}, at {size} px or any size tried: {why}"
        return config_error(f"{config.step}: model.args", message)
    fix = f"sizes that fit: {', '.join(map(str, fitting))}; or choose other model.args"
    message = f"is {size}, which does not fit timm's {spec.timm} with these model.args ({why}); {fix}"
    return config_error(f"{config.step}: data.image_size", message)


def _sizes_that_fit(config: RunConfig) -> Iterator[int]:
    """Up to ENOUGH image sizes near the configuration's, and the model's own, that it accepts."""
    known, wanted = get_pretrained_cfg(_timm_spec(config).timm), config.data.image_size
    own = known.input_size[-1] if known is not None else 224
    step = max(own // 7, 1)  # the usual total stride, and a multiple of patches and windows
    near = sorted(range(step, 2 * own + 1, step), key=lambda size: abs(size - wanted))[:MOST_TRIES]
    found = 0
    for size in dict.fromkeys([*near, own]):
        if found == ENOUGH:
            return
        if _fits(config, size):
            found += 1
            yield size


def _fits(config: RunConfig, image_size: int) -> bool:
    try:
        _forward(_create(config, image_size), config, image_size)
    except Exception:  # as in build_network
        return False
    return True


def check_all(lines: Iterable[str]) -> list[str]:
    """What is wrong with the networks of some configurations, each a line of JSON."""
    problems = []
    for line in lines:
        try:
            build_network(RunConfig.model_validate_json(line))
        except ConfigError as error:
            problems.append(str(error))
    return problems


if __name__ == "__main__":
    for problem in check_all(sys.stdin):
        print(problem)
