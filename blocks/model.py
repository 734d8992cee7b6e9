"""A network built from its plan, and its initialisation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import init

from blocks.plan import plan_model
from blocks.residual import Residual, build_layers
from blocks.spec import ModelSpec


class Network(nn.Module):
    """Stem, stages of residual blocks, global average pool and classifier: (N, in_chans, H, W) -> (N, num_classes)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        plan = plan_model(spec)
        rates = iter(drop_path_rates(spec))
        self.stem = build_layers(plan.stem)
        self.stages = nn.Sequential()
        for downsample, blocks in zip(plan.downsamples, plan.stages, strict=True):
            residuals = nn.Sequential(*(Residual(block, next(rates)) for block in blocks))
            self.stages.append(nn.Sequential(OrderedDict(downsample=build_layers(downsample), blocks=residuals)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head_norm = build_layers(plan.head_norm)
        self.head = build_layers([plan.classifier])

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's feature map, (N, C, H', W')."""
        features: Tensor = self.stages(self.stem(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.head_norm(self.pool(self.forward_features(x)))
        logits: Tensor = self.head(pooled.flatten(1))
        return logits


def drop_path_rates(spec: ModelSpec) -> list[float]:
    """Each block's rate of stochastic depth, rising linearly from 0 to `spec.drop_path`."""
    last = max(sum(spec.depths) - 1, 1)
    return [spec.drop_path * index / last for index in range(sum(spec.depths))]


def _zero_bias(module: nn.Conv2d | nn.Linear) -> None:
    if module.bias is not None:
        init.zeros_(module.bias)


def _kaiming_fan_out(module: nn.Conv2d | nn.Linear) -> None:
    """torchvision's ResNet: the classifier keeps PyTorch's default."""
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        _zero_bias(module)


def _trunc_normal(module: nn.Conv2d | nn.Linear) -> None:
    """ConvNeXt: truncated normal of .02 for every weight."""
    init.trunc_normal_(module.weight, std=0.02)
    _zero_bias(module)


def _default(module: nn.Conv2d | nn.Linear) -> None:
    """PyTorch's own for convolutions, uniform by fan-in; a truncated normal of .02 for the classifier."""
    if isinstance(module, nn.Linear):
        _trunc_normal(module)


INITS: dict[str, Callable[[nn.Conv2d | nn.Linear], None]] = {
    "kaiming_fan_out": _kaiming_fan_out,
    "trunc_normal": _trunc_normal,
    "default": _default,
}


def build_model(spec: ModelSpec) -> Network:
    """A freshly initialised network; seed torch's generator before, if its weights are to be reproducible."""
    network = Network(spec)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            INITS[spec.init](module)
    return network
