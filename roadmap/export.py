"""Our networks as timm's models: which ones they are, and a run's weights as a file that timm loads."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from blocks.spec import ModelSpec
from roadmap.config import RunConfig, TimmSpec
from roadmap.errors import ConfigError, Problem, config_error, relative
from roadmap.files import write_atomic, write_errors
from roadmap.networks import timm_arguments
from roadmap.records import RunDir
from roadmap.strict_yaml import parse_yaml, show
from roadmap.training.checkpoint import Checkpoints
from roadmap.weight_files import class_map_beside, to_class_map
from roadmap.weights import DIALECTS

# The values that timm's architectures fix, or the alternatives that they have; others may vary.
TIMM = {
    "ResNet": (
        """
stem: {kind: resnet, stride: 4, norm: true}
block:
  {order: [pw1, spatial, pw2], hidden: 1, out: 4, spatial: {kind: conv, kernel: 3},
   gate: false, grn: false, squeeze_excite: null, layer_scale: null}
block.norm: {kind: bn, after: [pw1, spatial, pw2]}
block.act.after: [pw1, spatial, sum]
downsample: block
head_norm: false
"""
    ),
    "ConvNeXt": (
        """
stem: {kind: [patchify, overlapping], stride: 4, norm: true}
block:
  {order: [spatial, pw1, pw2], hidden: 4, out: 1, spatial.kind: depthwise, gate: false, squeeze_excite: null}
block.norm: {kind: [ln, rms], after: [spatial]}
block.act.after: [pw1]
downsample: separate
downsample_norm: true
head_norm: true
"""
    ),
}
RESNETS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
    (3, 24, 36, 3): "resnet200",
}
CONVNEXTS: dict[tuple[tuple[int, ...], int], str] = {
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
    ((3, 3, 27, 3), 256): "convnext_xlarge",
}
CONVNEXTS_V2: dict[tuple[tuple[int, ...], int], str] = {
    ((3, 3, 9, 3), 96): "convnextv2_tiny",
    ((3, 3, 27, 3), 96): "convnextv2_small",
    ((3, 3, 27, 3), 128): "convnextv2_base",
    ((3, 3, 27, 3), 192): "convnextv2_large",
    ((3, 3, 27, 3), 352): "convnextv2_huge",
}


def _differences(spec: ModelSpec, architecture: str) -> Iterator[Problem]:
    """Why `spec` is not an architecture of timm."""
    for path, node in parse_yaml(TIMM[architecture], architecture).flatten():
        here, there = attrgetter(path)(spec), node.plain()
        if path.endswith("after"):
            same = set(here) == set(there)
        else:
            same = here == there or (isinstance(here, str) and here in there)
        if not same:
            has = " or ".join(there) if isinstance(here, str) and not isinstance(there, str) else show(there)
            yield Problem(f"model.{path}", f"is {show(here)}; timm's {architecture} has {has}")
    if len(spec.depths) != 4:
        yield Problem("model.depths", f"is {show(spec.depths)}; timm's {architecture} has four stages")
    if architecture == "ResNet" and spec.stage_width(0) != 64:
        yield Problem("model.width", f"x width_mult is {spec.stage_width(0)}; timm's ResNet has 64")


def _architecture(spec: ModelSpec) -> str:
    """The architecture of timm that `spec` is; ConfigError lists the differences to the nearest one."""
    problems = {name: list(_differences(spec, name)) for name in TIMM}
    nearest = min(problems, key=lambda name: len(problems[name]))
    if problems[nearest]:
        raise ConfigError(problems[nearest])
    return nearest


def timm_model(spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """The name and keyword arguments with which `timm.create_model` builds this network, without stochastic
    depth.

    ConfigError lists the values for which timm has no such network.
    """
    depths, block = spec.depths, spec.block
    wanted: dict[str, Any] = {
        "in_chans": spec.in_chans,
        "num_classes": spec.num_classes,
        "act_layer": block.act.kind,
    }
    usual: dict[str, Any] = {"in_chans": 3, "num_classes": 1000}
    if _architecture(spec) == "ResNet":
        name, other, size = RESNETS.get(depths), "resnet50", {"layers": depths}
        usual |= {"act_layer": "relu"}
    else:
        # create_model drops a None, but the second version has no layer scale anyway
        second = block.layer_scale is None
        names, other = (CONVNEXTS_V2, "convnextv2_tiny") if second else (CONVNEXTS, "convnext_tiny")
        name = names.get((depths, spec.stage_width(0)))
        size = {"depths": depths, "dims": tuple(spec.stage_width(stage) for stage in range(4))}
        wanted |= {
            "kernel_sizes": block.spatial.kernel,
            "ls_init_value": block.layer_scale,
            "use_grn": block.grn,
            "norm_layer": {"ln": None, "rms": "rmsnorm2d"}[block.norm.kind],
            "stem_type": {"patchify": "patch", "overlapping": "overlap"}[spec.stem.kind],
        }
        usual |= {"act_layer": "gelu", "kernel_sizes": 7, "norm_layer": None, "stem_type": "patch"}
        usual |= {"ls_init_value": None if second else 1e-6, "use_grn": second}
    kwargs = {key: value for key, value in wanted.items() if value != usual[key]}
    return (name, kwargs) if name else (other, size | kwargs)


def loadable(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """The name and keyword arguments with which `timm.create_model` builds a configuration's network, as
    `timm_model` for one of ours.
    """
    if not isinstance(config.model, TimmSpec):
        return timm_model(config.model)
    kwargs = timm_arguments(config)
    kwargs.pop("drop_path_rate", None)  # it is for training
    return config.model.timm, kwargs


def to_timm(spec: ModelSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `timm_model(spec)` with our tensors; ConfigError as there."""
    is_convnext = _architecture(spec) == "ConvNeXt"
    convnext = "timm_convnext" if spec.stem.kind == "patchify" else "timm_convnext_ols"
    dialect = DIALECTS[convnext if is_convnext else "timm_resnet"]
    # the 1x1 convolutions of timm's ConvNeXt are linear layers
    flat = {name: is_convnext and re.search(r"\.body\.pw\d\.weight$", name) for name in state}
    return {dialect.rename(name): value.flatten(1) if flat[name] else value for name, value in state.items()}


def export(run_dir: Path, out: Path, *, ema: bool = False, names: Literal["timm", "ours"] = "timm") -> str:
    """Writes the weights of a run's newest intact checkpoint, or their EMA; returns how to load `out`.

    A class map beside `out` names the classes, if the checkpoint does. ConfigError if there is no checkpoint,
    no EMA, no such network in timm, or `out` cannot be written or ends in none of .safetensors, .pth and .pt.
    """
    run = RunDir(run_dir)
    if out.suffix not in (".safetensors", ".pth", ".pt"):
        raise config_error(relative(out), "must end in .safetensors, .pth or .pt")
    if not out.parent.is_dir():
        raise config_error(relative(out), "cannot be written: its folder does not exist")
    if not run.config.is_file():
        raise config_error(
            relative(run.path),
            "is not a run's folder, such as runs/convnext_t/imagenet/gelu/seed0-0123abcd: no config.yaml",
        )
    config = RunConfig.read(run.config)
    is_reference = isinstance(config.model, TimmSpec)
    if is_reference and names == "ours":
        raise config_error("--names", f"ours is for our networks; {config.step} has timm's names")
    try:
        model, kwargs = loadable(config) if names == "timm" else ("", {})
    except ConfigError as error:
        hint = Problem("--names", "ours writes the weights under this project's names, without timm's")
        raise ConfigError([*error.problems, hint]) from error
    checkpoint = Checkpoints(run.checkpoints).newest()
    if checkpoint is None:
        raise config_error(relative(run.path), "has no intact checkpoint; train it first")
    engine = checkpoint["engine"]
    state = engine["ema" if ema else "model"]
    if state is None:
        raise config_error(relative(run.path), "has no EMA of its weights: its recipe.ema is null")
    renamed = to_timm(config.ours, state) if model and not is_reference else state
    state = {name: value.contiguous() for name, value in renamed.items()}
    classes: list[str] | None = checkpoint.get("data", {}).get("classes")
    with write_errors(out):
        write_atomic(out, _safetensors(state, classes) if out.suffix == ".safetensors" else _pickled(state))
    arguments = ", ".join(
        [repr(model), *(f"{key}={value!r}" for key, value in kwargs.items()), f"checkpoint_path={str(out)!r}"]
    )
    loader = (
        f"timm.create_model({arguments})" if model else f"roadmap.weights.load_weights(network, {str(out)!r})"
    )
    other = (
        ""
        if engine["ema"] is None
        else "; its weights are available with --raw"
        if ema
        else "; its EMA is available with --ema"
    )
    held = (
        f"{relative(out)} holds the {'EMA' if ema else 'weights'} of iteration {engine['iteration']}{other}"
    )
    return f"{held}; {loader} loads it; {_write_classes(out, classes)}"


def _write_classes(out: Path, classes: list[str] | None) -> str:
    """Writes the class map of the weights in `out`, and returns a sentence about it."""
    if classes is None:
        return "it has no class map, because the checkpoint does not name the classes"
    path, text = class_map_beside(out), to_class_map(classes)
    if text is None:
        return "it has no class map, because a name of its classes is not one line of text"
    with write_errors(path):
        write_atomic(path, text)
    return (
        f"{relative(path)} names its {len(classes)} classes in the order of its outputs, for timm's"
        " --class-map and for --init-from"
    )


def _safetensors(state: dict[str, Tensor], classes: list[str] | None) -> bytes:
    return safetensors.torch.save(
        state, metadata={"classes": json.dumps(classes), "format": "pt"} if classes else None
    )


def _pickled(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
