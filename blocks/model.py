"""A network built from its plan, with the methods and attributes of timm's models, and its initialization."""

# Without postponed annotations: torch.fx passes those of `forward` to TorchScript, which needs types.
from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn import init

from blocks.layers import LAYERS, Op, one_of
from blocks.plan import plan_model
from blocks.residual import Stage, build_layers
from blocks.spec import ModelSpec

POOLS = ("avg", "max", "avgmax")


class Network(nn.Module):
    """Stem, stages of residual blocks, global pool and classifier: (N, in_chans, H, W) -> (N, num_classes).

    `drop_rate` is the dropout before the classifier; `feature_info` describes the map after each stage.
    """

    def __init__(self, spec: ModelSpec, drop_rate: float = 0.0) -> None:
        super().__init__()
        plan = plan_model(spec)
        rates = iter(drop_path_rates(spec))
        self.init = spec.init
        self.in_chans = spec.in_chans
        self.num_classes = spec.num_classes
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = plan.classifier.c_in
        self.feature_info = _feature_info(spec)
        self.stem = build_layers(plan.stem)
        self.stages = nn.Sequential()
        for downsample, blocks in zip(plan.downsamples, plan.stages, strict=True):
            self.stages.append(Stage(downsample, blocks, [next(rates) for _ in blocks]))
        self.global_pool = build_pool("avg")
        self.head_norm = build_layers(plan.head_norm)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = build_layers([plan.classifier])

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's feature map, (N, num_features, H', W')."""
        features: Tensor = self.stages(self.stem(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From the last stage's map to the logits, or with `pre_logits` to the classifier's input."""
        x = self.head_norm(self.global_pool(x))
        if self.global_pool.pool_type != "":
            x = x.flatten(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map, and the maps after the stages in `indices`: all for None, the last n for an int.

        `norm` has no effect, because the last norm follows the pool. `stop_early` stops after the last of the
        maps.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"feature maps are NCHW, not {output_fmt}")
        taken = _stage_indices(indices, len(self.stages))
        maps: list[Tensor] = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages[: max(taken) + 1] if stop_early else self.stages):
            x = stage(x)
            if index in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after those in `indices`, and the head, which fits only the last stage.

        Returns `indices` counted from the first stage.
        """
        taken = _stage_indices(indices, len(self.stages))
        last = max(taken)
        cut = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if cut or prune_norm or prune_head:
            self.head_norm = nn.Sequential()
        if cut or prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last layer, an identity where there are no classes."""
        return self.head.get_submodule("classifier")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one, or by none for 0 classes.

        `global_pool` is one of POOLS, '' for none, or None to keep the pool. ValueError for an unknown pool,
        and for classes without one.
        """
        pool: str = self.global_pool.pool_type if global_pool is None else global_pool
        if pool:
            one_of("global pool", pool, POOLS)
        elif num_classes:
            raise ValueError(
                f"a classifier needs a pooled vector: choose a global pool of {', '.join(POOLS)}, or 0"
                " classes"
            )
        self.num_classes = num_classes
        self.global_pool = build_pool(pool)
        classifier = Op("classifier", "linear", self.num_features, num_classes, bias=True)
        layer = LAYERS[classifier.kind].build(classifier) if num_classes else nn.Identity()
        initialize(layer, self.init)
        self.head.classifier = layer.to(next(self.stem.parameters()))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes the activations within blocks twice, which saves memory."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns for groups of parameters by depth: the stem, each block (`coarse`: each stage), and
        the head, which is the rest.
        """
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}


def build_pool(kind: str) -> SelectAdaptivePool2d:
    """timm's global pool, (N, C, H, W) -> (N, C, 1, 1); `kind` is one of POOLS, or '' for none."""
    # A plain mean, the same bit for bit: Inductor of PyTorch 2.9 to 2.11 gives nn.AdaptiveAvgPool2d before a
    # LayerNorm2d no gradient.
    pool = SelectAdaptivePool2d(pool_type="fastavg" if kind == "avg" else kind)
    pool.pool_type = kind
    return pool


def _feature_info(spec: ModelSpec) -> list[dict[str, Any]]:
    """The channels, the stride and the module of each stage's map, by timm's names."""
    return [
        {
            "num_chs": spec.block.out * spec.stage_width(stage),
            "reduction": spec.stem.stride << stage,
            "module": f"stages.{stage}",
        }
        for stage in range(len(spec.depths))
    ]


def _stage_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """`indices` of `count` stages counted from the first: all for None, the last n for an int.

    IndexError if there is no such stage.
    """
    stages = list(range(count))
    if indices is None:
        return stages
    if isinstance(indices, int):
        indices = range(-indices, 0)
    if not indices:
        raise IndexError(f"no stage of {count} is selected")
    return [stages[index] for index in indices]


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


def initialize(network: nn.Module, kind: str) -> None:
    """Draws the weights of all convolutions and linear layers in `network`; `kind` is one of INITS."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            INITS[kind](module)


def build_model(spec: ModelSpec, drop_rate: float = 0.0) -> Network:
    """A freshly initialized network; seed torch's generator before, if its weights are to be reproducible."""
    network = Network(spec, drop_rate)
    initialize(network, spec.init)
    return network
