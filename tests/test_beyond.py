"""The steps of roadmap `beyond` against timm's ConvNeXt with timm's layers in the places of ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import GluMlp, SEModule
from timm.models.inception_next import InceptionDWConv2d
from timm.models.metaformer import Pooling
from timm.models.starnet import Block as StarBlock
from timm.models.swin_transformer import (
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from blocks import LAYERS, Op, build_model
from blocks.modules import PositionBias, position_matrix
from roadmap.errors import ConfigError
from roadmap.steps import load_roadmaps, resolve
from roadmap.training.optim import decayed_groups
from roadmap.verify import verify
from roadmap.weights import DIALECTS
from tests.test_timm_parity import assert_same_logits, images, randomize

ROADMAPS = load_roadmaps()
ROADMAP = ROADMAPS["beyond"]


class Windows(nn.Module):
    """timm's attention in windows of a map of (N, C, H, W), padded and cropped as by Swin."""

    def __init__(self, channels: int, heads: int, window: int = 7) -> None:
        super().__init__()
        self.window = window
        self.attention = WindowAttention(channels, heads, window_size=window)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = functional.pad(x, (0, -width % self.window, 0, -height % self.window))
        size = padded.shape[2:]
        windows = window_partition(padded.permute(0, 2, 3, 1), (self.window, self.window))
        attended = self.attention(windows.flatten(1, 2)).unflatten(1, (self.window, self.window))
        joined = window_reverse(attended, (self.window, self.window), *size)
        cropped: Tensor = joined.permute(0, 3, 1, 2)[:, :, :height, :width]
        return cropped


class Dense(nn.Module):
    """The two kernels of a decomposed one as the cross that they are in one dense kernel."""

    def __init__(self, channels: int, kernel: int = 31) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, (5, kernel), groups=channels)
        self.tall = nn.Conv2d(channels, channels, (kernel, 5), groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        side = self.tall.kernel_size[0]
        short = slice(side // 2 - 2, side // 2 + 3)
        weight = x.new_zeros(x.shape[1], 1, side, side)
        weight[:, :, short] += self.wide.weight
        weight[:, :, :, short] += self.tall.weight
        return functional.conv2d(x, weight, self.wide.bias, padding=side // 2, groups=x.shape[1])


def spatial(layer: Callable[[int], nn.Module]) -> Callable[[Any, int], None]:
    def replace(block: Any, channels: int) -> None:
        block.conv_dw = layer(channels)

    return replace


def squeeze_excite(block: Any, channels: int) -> None:
    block.norm = nn.Sequential(block.norm, SEModule(channels, rd_channels=channels // 16))


def gated(act: type[nn.Module]) -> Callable[[Any, int], None]:
    def replace(block: Any, channels: int) -> None:
        hidden = 2 * (8 * channels // 3)
        block.mlp = GluMlp(channels, hidden, act_layer=act, use_conv=True, gate_last=False)

    return replace


# What timm's ConvNeXt-T is created with, what replaces a layer of each block, and our names of that layer's
# tensors after those of timm's ConvNeXt.
STEPS: dict[str, tuple[dict[str, Any], Callable[[Any, int], None] | None, dict[str, str]]] = {
    "convnext_t": ({}, None, {}),
    "grn": ({"model_name": "convnextv2_tiny"}, None, {}),
    "rms_norm": ({"norm_layer": "rmsnorm2d"}, None, {}),
    "overlapping_stem": ({"stem_type": "overlap"}, None, {}),
    "squeeze_excite": (
        {},
        squeeze_excite,
        {r"(blocks\.\d+\.norm)\.": r"\1.0.", r"\.body\.spatial_se\.": ".norm.1."},
    ),
    "gated_mlp": ({}, gated(nn.SiLU), {}),
    "star": ({}, gated(nn.ReLU6), {}),
    "kernel_13": ({"kernel_sizes": 13}, None, {}),
    "kernel_21": ({"kernel_sizes": 21}, None, {}),
    "kernel_31": ({"kernel_sizes": 31}, None, {}),
    "decomposed_31": ({}, spatial(Dense), {}),
    "inception_depthwise": (
        {},
        spatial(InceptionDWConv2d),
        {r"branches\.1\.": "dwconv_hw.", r"branches\.2\.": "dwconv_w.", r"branches\.3\.": "dwconv_h."},
    ),
    "pooling_mixer": ({}, spatial(lambda channels: Pooling(3)), {}),
    "identity_mixer": ({}, spatial(lambda channels: nn.Identity()), {}),
    "window_attention": (
        {},
        spatial(lambda channels: Windows(channels, channels // 32)),
        {r"conv_dw\.position\.bias": "conv_dw.attention.relative_position_bias_table"}
        | {r"conv_dw\.(qkv|proj)\.": r"conv_dw.attention.\1."},
    ),
}


def theirs(step: str) -> nn.Module:
    """timm's network of a step."""
    kwargs, replace, _ = STEPS[step]
    model: Any = timm.create_model(**{"model_name": "convnext_tiny", "conv_mlp": True} | kwargs)
    for stage in model.stages:
        for block in stage.blocks:
            if replace is not None:
                replace(block, block.conv_dw.in_channels)
    return model  # type: ignore[no-any-return]


def as_theirs(step: str, name: str, value: Tensor) -> tuple[str, Tensor]:
    """A tensor of ours under the name and in the shape that it has there."""
    dialect = "timm_convnext_ols" if step == "overlapping_stem" else "timm_convnext"
    name = DIALECTS[dialect].rename(name)
    for pattern, replacement in STEPS[step][2].items():
        name = re.sub(pattern, replacement, name)
    if name.endswith("table"):
        value = value.flatten(1).T
    elif ".attention." in name and value.ndim == 4:
        value = value.flatten(1)
    return name, value


def test_each_step_is_compared() -> None:
    assert tuple(STEPS) == ROADMAP.steps


@pytest.mark.parametrize("step", STEPS)
def test_logits_are_those_with_timms_layer(step: str) -> None:
    size = 224 if step == "window_attention" else 97  # no map is smaller than a window
    ours, reference = build_model(resolve(ROADMAP, step).ours), theirs(step)
    randomize(ours)
    reference.load_state_dict(dict(as_theirs(step, *item) for item in ours.state_dict().items()))
    # gates and response norms multiply what depends on the image, which magnifies the rounding of float32
    assert_same_logits(ours.double(), reference.double(), images(2, 3, size).double(), step)


@pytest.mark.parametrize("step", [step for step in STEPS if step != "decomposed_31"])
def test_costs_are_counted_on_timms_network(step: str) -> None:
    (row,) = (row for row in verify(ROADMAP) if row.step == step)
    with torch.device("meta"):
        model, image = theirs(step).eval(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(image)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert (row.cost.params, 2 * row.cost.macs) == (params, flops.get_total_flops())
    assert row.counts


@pytest.mark.parametrize("name", ROADMAPS["family_v2"].steps)
def test_the_family_v2_has_the_shapes_and_costs_of_timms(name: str) -> None:
    (row,) = (row for row in verify(ROADMAPS["family_v2"]) if row.step == name)
    with torch.device("meta"):
        ours = build_model(resolve(ROADMAPS["family_v2"], name).ours)
        model, image = timm.create_model(name).eval(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(image)
    shapes = {
        DIALECTS["timm_convnext"].rename(key): value.squeeze() for key, value in ours.state_dict().items()
    }
    assert {key: value.shape for key, value in shapes.items()} == {
        key: value.squeeze().shape for key, value in model.state_dict().items()
    }
    assert 2 * row.cost.macs == flops.get_total_flops()
    assert row.counts


def op(kind: str, channels: int, kernel: int = 7, stride: int = 1) -> Op:
    return Op("body.spatial", kind, channels, channels, kernel, stride, kernel // 2, bias=True)


def random_layer(kind: str, channels: int, kernel: int = 7, stride: int = 1) -> nn.Module:
    layer = LAYERS[kind].build(op(kind, channels, kernel, stride)).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_small_maps_are_one_window(size: int) -> None:
    """With the nearest offsets of the table, as if the window had been that small from the start."""
    torch.manual_seed(size)
    layer: Any = random_layer("window_attention", 64)
    reference = WindowAttention(64, 2, window_size=size)
    near = layer.position.bias[:, 7 - size : 6 + size, 7 - size : 6 + size]
    reference.load_state_dict(
        {
            "relative_position_bias_table": near.flatten(1).T,
            **{
                f"qkv.{name}": value.flatten(1) if value.ndim > 1 else value
                for name, value in layer.qkv.state_dict().items()
            },
            **{
                f"proj.{name}": value.flatten(1) if value.ndim > 1 else value
                for name, value in layer.proj.state_dict().items()
            },
        }
    )
    x = torch.randn(2, 64, size, size)
    expected = reference(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (size, size))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(10, 10), (9, 20), (3, 15)])
def test_larger_maps_are_padded_as_by_swin(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block: Any = SwinTransformerBlock(96, size, num_heads=3, window_size=7, always_partition=True).eval()
    layer: Any = random_layer("window_attention", 96)
    rows, columns = block.window_size
    assert (rows, columns) == (7, 7)
    own, there = layer.state_dict(), block.attn.state_dict()
    own["position.bias"] = there.pop("relative_position_bias_table").T.reshape(3, 13, 13)
    layer.load_state_dict(own | {name: value.reshape(own[name].shape) for name, value in there.items()})
    x = torch.randn(2, 96, *size)
    ours = layer(x)
    if size[0] > 7:
        expected = block._attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert ours.shape == x.shape


MIXERS = ["inception", "decomposed", "pooling", "identity", "window_attention"]


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("size", [1, 2, 7, 10])
@pytest.mark.parametrize("channels", [4, 12, 33])
def test_a_stride_keeps_every_other_position(kind: str, size: int, channels: int) -> None:
    torch.manual_seed(0)
    plain = random_layer(kind, channels)
    strided = LAYERS[kind].build(op(kind, channels, stride=2)).eval()
    strided.load_state_dict(plain.state_dict())
    x = torch.randn(2, channels, size, size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, found = plain(x)[:, :, ::2, ::2], strided(x)
    assert found.shape[2] == op(kind, channels, stride=2).out_size(size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "heads"), [(4, 1), (12, 1), (31, 1), (48, 1), (96, 3), (97, 1), (80, 2), (160, 5), (768, 24)]
)
def test_heads_divide_the_channels_into_parts_of_at_least_32(channels: int, heads: int) -> None:
    attention: Any = LAYERS["window_attention"]
    assert attention.heads(channels) == heads
    assert channels % heads == 0
    assert random_layer("window_attention", channels)(torch.randn(1, channels, 3, 3)).shape[1] == channels


def test_a_pair_of_positions_has_the_bias_of_its_offset() -> None:
    position = PositionBias(2, 5).bias.detach()
    matrix = position_matrix(position, 3, 4)
    assert matrix.shape == (2, 12, 12)
    for query in range(12):
        for key in range(12):
            down, across = query // 4 - key // 4, query % 4 - key % 4
            assert torch.equal(matrix[:, query, key], position[:, 4 + down, 4 + across])


def test_the_product_of_a_star_is_starnets() -> None:
    torch.manual_seed(0)
    block: Any = StarBlock(24, mlp_ratio=4)
    x = torch.randn(2, 24, 5, 5)
    gate = LAYERS["gate"].build(Op("gate", "gate", 192, 96, within=Op("act", "relu6", 96, 96, inplace=False)))
    both = [
        torch.cat(parts)
        for parts in zip(*(conv.conv.parameters() for conv in (block.f1, block.f2)), strict=True)
    ]
    expected = block.act(block.f1(x)) * block.f2(x)
    torch.testing.assert_close(gate(functional.conv2d(x, both[0], both[1])), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("step", ["gated_mlp", "star"])
def test_a_gate_keeps_the_parameters_of_the_two_matrices(step: str) -> None:
    """Biases aside, at the widths of ConvNeXt-T to the last one."""
    weights = [
        sum(
            value.numel()
            for name, value in build_model(resolve(ROADMAP, each).ours).named_parameters()
            if value.ndim > 1
        )
        for each in ("convnext_t", step)
    ]
    assert weights[0] == weights[1]


def test_new_layers_start_as_published() -> None:
    torch.manual_seed(0)
    grn: Any = build_model(resolve(ROADMAP, "grn").ours)
    block = grn.stages[0].blocks[0].body
    assert not any(parameter.any() for parameter in block.pw1_grn.parameters())
    x = torch.randn(2, 384, 5, 5)
    assert torch.equal(block.pw1_grn(x), x)
    attention: Any = build_model(resolve(ROADMAP, "window_attention").ours)
    bias = attention.stages[3].blocks[0].body.spatial.position.bias
    assert bias.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("step", ["grn", "rms_norm", "window_attention", "squeeze_excite"])
def test_norms_biases_and_positions_do_not_decay(step: str) -> None:
    recipe = resolve(ROADMAP, step, overrides={"recipe.layer_decay": 0.9}).recipe
    network = build_model(resolve(ROADMAP, step, overrides={"model.width_mult": 0.125}).ours)
    decaying = {
        id(parameter)
        for group in decayed_groups(recipe, network)
        if group["weight_decay"]
        for parameter in group["params"]
    }
    decays = [name for name, parameter in network.named_parameters() if id(parameter) in decaying]
    assert decays == [
        name
        for name, parameter in network.named_parameters()
        if name.endswith(".weight") and parameter.ndim > 1
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_global_response_norm_keeps_the_type_and_is_the_papers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer: Any = LAYERS["grn"].build(Op("grn", "grn", 8, 8))
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer = layer.to(dtype if dtype == torch.float64 else torch.float32)
    x = torch.randn(2, 8, 5, 4, dtype=dtype)
    exact = x.double()
    norms = exact.pow(2).sum((2, 3), keepdim=True).sqrt()
    response = norms / (norms.mean(1, keepdim=True) + 1e-6)
    scale, shift = (value.detach().double().view(1, -1, 1, 1) for value in (layer.weight, layer.bias))
    found, error = layer(x), {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float64: 1e-14}[dtype]
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), scale * exact * response + shift + exact, rtol=error, atol=error
    )


def test_a_channel_that_is_zero_everywhere_has_a_finite_gradient() -> None:
    layer: Any = LAYERS["grn"].build(Op("grn", "grn", 4, 4))
    nn.init.ones_(layer.weight)
    x = torch.randn(2, 4, 3, 3)
    x[:, 1] = 0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert gradient.isfinite().all()


def test_an_activation_does_not_overwrite_what_an_identity_passes_on() -> None:
    overrides = {
        "model.block.norm.after": [],
        "model.block.act.kind": "relu",
        "model.block.act.after": ["spatial"],
    }
    network: Any = build_model(resolve(ROADMAP, "identity_mixer", overrides=overrides).ours)
    x = torch.randn(2, 96, 4, 4)
    kept = x.clone()
    network.stages[0].blocks[0](x)
    assert torch.equal(x, kept)


def test_an_overlapping_stem_needs_a_power_of_two() -> None:
    with pytest.raises(ConfigError, match="power of two, not 6"):
        resolve(ROADMAP, "overlapping_stem", overrides={"model.stem.stride": 6})


@pytest.mark.parametrize(
    "name", ["grn+overlapping_stem", "grn+window_attention+rms_norm", "star+inception_depthwise"]
)
def test_branches_combine(name: str) -> None:
    first, *others = name.split("+")
    model = resolve(ROADMAP, name).model
    for step in others:
        for key, setting in ROADMAP.tree[step].settings.items():
            value: Any = model
            for part in key.split(".")[1:]:
                value = getattr(value, part)
            assert value == setting.value
    assert first in ROADMAP.steps
