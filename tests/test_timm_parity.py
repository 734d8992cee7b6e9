"""The first and the published last network of the roadmap give timm's logits with timm's weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import pytest
import timm
import torch
from torch import Tensor, nn

from blocks import build_model
from roadmap.steps import load_roadmap, resolve

# Ours -> timm's, applied in order to each name of the state dict.
RESNET: Sequence[tuple[str, str]] = [
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.norm\.", "bn1."),
    (r"^stages\.0\.blocks\.", "layer1."),
    (r"^stages\.1\.blocks\.", "layer2."),
    (r"^stages\.2\.blocks\.", "layer3."),
    (r"^stages\.3\.blocks\.", "layer4."),
    (r"\.body\.pw1\.", ".conv1."),
    (r"\.body\.pw1_norm\.", ".bn1."),
    (r"\.body\.spatial\.", ".conv2."),
    (r"\.body\.spatial_norm\.", ".bn2."),
    (r"\.body\.pw2\.", ".conv3."),
    (r"\.body\.pw2_norm\.", ".bn3."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"^head\.classifier\.", "fc."),
]
CONVNEXT: Sequence[tuple[str, str]] = [
    (r"^stem\.conv\.", "stem.0."),
    (r"^stem\.norm\.", "stem.1."),
    (r"\.downsample\.norm\.", ".downsample.0."),
    (r"\.downsample\.conv\.", ".downsample.1."),
    (r"\.body\.spatial\.", ".conv_dw."),
    (r"\.body\.spatial_norm\.", ".norm."),
    (r"\.body\.pw1\.", ".mlp.fc1."),
    (r"\.body\.pw2\.", ".mlp.fc2."),
    (r"\.body\.gamma\.gamma$", ".gamma"),
    (r"^head_norm\.norm\.", "head.norm."),
    (r"^head\.classifier\.", "head.fc."),
]
PAIRS = {"resnet50": ("resnet50", RESNET), "separate_downsampling": ("convnext_tiny", CONVNEXT)}


def timm_name(ours: str, mapping: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in mapping:
        ours = re.sub(pattern, replacement, ours)
    return ours


def randomise(network: nn.Module) -> None:
    """Values under which each one shows in the logits: no identity norm, no layer scale near zero, no zero bias."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith(("gamma", "running_var")) or (name.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 1:
            value.normal_(0, 0.1, generator=generator)
        else:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)


@cache
def pair(step: str) -> tuple[nn.Module, nn.Module]:
    """Our network of `step` and timm's, with the same random weights."""
    name, mapping = PAIRS[step]
    theirs: nn.Module = timm.create_model(name).eval()
    randomise(theirs)
    weights: dict[str, Tensor] = theirs.state_dict()
    ours = build_model(resolve(load_roadmap(), step).model).eval()
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    names = {name: timm_name(name, mapping) for name in shapes}
    assert sorted(names.values()) == sorted(weights)
    ours.load_state_dict({name: weights[names[name]].reshape(shape) for name, shape in shapes.items()})
    return ours, theirs


@pytest.mark.parametrize("step", PAIRS)
@pytest.mark.parametrize("image_size", [224, 160, 97])
def test_logits_are_timms(step: str, image_size: int) -> None:
    ours, theirs = pair(step)
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(image_size))
    with torch.no_grad():
        expected, logits = theirs(images), ours(images)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert (logits - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("step", PAIRS)
def test_a_change_of_any_weight_shows_in_the_logits(step: str) -> None:
    ours, _ = pair(step)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(64))
    unseen = []
    with torch.no_grad():
        before = ours(image)
        for name, value in ours.state_dict().items():
            is_first_of_its_kind = ".blocks." not in name or ".blocks.0." in name
            if is_first_of_its_kind and value.is_floating_point():
                kept = value.clone()
                value.mul_(1.5)
                if (ours(image) - before).abs().max() < 1e-3:
                    unseen.append(name)
                value.copy_(kept)
    assert unseen == []
