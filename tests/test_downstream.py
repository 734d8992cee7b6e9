"""Every step as the backbone of detection and segmentation: pyramids at strides 4 to 32, and heads that learn
on them.
"""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp  # type: ignore[import-untyped]
import timm
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork  # type: ignore[import-untyped]

from roadmap.timm_models import registered

BACKBONES = [name for name, config in registered.items() if config.roadmap in ("convnext_t", "convnext_b")]
STRIDES = [4, 8, 16, 32]
SMALL: dict[str, Any] = {"width": 8, "depths": [1, 1, 2, 1], "drop_path_rate": 0.0}


def scenes(count: int) -> tuple[Tensor, Tensor]:
    """Noise with a brighter rectangle of a random color in each image, and the masks of the rectangles."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(count, 3, 64, 64, generator=generator)
    masks = torch.zeros(count, 64, 64, dtype=torch.long)
    for image, mask in zip(images, masks, strict=True):
        top, left = torch.randint(0, 32, (2,), generator=generator).tolist()
        height, width = torch.randint(16, 32, (2,), generator=generator).tolist()
        mask[top : top + height, left : left + width] = 1
        image += (1 + torch.rand(3, 1, 1, generator=generator)) * mask
    return images, masks


@pytest.mark.parametrize("name", BACKBONES)
def test_pyramids_feed_a_feature_pyramid_network(name: str) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(name, features_only=True, **SMALL)
    assert backbone.feature_info.reduction() == STRIDES
    images, _ = scenes(2)
    maps = backbone(images)
    neck = FeaturePyramidNetwork(backbone.feature_info.channels(), 16)
    pyramid = neck({f"stride{stride}": x for stride, x in zip(STRIDES, maps, strict=True)})
    assert {name: x.shape for name, x in pyramid.items()} == {
        f"stride{stride}": (2, 16, 64 // stride, 64 // stride) for stride in STRIDES
    }
    sum(x.square().mean() for x in pyramid.values()).backward()
    assert without_gradient(backbone) == []


def without_gradient(backbone: Any) -> list[str]:
    gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    assert any(name.startswith("stages_3") for name in gradients)
    return [
        name
        for name, gradient in gradients.items()
        if gradient is None or not gradient.isfinite().all() or not gradient.any()
    ]


@pytest.mark.parametrize("name", [name for name in BACKBONES if registered[name].roadmap == "convnext_t"])
def test_upernet_learns_to_segment(name: str) -> None:
    torch.manual_seed(0)
    network = smp.UPerNet(f"tu-{name}", encoder_weights=None, decoder_channels=16, classes=2, **SMALL).train()
    images, masks = scenes(8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        logits = network(images)
        assert logits.shape == (8, 2, 64, 64)
        loss = functional.cross_entropy(logits, masks)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        assert without_gradient(network.encoder.model) == []
        optimizer.step()
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < 0.6 * losses[0]
