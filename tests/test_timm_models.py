"""Every step as a timm model: what timm's own tests ask of timm's models, asked of these, at a small size."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.layers import set_scriptable
from timm.models import (
    get_notrace_functions,
    get_notrace_modules,
    group_parameters,
    model_parameters,
    save_for_hf,
)
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor  # type: ignore[import-untyped]

from blocks.model import POOLS, Network, build_model
from blocks.residual import Residual
from blocks.spec import ModelSpec
from roadmap import timm_models
from roadmap.errors import ConfigError
from roadmap.steps import load_roadmaps
from roadmap.timm_models import registered
from tests.helpers import commands

ROOT = Path(__file__).resolve().parent.parent
MODELS: list[str] = timm.list_models("roadmap_*")
ISOTROPIC = [name for name in MODELS if len(registered[name].ours.depths) == 1]


def at_small_size(name: str) -> ModelSpec:
    """What a model shares with those from which it differs in width, depth and the rate of stochastic depth
    only.
    """
    spec = registered[name].ours
    depths = (2, 1)[: len(spec.depths)]
    return spec.model_copy(update={"width": 8, "depths": depths, "drop_path": min(spec.drop_path, 0.1)})


# models of one kind are the same network once they are small
KINDS = list({at_small_size(name): name for name in MODELS}.values())
PYRAMIDS = [name for name in KINDS if name not in ISOTROPIC]

each_model = pytest.mark.parametrize("name", MODELS)
each_pyramid = pytest.mark.parametrize("name", PYRAMIDS)
each_kind = pytest.mark.parametrize("name", KINDS)


def small(name: str, deepest: int = 2, **kwargs: Any) -> Any:
    """A narrow and shallow `name`, in evaluation mode, with weights under which its blocks do something."""
    torch.manual_seed(0)
    depths = [min(depth, deepest) for depth in registered[name].ours.depths]
    model = timm.create_model(name, **{"width": 8, "depths": depths} | kwargs)
    for key, value in model.state_dict().items():
        if key.endswith(("gamma", "running_var")):  # a layer scale of 1e-6 would hide the block behind it
            value.copy_(torch.linspace(0.5, 1.5, len(value)))
    return model.eval()


def smallest(name: str, **kwargs: Any) -> Any:
    """Two stages of `name`, with blocks that change the shape and one that does not,
    for what takes its time.
    """
    return small(name, depths=list(at_small_size(name).depths), **kwargs)


def images(count: int = 1, channels: int = 3, size: int = 64) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def assert_same(ours: Iterable[Any], expected: Iterable[Any]) -> None:
    """The same tensors, to the last bit."""
    torch.testing.assert_close(list(ours), list(expected), rtol=0, atol=0)


def missing_gradients(model: nn.Module) -> list[str]:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients
    return [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]


def test_all_steps_of_all_roadmaps_are_listed() -> None:
    steps = {name: list(roadmap.steps) for name, roadmap in load_roadmaps().items()}
    main = [f"roadmap_{step}" for step in steps.pop("convnext_t")]
    others = [f"roadmap_{name}_{step}" for name in steps for step in steps[name]]
    assert sorted(MODELS) == sorted(main + others)
    assert {"roadmap_resnet50", "roadmap_convnext_b_kernel_7", "roadmap_family_isotropic_s"} <= set(MODELS)
    assert not set(MODELS) & set(timm.list_models(pretrained=True))


@each_kind
def test_forward(name: str) -> None:
    model = small(name)
    logits = model(images())
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()
    assert logits.std() > 0
    model.set_grad_checkpointing()
    assert torch.equal(model(images()), logits)


@each_kind
def test_backward_gives_every_parameter_a_gradient(name: str) -> None:
    model = small(name, num_classes=42).train()
    logits = model(images(2))
    assert logits.shape == (2, 42)
    assert logits.isfinite().all()
    logits.mean().backward()
    assert missing_gradients(model) == []


@each_model
def test_default_cfg_describes_the_model(name: str) -> None:
    model, bare = small(name, 1), small(name, 1, num_classes=0, global_pool="")
    cfg, weights = model.default_cfg, model.state_dict()
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} <= weights.keys()
    assert list(weights) == [*bare.state_dict(), "head.classifier.weight", "head.classifier.bias"]
    batch = torch.zeros(1, *cfg["input_size"])
    maps = model.forward_features(batch)
    assert maps.shape == bare(batch).shape == (1, model.num_features, *cfg["pool_size"])
    assert model.forward_head(maps, pre_logits=True).shape == (1, model.head_hidden_size)
    assert model.forward_head(maps).shape == (1, cfg["num_classes"])


@each_model
def test_data_config_is_the_steps(name: str) -> None:
    config, data = registered[name], resolve_data_config(model=small(name))
    assert data["input_size"] == (3, config.data.image_size, config.data.image_size)
    assert (data["mean"], data["std"]) == (config.data.mean, config.data.std)
    assert (data["crop_pct"], data["interpolation"]) == (
        config.recipe.eval_crop_pct,
        config.recipe.eval_interpolation,
    )


def test_data_config_of_a_model_for_large_images() -> None:
    data = resolve_data_config(model=small("roadmap_family_convnext_t_384"))
    assert (data["input_size"], data["crop_pct"], data["interpolation"]) == ((3, 384, 384), 1.0, "bicubic")


@each_kind
def test_the_classifier_can_be_replaced_and_removed(name: str) -> None:
    model = small(name)
    maps = model.forward_features(images())
    vector = model.forward_head(maps, pre_logits=True)
    assert torch.equal(model.get_classifier()(vector), model(images()))
    model.reset_classifier(7)
    assert (model.num_classes, model(images()).shape) == (7, (1, 7))
    assert model.get_classifier().weight.std() > 0
    model.reset_classifier(0)
    assert (model.num_classes, model.get_classifier()(vector) is vector) == (0, True)
    assert torch.equal(model(images()), vector)
    model.reset_classifier(0, "")
    assert torch.equal(model(images()), model.head_norm(maps))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["roadmap_resnet50", "roadmap_separate_downsampling"])
def test_global_pools(name: str, pool: str) -> None:
    model = small(name, global_pool=pool)
    maps = model.forward_features(images())
    mean, largest = maps.mean((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    pooled = {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2}[pool]
    torch.testing.assert_close(model.forward_head(maps, pre_logits=True), model.head_norm(pooled).flatten(1))


def test_a_pool_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown global pool 'maximum', .* did you mean 'max'"):
        small("roadmap_gelu", global_pool="maximum")
    with pytest.raises(ValueError, match="a classifier needs a pooled vector"):
        small("roadmap_gelu", global_pool="")
    model = small("roadmap_gelu", num_classes=0, global_pool="")
    with pytest.raises(ValueError, match="a classifier needs a pooled vector"):
        model.reset_classifier(3)


def test_a_new_classifier_has_the_place_the_type_and_the_spread_of_the_old_one() -> None:
    model = small("roadmap_gelu", width=64).to(torch.float64)
    model.reset_classifier(500)
    classifier = model.get_classifier()
    assert classifier.weight.dtype == torch.float64
    assert classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not classifier.bias.any()


@each_kind
def test_features_only(name: str) -> None:
    spec, model = registered[name].ours, small(name, features_only=True)
    maps = model(images())
    assert model.feature_info.channels() == [x.shape[1] for x in maps]
    assert (
        model.feature_info.reduction() == [64 // x.shape[2] for x in maps] == [64 // x.shape[3] for x in maps]
    )
    assert model.feature_info.reduction() == [spec.stem.stride << stage for stage in range(len(spec.depths))]
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing")
@each_kind
def test_all_of_timms_ways_to_features_agree(name: str) -> None:
    expected = smallest(name, features_only=True)
    for feature_cls in ("dict", "hook", "getter", "fx"):
        model = smallest(name, features_only=True, feature_cls=feature_cls)
        maps = model(images())
        assert_same(maps.values() if isinstance(maps, dict) else maps, expected(images()))
        assert model.feature_info.channels() == expected.feature_info.channels()


@each_pyramid
def test_out_indices(name: str) -> None:
    maps = small(name, 1, features_only=True)(images())
    choices: list[Any] = [(0,), (1, 3), (0, 2), (-2, -1), 2]
    for out_indices in choices:
        chosen = small(name, 1, features_only=True, out_indices=out_indices)
        wanted = (
            maps[-out_indices:] if isinstance(out_indices, int) else [maps[index] for index in out_indices]
        )
        assert_same(chosen(images()), wanted)
        assert chosen.feature_info.channels() == [x.shape[1] for x in wanted]
        assert chosen.feature_info.reduction() == [64 // x.shape[2] for x in wanted]


@each_kind
def test_forward_intermediates(name: str) -> None:
    model, expected = small(name), small(name, features_only=True)(images())
    last, maps = model.forward_intermediates(images())
    assert_same(maps, expected)
    assert torch.equal(last, model.forward_features(images()))
    assert [x.shape[1] for x in maps] == [info["num_chs"] for info in model.feature_info]
    assert_same(model.forward_intermediates(images(), intermediates_only=True), expected)
    model.set_grad_checkpointing()
    assert torch.equal(model.forward_intermediates(images())[0], last)


@pytest.mark.parametrize(
    ("indices", "stages"),
    [(None, [0, 1, 2, 3]), (2, [2, 3]), (4, [0, 1, 2, 3]), ([0, 2], [0, 2]), ([-3], [1])],
)
def test_forward_intermediates_takes_the_maps_asked_for(indices: Any, stages: list[int]) -> None:
    model = small("roadmap_kernel_7")
    maps = model.forward_intermediates(images(), intermediates_only=True)
    last, some = model.forward_intermediates(images(), indices)
    assert_same(some, [maps[stage] for stage in stages])
    assert torch.equal(last, maps[3])
    last, some = model.forward_intermediates(images(), indices, stop_early=True)
    assert_same(some, [maps[stage] for stage in stages])
    assert torch.equal(last, maps[stages[-1]])


@pytest.mark.parametrize("indices", [5, 0, [4], [-5], []])
def test_a_stage_that_there_is_not_is_refused(indices: Any) -> None:
    model = small("roadmap_kernel_7")
    with pytest.raises(IndexError):
        model.forward_intermediates(images(), indices)
    with pytest.raises(IndexError):
        model.prune_intermediate_layers(indices)


def test_maps_come_in_one_format_only() -> None:
    with pytest.raises(ValueError, match="NHWC"):
        small("roadmap_kernel_7").forward_intermediates(images(), output_fmt="NHWC")


@each_pyramid
def test_prune_intermediate_layers(name: str) -> None:
    whole, model = small(name), small(name)
    maps = whole.forward_intermediates(images(), intermediates_only=True)
    assert model.prune_intermediate_layers([-4, 1]) == [0, 1]
    assert {key.split(".")[1] for key in model.state_dict() if key.startswith("stages")} == {"0", "1"}
    assert not [key for key in model.state_dict() if key.startswith("head")]
    assert_same(model.forward_intermediates(images(), [0, 1], intermediates_only=True), maps[:2])
    assert model.num_features == model.head_hidden_size == maps[1].shape[1]
    assert torch.equal(model(images()), maps[1])
    model.reset_classifier(5, "avg")
    assert model(images()).shape == (1, 5)


def test_pruning_can_keep_the_head_of_the_last_stage() -> None:
    model = small("roadmap_separate_downsampling")
    logits = model(images())
    assert model.prune_intermediate_layers(2, prune_head=False) == [2, 3]
    assert torch.equal(model(images()), logits)
    model.prune_intermediate_layers(2, prune_norm=True, prune_head=False)
    assert [key for key in model.state_dict() if key.startswith("head")] == [
        "head.classifier.weight",
        "head.classifier.bias",
    ]
    model.prune_intermediate_layers([1], prune_head=False)  # the last stage goes, and its head with it
    assert not [key for key in model.state_dict() if key.startswith("head")]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@each_kind
def test_torchscript(name: str) -> None:
    with set_scriptable(True):
        model = smallest(name)
    recorded = torch.jit.trace(model, images(2))  # type: ignore[no-untyped-call]
    assert torch.equal(recorded(images()), model(images()))
    model.set_grad_checkpointing()
    assert torch.equal(torch.jit.script(model)(images()), model(images()))


@each_kind
def test_export(name: str) -> None:
    model = smallest(name)
    exported = torch.export.export(model, (images(),))
    assert torch.equal(exported.module()(images()), model(images()))


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:NOTE. The nodes obtained by tracing"
)
@each_kind
def test_fx(name: str) -> None:
    with set_scriptable(True):
        model = smallest(name)
    options = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    nodes = [*(info["module"] for info in model.feature_info), model.default_cfg["classifier"]]
    graph = create_feature_extractor(model, nodes, tracer_kwargs=options).eval()
    expected = [*model.forward_intermediates(images(), intermediates_only=True), model(images())]
    assert_same(graph(images()).values(), expected)
    assert_same(torch.jit.script(graph)(images()).values(), expected)
    graph.train()(images(2))[nodes[-1]].mean().backward()
    assert graph.state_dict().keys() == model.state_dict().keys()
    assert missing_gradients(graph) == []


@each_kind
def test_other_channels_and_classes(name: str) -> None:
    model = small(name, in_chans=5, num_classes=3)
    assert model(images(channels=5)).shape == (1, 3)
    assert (model.in_chans, model.num_classes) == (5, 3)
    assert model.stem.conv.in_channels == 5


def results(model: nn.Module, checkpointing: bool) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    """Logits, gradients and running statistics after two iterations on a copy of `model`."""
    model = copy.deepcopy(model).train()
    model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
    torch.manual_seed(2)
    for _ in range(2):
        logits = model(images(4))
        logits.square().mean().backward()
    return logits, [parameter.grad for parameter in model.parameters()], list(model.buffers())


@each_kind
def test_gradient_checkpointing_changes_no_result(name: str) -> None:
    model = small(name, drop_path_rate=0.3, num_classes=10)
    (logits, gradients, buffers), (expected, expected_gradients, expected_buffers) = (
        results(model, True),
        results(model, False),
    )
    assert torch.equal(logits, expected)
    assert all(gradient is not None for gradient in gradients)
    assert_same(gradients, expected_gradients)
    assert_same(buffers, expected_buffers)


def saved_for_backward(model: Any) -> int:
    """How many numbers a forward pass keeps."""
    kept: list[int] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(images())
    return sum(kept)


def test_gradient_checkpointing_saves_memory() -> None:
    model = small("roadmap_layer_norm").train()
    without = saved_for_backward(model)
    model.set_grad_checkpointing()
    assert saved_for_backward(model) < without / 2
    model.set_grad_checkpointing(False)
    assert saved_for_backward(model) == without


def test_a_compiled_network_with_checkpoints_counts_each_batch_once() -> None:
    model = small("roadmap_resnet50", depths=[1], num_classes=10).train()
    reference = copy.deepcopy(model)
    model.set_grad_checkpointing()
    for network in (torch.compile(model, backend="aot_eager"), reference):
        network(images(4)).square().mean().backward()
    for ours, expected in zip([*model.buffers()], [*reference.buffers()], strict=True):
        torch.testing.assert_close(ours, expected)
    for ours, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


def depth_of(parameter: str, depths: list[int]) -> int:
    """How many groups lie before that of a parameter: the stem is the first, then come all blocks, then the
    head.
    """
    part, *rest = parameter.split(".")
    if part == "stages":
        stage, kind, block = int(rest[0]), rest[1], int(rest[2]) if rest[1] == "blocks" else 0
        assert kind in ("blocks", "downsample")
        return 1 + sum(depths[:stage]) + block
    return {"stem": 0, "head_norm": 1 + sum(depths), "head": 1 + sum(depths)}[part]


@each_kind
def test_parameters_are_grouped_from_stem_to_head(name: str) -> None:
    model = small(name, deepest=3)
    depths = [len(stage.blocks) for stage in model.stages]
    names = [parameter for parameter, _ in model.named_parameters()]
    groups = group_parameters(model, model.group_matcher())
    assert sorted(parameter for group in groups.values() for parameter in group) == sorted(names)
    assert groups == {
        depth: [n for n in names if depth_of(n, depths) == depth] for depth in range(sum(depths) + 2)
    }
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    stages = [[n for n in names if n.startswith(f"stages.{stage}.")] for stage in range(len(depths))]
    stem, head = ([n for n in names if n.startswith(part)] for part in ("stem", "head"))
    assert list(coarse.values()) == [stem, *stages, head]


@each_kind
def test_layer_wise_learning_rates(name: str) -> None:
    model = small(name, deepest=3)
    depths = [len(stage.blocks) for stage in model.stages]
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.8)
    scales = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for parameter, value in model.named_parameters():
        scale, decay = scales.pop(id(value))
        assert scale == pytest.approx(0.8 ** (sum(depths) + 1 - depth_of(parameter, depths))), parameter
        assert decay == (0.05 if value.ndim > 1 else 0.0), parameter
    assert not scales


@each_kind
def test_all_but_the_head_can_be_asked_for(name: str) -> None:
    model = small(name)
    assert list(map(id, model_parameters(model, exclude_head=True))) == list(map(id, model.parameters()))[:-2]
    assert [*model.get_classifier().parameters()] == [*model.parameters()][-2:]


@each_kind
def test_weights_fit_a_model_with_other_channels_and_classes(name: str) -> None:
    source = small(name, num_classes=1000)
    weights = {"state_dict": source.state_dict()}
    same = small(name, pretrained=True, pretrained_cfg_overlay=weights)
    assert torch.equal(same(images()), source(images()))
    gray = small(
        name, pretrained=True, pretrained_cfg_overlay=copy.deepcopy(weights), in_chans=1, num_classes=5
    )
    torch.testing.assert_close(gray.stem.conv.weight, source.stem.conv.weight.sum(1, keepdim=True))
    assert gray(images(channels=1)).shape == (1, 5)


def test_weights_come_from_a_checkpoint(tmp_path: Path) -> None:
    source = small("roadmap_gelu", num_classes=10)
    with torch.no_grad():
        source.stem.conv.weight.mul_(2)
    torch.save(source.state_dict(), tmp_path / "gelu.pth")
    model = timm.create_model(
        "roadmap_gelu", width=8, depths=[2, 2, 2, 2], num_classes=10, checkpoint_path=tmp_path / "gelu.pth"
    ).eval()
    assert torch.equal(model(images()), source(images()))


@each_kind
def test_a_model_saved_as_for_the_hub_comes_back(name: str, tmp_path: Path) -> None:
    source = smallest(name, num_classes=7, global_pool="max", block={"spatial": {"kernel": 5}})
    save_for_hf(source, tmp_path)
    assert torch.equal(
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images()), source(images())
    )
    backbone = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    assert_same(backbone(images()), source.forward_intermediates(images(), intermediates_only=True))


def test_there_are_no_published_weights() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for roadmap_gelu"):
        small("roadmap_gelu", pretrained=True)


@each_model
def test_the_model_is_the_one_that_is_trained(name: str) -> None:
    spec = registered[name].ours.model_copy(
        update={"depths": (1,) * len(registered[name].ours.depths), "width": 8}
    )
    torch.manual_seed(0)
    expected = build_model(spec)
    torch.manual_seed(0)
    model = timm.create_model(name, width=8, depths=spec.depths)
    assert isinstance(model, Network)
    weights, expected_weights = model.state_dict(), expected.state_dict()
    assert list(weights) == list(expected_weights)
    assert all(torch.equal(weights[key], value) for key, value in expected_weights.items())


def drop_rates(model: nn.Module) -> list[float]:
    return [
        float(getattr(block.drop_path, "drop_prob", 0.0))
        for block in model.modules()
        if isinstance(block, Residual)
    ]


def test_stochastic_depth_is_the_steps_unless_it_is_given() -> None:
    assert drop_rates(small("roadmap_gelu", 1)) == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])
    assert drop_rates(small("roadmap_gelu", 1, drop_path_rate=0.3)) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_rates(small("roadmap_gelu", 1, drop_path_rate=0.0)) == [0, 0, 0, 0]


def test_drop_rate_is_the_dropout_before_the_classifier() -> None:
    model = small("roadmap_gelu", drop_rate=0.25)
    maps = model.forward_features(images(8))
    kept = model.forward_head(maps, pre_logits=True)
    vectors = model.train().forward_head(maps, pre_logits=True)
    dropped = (vectors == 0) & (kept != 0)
    assert 0.15 < dropped.float().mean() < 0.35
    torch.testing.assert_close(vectors[~dropped], kept[~dropped] / 0.75)


def test_keywords_are_leaves_of_the_model_section() -> None:
    model = timm.create_model(
        "roadmap_separate_downsampling",
        width_mult=0.125,
        depths=[1, 2],
        block={"layer_scale": None, "spatial": {"kernel": 5}},
    )
    assert [len(stage.blocks) for stage in model.stages] == [1, 2]
    assert model.stem.conv.out_channels == 12
    assert model.stages[0].blocks[0].body.spatial.kernel_size == (5, 5)
    assert not [key for key in model.state_dict() if "gamma" in key]
    dotted = timm.create_model(
        "roadmap_separate_downsampling", **{"stem.stride": 2, "width": 8, "block.act.after": ["pw1", "sum"]}
    )
    assert dotted.stem.conv.stride == (2, 2)
    assert hasattr(dotted.stages[0].blocks[0].after, "act")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"width_mul": 0.5}, "unknown keyword 'width_mul'; did you mean 'width_mult'?"),
        ({"out_indexes": (0,)}, "unknown keyword 'out_indexes'; did you mean 'out_indices'?"),
        (
            {"block": {"spatial": {"kernal": 3}}},
            "unknown keyword 'block.spatial.kernal'; did you mean 'block.spatial.kernel'?",
        ),
        ({"output_stride": 8}, "unknown keyword 'output_stride'; there are in_chans, num_classes, depths,"),
        ({"depths": [1, 0]}, "depths.1: input should be greater than or equal to 1, not 0"),
        ({"depths": 3}, "depths: input should be a valid list, not 3"),
        ({"depths.first": 3}, "depths: input should be a valid list, not"),
        ({"width_mult": 0.01}, "width 96 x 0.01 is 1 channels; at least 4 are needed"),
        ({"num_classes": -1}, "num_classes: input should be greater than or equal to 1, not -1"),
        ({"block.norm.kind": "layer"}, "block.norm.kind: unknown norm kind 'layer'"),
    ],
)
def test_a_keyword_that_is_wrong_is_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        timm.create_model("roadmap_gelu", **keywords)
    assert str(caught.value).startswith(f"create_model('roadmap_gelu'): {message}")


def test_a_steps_file_of_ones_own(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "mine.yaml"
    step = (
        "{name: mine_swish, title: swish, parent: separate_downsampling, set: {model.block.act.kind: silu}}"
    )
    path.write_text(
        f"extends: steps.yaml\nroadmaps:\n  convnext_t:\n    steps:\n      - {step}\n", encoding="utf-8"
    )
    names = timm_models.register(path)
    assert set(names) == {*MODELS, "roadmap_mine_swish"}
    assert not list(recwarn)
    model = small("roadmap_mine_swish")
    assert isinstance(model.stages[0].blocks[0].body.pw1_act, nn.SiLU)


def test_another_network_under_a_known_name_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    form = (
        "extends: steps.yaml\nroadmaps:\n  mine:\n    title: mine\n    steps:\n      - {name: one, title:"
        " one, set: {model.width: WIDTH}}\n"
    )
    for width in (32, 48):
        path.write_text(form.replace("WIDTH", str(width)), encoding="utf-8")
        if width == 48:
            with pytest.warns(UserWarning, match="Overwriting roadmap_mine_one in registry"):
                timm_models.register(path)
        else:
            timm_models.register(path)
        assert timm.create_model("roadmap_mine_one", depths=[1]).stem.conv.out_channels == width


PROBE = """
import timm, roadmap.timm_models
model = timm.create_model("roadmap_separate_downsampling")
print(sum(parameter.numel() for parameter in model.parameters()))
"""


def test_one_import_is_all_it_takes() -> None:
    done = commands.run([sys.executable, "-c", PROBE], cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("28589128", "")
