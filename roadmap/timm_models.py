"""Every step as a timm model: once this is imported, timm.create_model('roadmap_gelu') builds step gelu.

Other keywords are timm's, or keys of the configuration's model section: width_mult=0.5,
depths=[2, 2, 6, 2], block={'layer_scale': None}. The rest is the step's, including its stochastic depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from blocks.model import Network, build_model
from blocks.spec import ModelSpec
from roadmap import STEPS_YAML
from roadmap.config import RunConfig, flatten
from roadmap.errors import ConfigError, Problem, keyed_message, one_of_these
from roadmap.steps import load_roadmaps, resolve

UNPREFIXED = "convnext_t"  # the roadmap that is not part of its steps' names in timm
TIMMS_OWN = ("global_pool", "drop_rate", "drop_path_rate", "features_only", "out_indices", "feature_cls")

# timm reads each model's input size, mean, crop and the like from this name
default_cfgs: dict[str, Any] = {}
registered: dict[str, RunConfig] = {}


def model_name(roadmap: str, step: str) -> str:
    """timm's name for a step: roadmap_gelu to ConvNeXt-T, roadmap_convnext_b_gelu in roadmap convnext_b."""
    return f"roadmap_{step}" if roadmap == UNPREFIXED else f"roadmap_{roadmap}_{step}"


def register(path: str | Path = STEPS_YAML) -> tuple[str, ...]:
    """Registers all steps of a steps file as timm models and returns their names; ConfigError as in
    `load_roadmap`.

    A name that is registered for another network is replaced, with a warning from timm.
    """
    named = [
        (model_name(roadmap.name, step), resolve(roadmap, step))
        for roadmap in load_roadmaps(path).values()
        for step in roadmap.steps
    ]
    configs = dict(named)
    if twice := [name for name, config in named if configs[name] is not config]:
        raise ConfigError(
            [Problem(str(path), f"two steps have timm's name {name}; rename one of them") for name in twice]
        )
    for name, config in configs.items():
        if registered.get(name) != config:
            registered[name] = config
            default_cfgs.update(generate_default_cfgs({name: _default_cfg(config)}))
            # timm adds the name to this module's __all__
            globals()[name] = register_model(_entrypoint(name, config.ours))
    return tuple(configs)


def _default_cfg(config: RunConfig) -> dict[str, Any]:
    """timm's configuration of a model, without an address, because no weights are published."""
    model, data, recipe = config.ours, config.data, config.recipe
    positions = data.image_size // (model.stem.stride << len(model.depths) - 1)
    return {
        "input_size": (model.in_chans, data.image_size, data.image_size),
        "pool_size": (positions, positions),
        "num_classes": model.num_classes,
        "crop_pct": recipe.eval_crop_pct,
        "interpolation": recipe.eval_interpolation,
        "mean": data.mean,
        "std": data.std,
        "first_conv": "stem.conv",
        "classifier": "head.classifier",
    }


def _entrypoint(name: str, spec: ModelSpec) -> Callable[..., nn.Module]:
    """The function by which timm creates the model `name`."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        depths = kwargs.get("depths")
        stages = len(depths if isinstance(depths, Sequence) else spec.depths)
        features = {"out_indices": tuple(range(stages)), "flatten_sequential": True}
        model: nn.Module = build_model_with_cfg(
            partial(_build, name, spec), name, pretrained, feature_cfg=features, **kwargs
        )
        return model

    create.__name__ = name
    return create


def _build(
    name: str,
    spec: ModelSpec,
    *,
    num_classes: int,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    **values: Any,
) -> Network:
    """The network of `spec` with other `values`; as in timm, one with 0 classes has no classifier."""
    if "drop_path_rate" in values:
        values["drop_path"] = values.pop("drop_path_rate")
    network = build_model(changed_spec(name, spec, {**values, "num_classes": num_classes or 1}), drop_rate)
    if num_classes == 0 or global_pool != "avg":
        network.reset_classifier(num_classes, global_pool)
    return network


def changed_spec(name: str, spec: ModelSpec, values: Mapping[str, Any]) -> ModelSpec:
    """`spec` with other `values`; ConfigError names all that are unknown or invalid."""
    try:
        return ModelSpec.model_validate(_merge(spec.model_dump(), values))
    except ValidationError as error:
        known = [*flatten(spec.model_dump()), *TIMMS_OWN]
        raise ConfigError([_problem(name, item, known) for item in error.errors()]) from error


def _merge(section: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`section` with other values; {'stem.stride': 2} is the same as {'stem': {'stride': 2}}."""
    for path, value in values.items():
        key, dot, rest = path.partition(".")
        within, value = section.get(key), {rest: value} if dot else value
        if isinstance(within, dict) and isinstance(value, Mapping):
            section[key] = _merge(within, value)
        else:
            section[key] = tuple(value) if isinstance(value, list) else value
    return section


def _problem(name: str, error: Any, known: Iterable[str]) -> Problem:
    message = keyed_message(error)
    if error["type"] == "extra_forbidden":
        path = ".".join(map(str, error["loc"]))
        message = f"unknown keyword '{path}'{one_of_these(path, known)}"
    return Problem(f"create_model('{name}'):", message)


register()
