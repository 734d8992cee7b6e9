"""Every network of ours that timm has gives timm's logits with the same weights, under its name in timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from blocks import ModelSpec, build_model
from roadmap.errors import ConfigError
from roadmap.export import timm_model, to_timm
from roadmap.steps import load_roadmap, resolve
from roadmap.weights import load_weights

RESNET, CONVNEXT = "resnet50", "separate_downsampling"
ATTO = {"model.depths": [2, 2, 6, 2], "model.width": 40}
GRN = {"model.block.grn": True, "model.block.layer_scale": None}
NARROW = {"model.depths": [1, 2, 2, 1], "model.width": 12}
# Ours as a step and overrides, and what timm calls it.
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[str, dict[str, Any]]]] = {
    "resnet50": (RESNET, {}, ("resnet50", {})),
    "resnet101": (RESNET, {"model.depths": [3, 4, 23, 3]}, ("resnet101", {})),
    "resnet152": (RESNET, {"model.depths": [3, 8, 36, 3]}, ("resnet152", {})),
    "resnet200": (RESNET, {"model.depths": [3, 24, 36, 3]}, ("resnet200", {})),
    "stage_ratio": ("stage_ratio", {}, ("resnet50", {"layers": (3, 3, 9, 3)})),
    "small resnet": (
        RESNET,
        {
            "model.depths": [1, 2, 1, 1],
            "model.in_chans": 1,
            "data.mean": [0.5],
            "data.std": [0.2],
            "model.block.act.kind": "silu",
        },
        ("resnet50", {"layers": (1, 2, 1, 1), "in_chans": 1, "act_layer": "silu"}),
    ),
    "convnext_tiny": (CONVNEXT, {}, ("convnext_tiny", {})),
    "convnext_small": (CONVNEXT, {"model.depths": [3, 3, 27, 3]}, ("convnext_small", {})),
    "convnext_base": (CONVNEXT, {"model.depths": [3, 3, 27, 3], "model.width": 128}, ("convnext_base", {})),
    "convnext_large": (CONVNEXT, {"model.depths": [3, 3, 27, 3], "model.width": 192}, ("convnext_large", {})),
    "convnext_xlarge": (
        CONVNEXT,
        {"model.depths": [3, 3, 27, 3], "model.width": 256},
        ("convnext_xlarge", {}),
    ),
    "convnext_atto": (
        CONVNEXT,
        ATTO,
        ("convnext_tiny", {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)}),
    ),
    "kernel 5": (
        CONVNEXT,
        {**NARROW, "model.block.spatial.kernel": 5, "model.block.layer_scale": None, "model.num_classes": 10},
        (
            "convnextv2_tiny",
            {
                "depths": (1, 2, 2, 1),
                "dims": (12, 24, 48, 96),
                "kernel_sizes": 5,
                "use_grn": False,
                "num_classes": 10,
            },
        ),
    ),
    "kernel 11": (
        CONVNEXT,
        {
            **NARROW,
            "model.width_mult": 2.0,
            "model.block.spatial.kernel": 11,
            "model.block.act.kind": "hard_swish",
        },
        (
            "convnext_tiny",
            {
                "depths": (1, 2, 2, 1),
                "dims": (24, 48, 96, 192),
                "kernel_sizes": 11,
                "act_layer": "hard_swish",
            },
        ),
    ),
    "grn": (CONVNEXT, GRN, ("convnextv2_tiny", {})),
    "convnextv2_atto": (
        CONVNEXT,
        {**ATTO, **GRN},
        ("convnextv2_tiny", {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)}),
    ),
    "convnextv2_base": (
        CONVNEXT,
        {**GRN, "model.depths": [3, 3, 27, 3], "model.width": 128},
        ("convnextv2_base", {}),
    ),
    "grn with layer scale": (
        CONVNEXT,
        {**NARROW, "model.block.grn": True},
        ("convnext_tiny", {"depths": (1, 2, 2, 1), "dims": (12, 24, 48, 96), "use_grn": True}),
    ),
    "rms_norm": (CONVNEXT, {"model.block.norm.kind": "rms"}, ("convnext_tiny", {"norm_layer": "rmsnorm2d"})),
    "overlapping_stem": (
        CONVNEXT,
        {"model.stem.kind": "overlapping"},
        ("convnext_tiny", {"stem_type": "overlap"}),
    ),
    "convnext_nano_ols": (
        CONVNEXT,
        {"model.depths": [2, 2, 8, 2], "model.width": 80, "model.stem.kind": "overlapping"},
        ("convnext_tiny", {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640), "stem_type": "overlap"}),
    ),
    "convnext_atto_rms": (
        CONVNEXT,
        {**ATTO, "model.block.norm.kind": "rms"},
        ("convnext_tiny", {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320), "norm_layer": "rmsnorm2d"}),
    ),
}
SIZES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(["resnet50", "convnext_tiny", "grn", "rms_norm", "overlapping_stem"], (224, 160, 97)),
    **dict.fromkeys(["convnextv2_atto", "grn with layer scale", "convnext_nano_ols"], (96, 65)),
    **dict.fromkeys(["convnext_atto_rms"], (96, 65)),
    **dict.fromkeys(["small resnet", "stage_ratio", "convnext_atto", "kernel 5", "kernel 11"], (96, 65)),
    **dict.fromkeys(["resnet101", "resnet200", "convnext_small", "convnext_base", "convnext_large"], (64,)),
    "convnextv2_base": (64,),
}


def spec_of(network: str) -> ModelSpec:
    step, overrides, _ = NETWORKS[network]
    return resolve(load_roadmap(), step, overrides=overrides).ours


def hollow(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose tensors have shapes but no values, made in no time."""
    with torch.device("meta"):
        return build().eval()


def randomize(network: nn.Module) -> None:
    """Values under which each one shows in the logits: no identity norm, no layer scale near zero, no zero
    bias.
    """
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.zero_()
        elif name.endswith(("gamma", "running_var")) or (name.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 1:
            value.normal_(0, 0.1, generator=generator)
        else:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)


def images(count: int, channels: int, size: int) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(size))


def assert_same_logits(ours: nn.Module, theirs: nn.Module, batch: Tensor, name: str) -> None:
    with torch.no_grad():
        expected, logits = theirs.eval()(batch), ours.eval()(batch)
    difference = float((logits - expected).abs().max())
    print(
        f"\n{name} at {batch.shape[-1]}: largest difference {difference:.1e}, largest logit"
        f" {float(expected.abs().max()):.1f}"
    )
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert difference <= 1e-5


def pair(network: str) -> tuple[nn.Module, nn.Module]:
    """Our network and timm's, with the same random weights."""
    spec = spec_of(network)
    name, kwargs = timm_model(spec)
    ours, theirs = (
        hollow(lambda: build_model(spec)).to_empty(device="cpu"),
        hollow(lambda: timm.create_model(name, **kwargs)),
    )
    randomize(ours)
    theirs.load_state_dict(to_timm(spec, ours.state_dict()), assign=True)
    return ours, theirs


@cache
def cached_pair(network: str) -> tuple[nn.Module, nn.Module]:
    return pair(network)


@pytest.mark.parametrize(
    ("network", "size"), [(network, size) for network, sizes in SIZES.items() for size in sizes]
)
def test_logits_are_timms(network: str, size: int) -> None:
    ours, theirs = cached_pair(network) if len(SIZES[network]) > 1 else pair(network)
    assert_same_logits(ours, theirs, images(2, spec_of(network).in_chans, size), network)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_has_its_name_and_shapes_in_timm(network: str) -> None:
    spec = spec_of(network)
    name, kwargs = timm_model(spec)
    assert (name, kwargs) == NETWORKS[network][2]
    theirs = hollow(lambda: timm.create_model(name, **kwargs)).state_dict()
    ours = to_timm(spec, hollow(lambda: build_model(spec)).state_dict())
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize("network", ["resnet50", "convnext_tiny", "grn", "rms_norm", "overlapping_stem"])
def test_a_change_of_any_weight_shows_in_the_logits(network: str) -> None:
    ours, _ = cached_pair(network)
    image = images(1, 3, 64)
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


# timm's convnext_atto has 1x1 convolutions where convnext_tiny has linear layers.
@pytest.mark.parametrize(
    ("network", "name", "dialect"),
    [
        ("small resnet", None, "timm_resnet"),
        ("convnext_atto", None, "timm_convnext"),
        ("convnext_atto", "convnext_atto", "timm_convnext"),
        ("convnextv2_atto", None, "timm_convnext"),
        ("convnextv2_atto", "convnextv2_atto", "timm_convnext"),
        ("convnext_atto_rms", "convnext_atto_rms", "timm_convnext"),
        ("convnext_nano_ols", "convnext_nano_ols", "timm_convnext_ols"),
    ],
)
def test_timms_files_load(network: str, name: str | None, dialect: str, tmp_path: Path) -> None:
    spec = spec_of(network)
    theirs = (
        timm.create_model(name) if name else timm.create_model(timm_model(spec)[0], **timm_model(spec)[1])
    )
    randomize(theirs)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = build_model(spec)
    report = load_weights(ours, tmp_path / "timm.pth")
    assert (report.dialect, report.loaded, report.fits) == (dialect, len(ours.state_dict()), True)
    assert_same_logits(ours, theirs, images(2, spec.in_chans, 64), f"{name or network} from a file")


def refusals(spec: ModelSpec) -> list[str]:
    """What `timm_model` and `to_timm` say, the same, against a network that timm does not have."""
    said = []
    for refuse in (lambda: timm_model(spec), lambda: to_timm(spec, {})):
        with pytest.raises(ConfigError) as refused:
            refuse()
        said.append([str(problem) for problem in refused.value.problems])
    assert said[0] == said[1]
    return said[0]


# For each value to which timm's architectures are fixed: another one, and how the refusal names both.
FIXED = [
    (RESNET, "stem.kind", "patchify", "is patchify; timm's ResNet has resnet"),
    (RESNET, "stem.stride", 2, "is 2; timm's ResNet has 4"),
    (RESNET, "stem.norm", False, "is false; timm's ResNet has true"),
    (
        RESNET,
        "block.order",
        ["pw1", "pw2", "spatial"],
        "is [pw1, pw2, spatial]; timm's ResNet has [pw1, spatial, pw2]",
    ),
    (RESNET, "block.hidden", 2, "is 2; timm's ResNet has 1"),
    (RESNET, "block.out", 2, "is 2; timm's ResNet has 4"),
    (RESNET, "block.spatial.kind", "depthwise", "is depthwise; timm's ResNet has conv"),
    (RESNET, "block.spatial.kernel", 5, "is 5; timm's ResNet has 3"),
    (RESNET, "block.gate", True, "is true; timm's ResNet has false"),
    (RESNET, "block.grn", True, "is true; timm's ResNet has false"),
    (RESNET, "block.squeeze_excite", 0.5, "is 0.5; timm's ResNet has null"),
    (RESNET, "block.layer_scale", 0.1, "is 0.1; timm's ResNet has null"),
    (RESNET, "block.norm.kind", "ln", "is ln; timm's ResNet has bn"),
    (RESNET, "block.norm.after", ["pw1", "pw2"], "is [pw1, pw2]; timm's ResNet has [pw1, spatial, pw2]"),
    (RESNET, "block.act.after", ["pw1"], "is [pw1]; timm's ResNet has [pw1, spatial, sum]"),
    (RESNET, "downsample", "separate", "is separate; timm's ResNet has block"),
    (RESNET, "head_norm", True, "is true; timm's ResNet has false"),
    (RESNET, "depths", [3, 4, 6], "is [3, 4, 6]; timm's ResNet has four stages"),
    (RESNET, "width", 96, "x width_mult is 96; timm's ResNet has 64"),
    (CONVNEXT, "stem.kind", "resnet", "is resnet; timm's ConvNeXt has patchify or overlapping"),
    (CONVNEXT, "stem.stride", 2, "is 2; timm's ConvNeXt has 4"),
    (CONVNEXT, "stem.norm", False, "is false; timm's ConvNeXt has true"),
    (
        CONVNEXT,
        "block.order",
        ["pw1", "spatial", "pw2"],
        "is [pw1, spatial, pw2]; timm's ConvNeXt has [spatial, pw1, pw2]",
    ),
    (CONVNEXT, "block.hidden", 2, "is 2; timm's ConvNeXt has 4"),
    (CONVNEXT, "block.out", 2, "is 2; timm's ConvNeXt has 1"),
    (CONVNEXT, "block.spatial.kind", "multiscale", "is multiscale; timm's ConvNeXt has depthwise"),
    (CONVNEXT, "block.gate", True, "is true; timm's ConvNeXt has false"),
    (CONVNEXT, "block.squeeze_excite", 0.25, "is 0.25; timm's ConvNeXt has null"),
    (CONVNEXT, "block.norm.kind", "bn", "is bn; timm's ConvNeXt has ln or rms"),
    (CONVNEXT, "block.norm.after", ["pw1", "spatial"], "is [pw1, spatial]; timm's ConvNeXt has [spatial]"),
    (CONVNEXT, "block.act.after", ["pw1", "sum"], "is [pw1, sum]; timm's ConvNeXt has [pw1]"),
    (CONVNEXT, "downsample", "block", "is block; timm's ConvNeXt has separate"),
    (CONVNEXT, "downsample_norm", False, "is false; timm's ConvNeXt has true"),
    (CONVNEXT, "head_norm", False, "is false; timm's ConvNeXt has true"),
    (CONVNEXT, "depths", [18], "is [18]; timm's ConvNeXt has four stages"),
]


@pytest.mark.parametrize(("step", "key", "value", "message"), FIXED)
def test_a_value_that_timm_does_not_have_is_refused_alone(
    step: str, key: str, value: Any, message: str
) -> None:
    assert refusals(resolve(load_roadmap(), step, overrides={f"model.{key}": value}).ours) == [
        f"model.{key} {message}"
    ]


def test_all_values_in_the_way_to_the_nearest_network_are_named() -> None:
    assert refusals(resolve(load_roadmap(), "patchify_stem").ours) == [
        "model.stem.kind is patchify; timm's ResNet has resnet",
        "model.stem.norm is false; timm's ResNet has true",
    ]
    assert len(refusals(resolve(load_roadmap(), "fewer_norms").ours)) == 4


def test_the_order_of_places_is_nothing_to_refuse() -> None:
    overrides = {"model.block.norm.after": ["pw2", "pw1", "spatial"]}
    assert timm_model(resolve(load_roadmap(), RESNET, overrides=overrides).ours) == ("resnet50", {})
