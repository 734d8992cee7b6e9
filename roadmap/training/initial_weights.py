"""Training that starts from weights: their identity, whether they are there, and what the
network takes of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from roadmap.config import RunConfig
from roadmap.errors import config_error
from roadmap.weight_files import (
    OTHER_ORDER,
    UNKNOWN_ORDER,
    digest_of,
    is_ambiguous,
    name_of,
    outputs_of,
    some,
)

if TYPE_CHECKING:
    from torch import nn


logger = logging.getLogger(__name__)


def with_init_digest(config: RunConfig) -> RunConfig:
    """`config` with the digest of the weights that it starts from, computed where it is not given."""
    if config.system.init_from is None or config.recipe.init_digest is not None:
        return config
    recipe = config.recipe.model_copy(update={"init_digest": digest_of(config.system.init_from)})
    return config.model_copy(update={"recipe": recipe})


def check_init(config: RunConfig) -> None:
    """ConfigError unless the weights to start from are those that the recipe names, and there are some
    where it needs them.
    """
    recipe, source = config.recipe, config.system.init_from
    if source is not None:
        there = digest_of(source)
        if recipe.init_digest is None:
            raise config_error(
                "recipe.init_digest",
                f"is not set, and system.init_from is; --init-from sets both, to {there}",
            )
        if there != recipe.init_digest:
            message = (
                f"has the digest {there}, and recipe.init_digest wants {recipe.init_digest}: these are other"
                " weights"
            )
            raise config_error(
                name_of(source), f"{message}; --init-from takes them all the same, as another run"
            )
    elif recipe.init_digest is not None:
        raise config_error(
            "recipe.init_digest",
            f"names the weights {recipe.init_digest}; --set system.init_from=FILE names their file",
        )
    elif recipe.init_weights == "ema":
        message = (
            "is ema, and there are no weights to start from; --init-from FILE gives some, or --raw does"
            " without"
        )
        raise config_error(f"{config.step}: recipe.init_weights", message)
    elif recipe.layer_decay < 1:
        message = f"is {recipe.layer_decay:g}, which is for trained weights, and there are none to start from"
        fix = "--init-from FILE gives some, or --set recipe.layer_decay=1 does without"
        raise config_error(f"{config.step}: recipe.layer_decay", f"{message}; {fix}")


def initialize_from(network: nn.Module, config: RunConfig, classes: Sequence[str] | None = None) -> None:
    """Initializes a fresh network for training: scales its classifier, and loads the weights of
    `system.init_from` if there are any.

    A classifier stays fresh where there is none to load, or one for another number of classes; one that is
    loaded is matched by name to `classes`, the data's in the order of their labels, if both are known.
    ConfigError as in `check_init`, and if anything else does not fit.
    """
    check_init(config)
    from roadmap.networks import classifier_of

    classifier, source = classifier_of(network), config.system.init_from
    scale = config.recipe.head_init_scale
    if scale != 1:
        for parameter in classifier.parameters():
            parameter.data.mul_(scale)
    if source is None:
        return
    from roadmap.weights import TAKEN, copy_weights, read_weights, select

    weights, kind = read_weights(source), config.recipe.init_weights
    own = set(classifier.parameters())
    may_differ = [name for name, parameter in network.named_parameters() if parameter in own]
    report = copy_weights(
        network, select(weights.states, kind, name_of(source)), name_of(source), may_differ=may_differ
    )
    if len(weights.states) > 1:
        logger.warning("%s: training starts from %s", report.source, TAKEN[kind])
    if report.missing or report.misshaped:
        there = f"has {report.misshaped[0][1][0]}" if report.misshaped else "has no classifier"
        logger.warning(
            "the classifier starts fresh, for %d classes: %s %s",
            config.model.num_classes,
            report.source,
            there,
        )
    else:
        _match_classifier(classifier, weights.classes, classes, report.source)


def _match_classifier(
    classifier: nn.Module, there: Sequence[str] | None, here: Sequence[str] | None, source: str
) -> None:
    """Puts the outputs of a classifier for the classes `there` in the order of those `here`, where they
    are the same ones.
    """
    if here is None or here == there:
        return
    if there is None:
        if is_ambiguous(here):
            logger.warning(UNKNOWN_ORDER, source, some(here))
    elif set(there) == set(here):
        logger.warning(OTHER_ORDER, source, some(there), some(here))
        outputs = outputs_of(here, there, source)
        for parameter in classifier.parameters():
            parameter.data.copy_(parameter.data[outputs])
    else:
        logger.warning(
            "the classifier starts from that of other classes: %s has %s, the data %s",
            source,
            some(there),
            some(here),
        )
