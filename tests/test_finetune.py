"""Fine-tuning: learning rates that fall from layer to layer, and trainings that start from weights that are
named by their bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blocks import build_model
from blocks.model import Network
from roadmap import ROOT
from roadmap.cli.arguments import select
from roadmap.config import RunConfig
from roadmap.errors import ConfigError
from roadmap.records import RunDir, prepare
from roadmap.signals import Stopped, StopSignals
from roadmap.steps import load_roadmap, resolve
from roadmap.train import train
from roadmap.training.initial_weights import check_init, initialize_from, with_init_digest
from roadmap.training.optim import build_optimizer, build_schedule, layer_groups
from roadmap.weight_files import digest_of
from roadmap.weights import DIALECTS, copy_weights, load_weights, read_state_dict
from slurm.cluster import Cluster
from slurm.submission import plan, with_seeds
from slurm.submit import parser
from tests.helpers.stopping import StopAt
from tests.test_timm_parity import randomize
from tests.test_weights import Original

CONVNEXT = {"model.width": 8, "model.width_mult": 1.0}


def config_of(
    overrides: dict[str, Any], step: str = "separate_downsampling", roadmap: str = "convnext_t"
) -> RunConfig:
    return resolve(load_roadmap(name=roadmap), step, overrides=overrides)


def network_of(config: RunConfig) -> Network:
    torch.manual_seed(0)
    return build_model(config.ours)


def groups_of(config: RunConfig, by: Any = "layer") -> dict[str, int]:
    """The groups by the modules that hold them whole; a module in two groups fails."""
    found: dict[str, set[int]] = {}
    for name, group in layer_groups(network_of(config), by).items():
        module = re.match(r"stem|head_norm|head|stages\.\d+\.(downsample|blocks\.\d+)", name)
        assert module, name
        found.setdefault(module[0], set()).add(group)
    assert all(len(groups) == 1 for groups in found.values()), found
    return {module: groups.pop() for module, groups in found.items()}


# Groups of layers, written down by hand.

T = {
    "stem": 0,
    "stages.0.blocks.0": 1, "stages.0.blocks.1": 1, "stages.0.blocks.2": 1,
    "stages.1.downsample": 2, "stages.1.blocks.0": 2, "stages.1.blocks.1": 2, "stages.1.blocks.2": 2,
    "stages.2.downsample": 3, "stages.2.blocks.0": 3, "stages.2.blocks.1": 3, "stages.2.blocks.2": 3,
    "stages.2.blocks.3": 4, "stages.2.blocks.4": 4, "stages.2.blocks.5": 4,
    "stages.2.blocks.6": 5, "stages.2.blocks.7": 5, "stages.2.blocks.8": 5,
    "stages.3.downsample": 6, "stages.3.blocks.0": 6, "stages.3.blocks.1": 6, "stages.3.blocks.2": 6,
    "head_norm": 7, "head": 7,
}  # fmt: skip
SBL = {
    "stem": 0,
    "stages.0.blocks.0": 1, "stages.0.blocks.1": 1, "stages.0.blocks.2": 1,
    "stages.1.downsample": 2, "stages.1.blocks.0": 2, "stages.1.blocks.1": 2, "stages.1.blocks.2": 2,
    "stages.2.downsample": 3, "stages.2.blocks.0": 3, "stages.2.blocks.1": 3, "stages.2.blocks.2": 3,
    "stages.2.blocks.3": 4, "stages.2.blocks.4": 4, "stages.2.blocks.5": 4,
    "stages.2.blocks.6": 5, "stages.2.blocks.7": 5, "stages.2.blocks.8": 5,
    "stages.2.blocks.9": 6, "stages.2.blocks.10": 6, "stages.2.blocks.11": 6,
    "stages.2.blocks.12": 7, "stages.2.blocks.13": 7, "stages.2.blocks.14": 7,
    "stages.2.blocks.15": 8, "stages.2.blocks.16": 8, "stages.2.blocks.17": 8,
    "stages.2.blocks.18": 9, "stages.2.blocks.19": 9, "stages.2.blocks.20": 9,
    "stages.2.blocks.21": 10, "stages.2.blocks.22": 10, "stages.2.blocks.23": 10,
    "stages.2.blocks.24": 11, "stages.2.blocks.25": 11, "stages.2.blocks.26": 11,
    "stages.3.downsample": 12, "stages.3.blocks.0": 12, "stages.3.blocks.1": 12, "stages.3.blocks.2": 12,
    "head_norm": 13, "head": 13,
}  # fmt: skip
RESNET50 = {  # the last block of a stage of four is a group of its own
    "stem": 0,
    "stages.0.blocks.0": 1, "stages.0.blocks.1": 1, "stages.0.blocks.2": 1,
    "stages.1.blocks.0": 2, "stages.1.blocks.1": 2, "stages.1.blocks.2": 2, "stages.1.blocks.3": 3,
    "stages.2.blocks.0": 4, "stages.2.blocks.1": 4, "stages.2.blocks.2": 4,
    "stages.2.blocks.3": 5, "stages.2.blocks.4": 5, "stages.2.blocks.5": 5,
    "stages.3.blocks.0": 6, "stages.3.blocks.1": 6, "stages.3.blocks.2": 6,
    "head": 7,
}  # fmt: skip
ISOTROPIC = {
    "stem": 0,
    "stages.0.blocks.0": 1, "stages.0.blocks.1": 1, "stages.0.blocks.2": 1,
    "stages.0.blocks.3": 2, "stages.0.blocks.4": 2, "stages.0.blocks.5": 2,
    "stages.0.blocks.6": 3, "stages.0.blocks.7": 3, "stages.0.blocks.8": 3,
    "stages.0.blocks.9": 4, "stages.0.blocks.10": 4, "stages.0.blocks.11": 4,
    "stages.0.blocks.12": 5, "stages.0.blocks.13": 5, "stages.0.blocks.14": 5,
    "stages.0.blocks.15": 6, "stages.0.blocks.16": 6, "stages.0.blocks.17": 6,
    "head_norm": 7, "head": 7,
}  # fmt: skip


def narrow(step: str, roadmap: str) -> RunConfig:
    return resolve(load_roadmap(name=roadmap), step, overrides={"model.width_mult": 0.125})


@pytest.mark.parametrize(
    ("step", "roadmap", "table"),
    [
        ("separate_downsampling", "convnext_t", T),
        ("convnext_t_384", "family", T),
        ("convnext_s_384", "family", SBL),
        ("convnext_b_384", "family", SBL),
        ("convnext_l_384", "family", SBL),
        ("resnet50", "convnext_t", RESNET50),
        ("isotropic_s", "family", ISOTROPIC),
    ],
)
def test_the_groups_of_layers_are_the_ones_written_down(
    step: str, roadmap: str, table: dict[str, int]
) -> None:
    assert groups_of(narrow(step, roadmap)) == table


def test_a_group_can_be_a_stage() -> None:
    stages = {"stem": 0, "head_norm": 5, "head": 5} | {
        name: int(name[7]) + 1 for name in T if name.startswith("stages")
    }
    assert groups_of(narrow("separate_downsampling", "convnext_t"), "stage") == stages
    assert set(groups_of(narrow("isotropic_s", "family"), "stage").values()) == {0, 1, 2}


def original_layer(name: str) -> int:
    """facebookresearch/ConvNeXt, optim_factory.get_num_layer_for_convnext,
    word for word but for the types.
    """
    num_max_layer = 12
    if name.startswith("downsample_layers"):
        stage_id = int(name.split(".")[1])
        return {0: 0, 1: 2, 2: 3, 3: 12}[stage_id]
    if name.startswith("stages"):
        stage_id, block_id = int(name.split(".")[1]), int(name.split(".")[2])
        return {0: 1, 1: 2, 2: 3 + block_id // 3, 3: 12}[stage_id]
    return num_max_layer + 1


def test_the_groups_of_a_deep_convnext_are_the_original_repositorys() -> None:
    rename = DIALECTS["original_convnext"].rename
    groups = layer_groups(network_of(narrow("convnext_s_384", "family")), "layer")
    assert groups == {name: original_layer(rename(name)) for name in groups}


def test_a_network_that_is_neither_ours_nor_timms_has_no_groups() -> None:
    with pytest.raises(AttributeError, match="group_matcher"):
        layer_groups(nn.ModuleDict({"neck": nn.Linear(2, 2)}), "layer")


# The optimizer.


def members(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def test_without_layer_decay_the_optimizer_is_what_it_always_was() -> None:
    config = config_of(CONVNEXT)
    network = network_of(config)
    optimizer = build_optimizer(config.recipe, network)
    flat = [
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim <= 1 or name.endswith(".bias")
    ]
    assert members(optimizer, network) == [
        flat,
        [name for name, _ in network.named_parameters() if name not in flat],
    ]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
    assert all("lr_scale" not in group for group in optimizer.param_groups)
    config = config_of({"model.width": 8}, "resnet50")
    network = network_of(config)
    optimizer = build_optimizer(config.recipe, network)
    assert members(optimizer, network) == [[name for name, _ in network.named_parameters()]]
    assert "lr_scale" not in optimizer.param_groups[0]


def tuned(**more: Any) -> RunConfig:
    recipe = {
        "layer_decay": 0.7,
        "lr": 1e-3,
        "lr_batch": 64,
        "global_batch": 64,
        "local_batch": 64,
        "weight_decay": 0.05,
    } | more
    return config_of(CONVNEXT | {f"recipe.{key}": value for key, value in recipe.items()})


def test_each_parameter_has_the_scale_of_its_group_and_the_decay_of_its_kind() -> None:
    config = tuned()
    network = network_of(config)
    optimizer = build_optimizer(config.recipe, network)
    found = members(optimizer, network)
    assert sorted(name for group in found for name in group) == sorted(
        name for name, _ in network.named_parameters()
    )
    shapes = {name: parameter.ndim for name, parameter in network.named_parameters()}
    pattern = r"stem|head_norm|head|stages\.\d+\.(downsample|blocks\.\d+)"
    for group, names in zip(optimizer.param_groups, found, strict=True):
        modules = {re.match(pattern, name)[0] for name in names}  # type: ignore[index]
        assert {T[module] for module in modules} == {7 - round(math.log(group["lr_scale"], 0.7))}
        assert group["lr_scale"] == 0.7 ** (7 - T[modules.pop()])
        assert {0.0 if shapes[name] == 1 else 0.05 for name in names} == {group["weight_decay"]}
    assert optimizer.param_groups[0]["lr_scale"] == 1.0


def test_a_layer_scale_is_a_vector_and_is_not_decayed() -> None:
    for config in (tuned(), config_of(CONVNEXT)):
        network = network_of(config)
        optimizer = build_optimizer(config.recipe, network)
        gammas = {id(parameter) for name, parameter in network.named_parameters() if name.endswith("gamma")}
        assert len(gammas) == 18
        assert {parameter.ndim for parameter in network.parameters() if id(parameter) in gammas} == {1}
        decayed = {
            id(parameter)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if group["weight_decay"]
        }
        assert decayed
        assert not gammas & decayed


def test_a_recipe_may_decay_norms_and_biases_too() -> None:
    config = tuned(decay_norm_and_bias=True, optimizer="sgd")
    optimizer = build_optimizer(config.recipe, network_of(config))
    assert type(optimizer) is torch.optim.SGD
    assert [(group["weight_decay"], group["momentum"]) for group in optimizer.param_groups] == [
        (0.05, 0.9)
    ] * 8


def test_what_is_frozen_is_not_trained() -> None:
    config = tuned()
    network = network_of(config)
    network.stem.requires_grad_(False)
    optimizer = build_optimizer(config.recipe, network)
    trained = {name for group in members(optimizer, network) for name in group}
    assert trained == {name for name, _ in network.named_parameters() if not name.startswith("stem")}
    assert min(group["lr_scale"] for group in optimizer.param_groups) == 0.7**6


def cosine(iteration: int) -> float:
    """8 iterations of warm-up, 32 of cosine, from 1e-3 to 1e-5."""
    if iteration < 8:
        return 1e-3 * iteration / 8
    return 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * (iteration - 8) / 32))


@pytest.mark.parametrize("iteration", [0, 1, 7, 8, 20, 39])
def test_the_schedule_keeps_the_distance_between_the_groups(iteration: int) -> None:
    config = tuned(epochs=10, warmup_epochs=2.0, min_lr=1e-5)
    optimizer = build_optimizer(config.recipe, network_of(config))
    build_schedule(config.recipe, optimizer, 4).step_update(iteration)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx(
        [cosine(iteration) * 0.7**below for below in range(8) for _ in range(2)], rel=1e-9
    )


@pytest.mark.parametrize(("iteration", "rate"), [(0, 1e-3), (11, 1e-3), (12, 1e-4), (24, 1e-5)])
def test_a_schedule_of_steps_keeps_it_too(iteration: int, rate: float) -> None:
    config = tuned(
        epochs=10,
        schedule="step",
        warmup_epochs=0.0,
        step_epochs=3.0,
        optimizer="sgd",
        layer_decay_by="stage",
    )
    optimizer = build_optimizer(config.recipe, network_of(config))
    build_schedule(config.recipe, optimizer, 4).step_update(iteration)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([rate * 0.7**below for below in range(6) for _ in range(2)], rel=1e-9)


def test_the_scales_survive_a_checkpoint() -> None:
    config = tuned()
    network = network_of(config)
    saved = build_optimizer(config.recipe, network).state_dict()
    other = build_optimizer(config.recipe, network)
    for group in other.param_groups:
        group["lr_scale"] = 0.0
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr_scale"] == 1.0


# What a network takes over.

TINY = {"model.depths": [1, 2, 2, 1], "model.width": 8, "recipe.global_batch": 64, "recipe.local_batch": 64}


def tiny(source: Path | str | None = None, **more: Any) -> RunConfig:
    start = {} if source is None else {"system.init_from": str(source)}
    return with_init_digest(
        config_of(TINY | start | {key.replace("__", "."): value for key, value in more.items()})
    )


def released(path: Path, classes: int) -> nn.Module:
    """A network of the original repository's, in a file as it releases them."""
    torch.manual_seed(1)
    theirs = Original((1, 2, 2, 1), 8, classes)
    randomize(theirs)
    torch.save({"model": theirs.state_dict()}, path)
    return theirs


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("classes", [1000, 21841])
@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_a_classifier_of_other_classes_starts_fresh(
    classes: int, scale: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    released(tmp_path / "big.pth", classes)
    config = tiny(tmp_path / "big.pth", model__num_classes=10, recipe__head_init_scale=scale)
    network = network_of(config)
    fresh = state_of(network)
    with caplog.at_level(logging.WARNING):
        initialize_from(network, config)
    assert caplog.messages == [
        f"the classifier starts fresh, for 10 classes: {tmp_path / 'big.pth'} has {classes}"
    ]
    after, rename = network.state_dict(), DIALECTS["original_convnext"].rename
    there = read_state_dict(tmp_path / "big.pth")
    for name, value in after.items():
        if name.startswith("head.classifier"):
            assert torch.equal(value, fresh[name] * scale), name
        else:
            assert torch.equal(value.flatten(), there[rename(name)].flatten()), name
    assert bool(after["head.classifier.weight"].any())


@pytest.mark.parametrize("dialect", ["ours", "timm_convnext", "original_convnext"])
@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_a_missing_classifier_starts_fresh(
    dialect: str, scale: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = network_of(tiny())
    randomize(there)
    state = {name: value for name, value in state_of(there).items() if not name.startswith("head.classifier")}
    torch.save(
        {DIALECTS[dialect].rename(name): value for name, value in state.items()}, tmp_path / "headless.pth"
    )
    config = tiny(tmp_path / "headless.pth", model__num_classes=10, recipe__head_init_scale=scale)
    network = network_of(config)
    fresh = state_of(network)
    with caplog.at_level(logging.WARNING):
        initialize_from(network, config)
    assert caplog.messages == [
        f"the classifier starts fresh, for 10 classes: {tmp_path / 'headless.pth'} has no classifier"
    ]
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name] if name in state else fresh[name] * scale), name
    # but not to be evaluated
    with pytest.raises(ConfigError, match=r"missing: head\.classifier\.weight, head\.classifier\.bias"):
        load_weights(network, tmp_path / "headless.pth")


def test_a_head_of_imagenet_22k_is_loaded_by_a_network_that_has_one(tmp_path: Path) -> None:
    theirs = released(tmp_path / "big.pth", 21841)
    network = network_of(tiny(model__num_classes=21841))
    initialize_from(network, tiny(tmp_path / "big.pth", model__num_classes=21841))
    assert torch.equal(network.state_dict()["head.classifier.weight"], theirs.state_dict()["head.weight"])
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(network.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_classifier_that_is_loaded_is_not_scaled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = released(tmp_path / "ten.pth", 10)
    config = tiny(tmp_path / "ten.pth", model__num_classes=10, recipe__head_init_scale=0.001)
    network = network_of(config)
    initialize_from(network, config)
    assert torch.equal(network.state_dict()["head.classifier.weight"], theirs.state_dict()["head.weight"])
    assert torch.equal(network.state_dict()["head.classifier.bias"], theirs.state_dict()["head.bias"])
    assert caplog.messages == []


def test_without_weights_only_the_classifier_is_scaled() -> None:
    network = network_of(tiny())
    before = state_of(network)
    initialize_from(network, tiny())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    initialize_from(network, tiny(recipe__head_init_scale=0.5))
    scaled = {
        name: value * 0.5 if name.startswith("head.classifier") else value for name, value in before.items()
    }
    assert all(torch.equal(value, scaled[name]) for name, value in network.state_dict().items())
    assert any(not torch.equal(scaled[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state: state.pop("stem.norm.bias"), "missing: stem.norm.bias"),
        (lambda state: state.update(extra=torch.ones(1)), "unexpected: extra"),
        (
            lambda state: state.update({"stem.conv.weight": torch.ones(8, 1, 4, 4)}),
            r"mis-shaped: stem.conv.weight is \[8, 1, 4, 4\] there",
        ),
        (lambda state: state.pop("head.classifier.bias"), "missing: head.classifier.bias"),
    ],
)
def test_anything_else_that_does_not_fit_is_refused_and_nothing_is_copied(
    spoil: Any, said: str, tmp_path: Path
) -> None:
    there = network_of(tiny(model__num_classes=7))
    randomize(there)
    state = state_of(there)
    spoil(state)
    torch.save(state, tmp_path / "odd.pth")
    config = tiny(tmp_path / "odd.pth", model__num_classes=10)
    network = network_of(config)
    before = state_of(network)
    with pytest.raises(ConfigError, match=rf"(?s)^{tmp_path / 'odd.pth'} does not fit: .*{said}"):
        initialize_from(network, config)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_only_a_tensor_that_may_differ_is_left_out(tmp_path: Path) -> None:
    network = network_of(tiny(model__num_classes=10))
    there = state_of(network_of(tiny(model__num_classes=7)))
    with pytest.raises(ConfigError, match="does not fit"):
        copy_weights(network, there, "x", may_differ=["head.classifier.weight"])
    assert (
        len(
            copy_weights(
                network, there, "x", may_differ=["head.classifier.weight", "head.classifier.bias"]
            ).misshaped
        )
        == 2
    )


# Which weights they are.


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_a_digest_is_of_the_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a b.pth"
    path.write_bytes(b"one")
    assert digest_of(path) == digest_of(str(path)) == digest_of(path.as_uri()) == "7692c3ad3540bb80"
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert digest_of(path) == sha(path) == "3fc4ccfe745870e2"


def error_of_check(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as refused:
        check_init(config)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_weights_that_are_not_the_ones_named_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"one")
    config = tiny(path)
    assert config.recipe.init_digest == "7692c3ad3540bb80"
    check_init(config)
    path.write_bytes(b"another")
    assert re.match(
        rf"{path} has the digest {sha(path)}, and recipe.init_digest wants 7692c3ad3540bb80",
        error_of_check(config),
    )
    with pytest.raises(ConfigError, match="wants 7692c3ad3540bb80"):
        initialize_from(network_of(config), config)
    path.unlink()
    assert error_of_check(config) == f"{path} cannot be read: No such file or directory"


def test_a_digest_and_a_place_need_each_other(tmp_path: Path) -> None:
    alone = config_of({"recipe.init_digest": "0123456789abcdef"})
    assert error_of_check(alone).startswith(
        "recipe.init_digest names the weights 0123456789abcdef; --set system.init_from=FILE"
    )
    (tmp_path / "w.pth").write_bytes(b"one")
    nameless = config_of({"system.init_from": str(tmp_path / "w.pth")})
    assert (
        error_of_check(nameless)
        == "recipe.init_digest is not set, and system.init_from is; --init-from sets both, to"
        " 7692c3ad3540bb80"
    )
    assert with_init_digest(alone) is alone


def test_layer_decay_without_weights_is_refused_when_training_starts(tmp_path: Path) -> None:
    config = config_of({}, "convnext_t_384", "family")
    assert config.recipe.layer_decay == 0.7
    said = error_of_check(config)
    assert said.startswith(
        "convnext_t_384: recipe.layer_decay is 0.7, which is for trained weights, and there are none to start"
        " from"
    )
    assert "--init-from FILE" in said
    assert "--set recipe.layer_decay=1 " in said
    check_init(config_of({"recipe.layer_decay": 1.0}, "convnext_t_384", "family"))
    (tmp_path / "w.pth").write_bytes(b"one")
    check_init(
        with_init_digest(config_of({"system.init_from": str(tmp_path / "w.pth")}, "convnext_t_384", "family"))
    )


# From one run to another.

DIGITS = {"data.copies": 1, "model.depths": [1, 1, 1, 1], "recipe.epochs": 1}


def digits(**more: Any) -> RunConfig:
    overrides = DIGITS | {key.replace("__", "."): value for key, value in more.items()}
    return with_init_digest(
        resolve(load_roadmap(), "separate_downsampling", profile="digits", overrides=overrides)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    config = digits(recipe__ema=0.5)
    run = prepare(tmp_path_factory.mktemp("source"), config)
    assert train(config, run.path).status == "done"
    return run


def newest(run: RunDir) -> Path:
    return max(run.checkpoints.glob("*.pt"))


def engine_of(run: RunDir) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(newest(run), weights_only=True)["engine"]
    return state


@pytest.mark.parametrize(
    ("kind", "part", "said"),
    [
        (None, "model", "training starts from the weights; its EMA is available with --ema"),
        ("raw", "model", "training starts from the weights; its EMA is available with --ema"),
        ("ema", "ema", "training starts from the EMA; its weights are available with --raw"),
    ],
)
def test_a_run_stands_for_the_weights_or_the_ema_of_its_newest_checkpoint(
    kind: str | None, part: str, said: str, source: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    config = digits(system__init_from=str(source.path), **({"recipe__init_weights": kind} if kind else {}))
    assert config.recipe.init_digest == sha(newest(source))
    network = build_model(config.ours)
    initialize_from(network, config)
    there = engine_of(source)
    assert all(torch.equal(value, there[part][name]) for name, value in network.state_dict().items())
    assert any(not torch.equal(there["model"][name], there["ema"][name]) for name in there["model"])
    assert caplog.messages == [f"{source.path}: {said}"]


def test_a_run_without_checkpoint_is_no_source(source: RunDir, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(source.path, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoint")))
    with pytest.raises(ConfigError, match=rf"^{bare} has no checkpoint; train it first$"):
        digits(system__init_from=str(bare))


@pytest.mark.parametrize(("kind", "taken"), [("raw", "model"), ("ema", "ema")])
def test_a_training_starts_from_another_runs_weights(
    kind: str, taken: str, source: RunDir, tmp_path: Path
) -> None:
    still = {"recipe__layer_decay": 0.7, "recipe__lr": 1e-12, "recipe__min_lr": 0.0, "recipe__ema": 0.5}
    config = digits(system__init_from=str(source.path), recipe__init_weights=kind, **still)
    run = prepare(tmp_path, config)
    assert train(config, run.path).status == "done"
    there, here = engine_of(source)[taken], engine_of(run)
    for part in ("model", "ema"):  # the EMA starts from them, too
        assert all(
            torch.allclose(here[part][name], value, rtol=0, atol=1e-7) for name, value in there.items()
        )
    scales = {group["lr_scale"] for group in here["optimizer"]["param_groups"]}
    assert scales == {0.7**below for below in range(6)}


def test_a_resumed_run_does_not_need_the_initial_weights_again(source: RunDir, tmp_path: Path) -> None:
    shutil.copy(newest(source), tmp_path / "w.pth")
    config = digits(system__init_from=str(tmp_path / "w.pth"), recipe__warmup_epochs=0.1)
    runs = [prepare(tmp_path / name, config) for name in ("whole", "stopped")]
    assert train(config, runs[0].path).status == "done"
    stop = StopSignals()
    with pytest.raises(Stopped):
        train(config, runs[1].path, stop=stop, callback=StopAt(stop, 7))
    (tmp_path / "w.pth").unlink()
    assert train(config, runs[1].path).status == "done"
    whole, stopped = (engine_of(run)["model"] for run in runs)
    assert all(torch.equal(whole[name], value) for name, value in stopped.items())


# The command lines.

SET = [f"--set={key}={json.dumps(value)}" for key, value in DIGITS.items()]
LINE = ["separate_downsampling", "--profile", "digits", *SET]
WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as done:
    print("torch" in sys.modules, done.code)
"""


def command(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", WITHOUT_TORCH, str(ROOT / words[0]), *map(str, words[1:])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def run_of(out: str) -> str:
    found = re.search(r"^run +(\S+)$", out, re.MULTILINE)
    assert found, out
    return found[1]


def test_a_plan_with_weights_names_the_run_without_torch(source: RunDir, tmp_path: Path) -> None:
    shutil.copy(newest(source), tmp_path / "w.pth")
    by_option = command("run_step.py", *LINE, "--init-from", "w.pth", "--plan", cwd=tmp_path)
    by_set = command("run_step.py", *LINE, "--set", "system.init_from=w.pth", "--plan", cwd=tmp_path)
    by_run = command("run_step.py", *LINE, "--init-from", source.path, "--plan", cwd=tmp_path)
    plain = command("run_step.py", *LINE, "--plan", cwd=tmp_path)
    for done in (by_option, by_set, by_run, plain):
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "False 0"
    assert run_of(by_option.stdout) == run_of(by_set.stdout) == run_of(by_run.stdout)
    assert run_of(by_option.stdout) != run_of(plain.stdout)
    assert run_of(by_option.stdout).endswith(
        f"seed0-{digits(system__init_from=str(tmp_path / 'w.pth')).hash}"
    )
    by_raw, by_ema = (
        command("run_step.py", *LINE, "--init-from", "w.pth", kind, "--plan", cwd=tmp_path)
        for kind in ("--raw", "--ema")
    )
    assert run_of(by_raw.stdout) == run_of(by_option.stdout)  # and of runs made before there was the choice
    assert run_of(by_ema.stdout).endswith(
        f"-{digits(system__init_from=str(tmp_path / 'w.pth'), recipe__init_weights='ema').hash}"
    )
    assert run_of(by_ema.stdout) != run_of(by_raw.stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--init-from", "none.pth"], r"none\.pth cannot be read: No such file or directory"),
        (["--init-from", "none.pth", "--plan"], r"none\.pth cannot be read: No such file or directory"),
        (["--init-from", "ftp://x/y.pth"], r"ftp://x/y\.pth cannot be read: its scheme 'ftp'"),
        (
            ["--init-from", "w.pth", "--set=system.init_from=w.pth"],
            "--init-from and --set system.init_from are both given",
        ),
        (
            ["--init-from", "w.pth", "--set=recipe.init_digest=0123456789abcdef"],
            "digest 7692c3ad3540bb80, .* wants 0123456789abcdef",
        ),
        (
            ["--init-from", "w.pth", "--ema", "--set=recipe.init_weights=raw"],
            "^--ema and --set recipe.init_weights are both given",
        ),
        (["--ema"], "^--ema chooses between the weights of --init-from, which is not given$"),
        (["--raw", "--plan"], "^--raw chooses between the weights of --init-from, which is not given$"),
        (
            ["--set=recipe.init_weights=ema"],
            "recipe.init_weights is ema, and there are no weights to start from; --init-from FILE",
        ),
        (["--set=recipe.init_digest=xyz"], "recipe.init_digest: string should match pattern"),
        (["--set=recipe.layer_decay=0.5"], r"recipe\.layer_decay is 0\.5, which is for trained weights"),
    ],
)
def test_a_start_that_cannot_be_is_one_line_and_leaves_nothing_behind(
    words: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "w.pth").write_bytes(b"one")
    done = command("run_step.py", *LINE, *words, cwd=tmp_path)
    assert done.stdout == "False 2\n"
    assert len(done.stderr.splitlines()) == 1
    assert re.search(said, done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_a_submission_plans_runs_that_start_from_weights(
    source: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(newest(source), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    words = ["--steps", *LINE, "--init-from", "w.pth", "--seeds", "2"]
    arguments = parser().parse_args(words)
    steps = plan(select(arguments), arguments, Cluster(scheduler="local"))
    configs = with_seeds(steps, dict.fromkeys(LINE, 2))
    assert {config.hash for config in configs} == {digits(system__init_from=str(tmp_path / "w.pth")).hash}
    monkeypatch.chdir("/")  # a worker may be anywhere
    assert [(config.seed, config.system.init_from) for config in configs] == [
        (seed, str(tmp_path / "w.pth")) for seed in (0, 1)
    ]
    for config in configs:
        check_init(config)
