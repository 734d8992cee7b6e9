"""Every network of the roadmaps: its sentence and cost against a golden file, its layers against the
arithmetic.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from blocks import LAYERS, BlockSpec, Complexity, ModelSpec, Op, build_model, complexity, describe
from blocks.model import Network
from blocks.modules import LayerNorm2d, SplitChannels, layer_norm
from blocks.plan import plan_block
from blocks.residual import Residual
from roadmap.steps import load_roadmaps, resolve
from roadmap.verify import verify

ROADMAPS = load_roadmaps()
ROADMAP = ROADMAPS["convnext_t"]
GOLDEN = Path(__file__).with_name("golden") / "networks.csv"
SMALL = {
    "model.width_mult": 0.125,
    "model.stem.stride": 2,
    "model.num_classes": 10,
    "model.in_chans": 1,
    "data.image_size": 32,
    "data.mean": [0.5],
    "data.std": [0.25],
}

each_step = pytest.mark.parametrize("step", ROADMAP.steps)
each_network = pytest.mark.parametrize(
    ("roadmap", "step"), [(name, step) for name, roadmap in ROADMAPS.items() for step in roadmap.steps]
)


def small(step: str, roadmap: str = "convnext_t") -> ModelSpec:
    """A network of a sixth to an eighth of the width and at most three blocks a stage, for images of 32
    pixels.
    """
    depths = resolve(ROADMAPS[roadmap], step).ours.depths
    stride = 16 if len(depths) == 1 else 2
    # the rates of the largest would leave some block no image of so few
    shrunk = SMALL | {
        "model.depths": [min(depth, 3) for depth in depths],
        "model.stem.stride": stride,
        "model.drop_path": 0.0,
    }
    return resolve(ROADMAPS[roadmap], step, overrides=shrunk).ours


def counted(spec: ModelSpec, image_size: int) -> Complexity:
    """The cost of the modules themselves: their parameters, and half the flops of one forward pass without
    data.
    """
    with torch.device("meta"):
        network = build_model(spec).eval()
        image = torch.empty(1, spec.in_chans, image_size, image_size)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network(image)
    return Complexity(
        sum(parameter.numel() for parameter in network.parameters()), flops.get_total_flops() // 2
    )


def test_networks_match_the_golden_file() -> None:
    with GOLDEN.open(encoding="utf-8", newline="") as file:
        golden = list(csv.DictReader(file))
    ours = []
    for name, roadmap in ROADMAPS.items():
        for step in roadmap.steps:
            config = resolve(roadmap, step)
            cost = complexity(config.ours, config.data.image_size)
            size = str(config.data.image_size)
            figures = {
                "sentence": describe(config.ours.block),
                "size": size,
                "params": str(cost.params),
                "macs": str(cost.macs),
            }
            ours.append({"roadmap": name, "step": step, **figures})
    assert ours == golden


def test_every_network_has_the_cost_that_was_counted_elsewhere() -> None:
    rows = {(name, row.step): row for name, roadmap in ROADMAPS.items() for row in verify(roadmap)}
    assert [place for place, row in rows.items() if row.is_wrong] == []
    not_counted = {step for (_, step), row in rows.items() if row.counts is None}
    own = {"no_downsampling_norms", "multiscale_s", "multiscale_b", "decomposed_31"}
    assert not_counted == {"convnext_t_384", "convnext_s_384", "convnext_xl_384"} | own
    assert [step for (_, step), row in rows.items() if row.is_flagged] == [
        "layer_norm",
        "separate_downsampling",
    ]


@each_network
def test_arithmetic_counts_the_modules_at_full_size(roadmap: str, step: str) -> None:
    config = resolve(ROADMAPS[roadmap], step)
    assert complexity(config.ours, config.data.image_size) == counted(config.ours, config.data.image_size)


@each_network
def test_arithmetic_counts_the_modules_at_small_size(roadmap: str, step: str) -> None:
    assert complexity(small(step, roadmap), 32) == counted(small(step, roadmap), 32)


@each_network
def test_every_parameter_gets_a_gradient(roadmap: str, step: str) -> None:
    torch.manual_seed(0)
    network = build_model(small(step, roadmap)).train()
    logits = network(torch.randn(8, 1, 32, 32))
    assert logits.shape == (8, 10)
    functional.cross_entropy(logits, torch.arange(8)).backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [
        name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()
    ] == []
    assert [name for name, gradient in gradients.items() if gradient is not None and not gradient.any()] == []


def drop_rates(network: Network) -> list[float]:
    blocks = [module for module in network.modules() if isinstance(module, Residual)]
    return [float(getattr(block.drop_path, "drop_prob", 0.0)) for block in blocks]


@pytest.mark.parametrize(
    ("step", "rate", "blocks"), [("resnet50", 0.0, 16), ("enhanced_recipe", 0.1, 16), ("kernel_7", 0.1, 18)]
)
def test_drop_path_rises_linearly_over_all_blocks(step: str, rate: float, blocks: int) -> None:
    expected = torch.linspace(0, rate, blocks, dtype=torch.float64).tolist()
    assert drop_rates(build_model(resolve(ROADMAP, step, overrides=SMALL).ours)) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_the_sum_of_a_block_is_exact_to_rounding(rate: float, scale: float | None) -> None:
    """Against timm's drop path of the scaled body, in training and not, with the same random numbers."""
    block = BlockSpec.model_validate(
        resolve(ROADMAP, "kernel_7").ours.block.model_dump() | {"layer_scale": scale}
    )
    residual = Residual(plan_block(block, 16, 16, 1), rate)
    x = torch.randn(8, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    for training in (True, False):
        residual.train(training)
        results = []
        for fused in (True, False):
            torch.manual_seed(3)
            if fused:
                total = residual(x)
            else:
                body = residual.body(x)
                body = body if scale is None else body * residual.body.gamma.gamma.view(-1, 1, 1)
                total = residual.after(residual.shortcut(x) + residual.drop_path(body))
            results.append([total, *torch.autograd.grad(total.square().sum(), list(residual.parameters()))])
        for ours, plain in zip(*results, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
            assert ours.any()


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [(4, [1, 2, 1]), (6, [1, 4, 1]), (7, [1, 5, 1]), (10, [2, 6, 2]), (12, [3, 6, 3]), (99, [24, 51, 24])],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_multiscale_splits_its_channels_1_2_1(channels: int, sizes: list[int], stride: int) -> None:
    op = Op("spatial", "multiscale", channels, channels, kernel=7, stride=stride, padding=3, bias=True)
    split = LAYERS["multiscale"].build(op)
    assert isinstance(split, SplitChannels)
    branches = [conv for conv in split.branches if isinstance(conv, nn.Conv2d)]
    convs = [(conv.in_channels, conv.groups, conv.kernel_size, conv.dilation) for conv in branches]
    scales = [((3, 3), (1, 1)), ((7, 7), (1, 1)), ((7, 7), (3, 3))]
    assert convs == [(size, size, *scale) for size, scale in zip(sizes, scales, strict=True)]
    assert split(torch.randn(2, channels, 9, 9)).shape == (2, channels, op.out_size(9), op.out_size(9))


def composed(split: SplitChannels, x: Tensor) -> Tensor:
    """The same by PyTorch's split, conv2d and concatenation in the type of x."""
    parts = []
    for conv, part in zip(split.branches, torch.split(x, split.sizes, dim=1), strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
        parts.append(
            functional.conv2d(part, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        )
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-14)], ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [(8, 1, 2), (22, 7, 7), (16, 14, 13), (64, 19, 20), (96, 29, 28)],  # some large enough for each rule
)
def test_multiscale_is_the_composition_of_its_branches_to_rounding(
    channels: int,
    height: int,
    width: int,
    stride: int,
    layout: torch.memory_format,
    dtype: torch.dtype,
    error: float,
) -> None:
    torch.manual_seed(0)
    op = Op("spatial", "multiscale", channels, channels, kernel=7, stride=stride, padding=3, bias=True)
    split: Any = LAYERS["multiscale"].build(op).to(dtype)
    x = torch.randn(3, channels, height, width, dtype=dtype).contiguous(memory_format=layout)
    exact = x.double().requires_grad_()
    x.requires_grad_()
    wanted = composed(split, exact)
    grad = torch.randn_like(wanted)
    with torch.no_grad():
        inferred = split.eval()(x)
    trained = split.train()(x)
    learn = list(split.parameters())
    pairs = [(inferred, wanted), (trained, wanted)]
    pairs += zip(
        torch.autograd.grad(trained, [x, *learn], grad.to(dtype)),
        torch.autograd.grad(wanted, [exact, *learn], grad.to(dtype).double()),
        strict=True,
    )
    for found, right in pairs:
        assert (found.dtype, found.shape) == (dtype, right.shape)
        assert (found - right).norm() <= error * right.norm()


def test_multiscale_at_a_width_that_four_does_not_divide() -> None:
    spec = small("multiscale_depthwise").model_copy(update={"width": 80})
    assert spec.stage_width(0) == 10
    assert complexity(spec, 32) == counted(spec, 32)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float64, 1e-14)], ids=str
)
def test_gelu_is_that_of_the_error_function_in_either_layout(
    dtype: torch.dtype, error: float, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    gelu = LAYERS["gelu"].build(Op("act", "gelu", 24, 24))
    x = (4 * torch.randn(2, 24, 6, 5, dtype=dtype)).contiguous(memory_format=layout).requires_grad_()
    y, exact = gelu(x), x.detach().double().requires_grad_()
    assert y.is_contiguous(memory_format=layout)
    wanted = exact / 2 * (1 + torch.erf(exact / 2**0.5))
    torch.testing.assert_close(y.double(), wanted, rtol=error, atol=error)
    grad = torch.randn_like(y)
    (ours,), (theirs,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(wanted, exact, grad.double())
    torch.testing.assert_close(ours.double(), theirs, rtol=error, atol=error)


def test_gelu_of_channels_last_is_left_to_onednn() -> None:
    gelu, x = LAYERS["gelu"].build(Op("act", "gelu", 8, 8)), torch.randn(2, 8, 4, 4)
    with torch.profiler.profile(record_shapes=True) as profile:
        gelu(x.contiguous(memory_format=torch.channels_last))
    # the shape that the operator sees is contiguous only with the channels as the last axis
    assert [event.input_shapes[0] for event in profile.events() if event.name == "aten::gelu"] == [
        [2, 4, 4, 8]
    ]


def test_norms_between_the_stages_can_be_left_out() -> None:
    spec = resolve(ROADMAP, "separate_downsampling", overrides=SMALL | {"model.downsample_norm": False}).ours
    names = [name for name, _ in build_model(spec).named_parameters() if "downsample" in name]
    assert names == [
        f"stages.{stage}.downsample.conv.{part}" for stage in (1, 2, 3) for part in ("weight", "bias")
    ]
    assert complexity(spec, 32) == counted(spec, 32)


@each_step
def test_shortcut_has_layers_only_where_the_shape_changes(step: str) -> None:
    spec = small(step)
    changed = [
        (stage, block)
        for stage, blocks in enumerate(build_model(spec).stages)
        for block, residual in enumerate(blocks.get_submodule("blocks").children())
        if len(residual.get_submodule("shortcut").state_dict())
    ]
    assert changed == [(stage, 0) for stage in range(4) if changes_shape(spec, spec.block, stage)]


def changes_shape(spec: ModelSpec, block: BlockSpec, stage: int) -> bool:
    return block.out > 1 if stage == 0 else spec.downsample == "block"


@pytest.mark.parametrize(
    ("step", "conv_std", "linear_std"),
    [
        ("resnet50", (2 / 64) ** 0.5, (1 / 256 / 3) ** 0.5),  # kaiming over 64 outputs; PyTorch's default
        ("enhanced_recipe", (1 / 256 / 3) ** 0.5, 0.02),  # uniform within 1 / sqrt(256 inputs)
        ("layer_norm", (1 / 96 / 3) ** 0.5, 0.02),
        ("separate_downsampling", 0.02, 0.02),
    ],
)
def test_weights_start_with_the_spread_of_their_row(step: str, conv_std: float, linear_std: float) -> None:
    torch.manual_seed(0)
    network = build_model(small(step))
    pointwise, classifier = (
        network.get_parameter("stages.3.blocks.1.body.pw1.weight"),
        network.get_parameter("head.classifier.weight"),
    )
    assert pointwise.std().item() == pytest.approx(conv_std, rel=0.05)
    assert classifier.std().item() == pytest.approx(linear_std, rel=0.1)


def test_layer_norm_keeps_half_precision_on_a_gpu_and_is_timms() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            images = torch.empty(2, 8, 4, 4, device="cuda", dtype=dtype)
            weight, bias = (torch.empty(8, device="cuda") for _ in range(2))
            assert layer_norm(images, weight, bias, 1e-6).dtype == dtype
    images = torch.randn(2, 8, 4, 4)
    assert torch.equal(LayerNorm2d(8)(images), timm.layers.LayerNorm2d(8)(images))
