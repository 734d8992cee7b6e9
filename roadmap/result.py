"""The outcome of a run, as its result.json holds it."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import ConfigDict, ValidationError

from blocks.spec import Spec
from roadmap.errors import ConfigError, Problem

FORMAT = 1


class Result(Spec):
    """The outcome of a finished run: accuracies are percent, of the last epoch, never the best on the
    validation set.

    A diverged run has no accuracy, and its `epochs` are those completed. Each of `processes` took
    `accumulation` times `micro_batch` images an iteration, and left `corrupt_images` out. `images_per_s` is
    the training loop's, evaluation apart; `train_seconds` adds up over attempts.
    """

    model_config = ConfigDict(extra="ignore")

    format: Literal[1]  # FORMAT
    status: Literal["done", "diverged"]
    roadmap: str
    step: str
    profile: str | None
    seed: int
    hash: str
    top1: float | None
    top5: float | None
    val_loss: float | None
    train_loss: float | None
    ema_top1: float | None
    epochs: int
    iterations: int
    global_batch: int
    processes: int = 1
    micro_batch: int | None = None
    accumulation: int = 1
    corrupt_images: int = 0
    dataset: str
    image_size: int
    params: int
    macs: int
    images_per_s: float
    train_seconds: float
    peak_memory_mb: float | None
    hardware: str
    versions: dict[str, str]
    commit: str | None
    attempts: int
    finished: str


class DamagedResult(ValueError):
    """A result.json that does not hold a result; the run counts as unfinished."""


class NewerResult(ConfigError):
    """A result.json that a later version has written: the run is finished, and must not be trained again over
    its result.
    """


def parse_result(name: str, content: bytes) -> Result:
    """The result in the file `name`; DamagedResult if it is empty, torn or incomplete, NewerResult if a later
    version wrote it.
    """
    try:
        return Result.model_validate_json(content)
    except ValidationError as error:
        raise _refusal(name, content, error) from error


def _refusal(name: str, content: bytes, error: ValidationError) -> DamagedResult | NewerResult:
    """What is wrong with a result.json, in a few words."""
    wrong = [str(item["loc"][0]) for item in error.errors() if item["loc"]]
    if not wrong:
        return DamagedResult(f"{name} is damaged: it is not JSON" if content.strip() else f"{name} is empty")
    if "format" not in wrong:
        return DamagedResult(f"{name} is damaged: {', '.join(wrong)}")
    version = json.loads(content).get("format")
    if not isinstance(version, int) or version <= FORMAT:
        return DamagedResult(f"{name} is damaged: its format is unknown to this version ({FORMAT})")
    message = (
        f"was written by a later version (format {version}, this one reads {FORMAT}); update this code to"
        " collect it"
    )
    return NewerResult([Problem(name, message)])
